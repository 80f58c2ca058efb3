"""What was answered is kept: torn lines, double items, items that fail."""

import json

import numpy as np
import pytest
from PIL import Image

from vtscale_jax.eval.ask_items import (
    MOST_FAILURES,
    AskingError,
    ask_items,
    prompt_sha256,
)
from vtscale_jax.eval.ledger import NO_ANSWER, Entry, Ledger, LedgerError
from vtscale_jax.eval.models import Answer, Question


class Items:
    name = "made_up"

    def __init__(self, texts):
        self.texts = texts
        self.indices = [f"item{i}" for i in range(len(texts))]

    def question(self, i):
        if self.texts[i] == "no image":
            raise ValueError("row 7: the cell is no image")
        page = Image.fromarray(np.full((4, 4, 3), i, np.uint8))
        return Question((page, page), self.texts[i], 8)


class Echo:
    """Answers with the question's text in capitals; fails where it is `bad`."""

    def __init__(self, batch_size=3):
        self.batch_size = batch_size
        self.asked = []

    identity = {"kind": "echo"}

    def answer(self, questions):
        assert 1 <= len(questions) <= self.batch_size
        for question in questions:
            if question.text == "bad":
                raise RuntimeError("out of memory")
        self.asked += [question.text for question in questions]
        return [
            Answer(q.text.upper().strip(), not q.text.startswith("long"), 20, 5, 1)
            for q in questions
        ]


TEXTS = ["a", "b", "bad", "no image", "long", " ", "c"]


def entry(index, **changes):
    return Entry(index, "x", "yes", 3, 2, 1, 1)._replace(**changes)


def test_every_item_has_its_entry(tmp_path):
    ledger, model = Ledger(tmp_path / "t" / "ledger.jsonl"), Echo()
    with ledger.writing():
        made = ask_items(model, Items(TEXTS), ledger, [])
    assert [one.prediction for one in made] == [
        *("A", "B", NO_ANSWER, NO_ANSWER, "LONG", "", "C")
    ]
    flags = [set(one.flags) - {"images left out"} for one in made]
    assert flags == [
        *(set(), set(), {"exception"}, {"exception"}),
        *({"truncated"}, {"empty"}, set()),
    ]
    assert made[2].error == "RuntimeError: out of memory"
    assert made[3].error == "ValueError: row 7: the cell is no image"
    assert made[2].prompt_tokens == 0 and made[0].prompt_tokens == 20
    assert [one.images_seen for one in made if not one.error] == [1] * 5
    assert "images left out" in made[0].flags and made[0].images == 2
    assert list(ledger.read().values()) == made


@pytest.mark.parametrize("cut", [0, 1, 7, 150, -1])
def test_it_goes_on_after_the_last_whole_line(tmp_path, cut):
    file = tmp_path / "ledger.jsonl"
    ledger, items = Ledger(file), Items(["a", "b", "c", "d"])
    with ledger.writing():
        whole = ask_items(Echo(1), items, ledger, [])
    content = file.read_bytes()
    file.write_bytes(content[:cut])
    kept = list(ledger.read())
    assert kept == items.indices[: content[:cut].count(b"\n")]
    model = Echo(2)
    with ledger.writing():
        ask_items(model, items, ledger, kept)
    assert len(model.asked) == 4 - len(kept)  # none twice
    assert sorted(ledger.read().items()) == sorted((e.index, e) for e in whole)


def test_items_that_fail_can_be_asked_again(tmp_path):
    ledger, items = Ledger(tmp_path / "ledger.jsonl"), Items(["a", "bad", "c"])
    with ledger.writing():
        ask_items(Echo(), items, ledger, [])
    ledger.without({"item1"})
    assert list(ledger.read()) == ["item0", "item2"]
    items.texts[1] = "better"
    with ledger.writing():
        ask_items(Echo(), items, ledger, list(ledger.read()))
    assert ledger.read()["item1"].prediction == "BETTER"


def test_a_model_that_always_fails_ends_the_evaluation(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    items = Items(["a", "b", "c", *["bad"] * 60])
    with ledger.writing(), pytest.raises(AskingError, match=r"out of memory") as found:
        ask_items(Echo(), items, ledger, [])
    assert "--retry_failures" in str(found.value)
    kept = ledger.read()
    assert [e.prediction for e in kept.values()][:3] == ["A", "B", "C"]
    assert len(kept) <= 3 + MOST_FAILURES + 3
    # Failures with answers between them are the items'.
    mixed = Items(["a", "bad", "bad"] * 12)
    assert sum(e.error is not None for e in ask_items(Echo(), mixed, None, [])) == 24


def test_a_lost_host_is_no_failure_of_an_item(tmp_path):
    class Lost(ValueError):
        pass

    ledger = Ledger(tmp_path / "ledger.jsonl")
    with ledger.writing(), pytest.raises(Lost):
        ask_items(
            Echo(), Items(["bad", "a"]), ledger, [], explain=lambda _: Lost("host 1")
        )
    assert not ledger.read()


def test_lines_that_are_no_entries_are_named(tmp_path):
    file = tmp_path / "ledger.jsonl"
    good = json.dumps(entry("a")._asdict())

    def refused(*lines):
        file.write_text("".join(f"{line}\n" for line in lines))
        with pytest.raises(LedgerError) as found:
            Ledger(file).read()
        return str(found.value)

    assert "lines 1 and 2 are both of item 'a'" in refused(good, good)
    assert f"{file}:2 is no JSON" in refused(good, '{"index": ')
    assert f"{file}:1 has ['index']" in refused('{"index": "a"}')
    assert "expected the fields" in refused("[1]")


def test_the_prompt_s_hash_is_of_all_that_is_asked():
    page = Image.new("RGB", (4, 2), "red")
    question = Question((page,), "what?", 8)
    others = [
        question._replace(text="What?"),
        question._replace(max_new_tokens=9),
        question._replace(images=()),
        question._replace(images=(page, page)),
        question._replace(images=(Image.new("RGB", (2, 4), "red"),)),
        question._replace(images=(Image.new("RGB", (4, 2), (254, 0, 0)),)),
    ]
    digests = {prompt_sha256(one) for one in (question, *others)}
    assert len(digests) == 7
    assert prompt_sha256(Question((page.copy(),), "what?", 8)) in digests
