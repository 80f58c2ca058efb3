"""Tables: pandas' rules for cells, images by their place, errors that say where."""

import io
import random
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from benchmark_tables import (
    GOLDENS,
    NAMES,
    encoded,
    image_bytes,
    question_rows,
    write_table,
)
from PIL import Image

from vtscale_jax.eval.benchmarks import items
from vtscale_jax.eval.benchmarks.images import images_seen
from vtscale_jax.eval.benchmarks.table import CAPTION_QUESTION, read_table
from vtscale_jax.eval.benchmarks.tasks import get_task
from vtscale_jax.eval.benchmarks.tsv import TableError, records, unquoted
from vtscale_jax.eval.scoring.cells import literal_list

OCRVQA = get_task("OCRVQA_TESTCORE")


def read(tmp_path, rows, task=OCRVQA):
    return read_table(write_table(tmp_path / f"{task.name}.tsv", rows), task)


# --- goldens


@pytest.mark.parametrize("name", NAMES)
def test_columns_are_those_that_pandas_reads(name):
    file = GOLDENS / name / f"{name}.tsv"
    table = read_table(file, get_task(name))
    expected = pd.read_csv(file, sep="\t")
    kept = expected[expected.pop("image").notna()].reset_index(drop=True)
    if name == "COCO_VAL":
        kept["question"] = table.rows["question"]
    pd.testing.assert_frame_equal(table.rows, kept)
    assert table.dropped == len(expected) - len(kept)
    assert table.dropped == {"HallusionBench": 10, "ScienceQA_TEST": 7}.get(name, 0)


@pytest.mark.parametrize("name", NAMES)
def test_images_are_those_of_the_cells(name):
    file = GOLDENS / name / f"{name}.tsv"
    table = read_table(file, get_task(name))
    cells = pd.read_csv(file, sep="\t").set_index("index")["image"]
    by_index = {str(index): str(cell) for index, cell in cells.items()}
    for i, index in enumerate(table.rows["index"]):
        cell = by_index[str(index)]
        cell = by_index[cell] if len(cell) <= 64 else cell
        expected = literal_list(cell) or [cell]
        assert [encoded(data) for data in table.images(i)] == expected
        assert table.num_images(i) == len(expected)


def test_the_goldens_have_lists_and_shared_images():
    several = read_table(GOLDENS / "SEEDBench2/SEEDBench2.tsv", get_task("SEEDBench2"))
    assert {several.num_images(i) for i in range(len(several))} > {1}
    shared = read_table(GOLDENS / "POPE/POPE.tsv", get_task("POPE"))
    assert shared.images(0) == shared.images(1) != shared.images(len(shared) - 1)


# --- cells of text


def test_cells_that_pandas_takes_for_missing_are_missing(tmp_path):
    task = get_task("MMStar")
    rows = [
        {**row, "A": a, "B": "none", "C": c}
        for row, a, c in zip(
            question_rows(3), ("None", "n/a", "one"), ("36", "", "7"), strict=True
        )
    ]
    table = read(tmp_path, rows, task)
    assert table.rows["A"].isna().tolist() == [True, True, False]
    assert table.row(1)["B"] == "none"
    assert str(table.row(0)["C"]) == "36.0"


@pytest.mark.parametrize(
    "cells, typed",
    [
        (["3", "1", "-2"], [3, 1, -2]),
        (["3", "1", "a"], ["3", "1", "a"]),
        (["1.5", "2", "3"], ["1.5", "2.0", "3.0"]),
        (["VD_1", "VD_2", "007"], ["VD_1", "VD_2", "007"]),
        (["007", "08", "9"], [7, 8, 9]),
    ],
)
def test_the_index_is_whole_numbers_or_text(tmp_path, cells, typed):
    table = read(tmp_path, question_rows(3, index=cells))
    assert list(table.rows["index"]) == typed


def test_types_come_from_all_rows_also_those_left_out(tmp_path):
    rows = question_rows(3, answer=["5", "6", "seven"])
    rows[2]["image"] = ""
    table = read(tmp_path, rows)
    assert list(table.rows["answer"]) == ["5", "6"]  # text, since `seven` was there
    assert table.dropped == 1
    assert any("1 of 3 rows have no image" in note for note in table.notes)


def test_records_are_cut_as_pandas_cuts_them(tmp_path):
    draw = random.Random(0)
    parts = ['"', '""', "\t", "\n", "a", "é", " ", "x y", ",", "'"]
    for case in range(60):
        cells = [
            ["".join(draw.choices(parts, k=draw.randrange(6))) for _ in range(3)]
            for _ in range(4)
        ]
        frame = pd.DataFrame([["k", *row] for row in cells], columns=list("abcd"))
        file = tmp_path / f"{case}.tsv"
        ends = "\r\n" if case % 2 else "\n"
        quoting = draw.choice([0, 1])
        frame.to_csv(file, sep="\t", index=False, quoting=quoting, lineterminator=ends)
        with file.open("rb") as opened:
            found = list(records(opened, "f"))
        content = file.read_bytes()
        for record in found:
            for raw, start in zip(record.cells, record.starts, strict=True):
                assert content[start : start + len(raw)] == raw
            assert content.split(b"\n")[record.line - 1].startswith(record.cells[0])
        again = pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False)
        texts = [[unquoted(raw).decode() for raw in record.cells] for record in found]
        assert texts == [list(again), *again.to_numpy().tolist()]


@pytest.mark.parametrize(
    "line",
    ['a\tb"c"\td', 'a\t"b"c\td', 'a\t""\td', '"a\n\nb"\t"\t"\t"d"', "  \na\tb\tc"],
)
def test_odd_quotes_are_read_as_pandas_reads_them(line):
    text = f"x\ty\tz\n{line}\n"
    found = [[unquoted(c).decode() for c in r.cells] for r in _records(text)]
    again = pd.read_csv(io.StringIO(text), sep="\t", dtype=str, keep_default_na=False)
    assert found == [list(again), *again.to_numpy().tolist()]


def _records(text):
    return list(records(io.BytesIO(text.encode()), "f"))


def test_a_byte_order_mark_and_blank_lines_are_no_part_of_it():
    found = list(records(io.BytesIO(b"\xef\xbb\xbfa\tb\n\n1\t2\n   \n3\t4"), "f"))
    assert [r.cells for r in found] == [[b"a", b"b"], [b"1", b"2"], [b"3", b"4"]]
    assert [(r.line, r.starts[0]) for r in found] == [(1, 3), (3, 8), (5, 16)]


# --- images


def test_a_reference_may_lead_to_another(tmp_path):
    rows = question_rows(4)
    rows[0]["image"], rows[2]["image"] = "2", "3"
    table = read(tmp_path, rows)
    assert table.images(0) == table.images(2) == (image_bytes(3),)
    assert table.images(1) == (image_bytes(1),)


def test_rows_about_one_image_have_it_decoded_once(tmp_path, monkeypatch):
    """Rows 0 and 1 name row 3's image, row 2 has one like it in a cell of its own."""
    rows = question_rows(6)
    rows[0]["image"] = rows[1]["image"] = "3"
    rows[2]["image"] = encoded(image_bytes(3))
    file = write_table(tmp_path / "OCRVQA_TESTCORE.tsv", rows)
    read = []

    def images_read(table, row, version):
        read.append(row)
        return images_seen(table, row, version)

    monkeypatch.setattr(items, "images_seen", images_read)
    found = items.BenchmarkItems.read(OCRVQA, file, "current")
    for i in (0, 1, 2, 3, 4, 3, 0):
        (image,) = found.question(i).images
        seed = 3 if i < 4 else i
        expected = Image.open(io.BytesIO(image_bytes(seed)))
        assert np.array_equal(np.asarray(image), np.asarray(expected)), i
    assert read == [0, 2, 3, 4, 3]
    assert found.table.same_images(0, 3) and not found.table.same_images(0, 2)


def test_a_reference_has_at_most_64_characters(tmp_path):
    rows = question_rows(2, index=["a" * 64, "b"])
    rows[1]["image"] = "a" * 64
    assert read(tmp_path, rows).images(1) == (image_bytes(0),)
    rows[0]["index"] = rows[1]["image"] = "a" * 65
    with pytest.raises(TableError, match="line 3: the image .* not base64"):
        read(tmp_path, rows)


def test_a_question_about_captions_may_be_in_the_table(tmp_path):
    rows = [{**row, "answer": "['a']"} for row in question_rows(2)]
    task = get_task("COCO_VAL")
    assert list(read(tmp_path, rows, task).rows["question"])[1] == "What is word 1?"
    for row in rows:
        del row["question"]
    asked = set(read(tmp_path, rows, task).rows["question"])
    assert asked == {CAPTION_QUESTION} and CAPTION_QUESTION.endswith('depicts". ')


def test_quoted_images_and_line_ends_in_cells_do_not_move_others(tmp_path):
    rows = question_rows(3, question=['"two\nlines"', '"a ""b"""', "plain"])
    pair = [encoded(image_bytes(7)), encoded(image_bytes(8))]
    rows[1]["image"] = '"[' + ", ".join(f'""{one}""' for one in pair) + ']"'
    table = read(tmp_path, rows)
    assert table.rows["question"].tolist() == ["two\nlines", 'a "b"', "plain"]
    assert table.images(1) == (image_bytes(7), image_bytes(8))
    assert table.images(2) == (image_bytes(2),)
    assert table.lines == (2, 4, 5)


def test_base64_in_lines_is_one_image(tmp_path):
    rows = question_rows(1)
    text = str(rows[0]["image"])
    rows[0]["image"] = f'"{text[:40]}\n{text[40:]}"'
    assert read(tmp_path, rows).images(0) == (image_bytes(0),)


def test_images_in_files(tmp_path):
    folder = tmp_path / "images" / "OCRVQA"
    folder.mkdir(parents=True)
    for i in range(3):
        (folder / f"{i}.png").write_bytes(image_bytes(i))
    rows = question_rows(2)
    for row in rows:
        del row["image"]
    rows[0]["image_path"] = "0.png"
    rows[1]["image_path"] = f"['1.png', '{folder / '2.png'}']"
    table = read_table(
        write_table(tmp_path / "OCRVQA_TESTCORE_local.tsv", rows), OCRVQA
    )
    assert table.images(0) == (image_bytes(0),)
    assert table.images(1) == (image_bytes(1), image_bytes(2))
    assert (table.num_images(0), table.num_images(1)) == (1, 2)
    assert table.notes == () and table.dropped == 0  # no checksum of a localized table
    assert list(table.rows) == ["index", "question", "answer", "image_path"]
    (folder / "1.png").unlink()
    with pytest.raises(TableError, match=r"index 1\).*1\.png cannot be read"):
        table.images(1)
    with pytest.raises(TableError, match=r"line 3: the image .*1\.png is not there"):
        read_table(table.path, OCRVQA)
    assert len(read_table(table.path, OCRVQA, need_files=False)) == 2  # for scores


def test_a_table_that_was_changed_is_not_read_on(tmp_path):
    table = read(tmp_path, question_rows(2))
    write_table(table.path, question_rows(3))
    with pytest.raises(TableError, match="was changed since it was read"):
        table.images(0)


def test_memory_does_not_grow_with_the_images(tmp_path):
    rows = question_rows(64)
    for row in rows:
        row["image"] = encoded(image_bytes(int(str(row["index"])), 128))
    file = write_table(tmp_path / "t.tsv", rows)
    size = file.stat().st_size
    assert size > 3_000_000

    def peak(work):
        tracemalloc.start()
        try:
            kept = work()
            return tracemalloc.get_traced_memory()[1], kept
        finally:
            tracemalloc.stop()

    flat, table = peak(lambda: read_table(file, OCRVQA))
    assert flat < size / 4
    streamed, _ = peak(lambda: [len(table.images(i)[0]) for i in range(64)])
    assert streamed < size / 4
    assert peak(lambda: file.read_bytes().split(b"\t"))[0] > size  # it would show


# --- what is wrong, and where


def cell(row, column, text):
    def change(rows):
        rows[row][column] = text

    return change


def without(column):
    def change(rows):
        for row in rows:
            del row[column]

    return change


NO_IMAGE = encoded(
    b"no image, but enough bytes to be longer than sixty-four characters"
)
WRONG = [
    (OCRVQA, without("answer"), "has no column answer, which OCRVQA_TESTCORE needs"),
    (OCRVQA, without("image"), r"has no column image \(or image_path\)"),
    (OCRVQA, cell(1, "image", "A" * 65 + "*"), "line 3: the image .* is not base64"),
    (OCRVQA, cell(1, "image", "A" * 65), "line 3: the image .*not base64"),
    (OCRVQA, cell(1, "image", "é" * 80), "line 3: the image .*not base64"),
    (OCRVQA, cell(2, "image", NO_IMAGE), "line 4: .* bytes .* are not an image"),
    (OCRVQA, cell(2, "image", f"['{NO_IMAGE}'"), "line 4: .*not base64"),
    (OCRVQA, cell(2, "image", f"[{NO_IMAGE}]"), "line 4: the list of images"),
    (OCRVQA, cell(2, "image", f"['{NO_IMAGE}', 3]"), "line 4: the list of images"),
    (OCRVQA, cell(2, "image", "9"), r"line 4 \(index 2\): the image '9' is neither"),
    (OCRVQA, cell(2, "image", "2"), r"line 4 \(index 2\).*in a circle \(2 → 2\)"),
    (OCRVQA, cell(2, "index", "0"), "line 4: index 0 is there already on line 2"),
    (OCRVQA, cell(1, "index", ""), "line 3: index is missing"),
    (OCRVQA, cell(1, "question", "NA"), r"question .* 1 of 3 rows, line 3 \(index 1\)"),
    (OCRVQA, cell(1, "question", "a\tb"), "line 3: 5 cells, expected 4"),
    (OCRVQA, cell(1, "question", "a\nb"), "line 3: 3 cells, expected 4"),
    (OCRVQA, cell(1, "question", '"a'), "line 3: cell 3 begins with a quote"),
    (OCRVQA, cell(1, "question", "a\rb"), "line 3: a carriage return"),
    (
        get_task("OCRBench"),
        cell(1, "answer", "plain"),
        r"answer .*line 3 \(index 1\): 'plain'; expected a list of texts",
    ),
    (get_task("OCRBench"), cell(1, "category", "Other"), "category .*'Other'.*Doc-or"),
    (get_task("COCO_VAL"), cell(0, "answer", "[]"), r"answer .*line 2 \(index 0\)"),
    (
        get_task("ChartQA_TEST"),
        cell(2, "split", "val"),
        "split .*line 4 .*'val'; expect",
    ),
    (get_task("ChartQA_TEST"), cell(2, "split", ""), "split .*line 4 .*test_human"),
    (get_task("POPE"), cell(1, "category", "random, popular"), "category .*line 3"),
    (get_task("HallusionBench"), cell(1, "index", "VD_a_0_0"), "index .*line 3"),
]
GOOD = {
    "OCRBench": {"answer": "['a']", "category": "Doc-oriented VQA"},
    "COCO_VAL": {"answer": "['a b', 'c']"},
    "ChartQA_TEST": {"split": "test_human"},
    "POPE": {"category": "random,popular"},
    "HallusionBench": {"category": "VD", "l2-category": "VD_a"},
}


def good_rows(task):
    rows = [{**row, **GOOD.get(task.name, {})} for row in question_rows(3)]
    if task.name == "HallusionBench":
        for i, row in enumerate(rows):
            row["index"] = f"VD_a_0_0_0_{i}"
    return rows


@pytest.mark.parametrize("task, change, message", WRONG)
def test_what_is_wrong_is_named_with_its_line(tmp_path, task, change, message):
    rows = good_rows(task)
    assert len(read(tmp_path, rows, task)) == 3  # nothing else is wrong
    change(rows)
    with pytest.raises(TableError, match=message):
        read(tmp_path, rows, task)


def test_a_circle_of_references_is_no_endless_one(tmp_path):
    rows = question_rows(3, image=["1", "2", "0"])
    with pytest.raises(TableError, match=r"index 0\).*circle \(0 → 1 → 2 → 0\)"):
        read(tmp_path, rows)


def test_a_reference_to_a_row_without_image_is_named(tmp_path):
    rows = question_rows(3)
    rows[0]["image"], rows[1]["image"] = "", "0"
    with pytest.raises(TableError, match="line 3 .*neither an image"):
        read(tmp_path, rows)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"index\timage\tquestion\tanswer\n", "has a header and no rows"),
        (b"index,image,question,answer\n1,2,3,4\n", "the first line has no tab"),
        (b"PK\x03\x04\xff\xfe", "not UTF-8|no tab"),
        (b"index\timage\tquestion\tanswer\tanswer\n", "'answer' is there twice"),
        (
            b"index\timage\tquestion\tanswer\n1\t\xff\xfe\ta\tb\n",
            "line 2.*UTF-8|base64",
        ),
        (b"index\timage\tquestion\tanswer\n1\t\ta\tb\n", "no row with an image"),
    ],
)
def test_what_is_no_table_is_said_to_be_none(tmp_path, content, message):
    file = tmp_path / "OCRVQA_TESTCORE.tsv"
    file.write_bytes(content)
    with pytest.raises(TableError, match=message):
        read_table(file, OCRVQA)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TableError, match=r"no\.tsv: No such file"):
        read_table(tmp_path / "no.tsv", OCRVQA)


def test_mme_needs_all_its_categories(tmp_path):
    file = GOLDENS / "MME" / "MME.tsv"
    lines = file.read_text().splitlines()
    kept = [line for line in lines if '\t"posters"\t' not in line]
    assert len(kept) < len(lines)
    part = tmp_path / "MME.tsv"
    part.write_text("\n".join(kept))
    with pytest.raises(TableError, match="no row with category posters"):
        read_table(part, get_task("MME"))


def test_a_checksum_that_differs_is_a_note_not_an_error(tmp_path):
    rows = [{**row, "A": "a", "B": "b"} for row in question_rows(2)]
    task = get_task("RealWorldQA")
    table = read(tmp_path, rows, task)
    (note,) = table.notes
    assert table.md5 in note and task.md5["paper"] in note
    official = task._replace(md5={"paper": table.md5, "current": "0" * 32})
    assert read_table(table.path, official).notes == ()
    (note,) = read_table(table.path, official, "current").notes
    assert "the table of the version paper" in note


def test_rows_are_named_by_line_and_index(tmp_path):
    table = read(tmp_path, question_rows(2, index=["x", "y"]))
    assert table.where(1) == f"{table.path}, line 3 (index y)"
    assert isinstance(table.row(0)["question"], str)
    assert np.shape(table.rows) == (2, 3)
