"""Plans as text, one table for all of them, and as JSON."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from vtscale_jax.devices import GIB
from vtscale_jax.parallel.plans.collectives import KINDS
from vtscale_jax.parallel.plans.plan import Plan

Cell = Callable[[Plan], str]
MOST_COLUMNS = 2  # beside each other on a page


def _gib(number: int | None) -> str:
    return "–" if number is None else f"{number / GIB:.2f}"


def _memory(name: str) -> Cell:
    return lambda plan: _gib(plan.memory and getattr(plan.memory, name))


def _sent(kind: str) -> Cell:
    def cell(plan: Plan) -> str:
        if plan.sent is None:
            return "–"
        total = plan.sent.get(kind)
        return f"{_gib(total.sent)} ({total.runs:,}×)" if total else "0"

    return cell


def _mesh(plan: Plan) -> str:
    return " ".join(f"{axis} {size}" for axis, size in plan.mesh.items())


def _rows(plans: Sequence[Plan]) -> list[tuple[str, Cell | None]]:
    """Labels and cells; a label without cell is a heading."""
    kinds = [k for k in KINDS if any(k in (plan.sent or {}) for plan in plans)]
    return [
        ("device", lambda p: p.machine.chip.name),
        ("devices", lambda p: str(p.machine.num_devices)),
        ("mesh", _mesh),
        ("frozen weights are", lambda p: p.frozen_layout),
        ("rows per device × accumulation", lambda p: f"{p.rows} × {p.accumulation}"),
        ("remat", lambda p: p.remat),
        ("on each device, GiB", None),
        ("  frozen weights", _memory("frozen")),
        ("  trainable parameters", _memory("trainable")),
        ("  optimizer, accumulators", _memory("optimizer")),
        ("  batch, padding", _memory("batch")),
        ("  gradients", _memory("gradients")),
        ("  activations, temporaries", _memory("activations")),
        ("  program", _memory("program")),
        ("  peak", lambda p: _gib(p.needed)),
        ("  there is", lambda p: _gib(p.machine.chip.memory)),
        ("  fits", lambda p: "yes" if p.fits else "NO"),
        ("each device sends in a step, GiB", None),
        *((f"  {kind}", _sent(kind)) for kind in kinds),
        ("a step", None),
        ("  TFLOP (without recomputing)", _flops),
        ("  computing, s", lambda p: _known(p.seconds.compute)),
        ("  memory, s (at least)", lambda p: _known(p.seconds.memory)),
        ("  network, s", _compiled(lambda p: _known(p.seconds.network))),
        ("  predicted, s", _compiled(lambda p: _known(p.seconds.step))),
        ("the recipe", None),
        ("  steps", lambda p: f"{p.steps:,}"),
        ("  days", _compiled(lambda p: _known(p.days, 1))),
        ("compiled in, s", lambda p: f"{p.compile_seconds:.0f}"),
    ]


def _compiled(cell: Cell) -> Cell:
    """Of a program that its compiler found too large, no traffic is known."""
    return lambda plan: "–" if plan.sent is None else cell(plan)


def _known(number: float, digits: int = 2) -> str:
    """Of a chip that is not in the tables nothing can be predicted."""
    return "–" if math.isnan(number) else f"{number:.{digits}f}"


def _flops(plan: Plan) -> str:
    return f"{plan.work.flops / 1e12:,.2f} ({plan.work.useful / 1e12:,.2f})"


def _overview(plans: Sequence[Plan]) -> list[tuple[str, Cell]]:
    """Columns of a table with a row for each machine: cells of `_rows`, but for two
    that are shorter."""
    cells = {label.strip(): cell for label, cell in _rows(plans) if cell}
    return [
        ("devices", cells["devices"]),
        ("mesh", lambda p: " × ".join(map(str, p.mesh.values()))),
        ("frozen", cells["frozen weights are"]),
        ("remat", cells["remat"]),
        ("rows × acc.", cells["rows per device × accumulation"]),
        ("peak, GiB", cells["peak"]),
        ("of", cells["there is"]),
        ("fits", cells["fits"]),
        ("TFLOP", lambda p: f"{p.work.flops / 1e12:,.0f}"),
        ("network, s", cells["network, s"]),
        ("a step, s", cells["predicted, s"]),
        ("days", cells["days"]),
        ("compiled in, s", cells["compiled in, s"]),
    ]


def lines(plans: Sequence[Plan]) -> list[str]:
    """The table, and what it is made for, above and below it: everything about one or
    two machines, a line each of more."""
    first = plans[0]
    text = [f"{first.config}: the train step, compiled ahead", ""]
    if len(plans) > MOST_COLUMNS:
        columns = _overview(plans)
        rows = [["machine", *(label for label, _ in columns)]]
        rows += [[p.machine.name, *(cell(p) for _, cell in columns)] for p in plans]
        text += [*aligned(rows), "", "mesh: data × fsdp × tensor"]
    else:
        rows = [["", *(plan.machine.name for plan in plans)]]
        for label, cell in _rows(plans):
            rows.append([label, *(cell(plan) if cell else "" for plan in plans)])
        text += [*aligned(rows), ""]
    # What is said of all alike stands once.
    shapes: dict[str, list[str]] = {}
    for plan in plans:
        shapes.setdefault(plan.shapes, []).append(plan.machine.name)
    text += [f"{', '.join(names)}: {said}" for said, names in shapes.items()]
    text += [
        f"computing: at {first.efficiency:.0%} of the peak of bfloat16 products; "
        "predicted: the longer of computing and memory, and then the network"
    ]
    return text


def summary(plan: Plan) -> str:
    """The answer in a line."""
    room, name = _gib(plan.machine.chip.memory), plan.machine.name
    verdict = "fits" if plan.fits else "does not fit"
    took = f"compiled in {plan.compile_seconds:.0f} s"
    return f"{name}: {_gib(plan.needed)} of {room} GiB, {verdict}; {took}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def as_json(plan: Plan) -> dict[str, Any]:
    """A plan as JSON has it: bytes, seconds, operations."""
    memory, chip = plan.memory, plan.machine.chip
    return {
        "config": plan.config,
        "topology": plan.machine.name,
        "device": chip.name,
        "num_devices": plan.machine.num_devices,
        "mesh": plan.mesh,
        "frozen_layout": plan.frozen_layout,
        "batch_size": plan.batch_size,
        "rows_per_device": plan.rows,
        "accumulation": plan.accumulation,
        "remat": plan.remat,
        "shapes": plan.shapes,
        "memory_bytes": memory and memory._asdict(),
        "peak_bytes": plan.needed,
        "device_bytes": chip.memory,
        "fits": plan.fits,
        "sent_bytes": plan.sent and {k: t.sent for k, t in plan.sent.items()},
        "sent_runs": plan.sent and {k: t.runs for k, t in plan.sent.items()},
        "flops": plan.work.flops,
        "useful_flops": plan.work.useful,
        "traffic_bytes": plan.work._asdict() | {"flops": None, "useful": None},
        "seconds": plan.seconds._asdict() | {"step": plan.seconds.step},
        "efficiency": plan.efficiency,
        "steps": plan.steps,
        "days": plan.days if plan.sent is not None else None,
        "compile_seconds": plan.compile_seconds,
        "overrides": list(plan.overrides),
    }
