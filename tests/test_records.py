"""Records: what is accepted, and for each fault an error that names it."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from vtscale_jax.records import JSONLSource, RecordError, parse_record, read_jsonl
from vtscale_jax.types import Record, Turn


def messages(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def sample(**changes):
    return {
        "image": "coco/1.jpg",
        "messages": messages("What colour?", "Red"),
    } | changes


def changed(index, **changes):
    """A sample of four messages, one of which is changed."""
    texts = messages("What colour?", "Red", "How many?", "Two")
    texts[index] |= changes
    return sample(messages=texts)


def lines(path, *raws):
    text = [raw if isinstance(raw, str) else json.dumps(raw) for raw in raws]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def long_sample(chars, **changes):
    return sample(messages=messages("q" * (chars - 5), "a" * 5)) | changes


# What is accepted


def test_record():
    record = parse_record(sample(), record_id="f:1")
    assert record == Record("f:1", "coco/1.jpg", (Turn("What colour?", "Red"),))


def test_several_turns_and_families():
    texts = messages("q1", "a1", "q2", "a2", "q3", "a3")
    texts[0]["family"] = "read"
    texts[3]["family"] = "count"
    texts[4]["family"] = texts[5]["family"] = "exists"
    record = parse_record(sample(messages=texts), record_id="x")
    assert record.turns == (
        Turn("q1", "a1", "read"),
        Turn("q2", "a2", "count"),
        Turn("q3", "a3", "exists"),
    )


def test_own_id_and_system():
    raw = sample(id="vg-7", system="Be brief.")
    record = parse_record(raw, record_id="f:1")
    assert (record.id, record.system) == ("vg-7", "Be brief.")
    assert parse_record(sample(), record_id="f:1").system is None


@pytest.mark.parametrize("image", [None, "none", "None", "NONE"])
def test_no_image(image):
    raw = sample(image=image)
    assert parse_record(raw, record_id="x", image_root="/data").image is None
    with pytest.raises(RecordError, match=r"'x', image: got none; expected an image"):
        parse_record(raw, record_id="x", require_image=True)


def test_image_root_and_pixels():
    record = parse_record(sample(), record_id="x", image_root="/data/images")
    assert record.image == "/data/images/coco/1.jpg"
    pixels = np.zeros((4, 5, 3), np.uint8)
    assert parse_record(sample(image=pixels), record_id="x").image is pixels


def test_open_question_only_without_require_answer():
    raw = sample(messages=messages("q1", "a1", "q2"))
    record = parse_record(raw, record_id="x", require_answer=False)
    assert record.turns == (Turn("q1", "a1"), Turn("q2", ""))
    with pytest.raises(RecordError, match=r"messages: got 3 messages.*even number"):
        parse_record(raw, record_id="x")
    raw = sample(messages=messages("q1", "a1"))
    assert parse_record(raw, record_id="x", require_answer=False).turns == (
        Turn("q1", "a1"),
    )


# Faults: each error names record, field, what was got and what is expected

FAULTS = {
    "no object": (["a"], r": got list \['a'\]; expected an object"),
    "no messages": ({"image": None}, r': got no "messages".*Add "messages"'),
    "no image key": ({"messages": []}, r'got no "image".*"image": null'),
    "unknown key": (sample(imgae=""), r'unknown "imgae"; expected only.*"system"'),
    "id": (sample(id=7), "id: got int 7; expected a string"),
    "empty id": (sample(id=""), "id: got .*expected a name"),
    "system": (sample(system=None), "system: got NoneType None; expected a string"),
    "image type": (sample(image=3), "image: got int 3; expected a path"),
    "image empty": (sample(image=" "), "image: got ' '; expected a path"),
    "images": (
        sample(image=["a.jpg", "b.jpg"]),
        "image: got a list of 2; expected one image. Join them",
    ),
    "image pixels": (
        sample(image=np.zeros((3, 4, 5), np.float32)),
        r"image: got float32 pixels of shape \(3, 4, 5\); expected uint8 RGB",
    ),
    "messages type": (sample(messages="Hi"), "messages: got 'Hi'; expected a list"),
    "messages empty": (sample(messages=[]), "messages: got none; expected at least"),
    "message type": (sample(messages=["Hi"]), r"messages\[0\]: got 'Hi'; expected an"),
    "message keys": (
        sample(messages=[{"role": "user"}]),
        r'messages\[0\]: got no "content"; its keys are "role"',
    ),
    "message unknown": (changed(2, name="Bo"), r'messages\[2\]: got unknown "name"'),
    "role unknown": (changed(0, role="system"), r"messages\[0\].role: .*system prompt"),
    "role type": (changed(3, role=["user"]), r"messages\[3\].role: got list"),
    "role order": (
        changed(3, role="user"),
        r"""messages\[3\].role: got 'user'; expected "assistant".*alternate""",
    ),
    "answer first": (
        changed(0, role="assistant"),
        r"""messages\[0\].role: got 'assistant'; expected "user".*starting from""",
    ),
    "content type": (changed(1, content=5), r"messages\[1\].content: got int 5"),
    "several texts": (
        changed(2, content=["a", "b"]),
        r"messages\[2\].content: got a list of 2 parts; expected one string",
    ),
    "empty question": (
        changed(2, content=""),
        r"messages\[2\].content: got ''; expected a question",
    ),
    "blank answer": (
        changed(3, content=" \n"),
        r"messages\[3\].content: got ' \\n'; expected an answer",
    ),
    "odd": (sample(messages=messages("q", "a", "q")), "messages: got 3 messages"),
    "family type": (changed(2, family=1), r"messages\[2\].family: got int 1"),
    "two families": (
        sample(
            messages=[
                {"role": "user", "content": "q", "family": "read"},
                {"role": "assistant", "content": "a", "family": "count"},
            ]
        ),
        r"messages\[1\].family: got 'count'; expected 'read'",
    ),
    "surrogate": (
        changed(1, content="Red \ud83d"),
        r"messages\[1\].content: got broken Unicode",
    ),
}


@pytest.mark.parametrize("raw,message", FAULTS.values(), ids=FAULTS)
def test_faults(raw, message):
    with pytest.raises(RecordError, match=f"(?s)^record 'data:9'.*{message}") as caught:
        parse_record(raw, record_id="data:9")
    got, _, remedy = str(caught.value).partition("; expected ")
    assert ": got " in got and ". " in remedy and len(str(caught.value)) < 400


@pytest.mark.parametrize("image", ["/etc/1.jpg", "../1.jpg", "a/../../1.jpg"])
def test_image_outside_root(image):
    raw = sample(image=image)
    with pytest.raises(RecordError, match="expected a path below image_root '/data'"):
        parse_record(raw, record_id="x", image_root="/data")
    assert parse_record(raw, record_id="x").image == image


def test_long_values_are_cut_in_errors():
    with pytest.raises(RecordError) as caught:
        parse_record(changed(0, role="x" * 10_000), record_id="x")
    assert len(str(caught.value)) < 400


# Files


def test_read_jsonl(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"a": 1}, "", [2], '"\\u2028"')
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (3, [2]), (4, "\u2028")]


@pytest.mark.parametrize(
    "bad", [b'{"image": ', b"{} {}", b"\xff", b"[" * 100_000, b"\xef\xbb\xbf{}"]
)
def test_malformed_line_names_file_and_line(tmp_path, bad):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n" + bad + b"\n")
    with pytest.raises(RecordError, match=r"a\.jsonl:2: got .*expected one JSON"):
        list(read_jsonl(path))
    path.write_bytes(json.dumps(long_sample(40)).encode() + b"\n" + bad)
    with pytest.raises(RecordError, match=r"a\.jsonl:2: got .*expected one JSON"):
        JSONLSource(path)


def test_missing_file(tmp_path):
    with pytest.raises(RecordError, match=r"gone\.jsonl: no such file"):
        JSONLSource(tmp_path / "gone.jsonl")
    with pytest.raises(RecordError, match=r"gone\.jsonl: no such file"):
        list(read_jsonl(tmp_path / "gone.jsonl"))


def test_source(tmp_path):
    raws = [long_sample(30), long_sample(24), long_sample(40, image=None)]
    path = lines(tmp_path / "a.jsonl", raws[0], "", raws[1], raws[2])
    source = JSONLSource(path, image_root="/data")
    assert len(source) == 2 and source.rejected == {"fewer than 25 characters": 1}
    assert [record.id for record in source] == ["a.jsonl:1", "a.jsonl:4"]
    assert source[0].image == "/data/coco/1.jpg" and source[1].image is None
    assert source[-1] == source[1] != source[0]
    with pytest.raises(IndexError):
        source[2]
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert [copy[i] for i in (1, 0)] == [source[1], source[0]]
    assert "2 records" in repr(source) and "fewer than 25" in repr(source)


def test_the_longest_records_and_the_fingerprint(tmp_path):
    talk = sample(messages=messages(*["word " * 4] * 8))
    raws = [long_sample(40), long_sample(24), long_sample(900), long_sample(50), talk]
    source = JSONLSource(lines(tmp_path / "a.jsonl", *raws))
    assert len(source) == 4  # the second is too short
    assert source.longest(1) == [1, 3]  # most characters, most messages
    assert source.longest(99) == [0, 1, 2, 3]
    same = JSONLSource(lines(tmp_path / "b.jsonl", *raws))
    assert same.fingerprint == source.fingerprint
    other = JSONLSource(lines(tmp_path / "c.jsonl", long_sample(41), *raws[1:]))
    assert other.fingerprint != source.fingerprint


@pytest.mark.parametrize(
    "chars,reason",
    [
        (24, "fewer than 25 characters"),
        (25, None),
        (5000, None),
        (5001, "more than 5000 characters"),
    ],
)
def test_length_filter_includes_its_ends(tmp_path, chars, reason):
    # The system prompt does not count; a character beyond ASCII counts as one.
    raw = long_sample(chars, system="s" * 100)
    raw["messages"][0]["content"] = "é" * (chars - 5)
    source = JSONLSource(lines(tmp_path / "a.jsonl", raw))
    assert len(source) == (reason is None)
    assert source.rejected == ({reason: 1} if reason else {})


def test_every_rejection_is_counted(tmp_path):
    single = sample(messages=messages("q" * 100))
    empty = sample(messages=[])
    text_only = long_sample(60, image="none")
    raws = [single, empty, text_only, long_sample(9), long_sample(70), long_sample(50)]
    path = lines(tmp_path / "a.jsonl", *raws)
    source = JSONLSource(path, require_image=True, min_chars=10, max_chars=60)
    assert source.rejected == {
        "fewer than 2 messages": 2,
        "no image": 1,
        "fewer than 10 characters": 1,
        "more than 60 characters": 1,
    }
    assert len(source) + source.rejected.total() == len(raws)
    assert len(JSONLSource(path, min_chars=10, max_chars=60)) == 2


def test_invalid_row_stops_loading(tmp_path):
    odd = sample(messages=messages("q" * 30, "a", "q"))
    path = lines(tmp_path / "a.jsonl", long_sample(40), odd)
    with pytest.raises(RecordError, match=r"'a\.jsonl:2', messages: got 3 messages"):
        JSONLSource(path)


def test_changed_file_is_noticed(tmp_path):
    path = lines(tmp_path / "a.jsonl", long_sample(30), long_sample(31))
    source = JSONLSource(path)
    assert len(source[1].turns[0].question) == 26
    lines(path, long_sample(31), long_sample(300))
    with pytest.raises(RecordError, match="changed since it was opened"):
        source[1]


@pytest.mark.parametrize("bounds", [(-1, 5), (6, 5)])
def test_wrong_bounds(tmp_path, bounds):
    path = lines(tmp_path / "a.jsonl", long_sample(30))
    with pytest.raises(RecordError, match="min_chars, max_chars: got"):
        JSONLSource(path, min_chars=bounds[0], max_chars=bounds[1])


def test_records_module_stays_on_the_host():
    code = "import sys, vtscale_jax.records; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
