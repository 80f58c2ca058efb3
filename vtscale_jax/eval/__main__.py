"""Command line of `eval`: models answer benchmarks and held-out questions.

python -m vtscale_jax.eval run      tasks by name, on a run
python -m vtscale_jax.eval score    predictions that were made already
python -m vtscale_jax.eval compare  two evaluations, item by item
python -m vtscale_jax.eval heldout  a run's own held-out questions, once more
python -m vtscale_jax.eval check-goldens  this package against recorded originals
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from vtscale_jax.eval.commands import check_goldens, compare, heldout, run, score

COMMANDS = {
    "run": run,
    "score": score,
    "compare": compare,
    "heldout": heldout,
    "check-goldens": check_goldens,
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vtscale_jax.eval",
        description="Evaluates models. COMMAND --help has a worked example.",
        epilog=run.EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--traceback", action="store_true", help="of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS.values():
        command.add(commands)
    for command in commands.choices.values():  # before or after the command
        command.add_argument(
            "--traceback", action="store_true", default=argparse.SUPPRESS
        )
    options, others = parser.parse_known_args(arguments)
    options.overrides = [one for one in others if one.startswith("--config.")]
    if options.overrides != others or (others and options.command != "run"):
        unknown = [one for one in others if one not in options.overrides] or others
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


@contextlib.contextmanager
def start(options: argparse.Namespace) -> Iterator[Any]:
    """The processes that the launcher describes (`parallel.hosts.processes`), ready to
    compute; it fails where their options or versions differ."""
    import jax

    from vtscale_jax.parallel import host
    from vtscale_jax.parallel.hosts import processes
    from vtscale_jax.run_folder import code_version, versions

    host.take_gpu_memory()
    about = {"options": str(sorted(vars(options).items()))}
    about |= {name: str(v) for name, v in (code_version() | versions()).items()}
    with processes.start(about=about) as started:
        if jax.default_backend() == "cpu":
            host.keep_freed_memory()
        yield started


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status."""
    options = parse(arguments)
    try:
        return COMMANDS[options.command].run(options, start) or 0
    except ValueError as error:
        if options.traceback:
            raise
        print(f"error: {error}\n(--traceback shows where)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
