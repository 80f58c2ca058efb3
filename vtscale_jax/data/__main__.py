"""Command line of `data`: downloads become a verified training set.

python -m vtscale_jax.data prepare  one downloaded file -> a folder of records
python -m vtscale_jax.data mixture  prepared folders -> one weighted training set
python -m vtscale_jax.data augment  descriptions -> questions, by a language model
python -m vtscale_jax.data clean    texts that a recogniser wrote -> the good ones
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

COMMANDS = {
    "prepare": "one downloaded file -> a verified folder of records",
    "mixture": "prepared folders, with weights -> one training set",
    "augment": "yes/no and multiple-choice questions from descriptions",
    "clean": "document texts that a recogniser wrote -> the good ones",
}
ASKING = ("augment", "clean")  # commands that can ask a language model
EXAMPLE = """\
example:
  $ python -m vtscale_jax.data prepare llava llava_v1_5_mix665k.json \\
        --images playground/data --out data/llava
  $ python -m vtscale_jax.data mixture --out data/mixture.json llava=data/llava:1.0
COMMAND --help has an example of each.
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. Only the command that is asked for is loaded."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m vtscale_jax.data",
        description="Prepares training data.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--traceback", action="store_true", help="of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((one for one in given if not one.startswith("-")), None)
    for name, about in COMMANDS.items():
        command = commands.add_parser(
            name, help=about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == asked:
            _module(name).add_arguments(command)
        command.add_argument(  # before or after the command
            "--traceback", action="store_true", default=argparse.SUPPRESS
        )
    return parser.parse_args(given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status."""
    options = parse(arguments)
    try:
        # This rib imports no other, so the commands are given what opens a model.
        given = {"open_llm": open_pretrained_llm} if options.command in ASKING else {}
        _module(options.command).run(options, **given)
    except ValueError as error:
        if options.traceback:
            raise
        print(f"error: {error}\n(--traceback shows where)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


def open_pretrained_llm(
    name: str, *, dtype: str | None = None, int8: bool = False, apart: bool = False
) -> tuple[Any, dict[str, Any]]:
    """A `weights.language_models.LanguageModel` by name, and what identifies it.

    `apart` keeps the parameters of each layer apart, for generation. The second holds
    the name, SHA-256 of weights and of all that says how the model reads text, and the
    dtype. Raises PretrainedError, with the next step, where there is none.
    """
    import jax

    from vtscale_jax.compilation import keep_compiled
    from vtscale_jax.parallel import host
    from vtscale_jax.weights.files.fingerprint import tensors_sha256
    from vtscale_jax.weights.language_models import load_language_model, reading_sha256
    from vtscale_jax.weights.pretrained import open_pretrained

    host.take_gpu_memory()
    keep_compiled()
    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    found = open_pretrained("--llm", name)
    identity = {
        "name": name,
        "weights_sha256": tensors_sha256(found.tensors),
        "reading_sha256": reading_sha256(found.config, found.tokenizer()),
        "dtype": dtype,
        "int8": int8,
    }
    model = load_language_model("--llm", name, dtype=dtype, int8=int8, apart=apart)
    return model, identity


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"vtscale_jax.data.commands.{command}")


if __name__ == "__main__":
    sys.exit(main())
