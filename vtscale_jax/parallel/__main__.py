"""Command line of `parallel`: does a run fit on a machine, and how long does it take?

python -m vtscale_jax.parallel plan --config configs/m256.py:paper --topology v5e-16
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtscale_jax.parallel.plans.quiet import stderr_held_back

EXAMPLE = """\
example:
  $ python -m vtscale_jax.parallel plan --topology a100-40gb:8 \\
        --config configs/m256.py:paper,stage=finetune
  m256-paper-finetune: the train step, compiled ahead

                                               a100-40gb:8
  device                             NVIDIA A100-SXM4-40GB
  rows per device × accumulation                    5 × 64
  on each device, GiB
    frozen weights                                    1.57
    activations, temporaries                          8.37
    peak                                             11.65
    there is                                         37.45
    fits                                               yes
  a step
    predicted, s                                      3.24
  …

  $ python -m vtscale_jax.parallel plan --topology v5e-16 --search \\
        --config configs/m256.py:paper,stage=finetune
  …
  add: --config.data.batch_size=… --config.optim.accumulation=… …

Any field of the config is overridden as in train (--config.model.remat=full). The
hardware need not be there, its compiler must: pip install -e '.[plan-gpu]' or
'.[plan-tpu]'. The exit status is 0 when everything asked for was planned, and fits.
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace; `config_words` are the words about the config,
    which absl reads."""
    parser = argparse.ArgumentParser(
        prog="python -m vtscale_jax.parallel",
        description="Runs on machines that are not here. COMMAND --help has a worked "
        "example.",
    )
    parser.add_argument("--traceback", action="store_true", help="of an error")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    plan = commands.add_parser(
        "plan",
        help="compile a run's train step for a machine: memory, time, traffic",
        description="Compiles the real train step of a config for a machine that need "
        "not be here, and prints what each device holds, computes and sends.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.add_argument(
        "--config",
        required=True,
        metavar="FILE[:PRESETS]",
        help="as for train; --config.field=value overrides a field",
    )
    plan.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="a100-40gb:8, a100-80gb:8, h100:8 (1 to 8 GPUs), v4-16, v5e-16, v5p-16, "
        "v6e-16 and other small slices, or all (these seven)",
    )
    plan.add_argument(
        "--per_device",
        type=int,
        metavar="ROWS",
        help="sets data.batch_size to so many rows for each part of the batch, and "
        "optim.accumulation so that an update has as many samples as before",
    )
    plan.add_argument(
        "--efficiency",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="of the peak that computing is taken to reach (default: %(default)s)",
    )
    plan.add_argument(
        "--search",
        action="store_true",
        help="try meshes, remat and batch sizes; the fastest that fits",
    )
    plan.add_argument(
        "--compile_at_most",
        type=int,
        default=8,
        metavar="N",
        help="programs of a search (default: %(default)s)",
    )
    plan.add_argument(
        "--lengths",
        choices=("auto", "data", "assumed"),
        default="auto",
        help="batch shapes of the config's data, or of assumed texts; auto: of the "
        "data where it and its tokenizers are on this disk (default)",
    )
    assumed = plan.add_argument_group("assumed, where the data is not at hand")
    for flag, default, about in (
        ("turns", 8, "questions of the longest conversation"),
        ("question", 32, "tokens of each question"),
        ("answer", 96, "tokens of each answer"),
        ("system", 64, "tokens of the system text"),
        ("records", 665298, "training records (LLaVA-v1.5-mix665k has so many)"),
    ):
        assumed.add_argument(
            f"--{flag}",
            type=int,
            default=default,
            metavar="N",
            help=f"{about} (default: {default:,})",
        )
    plan.add_argument(
        "--json", metavar="FILE", help="also as JSON; - prints it in place of the table"
    )
    options, rest = parser.parse_known_args(arguments)
    strange = [word for word in rest if not word.startswith("--config.")]
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if not 0 < options.efficiency <= 1:
        parser.error(
            f"--efficiency is {options.efficiency}, expected a share in (0, 1]"
        )
    for flag in ("turns", "question", "answer", "records", "per_device"):
        if getattr(options, flag) is not None and getattr(options, flag) < 1:
            parser.error(f"--{flag} is {getattr(options, flag)}, expected at least 1")
    options.config_words = [f"--config={options.config}", *rest]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the exit status."""
    options = parse(arguments)
    # No TPU is asked about itself, and none is taken: the compiler alone is wanted.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    with stderr_held_back():  # plugins report absent drivers when jax is imported
        import jax

        from vtscale_jax.parallel.plans import command
    jax.config.update("jax_platforms", "cpu")
    try:
        return command.plan_command(options, fill_sizes)
    except (ValueError, OSError) as error:
        if options.traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


def fill_sizes(config: Any) -> list[str]:
    """Sizes of a pretrained language model or CLIP that lies on this disk, as train
    takes them; those that the config states for one that does not."""
    from vtscale_jax.weights import fetch, sizes

    value = config.weights["clip" if config.stage == "align" else "llm"]
    known = value in fetch.MODELS and fetch.cached(value) is not None
    if not known and not Path(value).exists():
        return []
    return sizes.fill_sizes(config)


if __name__ == "__main__":
    sys.exit(main())
