"""What was answered is kept: torn lines, double items, items that fail."""

import functools
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image

from vtscale_jax.eval.ask_items import (
    AHEAD,
    MOST_FAILURES,
    AskingError,
    ask_items,
    prompt_sha256,
)
from vtscale_jax.eval.ledger import NO_ANSWER, Entry, Ledger, LedgerError
from vtscale_jax.eval.models import Answer, AnsweringModel, Question


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


class Echo(AnsweringModel):
    """Answers with the question's text in capitals; fails where it is `bad`, and while
    it is read where it is `unreadable`. `meeting` is where each batch waits."""

    def __init__(self, batch_size=3, batches_at_once=1, meeting=lambda: None):
        self.batch_size = batch_size
        self.batches_at_once = batches_at_once
        self.meeting = meeting
        self.asked = []

    identity = {"kind": "echo"}

    def prepare(self, questions):
        assert 1 <= len(questions) <= self.batch_size
        for question in questions:
            if question.text == "unreadable":
                raise RuntimeError("no such word")
        return functools.partial(self._answer, questions)

    def _answer(self, questions):
        self.meeting()
        for question in questions:
            if question.text == "bad":
                raise RuntimeError("out of memory")
        self.asked += [question.text for question in questions]
        return [
            Answer(q.text.upper().strip(), not q.text.startswith("long"), 20, 5, 1)
            for q in questions
        ]


TEXTS = ["a", "b", "bad", "no image", "long", " ", "c", "unreadable", "d"]


def entry(index, **changes):
    return Entry(index, "x", "yes", 3, 2, 1, 1)._replace(**changes)


@pytest.mark.parametrize(("size", "at_once"), [(3, 1), (1, 1), (3, 3), (2, 3)])
def test_every_item_has_its_entry(tmp_path, size, at_once):
    ledger, model = Ledger(tmp_path / "t" / "ledger.jsonl"), Echo(size, at_once)
    with ledger.writing():
        made = ask_items(model, Items(TEXTS), ledger, [])
    assert [one.prediction for one in made] == [
        *("A", "B", NO_ANSWER, NO_ANSWER, "LONG", "", "C", NO_ANSWER, "D")
    ]
    flags = [set(one.flags) - {"images left out"} for one in made]
    assert flags == [
        *(set(), set(), {"exception"}, {"exception"}),
        *({"truncated"}, {"empty"}, set(), {"exception"}, set()),
    ]
    assert made[2].error == "RuntimeError: out of memory"
    assert made[3].error == "ValueError: row 7: the cell is no image"
    assert made[7].error == "RuntimeError: no such word"
    assert made[2].prompt_tokens == 0 and made[0].prompt_tokens == 20
    assert [one.images_seen for one in made if not one.error] == [1] * 6
    assert "images left out" in made[0].flags and made[0].images == 2
    assert list(ledger.read().values()) == made


def test_batches_are_answered_at_the_same_time():
    items = Items("abcdefghi")
    # Each batch waits there for two others: one after the other none would come on.
    meeting = threading.Barrier(3, timeout=20)
    made = ask_items(Echo(1, 3, meeting.wait), items, None, [])
    assert [entry.prediction for entry in made] == list("ABCDEFGHI")


def test_one_at_once_is_not_begun_before_the_last_one_is_written(tmp_path):
    class Slow(Ledger):
        def append(self, entries):
            time.sleep(0.03)  # for a batch that would begin meanwhile
            super().append(entries)

    ledger, items = Slow(tmp_path / "ledger.jsonl"), Items("abcdefghi")
    written = []
    model = Echo(2, 1, lambda: written.append(len(ledger.read())))
    with ledger.writing():
        ask_items(model, items, ledger, [])
    assert written == [0, 2, 4, 6, 8]


def test_the_next_batches_are_prepared_while_one_is_answered():
    prepared, seen = [], []

    class Watched(Echo):
        def prepare(self, questions):
            prepared.append(questions[0].text)
            return super().prepare(questions)

    def meeting():
        deadline = time.monotonic() + 20
        while len(prepared) < min(2 + len(seen), 5) and time.monotonic() < deadline:
            time.sleep(0.001)
        seen.append(len(prepared))

    ask_items(Watched(1, 1, meeting), Items("abcde"), None, [])
    assert sorted(prepared) == list("abcde")  # by several threads
    assert all(count >= min(i + 2, 5) for i, count in enumerate(seen))
    # Not all at once: a large table is never there as a whole.
    prepared.clear()
    many = Items([str(i) for i in range(200)])
    ahead = []
    asked = Watched(1, 3)
    asked.meeting = lambda: ahead.append(len(prepared) - len(asked.asked))
    ask_items(asked, many, None, [])
    assert max(ahead) <= 3 * AHEAD


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
