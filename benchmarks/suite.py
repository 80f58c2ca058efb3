"""Runs the jobs of `benchmarks.jobs`, each in a process of its own, into one file.

A job that fails, hangs or is killed is a row with its reason, and the others go on. The
file is written after each job, so that an interrupted suite goes on where it was: what
was measured with the same sources and arguments on the same machine is kept.
"""

import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.jobs import FOLDER, Job, Run

ROOT = Path(__file__).resolve().parent.parent
# What the figures depend on; not tests, not documentation.
SOURCES = ("vtscale_jax", "configs", "benchmarks")
GRACE_S = 5.0  # between being asked to end and being killed
# For every row, the fields that say how it was made.
MADE_BY = ("command", "sources")
LATE = ", its limit"
SAME_MACHINE = ("platform", "kind", "count", "processor", "cores")


class SuiteError(ValueError):
    """Results that are of another machine, or a machine that cannot be asked."""


@dataclasses.dataclass(frozen=True)
class Suite:
    """`jobs` on `machine` (`record.device`) into `out`, their output into `logs`.

    `within` are seconds for all of them together (None: their own limits only);
    `again` measures what is there already once more.
    """

    jobs: Sequence[Job]
    machine: Mapping[str, Any]
    out: Path
    logs: Path
    quick: bool = False
    again: bool = False
    within: float | None = None

    def run(self) -> dict[str, Any]:
        """Runs what is to be run; the rows by job, as they stand in the file then."""
        rows = read_rows(self.out, self.machine)
        begun = time.monotonic()
        for number, job in enumerate(self.jobs, 1):
            start = f"{number} of {len(self.jobs)}: {job.name}"
            run = job.runs.get(self.machine["platform"])
            if run is None:
                say(f"{start}: not measured: {job.elsewhere}")
                rows[job.name] = record.not_measured(job.name, job.elsewhere)
            else:
                made_by = {"command": self.command(run), "sources": sources()}
                kept = rows.get(job.name, {})
                same = all(kept.get(name) == made_by[name] for name in MADE_BY)
                if same and "result" in kept and not self.again:
                    say(f"{start}: kept from {kept['result']['date']}")
                    continue
                limit: float = run.seconds
                if self.within is not None:
                    limit = min(limit, self.within - (time.monotonic() - begun))
                if limit < 1:
                    why = f"the {self.within:g} s of --within were used up"
                    rows[job.name] = record.not_measured(job.name, why)
                    say(f"{start}: not measured: {why}")
                else:
                    say(f"{start}: at most {limit:.0f} s; log {self.log(job)}")
                    late = str(kept.get("failed", "")).endswith(LATE)
                    goes_on = same and late and not self.again
                    found = self.attempt(job, run, limit, goes_on=goes_on)
                    tried = {} if "not_measured" in found else made_by
                    rows[job.name] = tried | found
                    say(f"{start}: {outcome(rows[job.name])}")
            record.write(
                self.out, record.headed("all", {"rows": rows}, machine=self.machine)
            )
        return rows

    def command(self, run: Run) -> list[str]:
        """The words that do a job, without the interpreter and `--out`."""
        return [*run.words, *(run.quick if self.quick else ())]

    def words(self, job: Job, run: Run) -> list[str]:
        """The command with the folder that this job may leave more in."""
        folder = str((self.logs / job.name).resolve())
        return [folder if word == FOLDER else word for word in self.command(run)]

    def log(self, job: Job) -> Path:
        """Where a job's output goes."""
        return self.logs / f"{job.name}.log"

    def attempt(
        self, job: Job, run: Run, limit: float, *, goes_on: bool = False
    ) -> dict[str, Any]:
        """One run of a job: its `seconds`, and its `result` or how it `failed`.

        What one that was too slow left in its folder is there for one that `goes_on`.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        made = self.logs / f"{job.name}.json"
        made.unlink(missing_ok=True)  # of an earlier attempt
        folder = self.logs / job.name
        if not goes_on:
            shutil.rmtree(folder, ignore_errors=True)
        words = [sys.executable, *self.words(job, run), "--out", str(made.resolve())]
        begun = time.monotonic()
        with self.log(job).open("w", encoding="utf-8") as log:
            status = run_limited(words, log, limit)
        seconds = round(time.monotonic() - begun, 1)
        failed = None
        if status is None:
            failed = f"ended after {limit:.0f} s{LATE}"
        elif status < 0:
            failed = f"killed by {signal.Signals(-status).name}"
        elif status:
            failed = f"status {status}: {last_line(self.log(job))}"
        elif not made.exists():
            failed = "ended well, and wrote no result"
        if failed is None:
            result = json.loads(made.read_text(encoding="utf-8"))
            if isinstance(result.get("not_measured"), str):  # it found out for itself
                return record.not_measured(job.name, result["not_measured"])
            return {"seconds": seconds, "result": result}
        return {"seconds": seconds, "failed": failed, "log": str(self.log(job))}

    def plan(self) -> list[str]:
        """The commands as a shell would have them, and what is left out."""
        lines = []
        for job in self.jobs:
            run = job.runs.get(self.machine["platform"])
            if run is None:
                lines.append(f"# {job.name}: not measured: {job.elsewhere}")
                continue
            words = ["timeout", str(run.seconds), "python", *self.words(job, run)]
            lines.append(shlex.join([*words, "--out", f"{self.logs}/{job.name}.json"]))
        return lines


def run_limited(words: Sequence[str], log: Any, limit: float) -> int | None:
    """The status of a command, with its output in `log`; None when it was ended after
    `limit` seconds, and all processes that it had started with it."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    child = subprocess.Popen(
        words,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return child.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:  # also when this process is told to end
        end(child)


def end(child: subprocess.Popen) -> None:
    """Ends a child and its group, at first by asking, then without."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, sent)
        except ProcessLookupError:  # all have ended
            break
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            continue


def read_rows(out: Path, machine: Mapping[str, Any]) -> dict[str, Any]:
    """The rows that a file holds already; none when there is no file. SuiteError when
    it is not the results of this machine."""
    if not out.exists():
        return {}
    try:
        found = json.loads(out.read_text(encoding="utf-8"))
        theirs, rows = found["device"], found["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise SuiteError(
            f"{out} is no result of `python -m benchmarks all` "
            f"({type(error).__name__}: {error}); name another file in --out"
        ) from error
    differ = [name for name in SAME_MACHINE if theirs.get(name) != machine[name]]
    if differ:
        said = ", ".join(
            f"{name} {theirs.get(name)} there and {machine[name]} here"
            for name in differ
        )
        raise SuiteError(
            f"{out} holds results of another machine ({said}), which do not go "
            "together; name another file in --out"
        )
    return rows


def machine_at_hand() -> dict[str, Any]:
    """`record.device` as another process says it: JAX, once started, keeps memory of a
    GPU that the jobs need."""
    code = "import json; from benchmarks import record; "
    code += "print(json.dumps(record.device()))"
    asked = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    if asked.returncode:
        raise SuiteError(f"JAX finds no device:\n{asked.stderr.strip()[-2000:]}")
    return json.loads(asked.stdout.splitlines()[-1])


def sources() -> str:
    """A hash of the sources that figures depend on, also where there is no git."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for file in sorted((ROOT / folder).rglob("*.py")):
            digest.update(f"{file.relative_to(ROOT)}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def outcome(row: Mapping[str, Any]) -> str:
    """How a job went, in words."""
    if "not_measured" in row:
        return f"not measured: {row['not_measured']}"
    if "failed" in row:
        return f"failed: {row['failed']} (log: {row['log']})"
    return f"measured in {row['seconds']:.0f} s"


def last_line(log: Path) -> str:
    """The last line of a log that says anything."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return next((x.strip() for x in reversed(text.splitlines()) if x.strip()), "")


def say(text: str) -> None:
    """A line of progress, which is not part of the results."""
    print(text, file=sys.stderr, flush=True)
