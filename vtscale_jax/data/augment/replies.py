"""Replies of the language model -> questions, or the reason why one is none.

The forms are strict: what the prompt asks for, line by line, and nothing beside it.

    Question: Is the dog on the sofa?        Question: What is on the sofa?
    Answer: Yes                              A. a dog
                                             B. …  C. …  D. …   (a line each)
                                             Answer: A
"""

import re
from typing import NamedTuple

from vtscale_jax.data.augment.prompts import (
    ANSWERS,
    BEGINNING,
    LETTERS,
    example_questions,
)

SHORTEST, LONGEST = 10, 300  # characters of a question
LONGEST_OPTION = 120

# Words that show that the question is about a text, which who looks at the picture does
# not have. "What does the text on the sign say?" is no leak.
_LEAK = re.compile(
    r"\b(description|descriptions|caption|captions|passage|paragraph|excerpt)\b"
    r"|\b(according to|based on|from) the (\w+ )?(text|information|details|context)\b"
    r"|\b(the|this|given|provided) text\b(?! (on|in|of|at|above|below|under|over|near))"
    r"|\b(mentioned|described|stated|specified)\b"
    r"|\bdoes the (text|author)\b.*\b(say|mention|describe|state)\b",
    re.IGNORECASE,
)
# "What", "in which", "on what" …: not to be answered by yes or no.
_ASKS_WHAT = re.compile(
    r"(\w+ )?(what|which|who|whom|whose|where|when|why|how)\b", re.IGNORECASE
)
# An option that speaks of other options loses its sense when they are shuffled.
_REFERS = re.compile(
    r"\b(all|none|both|neither|any|either) of (the |these|them|those)"
    r"|\b(both|neither|either|option|options|choice) (?-i:[A-D])\b"
    r"|\b(?-i:[A-D]) (and|or|nor) (?-i:[A-D])\b",
    re.IGNORECASE,
)


class Written(NamedTuple):
    """A question of `kind` in the model's own words and order of options (() for
    yes_no); `answer` is "Yes", "No", or the letter of the right option."""

    kind: str
    question: str
    options: tuple[str, ...]
    answer: str


class Malformed(ValueError):
    """A reply that is no question: `reason` is what it is counted under."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def parse_reply(kind: str, text: str) -> Written:
    """The question of a reply; Malformed with the first reason why it is none."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not lines:
        raise Malformed("empty reply")
    labels = {"yes_no": (), "choice": LETTERS}[kind]
    size = 2 + len(labels)
    if not lines[0].startswith(BEGINNING):
        raise Malformed("does not begin with a question line")
    if len(lines) < size:
        raise Malformed("lines are missing")
    if len(lines) > size:
        raise Malformed("more than one question, or text beside it")
    if not lines[-1].startswith("Answer:"):
        raise Malformed("does not end with an answer line")
    question = lines[0].removeprefix(BEGINNING).strip()
    options = tuple(
        _option(label, line) for label, line in zip(labels, lines[1:-1], strict=True)
    )
    answer = lines[-1].removeprefix("Answer:").strip()
    found = Written(kind, question, options, answer)
    _check_question(found)
    return _checked_yes_no(found) if kind == "yes_no" else _checked_choice(found)


def _option(letter: str, line: str) -> str:
    if not re.match(rf"{letter}[.)](\s|$)", line):
        raise Malformed("options are not A to D in order")
    option = line[2:].strip()
    if not re.search(r"\w", option):
        raise Malformed("an empty option")
    return option


def _check_question(found: Written) -> None:
    question = found.question
    if not question.endswith("?"):
        raise Malformed("question does not end with '?'")
    if "?" in question[:-1]:
        raise Malformed("several questions in one")
    if not SHORTEST <= len(question) <= LONGEST:
        raise Malformed(f"question not of {SHORTEST} to {LONGEST} characters")
    if any(_LEAK.search(text) for text in (question, *found.options)):
        raise Malformed("speaks of a description or a text")
    if question.casefold() in example_questions():
        raise Malformed("copies the prompt's example")


def _checked_yes_no(found: Written) -> Written:
    if found.answer.removesuffix(".").capitalize() not in ANSWERS:
        raise Malformed("answer is neither Yes nor No")
    if _ASKS_WHAT.match(found.question):
        raise Malformed("question cannot be answered by yes or no")
    return found._replace(answer=found.answer.removesuffix(".").capitalize())


def _checked_choice(found: Written) -> Written:
    answer = found.answer
    # "B", "B." or "B)", alone or with the text of option B again.
    letter = answer[:1]
    rest = answer[1:].removeprefix(".").removeprefix(")").strip()
    if letter not in LETTERS or answer[1:2].isalnum():
        raise Malformed("answer is no letter of A to D")
    right = found.options[LETTERS.index(letter)]
    if rest and rest != right:
        raise Malformed("answer is no letter of A to D")
    if len({_plain(option) for option in found.options}) < len(LETTERS):
        raise Malformed("two options are the same")
    if any(len(option) > LONGEST_OPTION for option in found.options):
        raise Malformed(f"an option of more than {LONGEST_OPTION} characters")
    if any(_REFERS.search(option) for option in found.options):
        raise Malformed("an option refers to other options")
    said = [
        o for o in found.options if f" {_plain(o)} " in f" {_plain(found.question)} "
    ]
    if said == [right]:
        raise Malformed("question names its answer")
    return found._replace(answer=letter)


def _plain(text: str) -> str:
    """Words only, in lower case, without an article: what makes options the same."""
    words = re.findall(r"\w+", text.casefold())
    if len(words) > 1 and words[0] in ("a", "an", "the"):
        words = words[1:]
    return " ".join(words)
