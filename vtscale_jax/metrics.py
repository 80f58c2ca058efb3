"""Numbers of a run: how they are gathered, and where they are written.

One `MetricsLog.write(step, loss=..., ...)` feeds three sinks: `metrics.jsonl` (the
file every figure is drawn from), TensorBoard events, and a progress bar. Everything
here takes python or numpy numbers; nothing here touches a device, so the caller
decides when to wait for one.

With several hosts only one of them makes a `MetricsLog`.
"""

import contextlib
import io
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from vtscale_jax.loss_watch import check_loss

# `TextIO` is what pyright takes sys.stderr for, `TextIOBase` what it really is.
Stream = io.TextIOBase | TextIO


class MalformedFile(ValueError):
    """A result file does not hold what it should; the message names file and line."""


def wilson_interval(
    successes: int | np.integer, trials: int | np.integer, confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson's score interval of a proportion, as (low, high) within [0, 1].

        (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)

    with p = successes / trials and z the two-sided normal quantile. Unlike the
    textbook p ± z·sqrt(p(1-p)/n) it keeps its coverage for small n and for p near 0
    or 1 (E. B. Wilson, JASA 22:209-212, 1927; Brown, Cai & DasGupta, Statistical
    Science 16:101-133, 2001).

    Raises ValueError unless 0 <= successes <= trials, trials >= 1 and
    0 < confidence < 1.
    """
    if trials < 1:
        raise ValueError(
            f"trials is {trials}, expected at least 1: leave out what was not measured."
        )
    if not 0 <= successes <= trials:
        raise ValueError(f"successes is {successes}, expected 0 to trials = {trials}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a value like 0.95.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p, shrink = successes / trials, z * z / trials
    centre = (p + shrink / 2) / (1 + shrink)
    half = z * math.sqrt(p * (1 - p) / trials + shrink / (4 * trials)) / (1 + shrink)
    # At the ends the interval touches 0 or 1 exactly; rounding must not move it off.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


class Throughput:
    """Samples per second over the last `window` log intervals.

    The clock starts when the object is made: make it after compilation. Work that is
    not training (evaluation, checkpoints) goes under `with throughput.paused():`.
    `last_seconds` are those of the last log interval.
    """

    def __init__(
        self, window: int = 20, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        if window < 1:
            raise ValueError(f"window is {window}, expected at least 1 log interval.")
        self._clock = clock
        self._intervals: deque[tuple[int, float]] = deque(maxlen=window)
        self._mark = clock()
        self.last_seconds = 0.0

    def update(self, samples: int | np.integer) -> float:
        """Ends a log interval in which `samples` were trained on; returns samples/s."""
        now = self._clock()
        self.last_seconds = now - self._mark
        self._intervals.append((int(samples), self.last_seconds))
        self._mark = now
        seconds = sum(elapsed for _, elapsed in self._intervals)
        if seconds <= 0:
            raise ValueError(
                f"{seconds} s passed over the last log intervals, expected more than 0:"
                " call update once per log interval, after the work is done."
            )
        return sum(count for count, _ in self._intervals) / seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count."""
        start = self._clock()
        try:
            yield
        finally:
            self._mark += self._clock() - start


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All rows of a JSON Lines file; row i stands on line i + 1.

    Raises `MalformedFile` naming file and line when a line is not one JSON object
    (an empty line, NaN and Infinity are not JSON).
    """
    return _parse_rows(path, path.read_text(encoding="utf-8"))


def _parse_rows(path: Path, text: str) -> list[dict[str, Any]]:
    # Not splitlines: it also cuts at characters that may stand inside a string.
    lines = text.split("\n")
    last_is_whole = lines[-1] == ""
    if last_is_whole:
        lines.pop()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line, parse_constant=_refuse_constant)
        except ValueError as error:
            torn = number == len(lines) and not last_is_whole
            hint = (
                "the file ends within this line: the run was stopped while writing it;"
                " resume the run, or delete the line"
                if torn
                else "write the file again, or mend the line"
            )
            raise MalformedFile(
                f"{path}, line {number}: expected one JSON object, got "
                f"{line[:60]!r} ({error}); {hint}."
            ) from error
        if not isinstance(row, dict):
            raise MalformedFile(
                f"{path}, line {number}: expected a JSON object {{...}}, got "
                f"{type(row).__name__}; write the file again, or mend the line."
            )
        rows.append(row)
    return rows


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


class _JsonlSink:
    """Appends rows, one flushed line each; holds each (step, split) at most once."""

    def __init__(self, path: Path, restored_step: int | None) -> None:
        self._path = path
        self._last: dict[str, int] = {}
        for row in _drop_rows_after(path, restored_step):
            self._last[row["split"]] = row["step"]
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, split: str, scalars: dict[str, int | float]) -> None:
        last = self._last.get(split)
        if last is not None and step <= last:
            raise ValueError(
                f"step is {step} for split {split!r}, expected more than {last}, which "
                f"{self._path} already holds; pass restored_step when a run resumes."
            )
        # JSON has no NaN or infinity (a gradient norm may be one): null stands there.
        numbers = {
            name: value if math.isfinite(value) else None
            for name, value in scalars.items()
        }
        row = {"step": step, "split": split, **numbers}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        self._last[split] = step

    def close(self) -> None:
        self._file.close()


def _drop_rows_after(path: Path, restored_step: int | None) -> list[dict[str, Any]]:
    """Rewrites the file without rows after `restored_step` (None: without any row).

    A last line without line end was torn by a kill and goes too: rows are flushed
    before the checkpoint of their step is written, so it belongs to a later step.
    Returns the rows kept.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = []
    if restored_step is not None:
        rows = _parse_rows(path, text[: text.rfind("\n") + 1])
        for number, row in enumerate(rows, start=1):
            if not isinstance(row.get("step"), int) or "split" not in row:
                raise MalformedFile(
                    f"{path}, line {number}: expected a row with an integer step and a "
                    f"split, got keys {sorted(row)}; delete the line or the file."
                )
        rows = [row for row in rows if row["step"] <= restored_step]
    draft = path.with_name(path.name + ".rewrite")
    with draft.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    return rows


class _ProgressSink:
    """A bar on a terminal; elsewhere a plain line now and then.

    Plain lines keep 10 s and one per cent of the run between them, so a log file gets
    about a hundred at most, however long the run.
    """

    _LINE_SECONDS = 10.0

    def __init__(
        self,
        total_steps: int,
        start: int,
        stream: Stream,
        clock: Callable[[], float],
    ) -> None:
        self._total, self._stream, self._clock = total_steps, stream, clock
        self._origin: tuple[int, float] | None = None
        self._printed: tuple[int, float] | None = None
        self._bar = None
        if stream.isatty():
            self._bar = tqdm(
                total=total_steps,
                initial=start,
                file=stream,
                unit="step",
                dynamic_ncols=True,
            )

    def write(self, step: int, split: str, scalars: dict[str, int | float]) -> None:
        shown = _shown(scalars)
        if split != "train":  # An evaluation is rare and worth a line of its own.
            self._print(f"step {step}/{self._total}  {split}  {shown}")
        elif self._bar is not None:
            self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(step - self._bar.n)
        else:
            now = self._clock()
            if self._origin is None:
                self._origin = (step, now)
            if self._is_due(step, now):
                self._printed = (step, now)
                self._print(
                    f"step {step}/{self._total}  {shown}  "
                    f"ETA {self._eta(step, now, *self._origin)}"
                )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _is_due(self, step: int, now: float) -> bool:
        if self._printed is None or step >= self._total:
            return True
        last_step, last_time = self._printed
        return (
            now - last_time >= self._LINE_SECONDS
            and step - last_step >= self._total / 100
        )

    def _eta(self, step: int, now: float, first_step: int, first_time: float) -> str:
        # Counted from the first row, so that compilation is not taken for training.
        if step == first_step:
            return "?"
        rate = (now - first_time) / (step - first_step)
        return tqdm.format_interval(rate * max(0, self._total - step))

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)


def _shown(scalars: dict[str, int | float]) -> str:
    """Loss, speed, MFU and accuracies, for a reader in front of a terminal."""
    parts = []
    if "loss" in scalars:
        parts.append(f"loss {scalars['loss']:.4g}")
    if "samples_per_s" in scalars:
        parts.append(f"{scalars['samples_per_s']:.3g} samples/s")
    if "mfu" in scalars:
        parts.append(f"MFU {scalars['mfu']:.1%}")
    parts += [
        f"{name.removeprefix('accuracy/')} {value:.1%}"
        for name, value in scalars.items()
        if name.startswith("accuracy")
    ]
    return ", ".join(parts)


class MetricsLog(contextlib.AbstractContextManager):
    """Writes a run's scalars to `metrics.jsonl`, `tensorboard/` and a progress bar.

    `restored_step` is the step of the checkpoint a run resumes from: what the folder
    holds of later steps is dropped (TensorBoard hides it). None starts a run afresh
    and drops all earlier rows. `stream` (default: standard error) shows progress.

        with MetricsLog(run_dir, total_steps=1000) as log:
            log.write(10, loss=2.1, learning_rate=1e-3, samples_per_s=55.0)
            log.write(10, split="heldout", loss=2.3, **{"accuracy/read": 0.4})
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        total_steps: int,
        restored_step: int | None = None,
        stream: Stream | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if total_steps < 1:
            raise ValueError(f"total_steps is {total_steps}, expected at least 1.")
        if restored_step is not None and not 0 <= restored_step <= total_steps:
            raise ValueError(
                f"restored_step is {restored_step}, expected 0 to total_steps = "
                f"{total_steps}: raise total_steps, or use a folder of another name."
            )
        run_dir = Path(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        start = 0 if restored_step is None else restored_step
        # Brings torch where it is installed, which takes longer than JAX itself.
        from tensorboardX import SummaryWriter

        self._jsonl = _JsonlSink(run_dir / "metrics.jsonl", restored_step)
        self._tensorboard = SummaryWriter(
            str(run_dir / "tensorboard"),
            purge_step=0 if restored_step is None else restored_step + 1,
            # Event files are named by the second; a quick restart must not reuse one.
            filename_suffix=f".from_step_{start}",
        )
        self._progress = _ProgressSink(
            total_steps, start, sys.stderr if stream is None else stream, clock
        )

    def write(
        self, step: int | np.integer, *, split: str = "train", **scalars: object
    ) -> None:
        """Writes one row. Values are python or numpy scalars.

        Raises `TrainingStopped` for a `loss` that is not finite, and ValueError for a
        value that is no scalar or a step this split has already reached. Other values
        may be NaN or infinite; the file then holds null.
        """
        if not scalars:
            raise ValueError(f"no scalars at step {step}, expected at least one.")
        step = int(step)
        numbers = {name: _number(name, value) for name, value in scalars.items()}
        if "loss" in numbers:
            check_loss(step, numbers["loss"])
        self._jsonl.write(step, split, numbers)
        for name, value in numbers.items():
            self._tensorboard.add_scalar(f"{split}/{name}", value, step)
        self._progress.write(step, split, numbers)

    def close(self) -> None:
        """Flushes and closes all three sinks."""
        self._progress.close()
        self._tensorboard.close()
        self._jsonl.close()

    def __exit__(self, *exception: object) -> None:
        self.close()


class NoLog(contextlib.AbstractContextManager):
    """In place of a `MetricsLog` on the hosts that write none."""

    def write(self, step: int, *, split: str = "train", **scalars: object) -> None:
        """Nothing."""

    def __exit__(self, *exception: object) -> None:
        pass


def _number(name: str, value: object) -> int | float:
    """A python int or float from any real scalar."""
    array = np.asarray(value)
    # Kind V is how numpy sees bfloat16, which it does not know itself.
    if array.shape != () or array.dtype.kind not in "iufV":
        raise ValueError(
            f"{name} is {value!r}, expected one real number; reduce arrays first."
        )
    return int(array) if array.dtype.kind in "iu" else float(array)
