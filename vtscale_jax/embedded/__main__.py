"""Commands of the built-in data; `python -m vtscale_jax.embedded --help`."""

import argparse
import inspect
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from PIL import Image

from vtscale_jax import settings
from vtscale_jax.embedded.digit_pages import SPLITS, DigitPages, PageConfig
from vtscale_jax.embedded.pretrain import pretrain
from vtscale_jax.embedded.pretrain_llava import page_vision
from vtscale_jax.embedded.questions import FAMILIES
from vtscale_jax.embedded.sheet import draw_sheet
from vtscale_jax.embedded.ship import COMMANDS, WEIGHTS, make, ship, ship_llava
from vtscale_jax.eval.baselines.llava import Llava, LlavaConfig
from vtscale_jax.parallel.host import keep_freed_memory

EXAMPLE = """\
worked example: what the model is asked about handwriting that it has never seen,
and the same at high resolution (cells of 336 pixels, digits of 24):

  python -m vtscale_jax.embedded sheet --out sheet.png
  python -m vtscale_jax.embedded sheet --out large.png --pages 4 --page_size 1008 \\
      --min_share 0.0715 --max_share 0.0715
"""


def add_sheet(commands: argparse._SubParsersAction) -> None:
    """Adds `sheet`: a picture of sample pages with their questions and answers."""
    default = PageConfig()
    parser = commands.add_parser(
        "sheet",
        help="write a PNG of sample pages with their questions and answers",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--pages", type=int, default=12, help="default %(default)s")
    parser.add_argument("--split", choices=SPLITS, default="heldout")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--families", nargs="+", choices=FAMILIES, default=list(FAMILIES)
    )
    parser.add_argument("--questions", type=int, default=4, help="questions per page")
    for field, kind, text in (
        ("page_size", int, "side of a page, pixels"),
        ("grid", int, "cells per row and column"),
        ("min_digits", int, "digits on a page, at least"),
        ("max_digits", int, "digits on a page, at most"),
        ("min_share", float, "side of a digit per side of its cell, at least"),
        ("max_share", float, "side of a digit per side of its cell, at most"),
        ("rotation", float, "degrees a digit is turned, at most"),
    ):
        value = getattr(default, field)
        text += f" (default {value})"
        parser.add_argument(f"--{field}", type=kind, default=value, help=text)
    parser.set_defaults(run=write_sheet)


def write_sheet(args: argparse.Namespace) -> None:
    """Runs `sheet`. Raises ValueError naming what is wrong with an argument."""
    if args.out.suffix.lower() != ".png":
        raise ValueError(f"--out: got {args.out}, expected a file name ending in .png")
    config = PageConfig(
        page_size=args.page_size,
        grid=args.grid,
        min_digits=args.min_digits,
        max_digits=args.max_digits,
        min_share=args.min_share,
        max_share=args.max_share,
        rotation=args.rotation,
    )
    source = DigitPages(
        args.split,
        num_pages=args.pages,
        seed=args.seed,
        config=config,
        families=tuple(args.families),
        questions_per_page=args.questions,
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_sheet(source)).save(args.out)
    print(f"wrote {args.out} ({len(source)} pages of {source!r})")


def add_pretrain(commands: argparse._SubParsersAction) -> None:
    """Adds `pretrain`: the tiny LLM or the tiny CLIP from scratch, LLaVA from both."""
    parser = commands.add_parser(
        "pretrain",
        help="train the tiny LLM or CLIP from scratch (20 minutes, 2 cores), or the "
        "tiny LLaVA from the two (45 minutes, 1 core)",
    )
    parser.add_argument("kind", choices=("llm", "clip", "llava"))
    parser.add_argument(
        "--config", default="configs/m256.py", help="its model sizes are used"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default runs/pretrain-KIND")
    for kind in ("clip", "llm"):
        parser.add_argument(
            f"--{kind}",
            type=Path,
            default=WEIGHTS / f"{kind}.safetensors",
            metavar="FILE",
            help=f"the {kind.upper()} that llava starts from (default: shipped)",
        )
    parser.set_defaults(run=run_pretrain)


def run_pretrain(args: argparse.Namespace) -> None:
    """Runs `pretrain`."""
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    config = runpy.run_path(args.config)["get_config"]("")
    model = settings.model_config(config, "float32")
    file = pretrain(
        args.kind,
        model,
        args.out or Path(f"runs/pretrain-{args.kind}"),
        seed=args.seed,
        max_local_views=config.data.max_local_views,
        llava=Llava(LlavaConfig(page_vision(model.vision), model.llm)),
        clip_file=args.clip,
        llm_file=args.llm,
    )
    print(f"Weights: {file}")


def add_make(commands: argparse._SubParsersAction) -> None:
    """Adds `make`: all of the shipped weights again."""
    listed = "\n".join(f"  python -m {command}" for command in COMMANDS)
    parser = commands.add_parser(
        "make",
        help="make all of the shipped weights again, from nothing (hours)",
        description=inspect.getdoc(make),
        epilog=f"the commands:\n\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=lambda args: make())


def add_ship(commands: argparse._SubParsersAction) -> None:
    """Adds `ship`: trained tiny weights into the package."""
    parser = commands.add_parser(
        "ship",
        help="put trained weights into the package",
        description=inspect.getdoc(ship),
        epilog="`python -m vtscale_jax.embedded make --help` lists what comes before.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, default in (
        ("clip", "runs/pretrain-clip"),
        ("llm", "runs/pretrain-llm"),
        ("align", "runs/m256-embedded-align"),
        ("base", "runs/m256-embedded-finetune"),
        ("again_align", "runs/again-align"),
        ("again", "runs/again"),
    ):
        parser.add_argument(
            f"--{name}", type=Path, default=Path(default), help=f"default {default}"
        )
    parser.add_argument(
        "--only_llava",
        type=Path,
        nargs="?",
        const=Path("runs/pretrain-llava"),
        metavar="DIR",
        help="the tiny LLaVA of this folder (default %(const)s), and nothing else",
    )
    parser.set_defaults(run=run_ship)


def run_ship(args: argparse.Namespace) -> None:
    """Runs `ship`."""
    if args.only_llava is not None:
        about = ship_llava(args.only_llava)
        print(f"wrote {WEIGHTS}: llava ({about['parameters']:,} parameters)")
        return
    manifest = ship(
        args.clip, args.llm, args.align, args.base, args.again_align, args.again
    )
    print(f"wrote {WEIGHTS}: {', '.join(manifest['files'])}")


def build_parser() -> argparse.ArgumentParser:
    """The parser; every command adds itself and sets `run`, called with the result."""
    parser = argparse.ArgumentParser(
        prog="python -m vtscale_jax.embedded",
        description="Digit Pages, the built-in data: pages of real handwritten digits.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_sheet(commands)
    add_pretrain(commands)
    add_make(commands)
    add_ship(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; a ValueError of bad input ends it with one clear line."""
    args = build_parser().parse_args(arguments)
    try:
        args.run(args)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
