"""`python -m vtscale_jax.eval check-goldens`: against recorded originals."""

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = """\
example:
  $ python -m vtscale_jax.eval check-goldens goldens/eval
  ok    POPE prompts
  …
  {"checked": 204, "failed": 0}
"""


def add(commands: Any) -> None:
    """Adds the command to the others."""
    parser = commands.add_parser(
        "check-goldens",
        help="recorded prompts, verdicts, scores and token selections",
        description="Checks a folder of cases that the original systems computed: "
        "benchmarks that VLMEvalKit prepared and scored, token selections of VisPruner "
        "and VisionZip, outputs of LLaVA. One line for each case, JSON at the end; the "
        "exit status is 1 when a case fails.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR")


def run(options: argparse.Namespace, _: Any) -> int:
    """Runs the command; the exit status."""
    import json

    from vtscale_jax.baseline import check_baseline
    from vtscale_jax.eval.goldens import folders

    checks = folders.check(options.folder, check_baseline)
    for one in checks:
        detail = f": {one.detail}" if one.detail else ""
        print(f"{'ok  ' if one.ok else 'FAIL'}  {one.name}{detail}")
    failed = sum(not one.ok for one in checks)
    print(json.dumps({"checked": len(checks), "failed": failed}))
    return int(failed > 0)
