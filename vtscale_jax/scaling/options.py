"""The commands of `python -m vtscale_jax.scaling` and their options."""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

PUBLISHED = "published"

EXAMPLE = """\
example:
  $ python -m vtscale_jax.scaling report published --out runs/published
  $ python -m vtscale_jax.scaling fit scores.csv --inputs vqq --json
  $ python -m vtscale_jax.scaling report runs/m8-embedded runs/m16-embedded --out law
  $ python -m vtscale_jax.scaling fit outputs --model mine=256,vqq
"""

_ABOUT = {
    "fit": (
        "fit every law to every metric",
        "Fits S(M) = c/M^α as the paper does, and beside it a constant, a logarithm, a "
        "saturating and a shifted power law and the theory's, with 95 % intervals, "
        "AICc, and the errors of leaving one M out and of predicting large M from "
        "small. Prints a table, or all numbers as JSON.",
    ),
    "figures": (
        "draw the paper's figures from scores",
        "Draws Figures 9 to 13 and 17 to 19, Table 5, the comparison of laws and, with "
        "--divergence, the first version's Figure 10, as PNG and SVG.",
    ),
    "report": (
        "fits, figures and one page about them",
        "Writes fits.json, figures/ and scaling.html, one self-contained page with "
        "sortable tables and a summary of what holds and what does not.",
    ),
}
_SCORES = (
    "scores: a CSV (tidy: inputs, n_l, metric, score[, n_items, stderr, upper]; or "
    "wide: inputs, n_l and a column for each metric), run folders, a folder of runs, a "
    "folder of VLMEvalKit's results, or `published`, the paper's own"
)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vtscale_jax.scaling",
        description="From scores at several M to a law (paper §5). COMMAND --help has "
        "its options.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (short, description) in _ABOUT.items():
        command = commands.add_parser(
            name,
            help=short,
            description=description,
            epilog=EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _shared_options(command)
        if name == "fit":
            command.add_argument("--json", action="store_true", help="all numbers")
            command.add_argument(
                "--exclude",
                action="append",
                type=_some_of,
                metavar="METRIC=M[,M]",
                help="leave these scores out; they are listed",
            )
            command.add_argument(
                "--law", action="append", help="only these laws in the table; repeat it"
            )
        else:
            command.add_argument(
                "--out",
                type=Path,
                default=Path("runs/scaling"),
                help="folder of what is written (default runs/scaling)",
            )
            command.add_argument(
                "--without",
                action="append",
                type=_some_of,
                metavar="METRIC=M[,M]",
                help="fit a metric a second time without these M (Fig. 11); of the "
                "paper's scores RealWorldQA/Overall=384,512",
            )
    options = parser.parse_args(arguments)
    models = {}
    for name, number, inputs in options.model or ():
        if name in models:
            parser.error(f"--model names {name} twice")
        models[name] = (number, inputs)
    options.model = models
    return options


def _shared_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("scores", nargs="+", metavar="SCORES", help=_SCORES)
    command.add_argument(
        "--inputs", action="append", help="only this kind (as vqq); repeat for more"
    )
    command.add_argument("--metric", action="append", help="only this; repeat for more")
    command.add_argument(
        "--model",
        action="append",
        type=_model,
        metavar="NAME=M[,INPUTS]",
        help="M (and inputs) of a model of VLMEvalKit whose name does not say them",
    )
    command.add_argument(
        "--divergence",
        action="append",
        type=Path,
        metavar="RESULT",
        help="a result of `python -m vtscale_jax.divergence measure`: does the theory "
        "predict these scores? repeat for more",
    )
    command.add_argument(
        "--cut",
        type=_whole(1),
        help="largest M that extrapolation is fitted to (default: up to a quarter of "
        "the largest)",
    )
    command.add_argument(
        "--huber",
        type=_positive,
        metavar="D",
        help="errors of log S beyond D count linearly (default: squares)",
    )
    command.add_argument(
        "--replicates",
        type=_whole(100),
        default=1000,
        help="of the bootstrap (default 1000)",
    )
    command.add_argument("--seed", type=_whole(0), default=0, help="of the bootstrap")
    command.add_argument("--traceback", action="store_true", help="of an error")


def _some_of(text: str) -> tuple[str, tuple[int, ...]]:
    metric, equals, numbers = text.rpartition("=")
    parts = numbers.split(",")
    if not (metric and equals and all(part.isdecimal() for part in parts)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not METRIC=M[,M], like RealWorldQA/Overall=384,512"
        )
    return metric, tuple(map(int, parts))


def _model(text: str) -> tuple[str, int, str]:
    name, equals, told = text.rpartition("=")
    number, _, inputs = told.partition(",")
    if not (name and equals and number.isdecimal() and int(number) > 0):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=M[,INPUTS], like my-model=256,vqq"
        )
    return name, int(number), inputs


def _whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"{text!r} is no whole number of at least {least}"
            )
        return int(text)

    return read


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value
