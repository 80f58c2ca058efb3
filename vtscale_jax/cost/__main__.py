"""Command line of `cost`: how long answers take, and whether a table of times can be.

python -m vtscale_jax.cost latency  times to the first token by M, on this machine
python -m vtscale_jax.cost audit    anyone's table of such times, against arithmetic
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from vtscale_jax.cost.commands import audit, latency

COMMANDS = {"latency": latency, "audit": audit}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vtscale_jax.cost",
        description="Times answers and audits times. COMMAND --help has a worked "
        "example.",
        epilog=latency.EXAMPLE,
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
    unknown = [one for one in others if one not in options.overrides]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def published() -> Path:
    """The paper's Table 6, which lies with the rest of what it published."""
    folder = resources.files("vtscale_jax.scaling") / "published"
    return Path(str(folder / "ttft.csv"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status."""
    options = parse(arguments)
    try:
        if options.command == "latency":
            take_device()
        COMMANDS[options.command].run(options, published())
    except ValueError as error:
        if options.traceback:
            raise
        print(f"error: {error}\n(--traceback shows where)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


def take_device() -> None:
    """Has this process use its device as `train` and `ask` do: a GPU's memory, freed
    memory of a CPU, compiled programs that are kept. Before JAX has any device."""
    import jax

    from vtscale_jax.compilation import keep_compiled
    from vtscale_jax.parallel import host

    host.take_gpu_memory()
    keep_compiled()
    if jax.default_backend() == "cpu":
        host.keep_freed_memory()


if __name__ == "__main__":
    sys.exit(main())
