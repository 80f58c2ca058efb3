"""Runs the parts of a sweep as child processes, several at a time where asked.

Each part has a process of its own, so that memory and compiled programs of one M are
gone before the next, and a log of its own. A signal that asks to stop is passed on: a
training run saves its state and ends.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple

from vtscale_jax.sweep.parts import FINISHED, Part, state

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LAST_LINES = 12
WAIT_S = 0.1


class Outcome(NamedTuple):
    """What became of the parts; `stopped` is the number of the signal, or None."""

    finished: list[str]
    failed: list[str]
    left_out: list[str]
    stopped: int | None


class Child(NamedTuple):
    """A part that runs, in its slot of those that run at a time."""

    part: Part
    process: subprocess.Popen
    slot: int
    started: float


class StopSignals:
    """Remembers the first signal that asks to stop, and how many came, while its
    context lasts."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.count = 0

    def __enter__(self) -> "StopSignals":
        self._old = {n: signal.signal(n, self._came) for n in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _came(self, number: int, frame: FrameType | None) -> None:
        self.number = number if self.number is None else self.number
        self.count += 1


def run_parts(
    parts: Sequence[Part],
    out: Path,
    *,
    jobs: int = 1,
    keep_going: bool = False,
    say: Callable[[str], None] = print,
    done: Callable[[Part, float], None] = lambda part, seconds: None,
) -> Outcome:
    """Runs what is not finished, at most `jobs` at a time; `done` hears of each part
    that came to its end, and its seconds.

    A part that fails is shown with the end of its log. Those that run then come to
    their ends; others are begun only with `keep_going`.
    """
    waiting = [part for part in parts if state(part) != FINISHED]
    running: list[Child] = []
    outcome = Outcome([], [], [], None)
    told, ended_early = 0, False
    with StopSignals() as stop:
        while True:
            if stop.count > told:
                told = stop.count
                _tell(running, again=told > 1, say=say)
            for child in [c for c in running if c.process.poll() is not None]:
                running.remove(child)
                seconds = time.monotonic() - child.started
                status, part = child.process.returncode, child.part
                if state(part) == FINISHED and status == 0:
                    outcome.finished.append(part.name)
                    done(part, seconds)
                elif stop.number is not None:
                    say(f"{part.name}: stopped; what it has saved stands")
                elif status == 0:
                    # It was told to save and end, and so was the sweep.
                    say(f"{part.name}: was told to stop, not by this sweep")
                    ended_early = True
                else:
                    outcome.failed.append(part.name)
                    say(failure(part, status, log_of(out, part.name)))
            halted = stop.number is not None or ended_early
            halted |= bool(outcome.failed) and not keep_going
            for part in [] if halted else list(waiting):
                if part.of in outcome.failed or part.of in outcome.left_out:
                    waiting.remove(part)
                    outcome.left_out.append(part.name)
                    say(f"{part.name}: left out, since it needs {part.of}")
                elif len(running) < jobs and _is_ready(part, parts):
                    waiting.remove(part)
                    slots = {child.slot for child in running}
                    slot = min(set(range(jobs)) - slots)
                    running.append(_start(part, out, slot, jobs))
            if not running:
                break
            time.sleep(WAIT_S)
    outcome.left_out.extend(part.name for part in waiting)
    number = stop.number
    if number is None and ended_early:
        number = signal.SIGTERM
    return outcome._replace(stopped=number)


def log_of(out: Path, name: str) -> Path:
    """The file with all that the part of this name has said."""
    return out / "logs" / f"{name}.log"


def failure(part: Part, status: int, log: Path) -> str:
    """How a part ended, with the last lines of its log."""
    how = f"status {status}"
    if status < 0:
        how = f"signal {signal.Signals(-status).name}"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line]
    shown = "\n".join(f"    {line}" for line in lines[-LAST_LINES:])
    return f"{part.name}: failed ({how}); the end of {log}:\n{shown}"


def _is_ready(part: Part, parts: Sequence[Part]) -> bool:
    if part.of is None:
        return True
    return all(state(other) == FINISHED for other in parts if other.name == part.of)


def _start(part: Part, out: Path, slot: int, jobs: int) -> Child:
    log = log_of(out, part.name)
    log.parent.mkdir(exist_ok=True)
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str((out / "cache").resolve()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "PYTHONUNBUFFERED": "1",
        **os.environ,
    }
    with log.open("ab") as file:
        file.write(f"$ {part.typed}\n".encode())
        file.flush()
        # A group of its own: a Ctrl-C on the terminal comes to the sweep alone, which
        # passes it on once.
        process = subprocess.Popen(
            part.command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    if jobs > 1 and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        own = cores[slot % len(cores) :: jobs]
        # Long before JAX counts the cores.
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.sched_setaffinity(process.pid, own)
    return Child(part, process, slot, time.monotonic())


def _tell(running: Sequence[Child], again: bool, say: Callable[[str], None]) -> None:
    """Passes the wish to stop on: once to save and end, then to end at once."""
    for child in running:
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGKILL if again else signal.SIGTERM)
    if running and not again:
        names = " and ".join(child.part.name for child in running)
        say(f"stopping: {names} saves its state (again: ends at once)")
