"""`python -m vtscale_jax.eval run`: tasks by name, on a run or a baseline."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vtscale_jax.eval.commands.arguments import whole_number

EXAMPLE = """\
example:
  $ python -m vtscale_jax.eval run --run runs/m64-embedded --tasks read,exists
  m64-embedded-vqq: 8 questions at once
  read: 512 items, scorer exact words, 64 vision tokens
    Overall                                            0.8809  (0.8499 to 0.9061)
  …
  Results: runs/benchmarks/m64-embedded-vqq
  $ python -m vtscale_jax.eval run --run runs/m256-paper --tasks POPE,ChartQA_TEST \\
        --data ~/LMUData --out runs/benchmarks
Scores of all models in one --out:  python -m vtscale_jax.scaling report runs/benchmarks
"""


def add(commands: Any) -> None:
    """Adds the command to the others."""
    parser = commands.add_parser(
        "run",
        help="benchmarks and families of Digit Pages, with a ledger of every item",
        description="Asks a model (a finished run, or a baseline) every item of the "
        "tasks, greedily and with the paper's limits, and scores the answers as "
        "VLMEvalKit does. What is answered is kept as it comes: the same command goes "
        "on after an interruption.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--run", type=Path, help="folder of a finished run")
    model.add_argument(
        "--config",
        metavar="FILE[:WORDS]",
        help="or a baseline: configs/llava.py:reducer=visionzip,n=64; fields are set "
        "by --config.FIELD=VALUE",
    )
    parser.add_argument(
        "--tasks",
        required=True,
        help="names with commas: benchmarks (POPE, ChartQA_TEST, …) or families of "
        "Digit Pages (read, locate, …)",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of <task>.tsv files"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/benchmarks"),
        help="work folder; results of this model go to OUT/NAME (default: %(default)s)",
    )
    parser.add_argument(
        "--name", help="of the model in OUT (default: the run's, and its inputs)"
    )
    parser.add_argument(
        "--scorer",
        choices=("paper", "current"),
        default="paper",
        help="VLMEvalKit's rules at the commit that the paper used, or at a newer one "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--inputs",
        choices=("vqq", "vq"),
        help="the fusion decoder sees the question or not (default: as trained)",
    )
    parser.add_argument(
        "--num_queries", type=whole_number, metavar="M", help="the first M of the run's"
    )
    parser.add_argument(
        "--batch_size",
        type=whole_number,
        metavar="B",
        help="questions at once (default: 8)",
    )
    parser.add_argument(
        "--limit",
        type=whole_number,
        metavar="N",
        help="only the first N items of each task",
    )
    parser.add_argument(
        "--retry_failures",
        action="store_true",
        help="ask the items again that an exception left without answer",
    )
    parser.add_argument(
        "--json", action="store_true", help="scores as one line of JSON"
    )


def run(options: argparse.Namespace, start: Callable[..., Any]) -> None:
    """Runs the command on the processes that `start` starts."""
    from vtscale_jax.compilation import keep_compiled

    with start(options) as processes:
        keep_compiled()
        _evaluate(options, processes)


def _evaluate(options: argparse.Namespace, processes: Any) -> None:
    import json

    from vtscale_jax.eval.results import SCORES, summary
    from vtscale_jax.eval.run_tasks import run_tasks
    from vtscale_jax.eval.tasks_by_name import items_of, task_names
    from vtscale_jax.run_folder import RunFolder

    names = task_names(options.tasks.split(","))
    config = _run_config(options) if options.run else _baseline_config(options)
    tasks = items_of(
        names, config, data=options.data, scorer=options.scorer, limit=options.limit
    )
    model, name = (_open_run if options.run else _open_baseline)(options, config)
    name = options.name or name
    shown = processes.is_first and not options.json
    if shown:
        print(f"{name}: {model.batch_size} questions at once")
        for note in (note for task in tasks for note in task.notes):
            print(f"note: {note}")
    place = options.out / name

    def told(task: str) -> None:
        if shown:
            print("\n".join(summary(place / task)))

    run_tasks(
        model,
        tasks,
        options.out,
        name,
        processes,
        retry_failures=options.retry_failures,
        told=told,
    )
    if shown:
        print(f"Results: {place}")
        other = options.out / "OTHER"
        print(f"Compare: python -m vtscale_jax.eval compare {place} {other}")
    elif processes.is_first:
        found = {task: RunFolder(place / task).read(SCORES)["scores"] for task in names}
        print(json.dumps({"model": name, "scorer": options.scorer, "scores": found}))


def _run_config(options: argparse.Namespace) -> Any:
    """The config of a run, with what the command changes."""
    from vtscale_jax.trained import run_config

    if options.overrides:
        raise ValueError(
            f"{options.overrides[0]} goes with --config FILE: a run has its own config"
        )
    config = run_config(options.run, num_queries=options.num_queries)
    if options.inputs:
        with config.unlocked():
            config.inputs = options.inputs
    return config


def _open_run(options: argparse.Namespace, config: Any) -> tuple[Any, str]:
    from vtscale_jax.eval.run_model import model_name, open_run_model

    model = open_run_model(options.run, config, options.batch_size or 8)
    run = options.run.resolve().name
    return model, model_name(run, config, model.identity["trained_inputs"])


def _baseline_config(options: argparse.Namespace) -> Any:
    """The config that --config and --config.FIELD name, read as `train` reads its."""
    from absl import flags
    from ml_collections import config_flags

    for option in ("inputs", "num_queries"):
        if getattr(options, option) is not None:
            raise ValueError(
                f"--{option} is of runs of this package: a baseline's tokens are set "
                "with it (configs/llava.py:reducer=pool,n=64)"
            )
    values = flags.FlagValues()
    words = ["eval", f"--config={options.config}", *options.overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=words)
    try:
        values(words)
        config: Any = values["config"].value
        fields = set(config)  # here a file that could not be read is an error
    except (flags.Error, AttributeError, OSError, TypeError) as error:
        raise ValueError(f"--config {options.config}: {error}") from error
    if "reducer" not in fields:
        raise ValueError(
            f"--config {options.config} is no baseline's: give configs/llava.py, or "
            "train the model of a config first and give --run RUN"
        )
    return config


def _open_baseline(options: argparse.Namespace, config: Any) -> tuple[Any, str]:
    from vtscale_jax.baseline import open_baseline

    return open_baseline(config, options.batch_size or 8), config.name
