"""Redraws the plots and the page of a run: `python -m vtscale_jax.report RUN_DIR`."""

import argparse
import sys
from collections.abc import Sequence

from vtscale_jax.report.page import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the report and prints its path; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vtscale_jax.report",
        description=(
            "Redraw plots/ and report.html of a training run from its result files: "
            "config.json, manifest.json, metrics.jsonl, evaluation.json and "
            "samples.jsonl. No model is needed."
        ),
        epilog="example: python -m vtscale_jax.report runs/m16",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="folder of a training run")
    parsed = parser.parse_args(arguments)
    try:
        path = write_report(parsed.run_dir)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
