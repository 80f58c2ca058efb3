"""Two answers to a made-up question, told in different voices.

A problem has a right and a wrong solution. The wrong one starts from a wrong reading of
the question, says so early, and reasons on from it without a further mistake. Both are
then told in voices that differ in order and wording, as two people would write them.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")

VOICES = ("walk", "numbered", "claim first", "bullets")

_OPENERS = {
    "walk": (
        "Let's take it one piece at a time.",
        "Happy to help with this.",
        "We can work through it step by step.",
        "Reading the question slowly makes it easier.",
        "I would do it in this order.",
        "Good question, and not a hard one.",
    ),
    "numbered": (
        "Here is the working:",
        "Solution in steps:",
        "My working, line by line:",
        "These are the steps I took:",
        "Written out in full:",
    ),
    "claim first": (
        "Here is why.",
        "The reasoning is as follows.",
        "Let me show how I got there.",
        "To see this, go through the details.",
    ),
    "bullets": (
        "In brief:",
        "The details:",
        "What follows from that:",
        "Piece by piece:",
    ),
}
_CONNECTORS = ("then", "next,", "after that,", "now", "from here,", "in turn,")
_CLOSERS = (
    "Final answer:",
    "Therefore:",
    "Result:",
    "Putting it together:",
    "So the answer is this:",
    "In conclusion:",
)
_REPRISES = (
    "That is how the result comes out:",
    "This bears out what was said at the start:",
    "Once more, in short:",
    "And that gives what I said first:",
)


class Solution(NamedTuple):
    """One way to the answer.

    `plan` is a sentence that says how the question is read; `steps` are sentences that
    begin in lower case where they may follow a connecting word; `answer` is the
    sentence that ends it, and `value` the part of it that is asked for.
    """

    plan: str
    steps: tuple[str, ...]
    answer: str
    value: str


class Problem(NamedTuple):
    """A question with a right and a wrong solution, of different values."""

    question: str
    right: Solution
    wrong: Solution


class Draws:
    """Choices that depend on a key only.

    They are made of `random.Random.random` alone, the one sequence that Python promises
    to keep: the file made from them can be made again anywhere, byte for byte.
    """

    def __init__(self, *key: int | str) -> None:
        self._random = random.Random("/".join(map(str, key)))

    def number(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return low + int(self._random.random() * (high - low + 1))

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self.number(0, len(items) - 1)]

    def some(self, items: Sequence[Item], number: int) -> list[Item]:
        """So many different items, in random order."""
        left = list(items)
        return [left.pop(self.number(0, len(left) - 1)) for _ in range(number)]


def tell_both(problem: Problem, draws: Draws) -> tuple[str, str]:
    """The right and the wrong answer as texts, in two different voices."""
    voices = draws.some(VOICES, 2)
    # One of each pair of closings, so that the texts do not end alike either.
    closers = draws.some(_CLOSERS, 2)
    reprises = draws.some(_REPRISES, 2)
    solutions = (problem.right, problem.wrong)
    right, wrong = (
        _tell(solution, voice, closer, reprise, draws)
        for solution, voice, closer, reprise in zip(
            solutions, voices, closers, reprises, strict=True
        )
    )
    return right, wrong


def listed(items: Sequence[str]) -> str:
    """ "a, b and c"."""
    if len(items) == 1:
        return items[0]
    return f"{', '.join(items[:-1])} and {items[-1]}"


def ordinal(number: int) -> str:
    """ "first" for 1, up to "ninth"."""
    words = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
    return (*words, "eighth", "ninth")[number - 1]


def sentence(text: str) -> str:
    """The text with a capital letter."""
    return text[:1].upper() + text[1:]


def _tell(
    solution: Solution, voice: str, closer: str, reprise: str, draws: Draws
) -> str:
    opener = draws.pick(_OPENERS[voice])
    steps = solution.steps
    ending = f"{closer} {solution.answer}"
    if voice == "walk":
        told = [f"First, {steps[0]}"]
        connectors = draws.some(_CONNECTORS, len(_CONNECTORS))
        for place, step in enumerate(steps[1:]):
            # A connecting word before every sentence would be no natural English.
            word = connectors[place // 2 % len(connectors)]
            told.append(f"{sentence(word)} {step}" if place % 2 else sentence(step))
        return " ".join([opener, solution.plan, *told, ending])
    if voice == "numbered":
        lines = [f"{n}. {sentence(step)}" for n, step in enumerate(steps, 1)]
        return "\n".join([f"{opener} {solution.plan}", *lines, ending])
    if voice == "bullets":
        lines = [f"- {sentence(step)}" for step in steps]
        return "\n".join([solution.plan, opener, *lines, ending])
    told = " ".join(sentence(step) for step in steps)
    return (
        f"{solution.answer} {opener} {solution.plan} {told} {reprise} {solution.value}."
    )
