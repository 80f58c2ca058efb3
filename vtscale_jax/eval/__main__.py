"""Command line of `eval`: a finished run answers held-out questions again.

python -m vtscale_jax.eval heldout --run runs/m64-embedded --inputs vq --out DIR
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

EXAMPLE = """\
example:
  $ python -m vtscale_jax.eval heldout --run runs/m64-embedded --inputs vq \\
        --out runs/m64-embedded-evaluated-vq
  runs/m64-embedded: M = 64, trained with vqq, evaluated with vq
    read        80.1 %  (76.4 to 83.3, n 512)
    …
  Scores: runs/m64-embedded-evaluated-vq/evaluation.json
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vtscale_jax.eval",
        description="Evaluates a finished run. COMMAND --help has a worked example.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--traceback", action="store_true", help="of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    heldout = commands.add_parser(
        "heldout",
        help="held-out questions of Digit Pages, by family",
        description="The run's checkpoint answers the held-out questions that its own "
        "evaluation asked, with the fusion input as given here. Without options but "
        "--run and --out the scores are those of the run's evaluation.json. An "
        "evaluation that is there already is not made again.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    heldout.add_argument(
        "--run", type=Path, required=True, help="folder of a finished run"
    )
    heldout.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a new or empty folder"
    )
    heldout.add_argument(
        "--inputs",
        choices=("vqq", "vq"),
        help="the fusion decoder sees the question (vqq) or not (vq); default: as the "
        "run was trained",
    )
    heldout.add_argument(
        "--num_queries",
        type=_whole,
        metavar="M",
        help="only the first M of the run's queries (default: all)",
    )
    heldout.add_argument(
        "--questions",
        type=_whole,
        metavar="N",
        help="of every family (default: as many as the run asked)",
    )
    heldout.add_argument(
        "--no_blank",
        action="store_true",
        help="do not ask about a blank page in place of each page",
    )
    for command in commands.choices.values():  # before or after the command
        command.add_argument(
            "--traceback", action="store_true", default=argparse.SUPPRESS
        )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status."""
    options = parse(arguments)
    commands: dict[str, Callable[[argparse.Namespace], None]] = {"heldout": _heldout}
    try:
        commands[options.command](options)
    except ValueError as error:
        if options.traceback:
            raise
        print(f"error: {error}\n(--traceback shows where)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command starts again", file=sys.stderr)
        return 130
    return 0


# The command loads what it needs; help needs nothing.
def _heldout(options: argparse.Namespace) -> None:
    import jax

    from vtscale_jax.heldout import EVALUATED, evaluate_run, summary
    from vtscale_jax.parallel import host
    from vtscale_jax.parallel.hosts.processes import start
    from vtscale_jax.run_folder import RunFolder, code_version, versions

    host.take_gpu_memory()
    about = {"options": str(sorted(vars(options).items()))}
    about |= {name: str(v) for name, v in (code_version() | versions()).items()}
    with start(about=about) as processes:
        if jax.default_backend() == "cpu":
            host.keep_freed_memory()
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


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
