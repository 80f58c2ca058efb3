"""The pairs that ship with the package, and the generator that made them.

    python -m vtscale_jax.divergence.pairs.answers > shipped.jsonl

makes the file again, byte for byte. The questions are made up, of eight kinds; the
chosen answer is right, the rejected one is wrong from its first claim on and otherwise
consistent. Nobody's text is in it, and no model has written any of it.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from vtscale_jax.divergence.pairs.amount_problems import bill, measures, recipe
from vtscale_jax.divergence.pairs.move_problems import letters, robot
from vtscale_jax.divergence.pairs.order_problems import journey, ranking, table
from vtscale_jax.divergence.pairs.schemas import PairsError
from vtscale_jax.divergence.pairs.telling import Draws, Problem, tell_both

SHIPPED = Path(__file__).parent / "shipped.jsonl"
SEED = 20241218
NUMBER = 512

KINDS: dict[str, Callable[[Draws], Problem]] = {
    "bill": bill,
    "journey": journey,
    "measures": measures,
    "table": table,
    "ranking": ranking,
    "robot": robot,
    "letters": letters,
    "recipe": recipe,
}
# A question in four has no system text.
SYSTEMS = (
    "",
    "",
    "You are a patient teacher. Show your working.",
    "You are an assistant that explains every step.",
    "Answer the question and say how you got there.",
    "You are a helpful assistant. Be precise.",
    "Think about the question before you answer it.",
    "Explain your reasoning in plain words.",
)


def answer_rows(number: int = NUMBER, seed: int = SEED) -> Iterator[dict[str, str]]:
    """Rows of the orca_dpo_pairs schema, with the "kind" of their question.

    Kinds take turns; row i depends on the seed and i only, unless its question came
    before, when another one is drawn. Raises PairsError for a number below 1.
    """
    if number < 1:
        raise PairsError(f"number is {number}, expected at least 1 pair")
    return _rows(number, seed)


def _rows(number: int, seed: int) -> Iterator[dict[str, str]]:
    asked: set[str] = set()
    names = tuple(KINDS)
    for index in range(number):
        kind = names[index % len(names)]
        for attempt in range(sys.maxsize):
            draws = Draws(seed, index, attempt)
            problem = KINDS[kind](draws)
            # A slip may lead to the right value by chance: then it is no wrong answer.
            if problem.right.value != problem.wrong.value:
                if problem.question not in asked:
                    break
        asked.add(problem.question)
        chosen, rejected = tell_both(problem, draws)
        yield {
            "kind": kind,
            "system": draws.pick(SYSTEMS),
            "question": problem.question,
            "chosen": chosen,
            "rejected": rejected,
        }


def as_jsonl(rows: Iterator[dict[str, str]]) -> str:
    """The rows as the text of a JSONL file."""
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.buffer.write(as_jsonl(answer_rows()).encode("utf-8"))
