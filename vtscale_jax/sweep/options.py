"""The options of `python -m vtscale_jax.sweep`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vtscale_jax.sweep.parts import EMBEDDED, INPUTS

EMBEDDED_QUERIES = (1, 2, 4, 8, 16, 32, 64)
MOST_JOBS = 8

EXAMPLE = """\
example:
  $ python -m vtscale_jax.sweep --num_queries 1,4,16 --inputs vqq,vq
  Sweep from embedded in runs/sweep-embedded: 6 parts, 2 at a time
    m16-vqq      to do         1.9 min  adapts to M = 16 with the question
    m16-vq       to do           30 s  evaluates m16-vqq without the question
    …
  m16-vqq: 1.8 min; read 84.2 %, locate 98.4 %, …
    …
  Report:  runs/sweep-embedded/scaling.html
  $ python -m vtscale_jax.sweep --num_queries 1,4,16,64 --inputs vqq,vq   # one M more
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what stands after "--" is for train."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        prog="python -m vtscale_jax.sweep",
        description="Adapts one base model to several M, with and without the question "
        "in the fusion input, evaluates each, and writes scores, fits, figures and a "
        "report. The same command goes on with what was interrupted.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] [-- train arguments]",
    )
    parser.add_argument(
        "--base",
        default=EMBEDDED,
        metavar="RUN",
        help="folder of a finished run of stage finetune or adapt, or embedded (the "
        "base that ships; default)",
    )
    parser.add_argument(
        "--num_queries",
        type=_listed(_query_count),
        metavar="M,…",
        help="default: 1,2,4,8,16,32,64 from the embedded base, the paper's ten from "
        "another",
    )
    parser.add_argument(
        "--inputs",
        type=_listed(_input_kind),
        default=INPUTS,
        metavar="KIND,…",
        help="of vqq (question in the fusion input), vq (the same checkpoint without "
        "it), vq_ft (adapted without it); default: all three",
    )
    parser.add_argument("--preset", help="default: the base's")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: runs/sweep-<base>"
    )
    parser.add_argument(
        "--jobs",
        type=_query_count,
        metavar="N",
        help="parts at a time, which share the cores of a CPU (default: one for each "
        f"core, up to {MOST_JOBS}, for the embedded base on CPU; else 1)",
    )
    parser.add_argument(
        "--blank", action="store_true", help="also ask about blank pages in each part"
    )
    parser.add_argument(
        "--keep_going", action="store_true", help="go on when a part has failed"
    )
    parser.add_argument(
        "--plan", action="store_true", help="print what would be done, and stop"
    )
    parser.add_argument("--traceback", action="store_true", help="of an error")
    options = parser.parse_args(words[:cut])
    options.train = words[cut + 1 :]
    return options


def _query_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _input_kind(text: str) -> str:
    if text not in INPUTS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(INPUTS)}")
    return text


def _listed(read: Callable[[str], Any]) -> Callable[[str], tuple]:
    """What reads values with commas between, none of them twice."""

    def read_all(text: str) -> tuple:
        values = tuple(read(word.strip()) for word in text.split(","))
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise argparse.ArgumentTypeError(f"{twice[0]!r} is there twice in {text!r}")
        return values

    return read_all
