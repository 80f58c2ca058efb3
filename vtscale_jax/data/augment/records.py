"""Questions that were accepted -> records, with answers that give nothing away.

A yes/no question ends with "Please answer yes or no.", a choice lists its options A to
D and ends with "Answer with the option's letter from the given choices directly." (the
hints of spec: data, section 8). The options are put into an order drawn by seed, so
that the letter carries no signal of the model that wrote them.

With `balance` the letters are as frequent as each other to within one, and so are yes
and no; of the more frequent answer the surplus is left out, drawn by seed. The letters
cost no question.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from vtscale_jax.data.augment.prompts import ANSWERS, LETTERS, rng_of
from vtscale_jax.data.augment.replies import Written

YES_NO_ENDING = "\nPlease answer yes or no."
CHOICE_ENDING = "\nAnswer with the option's letter from the given choices directly."


class Accepted(NamedTuple):
    """A question and where it comes from: the record, its image, and the question's
    number among those of its kind."""

    record_id: str
    image: str
    number: int
    written: Written

    @property
    def name(self) -> str:
        """The id of the record that this question becomes."""
        return f"{self.record_id}#{self.written.kind}-{self.number}"


def shuffled(question: Accepted, seed: int, place: int | None = None) -> Written:
    """A choice with its options in an order drawn by seed; with `place` the right one
    comes there, and the others in the order drawn."""
    written = question.written
    right = LETTERS.index(written.answer)
    rng = rng_of(seed, question.name, "options")
    order = rng.permutation(len(LETTERS)).tolist()
    if place is not None:
        order.remove(right)
        order.insert(place, right)
    options = tuple(written.options[i] for i in order)
    return written._replace(options=options, answer=LETTERS[order.index(right)])


def placed(
    questions: Sequence[Accepted], seed: int, balance: bool
) -> list[tuple[Accepted, Written]]:
    """All questions with their final options, in order, but for the surplus answers
    that `balance` leaves out."""
    choices = [one for one in questions if one.written.kind == "choice"]
    places: dict[str, int] = {}
    if balance:
        rng = rng_of(seed, "places of right options")
        for start in range(0, len(choices), len(LETTERS)):
            order = rng.permutation(len(LETTERS)).tolist()
            block = choices[start : start + len(LETTERS)]
            places |= {one.name: p for one, p in zip(block, order, strict=False)}
    left_out = _surplus(questions, seed) if balance else set()
    return [
        (
            one,
            one.written
            if one.written.kind == "yes_no"
            else shuffled(one, seed, places.get(one.name)),
        )
        for one in questions
        if one.name not in left_out
    ]


def _surplus(questions: Sequence[Accepted], seed: int) -> set[str]:
    """Names of the yes/no questions to leave out, so that both answers are as many."""
    names: dict[str, list[str]] = {answer: [] for answer in ANSWERS}
    for one in questions:
        if one.written.kind == "yes_no":
            names[one.written.answer].append(one.name)
    fewer, more = sorted(names.values(), key=len)
    surplus = len(more) - len(fewer)
    chosen = rng_of(seed, "surplus").permutation(len(more))[:surplus]
    return {more[i] for i in chosen.tolist()}


def record_of(question: Accepted, written: Written) -> dict[str, Any]:
    """The record of a question, in the form of `records.parse_record`."""
    if written.kind == "yes_no":
        asked = written.question + YES_NO_ENDING
    else:
        options = [
            f"{letter}. {option}"
            for letter, option in zip(LETTERS, written.options, strict=True)
        ]
        asked = "\n".join([written.question, *options]) + CHOICE_ENDING
    messages = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": written.answer},
    ]
    return {"id": question.name, "image": question.image, "messages": messages}


def answer_shares(written: Sequence[Written]) -> dict[str, Any]:
    """How often each answer is right, the share that always giving the most frequent
    one would score, and the share of choices whose right option is the longest (chance
    gives about 0.25). Shares are None where there is no question."""
    report: dict[str, Any] = {}
    for kind, answers in (("yes_no", ANSWERS), ("choice", LETTERS)):
        of_kind = [one for one in written if one.kind == kind]
        counts = Counter(one.answer for one in of_kind)
        report[kind] = {
            "questions": len(of_kind),
            "answers": {answer: counts[answer] for answer in answers},
            "most_frequent": max(counts.values()) / len(of_kind) if of_kind else None,
        }
    choices = [one for one in written if one.kind == "choice"]
    longest = [_right_is_longest(one) for one in choices]
    report["choice"]["right_is_longest"] = (
        sum(longest) / len(longest) if longest else None
    )
    return report


def _right_is_longest(written: Written) -> bool:
    sizes = [len(option) for option in written.options]
    right = sizes.pop(LETTERS.index(written.answer))
    return right > max(sizes)
