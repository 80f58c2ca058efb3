"""Command line of the weights.

python -m vtscale_jax.weights check-goldens DIR
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from vtscale_jax.weights import goldens

EXAMPLE = """\
example:
  $ python -m vtscale_jax.weights check-goldens goldens/
  ok   G3_clip/main: max error 6.20e-06 over 146 quantities; worst block fusion_…
  …
  {"cases": 17, "failed": 0, "max_error": 8.046627044677734e-06}

The exit status is 0 when every case is within its tolerances, else 1.
"""


def check_goldens(folder: Path) -> int:
    """Prints a line per case and a last line of JSON; the exit status.

    A golden folder that cannot be read, or a case that cannot be run, has failed; the
    others are still checked.
    """
    reports: list[goldens.CaseReport] = []

    def add(report: goldens.CaseReport) -> None:
        reports.append(report)
        print(report.line(), flush=True)

    for path in goldens.find_folders(folder):
        case = ""
        try:
            golden = goldens.open_folder(path)
            for name in goldens.cases_without_file(golden):
                print(f"     {golden.name}/{name}: no .npz file, not checked")
            for case in golden.cases:
                for report in goldens.check_file(golden, case):
                    add(report)
        except ValueError as error:
            where = f"{path.name}/{case}".rstrip("/")
            add(goldens.CaseReport(where, (), refused=str(error)))
    worst = max(report.max_error for report in reports)
    summary = {
        "cases": len(reports),
        "failed": sum(report.failed for report in reports),
        # JSON has no infinity.
        "max_error": worst if math.isfinite(worst) else sys.float_info.max,
    }
    print(json.dumps(summary))
    return int(summary["failed"] > 0)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace with `command` and its own arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m vtscale_jax.weights",
        description="Weights in and out, and parity with the authors' code.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check-goldens",
        help="compare our model with goldens of the authors' PyTorch code",
        description="Runs every case of every golden folder found in DIR: states of "
        "each block, outputs, losses, gradients, greedy generation.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument(
        "folder",
        metavar="DIR",
        type=Path,
        help="a golden folder, or the folder that holds some (G2_vision, G3_clip, …)",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the exit status."""
    options = parse(arguments)
    try:
        return check_goldens(options.folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
