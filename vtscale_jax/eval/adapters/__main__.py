"""`python -m vtscale_jax.eval.adapters`: VLMEvalKit's run.py on a run of this package.

The run is added to VLMEvalKit's models and its own run.py is then run in this process
as it is; nothing of VLMEvalKit is changed.
"""

import argparse
import contextlib
import importlib.util
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

EXAMPLE = """\
example:
  $ git clone https://github.com/open-compass/VLMEvalKit
  $ python -m vtscale_jax.eval.adapters --run runs/m64-embedded -- \\
        VLMEvalKit/run.py --data POPE MMStar --judge exact_matching --work-dir outputs
  VLMEvalKit: runs/m64-embedded is m64-embedded-vqq
  …
  $ python -m vtscale_jax.scaling report outputs
In a script of your own:
  from vtscale_jax.eval.adapters.vlmevalkit import register
  register("m64-vqq", "runs/m64-embedded")
lmms-eval finds the model vtscale by itself where this package is installed:
  $ python -m lmms_eval --model vtscale --model_args run=runs/m64-embedded \\
        --tasks pope --batch_size 8
"""
OURS = ("--model", "--config")  # options of run.py that choose another model


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what stands after `--` is run.py and its arguments."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(
        prog="python -m vtscale_jax.eval.adapters",
        usage="%(prog)s --run RUN [--name NAME] [--inputs {vqq,vq}] [--num_queries M] "
        "-- VLMEvalKit/run.py --data NAME … [its other arguments]",
        description="VLMEvalKit's own run.py, as it is, on a run of this package. "
        "--model NAME is added to its arguments.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", required=True, help="folder of a finished run")
    parser.add_argument(
        "--name", help="of the model in VLMEvalKit (default: with M and inputs)"
    )
    parser.add_argument(
        "--inputs",
        choices=("vqq", "vq"),
        help="the fusion decoder sees the question or not (default: as trained)",
    )
    parser.add_argument(
        "--num_queries", type=int, metavar="M", help="the first M of the run's"
    )
    parser.add_argument("--traceback", action="store_true", help="of an error")
    options = parser.parse_args(given[:cut])
    options.script = given[cut + 1 :]
    if not options.script:
        parser.error("say after -- where VLMEvalKit's run.py lies, and its arguments")
    if not Path(options.script[0]).is_file():
        parser.error(
            f"{options.script[0]}: there is no such file, expected VLMEvalKit's run.py"
        )
    for option in OURS:
        if any(word.split("=")[0] == option for word in options.script):
            parser.error(f"leave {option} out after --: the model is that of --run")
    return options


def prepare(options: argparse.Namespace) -> str:
    """Adds the run to VLMEvalKit's models, and returns its name there. ValueErrors for
    what is wrong with the run, the script or the name."""
    from vtscale_jax.eval.adapters.opening import AdapterError, name_of

    asked = {"inputs": options.inputs, "num_queries": options.num_queries}
    default = name_of(options.run, **asked)  # a wrong run is told of before VLMEvalKit
    name = options.name or default
    with _started_like(options.script):
        if importlib.util.find_spec("vlmeval") is None:
            raise AdapterError(
                f"{options.script[0]}: no package vlmeval lies beside it or is "
                "installed, expected the run.py of VLMEvalKit's own folder, with what "
                "it needs installed (pip install -e VLMEvalKit)"
            )
        from vtscale_jax.eval.adapters.vlmevalkit import register

        register(name, options.run, **asked)
    return name


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status. VLMEvalKit's own errors are raised."""
    options = parse(arguments)
    try:
        name = prepare(options)
    except ValueError as error:
        if options.traceback:
            raise
        print(f"error: {error}\n(--traceback shows where)", file=sys.stderr)
        return 1
    print(f"VLMEvalKit: {options.run} is {name}")
    if not any(word.split("=")[0] == "--judge" for word in options.script):
        print(
            "note: without --judge exact_matching VLMEvalKit may ask a judge over the "
            "network, and the scores are others"
        )
    sys.stdout.flush()
    try:
        with _started_like([*options.script, "--model", name]):
            runpy.run_path(options.script[0], run_name="__main__")
    except KeyboardInterrupt:
        print("\nstopped; VLMEvalKit keeps what was answered", file=sys.stderr)
        return 130
    return 0


@contextlib.contextmanager
def _started_like(script: Sequence[str]) -> Iterator[None]:
    """As `python run.py …` has it: VLMEvalKit is found beside its script."""
    before = sys.argv, sys.path
    sys.argv = [*script]
    sys.path = [str(Path(script[0]).resolve().parent), *sys.path]
    try:
        yield
    finally:
        sys.argv, sys.path = before


if __name__ == "__main__":
    sys.exit(main())
