"""`python -m vtscale_jax.eval compare`: two evaluations, item by item."""

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = """\
example:
  $ python -m vtscale_jax.eval compare runs/benchmarks/m64-embedded-vqq \\
        runs/benchmarks/m64-embedded-vq
  task  items   first  second   second − first  better  worse   p  p (Holm)
  read    512    88.1    80.1   -8.0 (…)            …
"""


def add(commands: Any) -> None:
    """Adds the command to the others."""
    parser = commands.add_parser(
        "compare",
        help="two evaluations of the same items, with paired tests",
        description="For each task that both have: the difference of the items' mean "
        "scores with its 95 % interval, and a paired test (McNemar's exact one where "
        "items are right or wrong, else of random signs), corrected for the number of "
        "tasks by Holm's procedure. Tasks must have the same items, data and scorer.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs",
        nargs=2,
        type=Path,
        metavar="RUN",
        help="folder that eval run wrote: OUT/NAME",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(options: argparse.Namespace, _: Any) -> None:
    """Runs the command."""
    import json

    from vtscale_jax.eval.compare import compare_folders, lines

    first, second = options.runs
    rows = compare_folders(first, second)
    if options.json:
        tasks = [row._asdict() for row in rows]
        about = {"first": str(first), "second": str(second), "tasks": tasks}
        print(json.dumps(about))
        return
    print(f"first:  {first}\nsecond: {second}")
    print("\n".join(lines(rows)))
