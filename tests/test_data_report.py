"""The report: counts that add up, and a page that shows what it is given as text."""

import json
import re

import pytest
from data_rows import doc_row, save, write_lines

from vtscale_jax.data.image_check import ImageFacts, ImageFault
from vtscale_jax.data.prepare import Request, prepare
from vtscale_jax.data.report import summary
from vtscale_jax.data.tally import MAX_EXAMPLES, MAX_ORIGINS, Example, ImageTally, Tally

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def made(tmp_path):
    save(tmp_path / "images", "imgs/a.png", 1)
    answer = "It says so at the top of the page."
    rows = [doc_row(["./imgs/a.png"], f"What is {n}?", answer) for n in range(20)]
    rows += [doc_row(["./imgs/b.png"], EVIL, answer, dataset=EVIL) for _ in range(9)]
    rows += [doc_row([f"./imgs/{EVIL}.png"], "What?", answer, dataset="\ud800")]
    rows += [doc_row(["./imgs/a.png"], "x" * 30, "\n", dataset="TabFact", id="n7")]
    path = tmp_path / "train.jsonl"
    write_lines(path, []).write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = Request("docdownstream", path, str(tmp_path / "images"), tmp_path / "out")
    return request.out, prepare(request).report


def test_counts_add_up(made):
    _, report = made
    assert report["rows"] == 31 and report["records"] == 20
    assert sum(one["rows"] for one in report["origins"]) == 31
    assert sum(one["number"] for one in report["left_out"]) == 11
    assert sum(report["reasons"].values()) == 11
    assert sum(report["characters"].values()) == 20
    assert report["messages"] == {"read": 62, "kept": 40, "cut": 0, "left": 22}
    assert report["images"]["distinct"] == 3 and report["images"]["whole"] == 1


def test_examples_name_row_and_id(made):
    _, report = made
    found = {one["origin"]: one for one in report["left_out"]}
    assert len(found[EVIL]["examples"]) == MAX_EXAMPLES
    assert [e["row"] for e in found[EVIL]["examples"]] == [21, 22, 23, 24, 25]
    [example] = found["TabFact"]["examples"]
    detail = "message 2, of the assistant"
    assert example == {"row": 31, "id": "n7", "detail": detail}
    assert "\\ud800" in found  # what cannot be encoded is spelled out


def test_the_page_shows_text_and_loads_nothing(made):
    out, report = made
    page = (out / "report.html").read_text(encoding="utf-8")
    assert EVIL not in page and EVIL.replace("<", "&lt;").replace(">", "&gt;") in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "default-src 'none'" in page and "script-src 'sha256-" in page
    for shown in ("image missing", "empty message", "TabFact", "row 31 (n7)"):
        assert shown in page, shown
    for command in report["next"]:
        assert command in page.replace("&#39;", "'")


def test_the_summary_names_reasons_and_what_is_next(made):
    out, report = made
    text = summary(out, report)
    assert "20 records of 31 rows" in text
    assert re.search(r"left out +10  image missing", text)
    assert text.splitlines()[-1] == f"Next:   {report['next'][-1]}"
    many = report | {"reasons": {f"reason {n}": 20 - n for n in range(12)}}
    assert re.search(r"left out +42  for 4 other reasons", summary(out, many))


def test_a_lost_message_is_found():
    tally = Tally()
    origin = tally.read("a", 5)
    tally.keep(origin, (2, 30), cut=2, boxes=0, notes=[])
    with pytest.raises(AssertionError, match="'left': 0"):
        tally.check()
    tally.leave(origin, "why", "pair", 1, Example(1, "", "how"))
    tally.check()


def test_many_origins_are_counted_together():
    tally = Tally()
    for number in range(MAX_ORIGINS + 5):
        tally.read(f"origin {number}", 0)
    assert len(tally.rows) == MAX_ORIGINS + 1 and tally.rows["(others)"] == 5
    assert tally.read("origin 3", 0) == "origin 3"


def test_lengths_are_counted_up_to_an_edge():
    tally = Tally()
    for characters in (25, 26, 50, 5000, 5001):
        tally.keep("a", (2, characters), cut=0, boxes=0, notes=[])
    counts = {"up to 25": 1, "up to 50": 2, "up to 5,000": 1, "over 5,000": 1}
    assert tally.as_dict()["characters"] == counts


def test_images_are_counted_by_kind():
    images = ImageTally()
    images.add(ImageFacts("a", 5, 2, "", 10, "PNG", "P", ("palette",)))
    images.add(ImageFacts("b", 3, 3, "", 20, "JPEG", "RGB", ()))
    images.add(ImageFault("image missing", "c"))
    assert images.as_dict() == {
        "distinct": 3,
        "whole": 2,
        "bytes": 30,
        "largest": [5, 2],
        "kinds": {"PNG P": 1, "JPEG RGB": 1},
        "faults": {"image missing": 1},
        "notes": {"palette": 1},
    }
