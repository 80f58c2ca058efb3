"""Runs tasks on a model: asks what is not answered yet, scores, writes.

An evaluation goes on where it stopped, with the same command: answered items are not
asked again, finished tasks are only read. What would make the answers of one folder
those of different things (another model, other data, other limits) is an error before
anything is asked or written over.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vtscale_jax.eval.ask_items import Items, ask_items
from vtscale_jax.eval.ledger import Entry, Ledger
from vtscale_jax.eval.models import AnsweringModel
from vtscale_jax.eval.results import EVALUATION, write_task
from vtscale_jax.eval.scoring.score import Scored
from vtscale_jax.run_folder import LOCK, RunFolder, differences, held

LEDGER = "ledger.jsonl"


class RunTasksError(ValueError):
    """A folder that holds another evaluation, or is in use."""


@runtime_checkable
class Hosts(Protocol):
    """What is needed of `parallel.hosts.processes.Processes`."""

    is_first: bool

    def reached(self, phase: str, /) -> None:
        """Says where this process is."""
        ...

    def barrier(self, phase: str, /) -> None:
        """Waits until all are there."""
        ...

    def agree(self, name: str, value: str, /) -> None:
        """Fails when `value` is not the same on all."""
        ...

    def explain(self, error: BaseException, /) -> Exception | None:
        """What to raise in place of an error that another's death caused."""
        ...


@runtime_checkable
class TaskItems(Items, Protocol):
    """Items that can be scored."""

    @property
    def max_new_tokens(self) -> int:
        """Where answers are cut."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that a reader of the scores should know."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of the items."""
        ...

    @property
    def scorer(self) -> str:
        """What gives the scores."""
        ...

    def first(self, number: int) -> "TaskItems":
        """The first items alone: `number` of them, or as many as can be scored."""
        ...

    def score(self, predictions: Sequence[str]) -> Scored:
        """Scores of what was answered to all items, in their order."""
        ...

    def write_files(
        self, folder: Path, model: str, predictions: Sequence[str], scored: Scored
    ) -> None:
        """Whatever other files the task's results have."""
        ...


def run_tasks(
    model: AnsweringModel,
    tasks: Sequence[TaskItems],
    out: Path,
    name: str,
    processes: Hosts,
    *,
    retry_failures: bool = False,
    told: Callable[[str], None] = lambda _: None,
) -> None:
    """Evaluates the model on the tasks into the folder `out`/`name`.

    `name` is the model's in file names. With `retry_failures` items that an exception
    left without answer are asked again. `told` gets the name of each task when its
    results are written. All of several processes call this; the first one writes.
    RunTasksError, and nothing is written, for a folder of another evaluation.
    """
    folder = RunFolder(out / name, writes=processes.is_first)
    identity = {"model": model.identity}
    _check(folder, identity, tasks)
    if not processes.is_first:
        _run(model, tasks, folder, processes, retry_failures, told)
        return
    in_use = RunTasksError(
        f"--out {folder.path} is in use by another process: wait for its end, or "
        "choose another"
    )
    with held(folder.path, in_use):
        if not (folder.path / EVALUATION).exists():
            folder.write(EVALUATION, {**identity, "tasks": {}})
        _run(model, tasks, folder, processes, retry_failures, told)


def _run(
    model: AnsweringModel,
    tasks: Sequence[TaskItems],
    folder: RunFolder,
    processes: Hosts,
    retry_failures: bool,
    told: Callable[[str], None],
) -> None:
    for task in tasks:
        place = RunFolder(folder.path / task.name, writes=folder.writes)
        ledger = Ledger(place.path / LEDGER)
        about = _about(task)
        if folder.writes:
            known = folder.read(EVALUATION)
            known["tasks"].setdefault(task.name, {**about, "finished": False})
            folder.write(EVALUATION, known)
        entries = _entries(model, task, ledger, processes, retry_failures)
        if not folder.writes:
            continue
        predictions = [entry.prediction for entry in entries]
        scored = task.score(predictions)
        head = {"task": task.name, **about, "notes": list(task.notes)}
        write_task(place, head, entries, scored)
        task.write_files(folder.path, folder.path.name, predictions, scored)
        known = folder.read(EVALUATION)
        known["tasks"][task.name]["finished"] = True
        folder.write(EVALUATION, known)
        told(task.name)


def _entries(
    model: AnsweringModel,
    task: TaskItems,
    ledger: Ledger,
    processes: Hosts,
    retry_failures: bool,
) -> list[Entry]:
    """The entries of all items in their order; asks for those that are not there."""
    if processes.is_first and ledger.file.exists():
        with ledger.writing():  # cuts off what a kill left of a last line
            pass
        if retry_failures:
            failed = {e.index for e in ledger.read().values() if e.error}
            ledger.without(failed)
    processes.barrier(f"ledger of {task.name}")
    there = ledger.read()
    unknown = sorted(there.keys() - set(task.indices))
    if unknown:
        raise RunTasksError(
            f"{ledger.file} has {len(unknown)} items that the task has not "
            f"({', '.join(unknown[:5])}): choose another --out"
        )
    answered = "\n".join(there)
    digest = hashlib.sha256(answered.encode()).hexdigest()[:12]
    processes.agree(f"answered items of {task.name}", f"{len(there)} ({digest})")
    options: dict[str, Any] = {
        "reached": processes.reached,
        "explain": processes.explain,
    }
    if len(there) < len(task.indices):
        if processes.is_first:
            with ledger.writing():
                made = ask_items(model, task, ledger, list(there), **options)
        else:
            made = ask_items(model, task, None, list(there), **options)
        there |= {entry.index: entry for entry in made}
    return [there[index] for index in task.indices]


def _about(task: TaskItems) -> dict[str, Any]:
    return {
        "scorer": task.scorer,
        "data_sha256": task.fingerprint,
        "max_new_tokens": task.max_new_tokens,
    }


def _check(
    folder: RunFolder, identity: dict[str, Any], tasks: Sequence[TaskItems]
) -> None:
    path = folder.path
    if path.exists() and not path.is_dir():
        raise RunTasksError(f"--out {path} is a file, expected a folder")
    if not (path / EVALUATION).exists():
        left_over = {f".{EVALUATION}.partial", LOCK}
        if {file.name for file in path.glob("*")} - left_over:
            raise RunTasksError(
                f"--out {path} is not empty and has no {EVALUATION}: choose a new or "
                "empty folder; nothing was written"
            )
        return
    there = folder.read(EVALUATION)
    finished = {name: task["finished"] for name, task in there["tasks"].items()}
    ours = {
        **identity,
        "tasks": {
            task.name: {**_about(task), "finished": finished[task.name]}
            for task in tasks
            if task.name in finished
        },
    }
    mine = {name: there["tasks"][name] for name in ours["tasks"]}
    differ = differences({**there, "tasks": mine}, ours, "there")
    if differ:
        raise RunTasksError(
            f"--out {path} holds another evaluation:{differ}\nChoose another --out or "
            "--name; nothing was written over"
        )
