"""`python -m vtscale_jax.eval heldout`: a finished run's own evaluation, once more."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vtscale_jax.eval.commands.arguments import whole_number

EXAMPLE = """\
example:
  $ python -m vtscale_jax.eval heldout --run runs/m64-embedded --inputs vq \\
        --out runs/m64-embedded-evaluated-vq
  runs/m64-embedded: M = 64, trained with vqq, evaluated with vq
    read        80.1 %  (76.4 to 83.3, n 512)
    …
  Scores: runs/m64-embedded-evaluated-vq/evaluation.json
"""


def add(commands: Any) -> None:
    """Adds the command to the others."""
    parser = commands.add_parser(
        "heldout",
        help="held-out questions of Digit Pages, by family",
        description="The run's checkpoint answers the held-out questions that its own "
        "evaluation asked, with the fusion input as given here. Without options but "
        "--run and --out the scores are those of the run's evaluation.json. An "
        "evaluation that is there already is not made again.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--run", type=Path, required=True, help="folder of a finished run"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a new or empty folder"
    )
    parser.add_argument(
        "--inputs",
        choices=("vqq", "vq"),
        help="the fusion decoder sees the question (vqq) or not (vq); default: as the "
        "run was trained",
    )
    parser.add_argument(
        "--num_queries",
        type=whole_number,
        metavar="M",
        help="only the first M of the run's queries (default: all)",
    )
    parser.add_argument(
        "--questions",
        type=whole_number,
        metavar="N",
        help="of every family (default: as many as the run asked)",
    )
    parser.add_argument(
        "--no_blank",
        action="store_true",
        help="do not ask about a blank page in place of each page",
    )


def run(options: argparse.Namespace, start: Callable[..., Any]) -> None:
    """Runs the command on the processes that `start` starts."""
    from vtscale_jax.heldout import EVALUATED, evaluate_run, summary
    from vtscale_jax.run_folder import RunFolder

    with start(options) as processes:
        made = evaluate_run(
            options.run,
            options.out,
            processes,
            inputs=options.inputs,
            num_queries=options.num_queries,
            questions=options.questions,
            blank=not options.no_blank,
        )
        if not processes.is_first:
            return
        of = RunFolder(options.out).read(EVALUATED)
        print(
            f"{options.run}: M = {of['num_queries']}, trained with "
            f"{of['trained_inputs']}, evaluated with {of['inputs']}"
            + ("" if made else " (there already: not evaluated again)")
        )
        print("\n".join(summary(options.out)))
        print(f"Scores: {options.out / 'evaluation.json'}")
