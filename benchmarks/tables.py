"""Tables of figures: of README.md, of `python -m benchmarks`, and of a suite's end."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import figures, suite
from benchmarks.jobs import JOBS, NO_GPU, Job

README = Path(__file__).resolve().parent / "README.md"
BEGIN = "<!-- made by `python -m benchmarks table --write` from results/ -->"
END = "<!-- end of the table -->"
MARKDOWN_HEAD = ("benchmark", "figure", "measured", "target", "met", "machine", "code")


class TableError(ValueError):
    """A README.md without the place of its table."""


def of_rows(rows: Mapping[str, Mapping[str, Any]], jobs: Sequence[Job]) -> list[str]:
    """What each job of a suite found, aligned, or why it found nothing."""
    cells = [("job", "figure", "measured", "target", "met")]
    for job in jobs:
        row = rows[job.name]
        if "result" not in row:
            cells.append((job.name, suite.outcome(row), "", "", ""))
            continue
        found = figures.of(row["result"]["benchmark"], row["result"])
        for number, one in enumerate(found):
            name = "" if number else job.name
            cells.append((name, one.what, one.text, one.asked, one.met))
    return aligned(cells)


def markdown(folder: Path = figures.RESULTS) -> str:
    """All that was recorded, and what a GPU would have to measure, in Markdown."""
    lines = [_line(MARKDOWN_HEAD), _line(("---",) * len(MARKDOWN_HEAD))]
    reasons, on_gpu = {}, set()
    for name, file, found in figures.recorded(folder):
        if isinstance(found.get("not_measured"), str):
            reasons[name] = found["not_measured"]
        elif "failed" in found:
            lines.append(_line((name, suite.outcome(found), "", "", "", file, "")))
        else:
            result = found.get("result", found)
            about = figures.machine(result), figures.code(result)
            if figures.platform(result) == "gpu":
                on_gpu.add(name)
            for one in figures.of(result.get("benchmark", name), result):
                values = (name, one.what, one.text, one.asked, one.met, *about)
                lines.append(_line(values))
    for job in JOBS:
        run = job.runs.get("gpu")
        if run is not None and job.name not in on_gpu:
            why = f"not measured: {reasons.get(job.name, NO_GPU)}"
            cells = (job.name, f"on a GPU: {run.asked}", why, "", "", "", "")
            lines.append(_line(cells))
    return "\n".join(lines)


def put(text: str, table: str) -> str:
    """A README with this table in its place; TableError when it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise TableError(f"{README} has no table between {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, every column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
