"""Questions from descriptions: what is asked for, which replies are questions, and how
answers are kept from giving themselves away."""

import random
from collections import Counter

import pytest

from vtscale_jax.data.augment import prompts
from vtscale_jax.data.augment.records import (
    Accepted,
    answer_shares,
    placed,
    record_of,
    shuffled,
)
from vtscale_jax.data.augment.replies import Malformed, Written, parse_reply
from vtscale_jax.records import parse_record

YES = "Question: Is the cat on the mat?\nAnswer: Yes"
CHOICE = (
    "Question: What lies on the mat?\nA. a cat\nB. a dog\nC. a key\nD. a hat\nAnswer: C"
)


# --- prompts ----------------------------------------------------------------------


def test_more_questions_leave_the_first_ones_as_they_are():
    few, many = (prompts.asks("r", "A cat.", "yes_no", n, 3) for n in (2, 7))
    assert few == many[:2]
    assert prompts.asks("r", "A cat.", "yes_no", 2, 4) != few
    assert prompts.asks("s", "A cat.", "yes_no", 2, 3) != few


def test_prompts_hold_what_was_drawn():
    text = "A sign says: ${price} $5 {sale}\n\nIt is red."
    made = prompts.asks("r", text, "yes_no", 9, 0)
    last = [ask.messages[-1].content for ask in made]
    assert all("A sign says: ${price} $5 {sale} It is red." in one for one in last)
    topics = prompts.topic_lines()
    found = [next(i for i, t in enumerate(topics) if f"about {t}." in m) for m in last]
    assert sorted(found) == list(range(9))  # no topic comes twice before all have come
    right = Counter("answer is Yes" in one for one in last)
    assert set(right.values()) == {4, 5}


@pytest.mark.parametrize("kind", prompts.KINDS)
def test_examples_have_the_form_that_is_asked_for(kind):
    *examples, (role, asked), beginning = prompts.conversation(kind)
    assert role == "user" and "$description" in asked and "$topic" in asked
    assert beginning.content == prompts.BEGINNING
    answers = [message.content for message in examples[1::2]]
    assert len(answers) == 2
    for answer in answers:  # they are in the form, but to repeat them is no question
        with pytest.raises(Malformed, match="copies the prompt's example"):
            parse_reply(kind, answer)
        changed = answer.replace("?", " today?")
        assert parse_reply(kind, changed).kind == kind


@pytest.mark.parametrize("kinds", [[], [""], ["yes_no", "open"]])
def test_unknown_kinds(kinds):
    with pytest.raises(prompts.KindError, match="expected some of yes_no, choice"):
        prompts.checked_kinds(kinds)


# --- replies ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, text, expected",
    [
        ("yes_no", YES, ("Is the cat on the mat?", (), "Yes")),
        ("yes_no", YES.replace("Yes", "no."), ("Is the cat on the mat?", (), "No")),
        ("yes_no", f"\n {YES} \n\n", ("Is the cat on the mat?", (), "Yes")),
        (
            "choice",
            CHOICE,
            ("What lies on the mat?", ("a cat", "a dog", "a key", "a hat"), "C"),
        ),
        (
            "choice",
            CHOICE.replace(". ", ") ").replace("r: C", "r: C) a key"),
            ("What lies on the mat?", ("a cat", "a dog", "a key", "a hat"), "C"),
        ),
    ],
)
def test_replies_that_are_questions(kind, text, expected):
    assert parse_reply(kind, text) == Written(kind, *expected)


def changed(old, new, text=CHOICE):
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize(
    "kind, text, reason",
    [
        ("yes_no", " \n", "empty reply"),
        ("yes_no", f"Sure!\n{YES}", "does not begin with a question line"),
        ("yes_no", "Question: Is it red?", "lines are missing"),
        ("yes_no", f"{YES}\nIt is.", "more than one question, or text beside it"),
        ("yes_no", f"{YES}\n{YES}", "more than one question, or text beside it"),
        ("yes_no", changed("Answer:", "So:", YES), "does not end with an answer line"),
        ("yes_no", changed("mat?", "mat.", YES), "question does not end with '?'"),
        ("yes_no", changed("cat", "cat? Or", YES), "several questions in one"),
        (
            "yes_no",
            "Question: Red?\nAnswer: No",
            "question not of 10 to 300 characters",
        ),
        (
            "yes_no",
            changed("cat", "c" * 300, YES),
            "question not of 10 to 300 characters",
        ),
        ("yes_no", changed("Yes", "Yes, it is", YES), "answer is neither Yes nor No"),
        ("yes_no", changed("Yes", "Maybe", YES), "answer is neither Yes nor No"),
        ("yes_no", changed("Yes", "", YES), "answer is neither Yes nor No"),
        (
            "yes_no",
            changed("Is the cat", "Where is the cat", YES),
            "question cannot be answered by yes or no",
        ),
        (
            "yes_no",
            changed("Is the", "In which room is the", YES),
            "question cannot be answered by yes or no",
        ),
        ("choice", YES, "lines are missing"),
        ("choice", changed("B. a", "C. a"), "options are not A to D in order"),
        ("choice", changed("B. a dog", "a dog"), "options are not A to D in order"),
        ("choice", changed("B. a dog", "B."), "an empty option"),
        ("choice", changed("B. a dog", "B. --"), "an empty option"),
        ("choice", changed("a dog", "A  cat."), "two options are the same"),
        ("choice", changed("a dog", "the cat"), "two options are the same"),
        (
            "choice",
            changed("a dog", "d" * 121),
            "an option of more than 120 characters",
        ),
        ("choice", changed("a hat", "All of the above"), "an option refers to others"),
        ("choice", changed("a hat", "Both A and B"), "an option refers to others"),
        ("choice", changed("a hat", "A or C"), "an option refers to others"),
        ("choice", changed("r: C", "r: E"), "answer is no letter of A to D"),
        ("choice", changed("r: C", "r: c"), "answer is no letter of A to D"),
        ("choice", changed("r: C", "r: Cat"), "answer is no letter of A to D"),
        ("choice", changed("r: C", "r: C. a dog"), "answer is no letter of A to D"),
        ("choice", changed("r: C", "r:"), "answer is no letter of A to D"),
        ("choice", changed("the mat", "the key"), "question names its answer"),
    ],
)
def test_replies_that_are_none(kind, text, reason):
    with pytest.raises(Malformed) as caught:
        parse_reply(kind, text)
    assert caught.value.reason == reason.replace("to others", "to other options")


def test_options_may_have_several_things():
    text = changed("a hat", "both a cap and a hat")
    assert parse_reply("choice", text).options[3] == "both a cap and a hat"


@pytest.mark.parametrize(
    "question, leaks",
    [
        ("Is the cat black according to the description?", True),
        ("Based on the text, is the cat black?", True),
        ("Is a cat mentioned?", True),
        ("Is the cat described as black?", True),
        ("Does the given text say that it is black?", True),
        ("Does the caption name a cat?", True),
        ("Is the text on the sign red?", False),
        ("Does the sign say that dogs may not enter?", False),
        ("Is the passenger holding a book?", False),
    ],
)
def test_questions_about_a_text_are_found(question, leaks):
    text = f"Question: {question}\nAnswer: No"
    if leaks:
        with pytest.raises(Malformed, match="speaks of a description"):
            parse_reply("yes_no", text)
    else:
        assert parse_reply("yes_no", text).question == question


def test_mutated_replies_raise_only_malformed():
    draw, taken = random.Random(1), Counter()
    signs = "ABCD.:?\n QuestionAnswerYesNo é\u2028\x00\ud800"
    for _ in range(4000):
        kind, text = draw.choice([("yes_no", YES), ("choice", CHOICE)])
        letters = list(text)
        for _ in range(draw.randint(1, 5)):
            letters[draw.randrange(len(letters))] = draw.choice(signs)
        try:
            found = parse_reply(kind, "".join(letters))
        except Malformed as why:
            taken[why.reason] += 1
        else:
            taken["taken"] += 1
            assert found.question.endswith("?")
    assert taken["taken"] > 100 and len(taken) > 8


# --- records ----------------------------------------------------------------------


def question(number, answer="A", record="r"):
    options = () if answer in prompts.ANSWERS else ("one", "two", "three", "four")
    kind = "choice" if options else "yes_no"
    return Accepted(record, "i.jpg", number, Written(kind, "Is it?", options, answer))


def test_shuffling_keeps_the_right_option():
    for number in range(50):
        one = question(number, "B")
        made = shuffled(one, 0)
        assert sorted(made.options) == sorted(one.written.options)
        assert made.options[prompts.LETTERS.index(made.answer)] == "two"
        assert made == shuffled(one, 0)
        for place, letter in enumerate(prompts.LETTERS):
            there = shuffled(one, 0, place)
            assert there.answer == letter and there.options[place] == "two"
            assert sorted(there.options) == sorted(one.written.options)


def test_letters_carry_no_signal():
    # The model always wrote the right option first.
    made = [shuffled(question(n, "A"), 0) for n in range(4000)]
    counts = Counter(one.answer for one in made)
    chi_squared = sum((counts[letter] - 1000) ** 2 / 1000 for letter in "ABCD")
    assert chi_squared < 16.3  # 0.001 of three degrees of freedom
    orders = Counter(one.options for one in made)
    assert len(orders) == 24


def test_balance():
    answers = ["Yes"] * 30 + ["No"] * 11 + ["A"] * 43
    asked = [question(n, answer) for n, answer in enumerate(answers)]
    kept = placed(asked, 0, balance=True)
    counts = Counter(written.answer for _, written in kept)
    assert counts["Yes"] == counts["No"] == 11
    assert sorted(counts[letter] for letter in "ABCD") == [10, 11, 11, 11]
    assert [one.number for one, _ in kept] == sorted(one.number for one, _ in kept)
    assert kept == placed(asked, 0, balance=True) != placed(asked, 1, balance=True)
    assert len(placed(asked, 0, balance=False)) == len(asked)


def test_records_have_the_instructions():
    made = record_of(question(0), question(0).written)
    assert [m["content"] for m in made["messages"]] == [
        "Is it?\nA. one\nB. two\nC. three\nD. four\n"
        "Answer with the option's letter from the given choices directly.",
        "A",
    ]
    made = record_of(question(1, "No"), question(1, "No").written)
    assert [m["content"] for m in made["messages"]] == [
        "Is it?\nPlease answer yes or no.",
        "No",
    ]
    assert parse_record(made, record_id="x").id == "r#yes_no-1"


def test_shares_show_a_signal():
    one = Written("choice", "Is it?", ("longest", "b", "c", "d"), "A")
    shares = answer_shares([one, one, one._replace(answer="B")])
    assert shares["choice"]["most_frequent"] == pytest.approx(2 / 3)
    assert shares["choice"]["right_is_longest"] == pytest.approx(2 / 3)
    assert shares["yes_no"]["most_frequent"] is None
