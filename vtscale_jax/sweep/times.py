"""About how long the parts of a sweep take, from what they compute and this machine.

The operations of a part are counted (`cost`), the speed of this machine is that
of a matrix product. What share of it training and answering reach, and what starting
and compiling cost, was measured on 2 CPU cores. Where parts of the sweep are finished,
the estimate of the others is scaled by what those took.
"""

import json
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from vtscale_jax.run_folder import RunFolder
from vtscale_jax.sweep.parts import Part, SweepError

# Measured on 2 CPU cores that reach `REFERENCE` operations per second together. Seconds
# are those of one core: more of them hardly shorten what is not matrix products.
REFERENCE = 210e9
START_S = 10.0  # imports, data, starting weights, report
COMPILE_S = 28.0  # of a run with one shape of batches
COMPILE_ANSWERING_S = 8.0  # of an evaluation alone
COMPILE_SHAPE_S = 15.0  # of each further shape
TRAIN_SHARE = 0.57
# Prompts are shorter than the training rows by which they are counted.
ANSWER_SHARE = 1.1


class Machine(NamedTuple):
    """What the sweep runs on."""

    platform: str
    devices: int
    cores: int
    flops_per_s: float


class Times(NamedTuple):
    """Seconds of each part by name while `jobs` run at a time, and how they were
    found."""

    seconds: dict[str, float]
    jobs: int
    source: str

    def together(self, names: Collection[str]) -> float:
        """About how long the parts of these names take, `jobs` at a time."""
        each = [self.seconds[name] for name in names]
        return max([sum(each) / self.jobs, *each]) if each else 0.0


def ask_costs(parts: Sequence[Part]) -> dict[str, Any]:
    """What `cost` says of the training parts, whose answer comes from a child
    process; SweepError with its words for arguments that train would refuse."""
    runs = json.dumps([part.arguments for part in parts if part.of is None])
    command = [sys.executable, "-m", "vtscale_jax.sweep.cost", runs]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode:
        said = child.stderr.strip().splitlines()
        found = [line for line in said if line.startswith("error: ")]
        words = found[0].removeprefix("error: ") if found else "\n".join(said[-8:])
        raise SweepError(f"the runs of this sweep cannot be laid out: {words}")
    return json.loads(child.stdout.splitlines()[-1])


def machine_of(costs: Mapping[str, Any]) -> Machine:
    """What `cost` says of the machine."""
    return Machine(*(costs[name] for name in Machine._fields))


def estimate(
    parts: Sequence[Part],
    costs: Mapping[str, Any],
    finished: Sequence[str],
    jobs: int = 1,
) -> Times:
    """About how long each part takes with `jobs` at a time. `costs` are those of the
    training parts in the order of `parts`; the parts named in `finished` say how far
    that is off."""
    machine = machine_of(costs)
    trains = [part for part in parts if part.of is None]
    of = {part.name: row for part, row in zip(trains, costs["runs"], strict=True)}
    seconds = {
        part.name: _seconds(of[part.of or part.name], part.of is None, machine, jobs)
        for part in parts
    }
    took = {part.name: duration(part) for part in parts if part.name in finished}
    known = {name: value for name, value in took.items() if value is not None}
    speed = f"{machine.flops_per_s / 1e9:,.0f} GFLOP/s on {machine.platform}"
    source = f"from counted operations and a matrix product measured here ({speed})"
    if known:
        ratio = sum(known.values()) / sum(seconds[name] for name in known)
        seconds = {name: ratio * value for name, value in seconds.items()}
        count = "the finished part" if len(known) == 1 else "the finished parts"
        source = f"from counted operations and what {count} took"
    elif machine.platform != "cpu":
        source += "; what share of it is reached was measured on CPUs only"
    return Times(seconds, jobs, source)


def _seconds(
    cost: Mapping[str, float | int], trains: bool, machine: Machine, jobs: int
) -> float:
    """Of one part. On a CPU starting and compiling are by the same cores, of which
    each of several parts has its share."""
    compiling, training = COMPILE_ANSWERING_S, 0.0
    if trains:
        compiling = COMPILE_S + COMPILE_SHAPE_S * (cost["shapes"] - 1)
        training = cost["steps"] * cost["step_flops"] / TRAIN_SHARE
    answering = cost["prompts"] * cost["prompt_flops"] / ANSWER_SHARE
    computing = (training + answering) / machine.flops_per_s
    if machine.platform != "cpu":
        return START_S + compiling + computing
    # By core: the reference has two.
    slower = REFERENCE / 2 / (machine.flops_per_s / machine.cores)
    return slower * (START_S + compiling) + jobs * computing


def duration(part: Part) -> float | None:
    """What a finished part took, as its files say; None where they do not."""
    name = "manifest.json" if part.of is None else "evaluated.json"
    return RunFolder(part.folder).read(name).get("duration_s")


def in_words(seconds: float) -> str:
    """
    >>> [in_words(s) for s in (20, 90, 1500, 9000)]
    ['20 s', '1.5 min', '25 min', '2.5 h']
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
