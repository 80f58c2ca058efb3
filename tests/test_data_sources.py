"""Each source: rows as they are downloaded, and the records that must come of them."""

import base64
import io

import pandas as pd
import pytest
from data_rows import (
    doc_row,
    lines_of,
    llava_turns,
    picture,
    plain_row,
    save,
    svit_entry,
    write_json,
    write_lines,
)

from vtscale_jax.data.json_rows import InputError
from vtscale_jax.data.prepare import Request, prepare
from vtscale_jax.data.sources.svit import KindError, chunk_size
from vtscale_jax.data.sources.vlmeval_tsv import CAPTION_QUESTION
from vtscale_jax.records import JSONLSource

ANSWER = "An answer that is long enough."


def prepared(tmp_path, name, path, images="images", **options):
    """Report, and the records as lines and as training reads them."""
    root = None if images is None else str(tmp_path / images)
    out = tmp_path / "out"
    found = prepare(Request(name, path, root, out, **options))
    lines = lines_of(out / "records.jsonl")
    source = JSONLSource(
        out / "records.jsonl",
        image_root=found.manifest["images"],
        min_chars=options.get("min_chars", 25),
    )
    read = [source[index] for index in range(len(source))]
    assert not source.rejected
    assert [record.id for record in read] == [line["id"] for line in lines]
    assert len(read) == found.manifest["records"] == found.report["records"]
    for record, line in zip(read, lines, strict=True):
        said = [text for turn in record.turns for text in (turn.question, turn.answer)]
        assert said == [message["content"] for message in line["messages"]]
        roles = [message["role"] for message in line["messages"]]
        assert roles == ["user", "assistant"] * len(record.turns)
    return found.report, lines


def texts(line):
    return [message["content"] for message in line["messages"]]


def left_out(report):
    return {(one["reason"], one["unit"]): one["number"] for one in report["left_out"]}


def llava(tmp_path, *rows, **options):
    save(tmp_path / "images", "coco/1.jpg", 1, width=640, height=480)
    path = write_json(tmp_path / "llava.json", list(rows))
    return prepared(tmp_path, "llava", path, **options)


def row(*turns, image="coco/1.jpg", name="7"):
    return {"id": name, "image": image, "conversations": llava_turns(*turns)}


def test_llava_marks_boxes_and_turns(tmp_path):
    report, lines = llava(
        tmp_path,
        row("<image>\nDescribe [0.10, 0.25, 0.50, 0.75].\n", " White cupboards. "),
        row("What is it?\n<image>", "A bus.", "Which colour?", "Red, I think."),
    )
    assert [line["id"] for line in lines] == ["llava/1", "llava/2"]
    assert lines[0]["image"] == "coco/1.jpg"
    box = "<bbox>99,166,499,832</bbox>"
    assert texts(lines[0]) == [f"Describe {box}.", "White cupboards."]
    asked = ["What is it?", "A bus.", "Which colour?", "Red, I think."]
    assert texts(lines[1]) == asked
    assert report["boxes"] == {"boxes": 1, "records with boxes": 1}
    assert report["origins"] == [{"origin": "coco", "rows": 2, "records": 2}]


def test_llava_marks_go_with_the_newlines_beside_them(tmp_path):
    _, lines = llava(tmp_path, row("What is it?\n\n<image>\nSay!\n\nNow.", ANSWER))
    assert texts(lines[0])[0] == "What is it?Say!\n\nNow."


TEXT_ROW = {
    "id": "s",
    "model": "",
    "conversations": llava_turns("Hi? [1,2,3,4]", ANSWER),
}


def test_llava_text_rows_are_dropped_and_counted(tmp_path):
    report, lines = llava(tmp_path, TEXT_ROW, row("What?", ANSWER))
    assert len(lines) == 1
    assert left_out(report) == {("no image (text only)", "row"): 1}
    assert {"origin": "text", "rows": 1, "records": 0} in report["origins"]


def test_llava_text_rows_are_kept_when_asked(tmp_path):
    report, lines = llava(tmp_path, TEXT_ROW, text_rows="keep")
    assert lines[0]["image"] is None
    assert texts(lines[0]) == ["Hi? [1,2,3,4]", ANSWER]  # there is nothing to scale to
    assert report["left_out"] == []


def test_llava_ocr_prompts(tmp_path):
    hint = "Describe.\nReference OCR token: STOP"
    report, lines = llava(
        tmp_path, row(hint, ANSWER), row("What?", ANSWER, hint, "STOP.")
    )
    assert left_out(report) == {("OCR tokens in the prompt", "row"): 1}
    assert [line["id"] for line in lines] == ["llava/2"]  # the first message counts


def test_llava_keeps_24_rounds(tmp_path):
    turns = [text for n in range(30) for text in (f"What is {n}?", f"It is {n}.")]
    report, lines = llava(tmp_path, row(*turns))
    assert texts(lines[0]) == turns[:48]
    counts = {"read": 60, "kept": 48, "cut": 12, "left": 0}
    assert report["messages"] == counts
    assert report["notes"]["records whose tail was cut"] == 1


def test_llava_cut_leaves_a_whole_answer(tmp_path):
    """49 messages are an even number once the tail is cut."""
    turns = [f"Message number {n}." for n in range(49)]
    report, lines = llava(tmp_path, row(*turns))
    assert len(texts(lines[0])) == 48 and report["messages"]["cut"] == 1


BAD_LLAVA = {
    "unknown role": row("What?", ANSWER)
    | {"conversations": [{"from": "system", "value": "Hello, this is a role."}]},
    "roles do not alternate": row("What?", ANSWER)
    | {"conversations": llava_turns("What?", ANSWER)[::-1]},
    "question without answer": row("What?", ANSWER, "And now?"),
    "empty message": row("<image>\n", ANSWER),
    "box that is no number": row("At [0.1, 0.2, 0.3, 0.4.5]?", ANSWER),
    "broken Unicode": row("What \ud800 is it?", ANSWER),
    "several images": row("What?", ANSWER, image=["coco/1.jpg", "coco/2.jpg"]),
    "image missing": row("What?", ANSWER, image="coco/2.jpg"),
    "image path leaves the root": row("What?", ANSWER, image="../images/coco/1.jpg"),
    "too few characters": row("What is it?", "A bus."),
    "too many characters": row("What is it?", "A bus." * 1000),
    "malformed row": {"id": "x", "image": "coco/1.jpg", "conversations": "none"},
}


@pytest.mark.parametrize("reason", BAD_LLAVA)
def test_llava_bad_rows_are_left_out_alone(tmp_path, reason):
    good = row("What is it?", ANSWER)
    report, lines = llava(tmp_path, BAD_LLAVA[reason], good)
    assert list(report["reasons"].items()) == [(reason, 1)]
    assert [line["id"] for line in lines] == ["llava/2"]
    example = report["left_out"][0]["examples"][0]
    assert example["row"] == 1 and example["detail"]


@pytest.mark.parametrize("characters, kept", [(24, 0), (25, 1), (5000, 1), (5001, 0)])
def test_lengths_include_both_ends(tmp_path, characters, kept):
    report, lines = llava(tmp_path, row("What?", "x" * (characters - 5)))
    assert len(lines) == kept


@pytest.mark.parametrize(
    "pairs, sizes",
    [
        (1, [1]),
        (10, [10]),
        (11, [5, 5, 1]),
        (15, [7, 7, 1]),
        (20, [10, 10]),
        (25, [6, 6, 6, 6, 1]),
        (45, [5] * 9),
    ],
)
def test_svit_pairs_are_joined_and_cut(tmp_path, pairs, sizes):
    entries = [svit_entry(f"What is {n}?", f"The answer to {n}.") for n in range(pairs)]
    report, lines = svit(tmp_path, {"image_id": 42, "conversations": entries})
    assert [len(line["messages"]) // 2 for line in lines] == sizes
    said = [text for line in lines for text in texts(line)]
    assert said == [m["value"] for entry in entries for m in entry["content"]]
    numbers = [f"svit-complex_reasoning/1.{n + 1}" for n in range(len(sizes))]
    assert [line["id"] for line in lines] == numbers
    assert chunk_size(pairs) == sizes[0]


def svit(tmp_path, *rows, name="complex_reasoning.json", folder="VG_100K", **options):
    save(tmp_path / "images", f"vg/{folder}/42.jpg", 42, width=640, height=480)
    path = write_json(tmp_path / name, list(rows))
    return prepared(tmp_path, "svit", path, min_chars=1, **options)


def test_svit_dialogues_are_records_of_their_own(tmp_path):
    dialogue = ["What is it?", "A dog.", "Where?", "In a garden."]
    entries = [svit_entry(*dialogue, topic="dog"), svit_entry("Who is he?", "A man.")]
    report, lines = svit(
        tmp_path, {"image_id": 42, "conversations": entries}, name="conversation.json"
    )
    assert [texts(line) for line in lines] == [dialogue, ["Who is he?", "A man."]]
    ids = ["svit-conversation/1.1", "svit-conversation/1.2"]
    assert [line["id"] for line in lines] == ids
    assert report["origins"][0]["origin"] == "conversation"


def test_svit_boxes_refer_to_the_image_itself(tmp_path):
    entry = svit_entry(
        "What is beside the <st>dog<ed> [0.10, 0.25, 0.50, 0.75]?",
        "A <st>ball<ed> [0.5, 0.7, 0.6, 0.8], [0, 0, 1, 1].",
    )
    _, lines = svit(
        tmp_path, {"image_id": 42, "conversations": [entry]}, name="referring_qa.json"
    )
    assert texts(lines[0]) == [
        "What is beside the <st>dog<ed> <bbox>99,249,499,749</bbox>?",
        "A <st>ball<ed> <bbox>499,699,599,799</bbox>, <bbox>0,0,999,999</bbox>.",
    ]


def test_svit_a_bad_pair_loses_nothing_else(tmp_path):
    """The authors' code loses the pairs before it and the rest of its entry."""
    good = [svit_entry(f"What is {n}?", f"The answer to {n}.") for n in range(11)]
    bad_number = svit_entry("What is at [0.1, 0.2, 0.3, 0.4.5]?", "Nothing.")
    bad_role = {"content": [{"from": "human", "value": "What?"}]}
    entries = [*good[:4], bad_number, *good[4:], bad_role]
    report, lines = svit(
        tmp_path, {"image_id": 42, "conversations": entries}, name="referring_qa.json"
    )
    said = [text for line in lines for text in texts(line)]
    assert said == [m["value"] for entry in good for m in entry["content"]]
    assert [len(line["messages"]) // 2 for line in lines] == [5, 5, 1]  # of 11
    assert left_out(report) == {
        ("box that is no number", "pair"): 1,
        ("unknown role", "pair"): 1,
    }
    assert report["messages"] == {"read": 25, "kept": 22, "cut": 0, "left": 3}


def test_svit_a_bad_dialogue_loses_nothing_else(tmp_path):
    entries = [svit_entry("What?", "A dog."), svit_entry("Why?"), svit_entry()]
    report, lines = svit(
        tmp_path, {"image_id": 42, "conversations": entries}, name="conversation.json"
    )
    assert len(lines) == 1
    assert left_out(report) == {
        ("question without answer", "entry"): 1,
        ("empty message", "entry"): 1,
    }


@pytest.mark.parametrize("kind", ["conversation", "referring_qa"])
def test_svit_a_row_of_nothing_is_counted(tmp_path, kind):
    report, lines = svit(
        tmp_path, {"image_id": 42, "conversations": []}, name=f"{kind}.json"
    )
    assert not lines
    assert left_out(report) == {("empty message", "row"): 1}


def test_svit_short_first_messages(tmp_path):
    entries = [svit_entry("Eh?", "What a short one."), svit_entry("Why?", "So.")]
    report, lines = svit(
        tmp_path, {"image_id": 42, "conversations": entries}, name="conversation.json"
    )
    assert [texts(line)[0] for line in lines] == ["Why?"]
    assert left_out(report) == {("first message under 4 characters", "entry"): 1}


def test_svit_images_lie_in_two_folders(tmp_path):
    entries = [svit_entry("What is it?", "A dog.")]
    rows = [{"image_id": n, "conversations": entries} for n in (42, "43", 44, -1, True)]
    save(tmp_path / "images", "vg/VG_100K_2/43.jpg", 43)
    save(tmp_path / "images", "vg/VG_100K_2/42.jpg", 42, width=640, height=480)
    report, lines = svit(tmp_path, *rows)
    assert [line["image"] for line in lines] == [
        "vg/VG_100K/42.jpg",
        "vg/VG_100K_2/43.jpg",
    ]
    assert report["reasons"] == {"image missing": 1, "malformed row": 2}


def test_svit_kind_is_of_the_name_or_given(tmp_path):
    row = {"image_id": 42, "conversations": [svit_entry("What is it?", "A dog.")]}
    with pytest.raises(KindError, match="--kind"):
        svit(tmp_path, row, name="svit.json")
    report, _ = svit(tmp_path, row, name="svit.json", kind="detail_description")
    assert report["origins"][0]["origin"] == "detail_description"


def test_docdownstream(tmp_path):
    save(tmp_path / "images", "mPLUG_imgs/DUE/pngs/a_1.png", 1)
    save(tmp_path / "images", "imgs/ChartQA/b.png", 2)
    save(tmp_path / "images", "imgs/DUE/pngs/a_1.png", 1)
    save(tmp_path / "images", "mPLUG_imgs/c.png", 3)
    save(tmp_path / "images", "imgs/c.png", 4)
    asked = ["<|image|>\nWhat year at <bbox>1,2,3,4</bbox>? ", "1993, I am certain."]
    path = write_lines(
        tmp_path / "train.jsonl",
        [
            doc_row(["./imgs/DUE/pngs/a_1.png"], *asked, extra={"a": 1}),
            doc_row(["./imgs/ChartQA/b.png"], *asked, dataset="ChartQA"),
            doc_row(["./imgs/DUE/pngs/a_1.png"], *asked),
            doc_row(["./imgs/DUE/pngs/a_1.png", "./imgs/ChartQA/b.png"], *asked),
            doc_row(["./imgs/c.png"], *asked),
            doc_row([], *asked),
            doc_row("./imgs/ChartQA/b.png", *asked),
        ],
    )
    report, lines = prepared(tmp_path, "docdownstream", path)
    assert [line["image"] for line in lines] == [
        "mPLUG_imgs/DUE/pngs/a_1.png",
        "imgs/ChartQA/b.png",
    ]
    # Not stripped, and boxes have their final form.
    question = "What year at <bbox>1,2,3,4</bbox>? "
    assert texts(lines[0]) == [question, "1993, I am certain."]
    assert report["reasons"] == {
        "duplicate": 1,
        "several images": 1,
        "two different files for one image": 1,
        "no image (text only)": 1,
        "malformed row": 1,
    }
    assert {one["origin"] for one in report["origins"]} == {"DocVQA", "ChartQA"}


def test_docdownstream_repeats_are_kept_when_asked(tmp_path):
    save(tmp_path / "images", "imgs/a.png", 1)
    row = doc_row(["./imgs/a.png"], "<|image|>What year?", "1993, I am certain.")
    path = write_lines(tmp_path / "train.jsonl", [row] * 3)
    report, lines = prepared(tmp_path, "docdownstream", path, duplicates="keep")
    assert [line["id"] for line in lines] == [f"docdownstream/{n}" for n in (1, 2, 3)]
    assert report["left_out"] == []


def test_jsonl_is_kept_as_it_is(tmp_path):
    save(tmp_path / "images", "a/1.png", 1)
    full = plain_row("a/1.png", " What? ", ANSWER, id="one", system="Be brief.")
    full["messages"][0]["family"] = "read"
    rows = [full, plain_row(None, "Hi?", ANSWER), plain_row("NONE", "Hey?", ANSWER)]
    path = write_lines(tmp_path / "own.jsonl", rows)
    report, lines = prepared(tmp_path, "jsonl", path)
    assert lines[0] == full
    assert [line["image"] for line in lines[1:]] == [None, None]
    assert [line["id"] for line in lines] == ["one", "jsonl/2", "jsonl/3"]


def test_jsonl_bad_lines_are_left_out_alone(tmp_path):
    save(tmp_path / "images", "a/1.png", 1)
    path = write_lines(
        tmp_path / "own.jsonl",
        [
            plain_row("a/1.png", "What?", ANSWER, id="one"),
            plain_row("a/1.png", "Who?", ANSWER, id="one"),
            plain_row("a/1.png", "Where?", ANSWER, extra=1),
            plain_row("a/1.png", "When?", ANSWER, id=3),
            "text",
        ],
    )
    with path.open("ab") as file:
        file.write(
            b'{"image": \n\n\xff\n' + b"[" * 100_000 + b"\n" + b"[" * 99 + b"]" * 99
        )
    report, lines = prepared(tmp_path, "jsonl", path)
    assert [line["id"] for line in lines] == ["one", "one#2"]
    assert report["notes"] == {"records whose id was there already": 1}
    reasons = {"not JSON": 4, "not a valid record": 2, "malformed row": 1}
    assert report["reasons"] == reasons
    rows = [e["row"] for o in report["left_out"] for e in o["examples"]]
    assert sorted(rows) == [3, 4, 5, 6, 8, 9, 10]


def encoded(seed: int, form: str = "PNG") -> str:
    file = io.BytesIO()
    picture(seed).save(file, form)
    return base64.b64encode(file.getvalue()).decode()


def table(tmp_path, name, rows):
    path = tmp_path / f"{name}.tsv"
    pd.DataFrame(rows).to_csv(path, sep="\t", index=False)
    return path


def test_vlmeval_choices(tmp_path):
    base = {"hint": None, "C": None, "category": "x"}
    rows = [
        {"index": 1, "image": encoded(1), "question": "Which?", "A": "1", "B": "None"}
        | {"answer": "A"},
        {"index": 2, "image": "1", "question": 'A "tab"?', "A": "a", "B": "b"}
        | {"answer": "B", "hint": "Look."},
        {"index": 3, "image": encoded(3), "question": "Which?", "A": "a", "B": "b"}
        | {"answer": "C"},
        {"index": 4, "image": "99", "question": "Which one?", "A": "a", "B": "b"}
        | {"answer": "A"},
    ]
    path = table(tmp_path, "Bench", [base | row for row in rows])
    report, lines = prepared(tmp_path, "vlmeval-tsv", path, None, min_chars=1)
    end = "Please select the correct answer from the options above. \n"
    assert texts(lines[0]) == [f"Question: Which?\nOptions:\nA. 1\n{end}", "A"]
    two = f'Hint: Look.\nQuestion: A "tab"?\nOptions:\nA. a\nB. b\n{end}'
    assert texts(lines[1]) == [two, "B"]
    assert lines[0]["image"] == lines[1]["image"]
    assert [line["id"] for line in lines] == ["Bench/1", "Bench/2"]
    image = tmp_path / "out" / "images" / lines[0]["image"]
    assert image.read_bytes() == base64.b64decode(rows[0]["image"])
    reasons = {"answer is none of the options": 1, "image is not base64": 1}
    assert report["reasons"] == reasons


def test_vlmeval_images_go_when_the_table_is_prepared_again(tmp_path):
    row = {"index": 1, "question": "Which one is it?", "A": "a", "B": "b"}
    row |= {"answer": "A", "image": encoded(1)}
    path, out = table(tmp_path, "Bench", [row]), tmp_path / "out"
    request = Request("vlmeval-tsv", path, None, out)
    prepare(request)
    before = {file.name for file in (out / "images").iterdir()}
    table(tmp_path, "Bench", [row | {"image": encoded(2)}])
    prepare(request, again=True)
    after = {file.name for file in (out / "images").iterdir()}
    assert len(before) == len(after) == 1 and before != after
    table(tmp_path, "Bench", [row | {"image": "no image"}])
    assert prepare(request, again=True).manifest["records"] == 0
    assert not list((out / "images").iterdir())


def test_vlmeval_open_answers(tmp_path):
    rows = [
        {"index": 1, "image": encoded(1, "JPEG"), "question": "What is this?"}
        | {"answer": "['b', 'a', 'a', 'b']"},
        {"index": 2, "image": None, "question": "What?", "answer": "a bus"},
        {"index": 3, "image": encoded(3), "question": "What?", "answer": "None"},
        {"index": 4, "image": str([encoded(1), encoded(2)]), "question": "What?"}
        | {"answer": "x"},
        {"index": 5, "image": "%" * 99, "question": "What?", "answer": "x"},
        {"index": 6, "image": base64.b64encode(b"<html>" * 99).decode()}
        | {"question": "What?", "answer": "x"},
        {"index": 7, "image": encoded(7), "question": "Which?", "answer": "007"},
    ]
    path = table(tmp_path, "TextVQA_VAL", rows)
    report, lines = prepared(tmp_path, "vlmeval-tsv", path, None, min_chars=1)
    end = "\nAnswer the question using a single word or phrase."
    assert [texts(line) for line in lines] == [
        [f"What is this?{end}", "b"],  # as often as a, and first
        [f"Which?{end}", "007"],  # text, not a number
    ]
    assert report["reasons"] == {
        "no image (text only)": 1,
        "empty message": 1,
        "several images": 1,
        "image is not base64": 1,
        "text in place of an image": 1,
    }


def test_vlmeval_cells_are_text(tmp_path):
    """A column of numbers would lose zeros, and read True and 1e3 in its own way."""
    answers = ["007", "1.50", "1e3", "12"]
    rows = [
        {"index": f"{n:03d}", "image": encoded(n), "question": f"Which {n}?"}
        | {"answer": answer}
        for n, answer in enumerate(answers)
    ]
    _, lines = prepared(
        tmp_path, "vlmeval-tsv", table(tmp_path, "x", rows), None, min_chars=1
    )
    assert [texts(line)[1] for line in lines] == answers
    assert lines[0]["id"] == "x/000"


def test_vlmeval_captions_and_paths(tmp_path):
    save(tmp_path / "images", "a/1.jpg", 1)
    rows = [{"index": 1, "image_path": "a/1.jpg", "answer": "['A bus.', 'A car.']"}]
    path = table(tmp_path, "COCO_VAL", rows)
    _, lines = prepared(tmp_path, "vlmeval-tsv", path)
    assert texts(lines[0]) == [CAPTION_QUESTION, "A bus."]
    assert lines[0]["image"] == "a/1.jpg"


@pytest.mark.parametrize(
    "content, says",
    [
        (b"a\tb\n1\t2\n", "image or image_path and answer"),
        (b"", "no table"),
        (b"image\tanswer\n1\t2\t3\t4\n", "no table"),
        (b"image\tanswer\n\xff\t2\n", "no table"),
    ],
)
def test_vlmeval_what_is_no_table(tmp_path, content, says):
    (tmp_path / "x.tsv").write_bytes(content)
    with pytest.raises(InputError, match=says):
        prepared(tmp_path, "vlmeval-tsv", tmp_path / "x.tsv", None)


@pytest.mark.parametrize(
    "content, says",
    [
        ("", "JSON array"),
        ('{"id": 1}', "JSON array"),
        ('[{"id": 1}', "element 1"),
        ('[{"id": 1} {"id": 2}]', "element 1"),
        ('[{"id": 1}, ]', "element 2"),
        ('[{"id": 1}] x', "end of the file"),
        ("[" * 100_000, "too deeply"),
        ('["' + "x" * 100, "element 1"),
    ],
)
def test_a_damaged_array_is_named(tmp_path, content, says):
    (tmp_path / "x.json").write_text(content)
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match=says):
        prepared(tmp_path, "llava", tmp_path / "x.json")
