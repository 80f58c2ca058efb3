"""Files of preference pairs: both schemas, both formats, every bad row by its line."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from vtscale_jax.divergence.pairs import rows
from vtscale_jax.divergence.pairs.buckets import buckets, padded_length
from vtscale_jax.divergence.pairs.rows import (
    check_share,
    file_sha256,
    read_pairs,
    row_word,
)
from vtscale_jax.divergence.pairs.schemas import REASONS, BadRow, Pair, PairsError
from vtscale_jax.divergence.pairs.tokens import TokenPair

ASKED = (("user", "2 + 2?"),)


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def written(folder, *items, name="pairs.jsonl"):
    """A JSONL file with these rows; bytes and text are written as they are."""
    lines = [
        item if isinstance(item, bytes) else str.encode(item)
        for item in (
            one if isinstance(one, bytes | str) else json.dumps(one) for one in items
        )
    ]
    (folder / name).write_bytes(b"\n".join(lines) + b"\n")
    return folder / name


def parquet(folder, table, **options):
    path = folder / "pairs.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path, **options)
    return path


ORCA = {"question": "2 + 2?", "chosen": "4.", "rejected": "5."}
GOOD = [
    (ORCA, ASKED),
    ({**ORCA, "system": "Be brief.", "id": 7}, (("system", "Be brief."), *ASKED)),
    ({**ORCA, "system": " "}, ASKED),
    ({**ORCA, "system": None}, ASKED),
    ({"prompt": "2 + 2?", "chosen": "4.", "rejected": "5."}, ASKED),
    ({**ORCA, "prompt": "2 + 2?"}, ASKED),
    # TRL: explicit prompt, implicit prompt, both with a system message.
    (
        {"prompt": [user("2 + 2?")], "chosen": [said("4.")], "rejected": [said("5.")]},
        ASKED,
    ),
    (
        {
            "chosen": [system("S"), user("2 + 2?"), said("4.")],
            "rejected": [system("S"), user("2 + 2?"), said("5.")],
        },
        (("system", "S"), *ASKED),
    ),
    (
        {
            "chosen": [user("Hi"), said("Yes?"), user("2 + 2?"), said("4.")],
            "rejected": [user("Hi"), said("Yes?"), user("2 + 2?"), said("5.")],
        },
        (("user", "Hi"), ("assistant", "Yes?"), *ASKED),
    ),
    # A prompt that the conversations repeat, as text and as a list; a system column.
    (
        {
            "prompt": "2 + 2?",
            "chosen": [user("2 + 2?"), said("4.")],
            "rejected": [user("2 + 2?"), said("5.")],
        },
        ASKED,
    ),
    (
        {
            "system": "S",
            "prompt": [system("S"), user("2 + 2?")],
            "chosen": [user("2 + 2?"), said("4.")],
            "rejected": [user("2 + 2?"), said("5.")],
        },
        (("system", "S"), *ASKED),
    ),
    (
        {
            "prompt": [user("2 + 2?")],
            "chosen": [said("Hm."), user("Well?"), said("4.")],
            "rejected": [said("Hm."), user("Well?"), said("5.")],
        },
        (*ASKED, ("assistant", "Hm."), ("user", "Well?")),
    ),
    # A prompt as a list with plain answers.
    ({"prompt": [user("2 + 2?")], "chosen": "4.", "rejected": "5."}, ASKED),
]


@pytest.mark.parametrize("raw, messages", GOOD)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_every_schema_gives_the_same_pair(tmp_path, raw, messages, kind):
    path = written(tmp_path, raw) if kind == "jsonl" else parquet(tmp_path, [raw])
    assert list(read_pairs(path)) == [Pair(1, messages, "4.", "5.")]


DEEP = b"[" * 100_000
BAD = [
    ("not JSON", '{"question": "2 + 2?"', "delimiter at character 23 of"),
    ("not JSON", b'{"question": "\xff"}', "utf-8"),
    ("not JSON", b'{"question": ' + DEEP, "recursion"),
    ("missing field", {**ORCA, "rejected": None}, "rejected: not there"),
    ("missing field", {"chosen": "4.", "rejected": "5."}, "question or prompt"),
    ("missing field", {**ORCA, "question": " "}, "no question"),
    ("missing field", {"chosen": [said("4.")], "rejected": [said("5.")]}, "prompt"),
    (
        "missing field",
        {**ORCA, "chosen": [{"from": "gpt"}], "rejected": [said("5.")]},
        "chosen[0].role",
    ),
    ("wrong type", "17", "the row: got int 17"),
    ("wrong type", {**ORCA, "chosen": 4}, "chosen: got int 4, expected a string"),
    ("wrong type", {**ORCA, "system": ["S"]}, "system: got list"),
    ("wrong type", {**ORCA, "prompt": "3 + 3?"}, "differ"),
    ("wrong type", {**ORCA, "chosen": [said("4.")]}, "rejected: got str '5.'"),
    (
        "wrong type",
        {**ORCA, "chosen": ["4."], "rejected": [said("5.")]},
        "chosen[0]: got str",
    ),
    (
        "wrong type",
        {
            "chosen": [user("2 + 2?"), {"role": "tool", "content": "4"}, said("4.")],
            "rejected": [user("2 + 2?"), said("5.")],
        },
        "chosen[1].role: got 'tool'",
    ),
    (
        "wrong type",
        {
            "chosen": [user([{"type": "text", "text": "2 + 2?"}]), said("4.")],
            "rejected": [user("2 + 2?"), said("5.")],
        },
        "chosen[0].content: got list",
    ),
    ("broken text", '{"question": "q", "chosen": "\\ud800", "rejected": "5."}', "surr"),
    ("empty branch", {**ORCA, "chosen": " \n"}, "chosen: got ' \\n'"),
    (
        "empty branch",
        {"chosen": [user("2 + 2?"), said("4.")], "rejected": [user("2 + 2?")]},
        "rejected: its last role is user",
    ),
    ("empty branch", {**ORCA, "chosen": [], "rejected": [said("5.")]}, "no message"),
    (
        "prefix mismatch",
        {
            "chosen": [user("Hi"), said("Yes?"), user("2 + 2?"), said("4.")],
            "rejected": [user("Hi"), said("What?"), user("2 + 2?"), said("5.")],
        },
        "differ from message 2 on",
    ),
    (
        "prefix mismatch",
        {
            "chosen": [user("2 + 2?"), said("4.")],
            "rejected": [user("2 + 3?"), said("5.")],
        },
        "differ from message 1 on",
    ),
    (
        "prefix mismatch",
        {
            "chosen": [user("2 + 2?"), said("4.")],
            "rejected": [user("2 + 2?"), said("5."), user("Sure?"), said("5.")],
        },
        "differ from message 2 on",
    ),
    (
        "prefix mismatch",
        {
            "prompt": "3 + 3?",
            "chosen": [user("2 + 2?"), said("4.")],
            "rejected": [user("2 + 2?"), said("5.")],
        },
        "begins without the prompt",
    ),
    (
        "prefix mismatch",
        {
            "system": "S",
            "chosen": [system("T"), user("2 + 2?"), said("4.")],
            "rejected": [system("T"), user("2 + 2?"), said("5.")],
        },
        "system",
    ),
    ("same branches", {**ORCA, "rejected": "4."}, "D is 0"),
]


@pytest.mark.parametrize("reason, raw, detail", BAD)
def test_a_bad_row_is_named_with_its_line(tmp_path, reason, raw, detail):
    # Line 2 is blank: it is no row, but it counts as a line.
    found = list(read_pairs(written(tmp_path, ORCA, "", raw, ORCA)))
    assert [row.line for row in found] == [1, 3, 4]
    assert isinstance(found[0], Pair) and isinstance(found[2], Pair)
    assert found[1].reason == reason and detail in found[1].detail
    assert len(found[1].detail) < 300


def test_every_reason_for_rows_is_shown():
    later = {"over-long", "refused by template", "unknown words"}
    later |= {"unreadable image", "not finite"}
    assert {reason for reason, *_ in BAD} == set(REASONS) - later


def test_a_parquet_file_counts_rows_across_its_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "BATCH", 4)
    table = [{**ORCA, "question": str(n), "score": n / 3} for n in range(30)]
    table[6]["rejected"] = None
    table[17]["chosen"] = table[17]["rejected"]
    found = list(read_pairs(parquet(tmp_path, table, row_group_size=7)))
    assert [row.line for row in found] == list(range(1, 31))
    bad = [(row.line, row.reason) for row in found if isinstance(row, BadRow)]
    assert bad == [(7, "missing field"), (18, "same branches")]
    asked = [row.messages[0][1] for row in found if isinstance(row, Pair)]
    assert asked == [str(n) for n in range(30) if n not in (6, 17)]


def test_parquet_text_that_is_no_text(tmp_path):
    good = pyarrow.array(["q", "q"])
    broken = pyarrow.array([b"fine", b"\xff\xfe"], pyarrow.binary())
    columns = {
        "question": good,
        "chosen": broken.view(pyarrow.string()),
        "rejected": pyarrow.array(["5.", "5."]),
    }
    path = tmp_path / "pairs.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    found = list(read_pairs(path))
    assert isinstance(found[0], Pair)
    assert found[1].line == 2 and found[1].reason == "broken text"
    columns["chosen"] = broken
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert [row.reason for row in read_pairs(path)] == ["wrong type"] * 2


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(PairsError, match="no such file"):
        read_pairs(tmp_path / "none.jsonl")
    with pytest.raises(PairsError, match=r"suffix is '\.csv', expected \.jsonl"):
        read_pairs(written(tmp_path, ORCA, name="pairs.csv"))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(PairsError, match="is empty"):
        read_pairs(tmp_path / "empty.jsonl")
    with pytest.raises(PairsError, match="blank lines only"):
        list(read_pairs(written(tmp_path, "", " ", name="blank.jsonl")))
    with pytest.raises(PairsError, match="one array"):
        read_pairs(written(tmp_path, json.dumps([ORCA]), name="array.json"))
    with pytest.raises(PairsError, match="cannot be read as Parquet"):
        read_pairs(written(tmp_path, ORCA, name="pairs.parquet"))
    with pytest.raises(PairsError, match="no column rejected.*chosen, question"):
        read_pairs(parquet(tmp_path, [{"chosen": "4.", "question": "2 + 2?"}]))
    with pytest.raises(PairsError, match="no row"):
        empty = pyarrow.table({name: pyarrow.array([], "string") for name in ORCA})
        pyarrow.parquet.write_table(empty, tmp_path / "none.parquet")
        read_pairs(tmp_path / "none.parquet")


def test_a_damaged_parquet_file_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "BATCH", 100)
    table = [{**ORCA, "question": f"{n} " * 50} for n in range(2000)]
    path = parquet(tmp_path, table, row_group_size=500, compression="zstd")
    content = bytearray(path.read_bytes())
    group = pyarrow.parquet.ParquetFile(path).metadata.row_group(2)
    start = group.column(0).dictionary_page_offset or group.column(0).data_page_offset
    content[start : start + 400] = b"\xff" * 400
    path.write_bytes(content)
    with pytest.raises(PairsError, match="damaged behind row 1000"):
        list(read_pairs(path))


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = written(tmp_path, b"\xef\xbb\xbf" + json.dumps(ORCA).encode())
    assert list(read_pairs(path)) == [Pair(1, ASKED, "4.", "5.")]


def test_lines_are_read_as_they_are_asked_for(tmp_path):
    path = written(tmp_path, *[ORCA] * 10_000)
    with path.open("ab") as file:
        file.write(b"nonsense")
    reading = read_pairs(path)
    assert next(reading).line == 1
    # What is behind the part that is buffered may still change.
    path.write_bytes(path.read_bytes()[:-8] + json.dumps(ORCA).encode())
    assert all(isinstance(row, Pair) for row in reading)


def test_the_hash_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "abc.jsonl"
    path.write_bytes(b"abc")
    # The first example of FIPS 180-2, appendix B.
    start = "ba7816bf8f01cfea414140de5dae2223"
    assert file_sha256(path) == start + "b00361a396177a9cb410ff61f20015ad"
    assert (row_word(path), row_word("a.PARQUET")) == ("line", "row")


def bad_rows(number):
    return [BadRow(3 * n, "not JSON", "x") for n in range(1, number + 1)]


def test_a_small_share_is_summed_up():
    bad = [BadRow(9, "over-long", "x"), *bad_rows(2)]
    assert check_share(bad, 300) == {
        "rows": 300,
        "used": 297,
        "bad": {"not JSON": 2, "over-long": 1},
        "bad_lines": {"not JSON": [3, 6], "over-long": [9]},
    }
    assert check_share([], 1)["used"] == 1


def test_a_large_share_stops_and_says_how_to_go_on():
    with pytest.raises(PairsError) as caught:
        check_share(bad_rows(12), 1000, where="a.parquet", word="row")
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        "a.parquet: 12 of 1000 rows (1.20%) are no pairs, expected at most 1.00%: "
        "12 not JSON"
    )
    assert lines[1:11] == [f"  row {3 * n}: not JSON: x" for n in range(1, 11)]
    assert lines[11] == "  and 2 more"
    assert lines[12].endswith("--max_bad_share 0.012")
    # The share that the message names is enough, and a little less is not.
    assert check_share(bad_rows(12), 1000, 0.012)["used"] == 988
    with pytest.raises(PairsError):
        check_share(bad_rows(12), 1000, 0.0119)
    for number, total in ((1, 3), (2, 7), (5, 666)):
        with pytest.raises(PairsError) as caught:
            check_share(bad_rows(number), total, 0.0)
        enough = float(str(caught.value).split()[-1])
        assert check_share(bad_rows(number), total, enough)["used"] == total - number


def test_shares_that_make_no_sense():
    with pytest.raises(PairsError, match="max_bad_share is 1.5"):
        check_share([], 10, 1.5)
    with pytest.raises(PairsError, match="got no row"):
        check_share([], 0)
    with pytest.raises(PairsError, match="No pair is left"):
        check_share(bad_rows(3), 3, 1.0)


def ids(number):
    return np.arange(number, dtype=np.int32)


def pairs_of(lengths):
    return [
        TokenPair(n, ids(before), ids(size), ids(size))
        for n, (before, size) in enumerate(lengths, 1)
    ]


def drawn(number, seed=0):
    rng = np.random.default_rng(seed)
    return pairs_of(rng.integers(1, 1500, size=(number, 2)).tolist())


@pytest.mark.parametrize("number, size, window", [(500, 8, 64), (7, 3, 1), (100, 1, 9)])
def test_every_pair_is_in_one_bucket_that_fits(number, size, window):
    pairs = drawn(number)
    found = list(buckets(pairs, size, window=window))
    assert sorted(i for one in found for i in one.indices) == list(range(number))
    for one in found:
        assert 1 <= len(one.pairs) <= size and sorted(one.indices) == [*one.indices]
        for index, pair in zip(one.indices, one.pairs, strict=True):
            assert pair is pairs[index]
            assert padded_length(len(pair.prefix)) == one.prefix >= len(pair.prefix)
            assert padded_length(len(pair.a)) == one.branch >= len(pair.a)


def test_buckets_take_bounded_memory_and_depend_on_the_pairs_only():
    read = 0

    def stream():
        nonlocal read
        for pair in drawn(3000):
            read += 1
            yield pair

    given, found = 0, []
    for one in buckets(stream(), 16, window=100):
        given += len(one.indices)
        assert read - given <= 100 + 16 or read == 3000
        found.append(one.indices)
    assert given == 3000
    assert found == [one.indices for one in buckets(drawn(3000), 16, window=100)]
    # A full batch is given at once, and a short one only when the window is full.
    assert found != [one.indices for one in buckets(drawn(3000), 16, window=50)]


def test_a_bucket_is_given_when_it_is_full_and_the_oldest_first():
    shapes = [(5, 40), (40, 40), (6, 50), (600, 9), (7, 64), (40, 33)]
    found = [one.indices for one in buckets(pairs_of(shapes), 2)]
    assert found == [(0, 2), (1, 5), (3,), (4,)]
    # Pair 0 waits longest; it goes as soon as more than one pair waits.
    found = [one.indices for one in buckets(pairs_of(shapes[:2] * 2), 2, window=1)]
    assert found == [(0,), (1,), (2,), (3,)]


def test_padded_lengths_are_few_and_large_enough():
    lengths = range(1, 5000)
    assert all(padded_length(n) >= n for n in lengths)
    small = {padded_length(n) for n in lengths if n <= 1024}
    assert small == {32, 64, 128, 256, 384, 512, 768, 1024}
    assert {padded_length(n) % 512 for n in lengths if n > 1024} == {0}


def test_they_are_the_lengths_of_conversations():
    from vtscale_jax import stream

    assert all(padded_length(n) == stream.padded_length(n) for n in range(1, 3000))


@pytest.mark.parametrize("size, window", [(0, 5), (5, 0)])
def test_sizes_below_one(size, window):
    with pytest.raises(PairsError, match="at least 1"):
        buckets([], size, window=window)
