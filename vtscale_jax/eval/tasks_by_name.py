"""Tasks by name, with their items at hand: benchmarks and families of Digit Pages."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from vtscale_jax.assemble import family_questions
from vtscale_jax.eval.benchmarks.items import BenchmarkItems
from vtscale_jax.eval.benchmarks.tasks import Version, get_task
from vtscale_jax.eval.family_items import FAMILIES, FamilyItems
from vtscale_jax.eval.run_tasks import TaskItems

QUESTIONS = 512  # of a family, where the run was not asked for any


class TaskNamesError(ValueError):
    """Names that are no list of tasks, or a benchmark whose file is not there."""


def task_names(names: Sequence[str]) -> list[str]:
    """The names themselves, when all are known and each is there once."""
    names = [name.strip() for name in names]
    double = {name for name in names if names.count(name) > 1}
    if double:
        raise TaskNamesError(f"tasks: {', '.join(sorted(double))} more than once")
    for name in names:
        if name not in FAMILIES:
            try:
                get_task(name)
            except ValueError as error:
                raise TaskNamesError(
                    f"{error}; and the families of Digit Pages: {', '.join(FAMILIES)}"
                ) from error
    return names


def items_of(
    names: Sequence[str],
    config: ConfigDict,
    *,
    data: Path | None,
    scorer: Version,
    limit: int | None = None,
) -> list[TaskItems]:
    """The items of each task: of families those that a run with `config` is asked at
    its end, of benchmarks those of `data`/NAME.tsv; the first `limit` of them.

    TaskNamesError for a benchmark without its file.
    """
    families = [name for name in names if name in FAMILIES]
    number = limit or config.eval.questions or QUESTIONS
    made: list[TaskItems] = []
    for name in task_names(names):
        if name in families:
            records = family_questions(config, number, "final", (name,))
            made.append(FamilyItems(name, records, config.eval.max_new_tokens))
            continue
        file = benchmark_file(name, data)
        made.append(BenchmarkItems.read(get_task(name), file, scorer, limit))
    return made


def benchmark_file(name: str, data: Path | None) -> Path:
    """Where the table of a benchmark lies: NAME.tsv in the folder `data`, or the
    NAME_local.tsv that VLMEvalKit makes of a large one."""
    if data is None:
        raise TaskNamesError(
            f"{name} is a benchmark: say where its table lies (--data DIR, with "
            f"DIR/{name}.tsv; in training --config.eval.data=DIR)"
        )
    places = [data / f"{name}.tsv", data / f"{name}_local.tsv"]
    for place in places:
        if place.is_file():
            return place
    raise TaskNamesError(
        f"{name}: neither {places[0]} nor {places[1].name} is there. Fetch the table "
        f"that VLMEvalKit uses ({name}.tsv) into {data}"
    )
