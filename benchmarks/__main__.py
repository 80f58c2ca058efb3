"""Benchmarks: what there is, all that a device allows, and the table of what was found.

    python -m benchmarks                         # what there is, and how long it takes
    python -m benchmarks all                     # into benchmarks/results/DEVICE.json
    python -m benchmarks all --only loader,divergence --out /tmp/mine.json
    python -m benchmarks all --quick             # minutes; figures are rough
    python -m benchmarks table --write           # README.md from the recorded files

`all` runs each benchmark in a process of its own, the others also when one fails, and
goes on where it was interrupted. Its last line is JSON.
"""

import argparse
import ast
import signal
import sys
from pathlib import Path
from types import FrameType

from benchmarks import figures, jobs, record, suite, tables

HERE = Path(__file__).resolve().parent
LOGS = suite.ROOT / "runs" / "benchmarks"
# On two cores, as far as it is known; a GPU's limits are in benchmarks.jobs.
MINUTES = {
    "allocator": "4",
    "divergence": "10",
    "embedded": "14",
    "evaluation": "3",
    "generate": "6",
    "import_7b": "5, and 13.5 GB of disk",
    "int8": "2",
    "latency": "10",
    "loader": "4",
    "run_memory": "3",
    "scaling_coverage": "60",
    "short_run": "1",
    "token_reduction": "45",
    "train_step": "20",
}


def programs() -> dict[str, str]:
    """The benchmarks of this folder by name, each with its first line."""
    found = {}
    for file in sorted(HERE.glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        has_main = any(
            isinstance(node, ast.FunctionDef) and node.name == "main"
            for node in tree.body
        )
        if has_main and file.name != "__main__.py":
            found[file.stem] = (ast.get_docstring(tree) or "").splitlines()[0]
    return found


def listing() -> list[str]:
    """A line for each benchmark, and for each job of `all`."""
    rows = [("python benchmarks/…", "minutes", "")]
    for name, about in programs().items():
        rows.append((f"{name}.py", MINUTES[name], about))
    lines = [*tables.aligned(rows), ""]
    rows = [("python -m benchmarks all", "on", "")]
    for job in jobs.JOBS:
        rows.append((job.name, ", ".join(job.runs), job.about))
    return [*lines, *tables.aligned(rows), "", "--help says more"]


def run_all(options: argparse.Namespace) -> int:
    """`all`; the exit status, 1 when a job failed."""
    chosen = jobs.chosen(options.only, options.skip)
    if options.platform:  # of a machine that is not here
        machine = {"platform": options.platform, "kind": "DEVICE", "count": 1}
        machine |= {"processor": "DEVICE", "cores": 0}
    else:
        machine = suite.machine_at_hand()
    name = jobs.file_name(machine)
    out = options.out or (LOGS if options.quick else figures.RESULTS)
    if out.suffix != ".json":
        out /= f"{name}-quick.json" if options.quick else f"{name}.json"
    work = suite.Suite(
        *(chosen, machine, out, options.logs / name),
        quick=options.quick,
        again=options.again,
        within=options.within,
    )
    if options.dry_run:
        print("\n".join([*work.plan(), f"# results: {out}"]))
        return 0
    rows = work.run()
    print("\n".join(["", *tables.of_rows(rows, chosen), ""]))
    failed = [job.name for job in chosen if "failed" in rows[job.name]]
    for job in chosen:
        if job.name in failed:
            print(f"failed: {job.name}; log: {rows[job.name]['log']}")
    record.finish("all", {"rows": rows}, out, machine=machine)
    return int(bool(failed))


def table(options: argparse.Namespace) -> int:
    """`table`; the exit status."""
    made = tables.markdown()
    if options.write:
        text = tables.README.read_text(encoding="utf-8")
        tables.README.write_text(tables.put(text, made), encoding="utf-8")
        print(f"written to {tables.README}")
    else:
        print(made)
    return 0


def words(text: str) -> tuple[str, ...]:
    """Names joined by commas."""
    return tuple(filter(None, text.split(",")))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(dest="command")
    every = commands.add_parser("all", help="run what the device allows")
    names = ", ".join(job.name for job in jobs.JOBS)
    every.add_argument("--only", type=words, default=(), help=f"some of: {names}")
    every.add_argument("--skip", type=words, default=(), help="all but these")
    every.add_argument(
        "--out", type=Path, help="a .json file, or a folder for one named by the device"
    )
    every.add_argument("--logs", type=Path, default=LOGS, help="output of the jobs")
    every.add_argument(
        "--quick",
        action="store_true",
        help="rough figures in minutes, by default into --logs",
    )
    every.add_argument(
        "--again", action="store_true", help="measure also what is there already"
    )
    every.add_argument(
        "--within", type=float, help="seconds for all jobs together, limits apart"
    )
    every.add_argument("--dry_run", action="store_true", help="print the commands")
    every.add_argument(
        "--platform",
        choices=("cpu", "gpu", "tpu"),
        help="with --dry_run: as on a machine that is not here",
    )
    show = commands.add_parser("table", help="what was recorded, as README.md has it")
    show.add_argument("--write", action="store_true", help="put it into README.md")
    return made


def main() -> int:
    """Runs the command; the exit status."""
    line = parser()
    options = line.parse_args()
    if options.command is None:
        print("\n".join(listing()))
        return 0
    if options.command == "table":
        return table(options)
    if options.platform and not options.dry_run:
        line.error("--platform goes with --dry_run: results are of the device at hand")
    # Told to end, the suite ends its child too.
    signal.signal(signal.SIGTERM, _end)
    try:
        return run_all(options)
    except (jobs.JobError, suite.SuiteError, figures.FigureError) as error:
        sys.exit(f"error: {error}")


def _end(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
