"""The records that training passes over because their image cannot be read.

    RUN/skipped-0.jsonl    {"step": 12, "row": 3, "id": "coco/1", "reason": "…"}

Each process writes those of the rows that it feeds. A few broken files among millions
must not end a run; more than a stated share of them mean that something else is wrong
(a folder that is not mounted), and do.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from vtscale_jax.encoders import Unreadable
from vtscale_jax.run_folder import write_whole

PATTERN = "skipped-*.jsonl"
# A share is taken of at least so many samples: one broken file among the first ten says
# little.
FEWEST = 1000
SHOWN = 3


class TooManyUnreadable(ValueError):
    """More records without a usable image than the config allows."""


class SkipLog:
    """What process number `process` skips of the `rows` of each batch that it feeds.

    At most the share `most` of them (of `FEWEST`, while fewer were fed). `begun` is the
    step that the run goes on from: what was skipped after it is met again, and its
    lines are dropped; what was skipped before counts on, whoever fed it then.
    """

    def __init__(
        self,
        folder: Path,
        process: int,
        rows: Sequence[int],
        *,
        most: float,
        begun: int,
    ):
        if not 0 <= most <= 1:
            raise TooManyUnreadable(
                f"data.max_unreadable is {most}, expected a share from 0 to 1"
            )
        self._file = folder / f"skipped-{process}.jsonl"
        self._most = most
        self._rows = rows
        self._fed = begun * len(rows)
        if self._file.exists():
            lines = [line for line in _lines([self._file]) if line["step"] <= begun]
            kept = "".join(f"{json.dumps(line)}\n" for line in lines)
            # Whole lines only: the next one would go on with what a kill has left.
            write_whole(self._file, kept.encode())
        before = {place for place in skipped_places(folder) if place[0] <= begun}
        own = set(rows)
        self._number = sum(row in own for _, row in before)

    def see(self, step: int, skipped: Sequence[tuple[int, Unreadable]]) -> None:
        """Notes what was skipped of the batch of `step` (counted from 1), by row.
        TooManyUnreadable beyond the share; what was skipped is in the file then too."""
        self._fed += len(self._rows)
        if not skipped:
            return
        with self._file.open("a") as file:
            for row, one in skipped:
                line = {"step": step, "row": row, **one._asdict()}
                file.write(json.dumps(line) + "\n")
        self._number += len(skipped)
        allowed = int(self._most * max(self._fed, FEWEST))
        if self._number > allowed:
            shown = "\n".join(f"  {one.reason}" for _, one in skipped[:SHOWN])
            raise TooManyUnreadable(
                f"{self._number:,} of the {self._fed:,} samples fed up to step {step} "
                "have an image that cannot be read; data.max_unreadable "
                f"{self._most:g} allows {allowed:,}. The last ones:\n{shown}\nAll are "
                f"in {self._file}. Mend or drop them (python -m vtscale_jax.data "
                "prepare looks at every image beforehand), or allow more "
                "(--config.data.max_unreadable=0.1); the same command then goes on "
                "from the last checkpoint"
            )


def skipped_places(folder: Path) -> set[tuple[int, int]]:
    """(step, row of the global batch) of every sample that a run skipped. Processes
    that fed the same rows have noted the same ones."""
    return {(line["step"], line["row"]) for line in _lines(folder.glob(PATTERN))}


def _lines(files: Iterable[Path]) -> Iterable[dict]:
    for file in files:
        content = file.read_text()
        # A kill may leave the beginning of a last line.
        for line in content[: content.rfind("\n") + 1].splitlines():
            yield json.loads(line)
