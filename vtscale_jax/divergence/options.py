"""The commands of `python -m vtscale_jax.divergence` and their options."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

EMBEDDED = "embedded"
MAX_LENGTH, MAX_PREFIX = 256, 1024

EXAMPLE = """\
example:
  $ python -m vtscale_jax.divergence measure
  embedded: 512 rows of pairs of written-out Digit Pages
  …
  $ python -m vtscale_jax.divergence measure --llm smollm2-135m --null 4
  $ python -m vtscale_jax.divergence measure --llm FOLDER --pairs orca_rlhf.jsonl
  $ python -m vtscale_jax.divergence measure --run runs/m256-embedded
  $ python -m vtscale_jax.divergence figures runs/divergence/*.json
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vtscale_jax.divergence",
        description="How hidden states of two branches part (paper §3). COMMAND --help "
        "has a worked example.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--traceback", action="store_true", help="of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _measure_options(commands.add_parser("measure", **_about("measure")))
    kernel = commands.add_parser("kernel", **_about("kernel"))
    kernel.add_argument("--npz", type=Path, required=True, metavar="FILE")
    _how_options(kernel, "auto", "reference", "xla", "pallas")
    kernel.add_argument("--json", action="store_true", help="instead of a table")
    figures = commands.add_parser("figures", **_about("figures"))
    figures.add_argument("results", nargs="+", type=Path, metavar="RESULT")
    figures.add_argument(
        "--out",
        type=Path,
        default=Path("runs/divergence"),
        help="folder of overview.html and figures/ (default runs/divergence)",
    )
    figures.add_argument(
        "--beta", type=float, default=1.0, help="exponent of Fig. 2 (default 1)"
    )
    theory = commands.add_parser("theory", **_about("theory"))
    theory.add_argument("result", type=Path, metavar="RESULT")
    theory.add_argument("--scores", type=Path, metavar="CSV")
    theory.add_argument("--metric", help="of the scores")
    theory.add_argument("--inputs", help="of the scores (as vqq), where they have any")
    theory.add_argument("--beta", type=float, default=1.0, help="of α(n) (default 1)")
    theory.add_argument("--json", action="store_true", help="all numbers")
    for command in commands.choices.values():  # before or after the command
        command.add_argument(
            "--traceback", action="store_true", default=argparse.SUPPRESS
        )
    options = parser.parse_args(arguments)
    unused = _unused(options)
    if unused:
        parser.error(unused)
    return options


def _unused(options: argparse.Namespace) -> str:
    """What is wrong with options that would do nothing, or ""."""
    if options.command == "theory" and options.scores is None:
        given = [n for n in ("metric", "inputs") if getattr(options, n) is not None]
        return f"--{given[0]} goes with --scores" if given else ""
    if options.command != "measure":
        return ""
    of_text = ("max_length", "max_prefix", "prompt_form", "weights", "dtype")
    names, other = (("num_queries",), "--run")
    if options.run is not None:
        names, other = of_text, "a language model, not with --run"
    for name in names:
        if getattr(options, name) is not None:
            return f"--{name} goes with {other}"
    if options.llm in (None, EMBEDDED) and options.run is None and options.dtype:
        return "--dtype goes with --llm; the embedded model is float32"
    return ""


_ABOUT = {
    "measure": (
        "measure pairs of branches on a model",
        "Runs a language model over pairs of answers to the same question, or a "
        "trained run over pairs of images, and writes one result file. Without options "
        "it measures the embedded model on pairs of written-out Digit Pages. An "
        "interrupted measurement goes on by the same command; a finished one is not "
        "made again.",
        EXAMPLE,
    ),
    "kernel": (
        "D and ψ of arrays in a .npz file",
        "Computes the curves of arrays a and b [B, n, d] and, optionally, len [B].",
        "example:\n  $ python -m vtscale_jax.divergence kernel --npz states.npz "
        "--reduction mean --json\n",
    ),
    "figures": (
        "draw the paper's figures and an overview from result files",
        "Draws Figures 1–5, 14 and 15, and 3–4 of the first version, as PNG and SVG, "
        "and one overview.html, from result files only.",
        "example:\n  $ python -m vtscale_jax.divergence figures "
        "runs/divergence/*.json\n",
    ),
    "theory": (
        "bound, regime and exponent of a result; κ and β from scores",
        "Prints what the theory makes of a result. With scores at several M it fits "
        "S(M) = κ(√Υ(M))^β (§3.5): a CSV with columns n_l, metric, score (and inputs), "
        "or wide, one column for each metric.",
        "example:\n  $ python -m vtscale_jax.divergence theory "
        "runs/divergence/m256-embedded.json --scores scores.csv --metric read\n",
    ),
}


def _about(command: str) -> dict:
    short, description, epilog = _ABOUT[command]
    return {
        "help": short,
        "description": description,
        "epilog": epilog,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def _whole(least: int) -> Callable[[str], int]:
    """What reads a whole number of at least `least`."""

    def read(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"{text!r} is no whole number of at least {least}"
            )
        return int(text)

    return read


def _how_options(parser: argparse.ArgumentParser, *kernels: str) -> None:
    parser.add_argument(
        "--reduction",
        choices=("mean", "max", "signed"),
        default="mean",
        help="of cosines over positions: mean (default) or max of positive parts, or "
        "their signed mean",
    )
    parser.add_argument(
        "--kernel",
        choices=kernels,
        default="auto",
        help="auto (default): pallas on TPU, xla elsewhere",
    )


def _measure_options(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--llm",
        help="embedded (default), a Hugging Face folder or name, a .gguf file, or "
        "smollm2-135m (python -m vtscale_jax.weights fetch smollm2-135m)",
    )
    what.add_argument(
        "--run", type=Path, help="folder of a finished run: pairs of images"
    )
    parser.add_argument(
        "--pairs",
        type=Path,
        metavar="FILE",
        help=".jsonl or .parquet with system, question or prompt, chosen, rejected "
        "(text or chat lists); with --run .jsonl with image_a, image_b, question. "
        "Default: 512 pairs of right and wrong answers that ship with the package; of "
        "the embedded model written-out Digit Pages, of a run held-out Digit Pages",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/divergence"),
        help="folder of result files (default runs/divergence)",
    )
    parser.add_argument("--name", help="of the result (default: from the model)")
    parser.add_argument(
        "--layer",
        action="append",
        default=[],
        help="final (default: after the last norm) or the number of a block; may be "
        "repeated, each gets a result",
    )
    _how_options(parser, "auto", "xla", "pallas")
    parser.add_argument(
        "--max_length",
        type=_whole(1),
        metavar="N",
        help=f"longest branch, in tokens (default {MAX_LENGTH}); longer ones are cut",
    )
    parser.add_argument(
        "--max_prefix",
        type=_whole(1),
        help=f"longest prefix, in tokens (default {MAX_PREFIX})",
    )
    parser.add_argument(
        "--num_pairs", type=_whole(1), help="only the first so many rows of the pairs"
    )
    parser.add_argument(
        "--batch_size", type=_whole(1), default=8, help="pairs (default 8)"
    )
    parser.add_argument(
        "--prompt_form",
        help="chat (default: the model's own template), text, a form with {question}, "
        "or a template of this package (plain for the embedded model)",
    )
    parser.add_argument(
        "--null",
        type=_whole(0),
        nargs="?",
        const=4,
        default=0,
        metavar="K",
        help="also exchange A and B at random positions, K times (4): the difference "
        "must vanish",
    )
    parser.add_argument(
        "--replicates",
        type=_whole(100),
        default=1000,
        help="of the bootstrap, 100 or more (default 1000)",
    )
    parser.add_argument("--seed", type=_whole(0), default=0)
    parser.add_argument(
        "--max_bad_share",
        type=float,
        default=0.01,
        help="of rows that are no pairs; more stop the measurement (default 0.01)",
    )
    parser.add_argument(
        "--num_queries",
        type=_whole(1),
        metavar="M",
        help="with --run; default: the run's",
    )
    parser.add_argument(
        "--weights",
        choices=("auto", "replicated", "sharded"),
        help="of --llm on several devices of a host: a copy on each, or shared out; "
        "auto (default) shares out where a copy takes over a third of the memory",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of --llm; default: bfloat16 on accelerators, float32 on CPU",
    )
