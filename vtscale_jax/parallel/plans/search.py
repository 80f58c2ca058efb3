"""The fastest way to run a config on a machine that fits into its memory.

Tried are meshes, frozen weights sharded or copied, what the backward pass computes
again (remat), and rows per device, such that an update still has as many samples (in
stage align, where the other samples of a batch are its negatives, so has a batch).
Arithmetic leaves out what cannot fit and puts the rest in order; the most promising are
compiled.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from vtscale_jax.devices import GIB
from vtscale_jax.parallel.plans.plan import (
    Arithmetic,
    Plan,
    PlanError,
    Seconds,
    predict,
)
from vtscale_jax.parallel.plans.table import aligned
from vtscale_jax.parallel.plans.topologies import Topology
from vtscale_jax.settings import LEAST_REMAT_FIRST

MOST_ROWS = 64  # per device
JUDGED = "too large, judging by those compiled"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to run it."""

    data: int
    fsdp: int
    tensor: int
    frozen: str
    remat: str
    batch_size: int
    accumulation: int

    @property
    def mesh(self) -> dict[str, int]:
        """Sizes by axis."""
        return {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}

    @property
    def rows(self) -> int:
        """Rows of a part of the batch."""
        return self.batch_size // (self.data * self.fsdp)

    def describe(self) -> list[str]:
        """As cells of a table."""
        mesh = " × ".join(str(size) for size in self.mesh.values())
        return [mesh, self.frozen, self.remat, f"{self.rows} × {self.accumulation}"]


class Estimate(NamedTuple):
    """A choice by arithmetic: what a step takes with a rough count of what is sent, and
    the least memory it needs, of which `state` does not depend on the batch."""

    choice: Choice
    state: int
    least: int
    seconds: Seconds

    def beyond(self, factor: float) -> float:
        """Memory, if what depends on the batch is `factor` times the least."""
        return self.state + factor * (self.least - self.state)

    @property
    def per_row(self) -> float:
        """Seconds for each row, by which choices are compared."""
        return self.seconds.step / self.choice.batch_size


class Tried(NamedTuple):
    """An estimate, and the plan if it was compiled."""

    estimate: Estimate
    plan: Plan | None
    why_not: str = ""


class Found(NamedTuple):
    """What a search looked at; `best` is None when nothing fits."""

    best: Plan | None
    tried: tuple[Tried, ...]
    considered: int
    too_large: int


def choices(
    devices: int,
    batch_size: int,
    accumulation: int,
    *,
    num_heads: Sequence[int],
    aligns: bool,
) -> Iterator[Choice]:
    """Every way to lay a batch over the devices. `num_heads` are those of all towers,
    keys' too, which a tensor axis must divide."""
    update = batch_size * accumulation
    for tensor in _divisors(devices):
        if any(heads % tensor for heads in num_heads):
            continue
        shards = devices // tensor
        sizes = (
            [batch_size] if aligns else [shards * b for b in range(1, MOST_ROWS + 1)]
        )
        sizes = [size for size in sizes if size % shards == 0 and update % size == 0]
        for fsdp in _divisors(shards):
            layouts = (
                ("sharded", "replicated") if fsdp * tensor > 1 else ("replicated",)
            )
            for frozen in layouts:
                for remat in LEAST_REMAT_FIRST:
                    for size in sizes:
                        yield Choice(
                            shards // fsdp,
                            *(fsdp, tensor, frozen, remat, size),
                            accumulation if aligns else update // size,
                        )


def estimate(
    choice: Choice, sizes: Arithmetic, machine: Topology, efficiency: float
) -> Estimate:
    """A choice by arithmetic.

    Memory is `Arithmetic.least_memory`, less than any program needs. Network: sharded
    weights come together for the forward and for the backward pass, in two bytes;
    gradients are summed; a tensor axis sums twice in each layer, forward, backward and
    again under remat.
    """
    c, cut = choice, choice.fsdp * choice.tensor
    state, least = sizes.least_memory(c.mesh, c.frozen, c.accumulation)
    gathered = sizes.trainable / 2 + (sizes.frozen if c.frozen == "sharded" else 0)
    sent = 2 * gathered / c.tensor * (c.fsdp - 1) / c.fsdp
    sent += sizes.trainable / c.tensor * (c.fsdp - 1) / c.fsdp
    sent += 2 * sizes.trainable / cut * (c.data - 1) / c.data
    around = 2 * (c.tensor - 1) / c.tensor * 2
    sent += around * sizes.hidden / (c.data * c.fsdp)
    seconds = predict(sizes.work, machine, c.mesh, round(sent), efficiency)
    return Estimate(c, state, least, seconds)


def search(
    machine: Topology,
    found: Sequence[Choice],
    *,
    sizes_of: Callable[[Choice], Arithmetic],
    plan_of: Callable[[Choice], Plan],
    efficiency: float,
    most_compiled: int,
    say: Callable[[str], None],
) -> Found:
    """Compiles up to `most_compiled` of the choices, those that arithmetic likes best
    first, and returns the fastest for each row that fits. `say` hears of each."""
    ranked = [estimate(one, sizes_of(one), machine, efficiency) for one in found]
    room = machine.chip.memory
    # Of equals, the one that sends less, and then the one that leaves more room.
    ranked.sort(
        key=lambda one: (
            round(one.per_row, 4),
            one.seconds.network / one.choice.batch_size,
            one.least,
        )
    )
    tried: list[Tried] = []
    best: Plan | None = None
    # What compiled ones hold for the batch beyond arithmetic, others will hold too.
    factor: dict[str, float] = dict.fromkeys(LEAST_REMAT_FIRST, 1.0)

    def guess(one: Estimate) -> float:
        return one.beyond(factor[one.choice.remat])

    left = [one for one in ranked if one.least <= room]
    count = 0
    while left and count < most_compiled:
        # The last chance goes to what needs least: does anything fit?
        last_chance = best is None and count == most_compiled - 1
        one = left.pop(left.index(min(left, key=guess)) if last_chance else 0)
        if best is not None and one.per_row >= _per_row(best):
            break
        if guess(one) > room and not last_chance:
            tried.append(Tried(one, None, JUDGED))
            continue
        count += 1
        mesh, frozen, remat, rows = one.choice.describe()
        said = (
            f"{machine.name}: mesh {mesh}, frozen {frozen}, remat {remat}, rows {rows}"
        )
        try:
            plan = plan_of(one.choice)
        except PlanError as error:
            tried.append(Tried(one, None, str(error).splitlines()[0]))
            say(f"{said}: {error}")
            continue
        tried.append(Tried(one, plan))
        ratio = (plan.needed - one.state) / max(1, one.least - one.state)
        factor[one.choice.remat] = max(1.0, ratio)
        if plan.fits and (best is None or _per_row(plan) < _per_row(best)):
            best = plan
        verdict = f"{plan.seconds.step:.2f} s" if plan.fits else "does not fit"
        say(f"{said}: {plan.needed / GIB:.2f} GiB, {verdict}")
    too_large = sum(one.least > room for one in ranked)
    return Found(best, tuple(tried), len(ranked), too_large)


def _per_row(plan: Plan) -> float:
    return plan.seconds.step / plan.batch_size


def lines(found: Found) -> list[str]:
    """What was compiled, as a table, and how many were left out and why."""
    head = ["data × fsdp × tensor", "frozen", "remat", "rows × accumulation"]
    head += ["at least, GiB", "peak, GiB", "step, s", "rows per s", ""]
    rows = [head]
    for one in found.tried:
        cells = [*one.estimate.choice.describe(), f"{one.estimate.least / GIB:.2f}"]
        plan = one.plan
        if plan is None:
            rows += [[*cells, "–", "–", "–", one.why_not]] * (one.why_not != JUDGED)
            continue
        peak = f"{plan.needed / GIB:.2f}"
        if not plan.fits:
            rows.append([*cells, peak, "–", "–", "does not fit"])
            continue
        step = plan.seconds.step
        speed = f"{plan.batch_size / step:.1f}"
        mark = "best" if plan is found.best else ""
        rows.append([*cells, peak, f"{step:.2f}", speed, mark])
    judged = sum(one.why_not == JUDGED for one in found.tried)
    return [
        f"{found.considered:,} ways considered; {found.too_large:,} cannot fit by "
        f"arithmetic, {judged:,} judging by those compiled; compiled:",
        *aligned(rows),
    ]


def as_json(found: Found) -> list[dict[str, Any]]:
    """What was tried, as JSON has it."""
    return [
        {
            **dataclasses.asdict(one.estimate.choice),
            "least_bytes": one.estimate.least,
            "peak_bytes": one.plan and one.plan.needed,
            "fits": one.plan and one.plan.fits,
            "step_s": one.plan and one.plan.seconds.step,
            "why_not": one.why_not or None,
        }
        for one in found.tried
    ]


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
