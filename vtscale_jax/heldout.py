"""Evaluates a finished run again, with or without the question in its fusion input.

    evaluate_run(run, out, inputs="vq", …)

The same checkpoint answers the same held-out questions as at the end of its training,
on the same program: with the run's own inputs the scores are those of its
evaluation.json. Results go to a folder of their own; the run's stays as it is.

    evaluated.json   what was evaluated, and whether all of it is there
    evaluation.json  samples.jsonl  samples/      as in the folder of a run
"""

import json
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vtscale_jax import settings
from vtscale_jax.evaluate import Evaluator
from vtscale_jax.parallel.hosts.processes import Processes
from vtscale_jax.run_folder import LOCK, RunFolder, differences, held
from vtscale_jax.trained import READ, RunError, open_on_mesh, run_config

EVALUATED = "evaluated.json"


class EvaluationError(ValueError):
    """A run that has nothing to be evaluated on, or a folder that is taken."""


def evaluate_run(
    run: Path,
    out: Path,
    processes: Processes,
    *,
    inputs: str | None = None,
    num_queries: int | None = None,
    questions: int | None = None,
    blank: bool = True,
) -> bool:
    """Evaluates the run in the folder `run` into `out`; False when that is there
    already.

    `inputs` ("vqq", "vq"), M = `num_queries` and the number of `questions` per family
    default to the run's; `blank` asks about a blank page too. All of several processes
    call this. EvaluationError, and nothing is written, when `out` holds anything else,
    and for a run without families of questions; RunError for one that is not finished.
    """
    config = _asked(run, inputs, num_queries, questions, blank)
    identity = {
        "run": str(run),
        "num_queries": config.num_queries,
        "trained_inputs": _read(run, "config.json")["inputs"],
        "inputs": config.inputs,
        "questions": config.eval.questions,
        "blank": config.eval.blank,
        "params_sha256": _trained_sha256(run),
    }
    folder = RunFolder(out, writes=processes.is_first)
    if _is_there(folder, identity):
        return False
    if not folder.writes:
        _evaluate(run, config, folder)
        return True
    in_use = EvaluationError(
        f"--out {out} is in use by another process: wait for its end, or choose another"
    )
    started = time.monotonic()
    with held(out, in_use):
        folder.write(EVALUATED, identity | {"finished": False})
        _evaluate(run, config, folder)
        took = {"duration_s": time.monotonic() - started}
        folder.write(EVALUATED, identity | took | {"finished": True})
    return True


def summary(out: Path) -> list[str]:
    """The scores of an evaluation as lines."""
    families = RunFolder(out).read("evaluation.json")["families"]
    return [
        f"  {name:<10} {100 * row['accuracy']:5.1f} %  "
        f"({100 * row['low']:.1f} to {100 * row['high']:.1f}, n {row['n']:,})"
        for name, row in families.items()
    ]


def _evaluate(run: Path, config: ConfigDict, folder: RunFolder) -> None:
    """Writes scores and samples of the run's parameters, laid out as in training."""
    laid = open_on_mesh(run, config)
    evaluator = Evaluator(config, laid.parts, laid.model, laid.mesh)
    evaluator.final(laid.params, _last_step(run), folder)


def _asked(
    run: Path,
    inputs: str | None,
    num_queries: int | None,
    questions: int | None,
    blank: bool,
) -> ConfigDict:
    """The run's config with what the evaluation changes; says what cannot be done."""
    config = run_config(run, num_queries=num_queries)
    lacking = [name for name in ("mesh", "eval", "optim") if name not in config]
    if lacking:
        raise RunError(
            f"{run / 'config.json'}: not the config of a run, it lacks "
            f"{', '.join(lacking)} (expected {', '.join(READ)}, mesh, eval and optim); "
            "give --run the folder that train wrote"
        )
    with config.unlocked():
        config.inputs = inputs or config.inputs
        config.eval.questions = (
            config.eval.questions if questions is None else questions
        )
        config.eval.blank = blank
    settings.question_mode(config)
    if config.data.name != "digit_pages":
        raise EvaluationError(
            f"--run {run} was trained on data.name {config.data.name!r}, and only "
            "digit_pages has families of held-out questions with exact answers"
        )
    if config.eval.questions < 1:
        raise EvaluationError(
            f"--run {run} was trained with eval.questions {config.eval.questions}: say "
            "how many to ask of every family (--questions 512)"
        )
    return config


def _read(run: Path, name: str) -> dict[str, Any]:
    return RunFolder(run).read(name)


def _trained_sha256(run: Path) -> str:
    """The hash of the run's parameters, which its end writes."""
    manifest = _read(run, "manifest.json")
    if not manifest.get("finished") or "params_sha256" not in manifest:
        raise RunError(
            f"--run {run} is not finished, as {run / 'manifest.json'} says: go on with "
            "it by the command it was started with (the manifest has it)"
        )
    return manifest["params_sha256"]


def _last_step(run: Path) -> int:
    """The step that the run ended with."""
    if (run / "evaluation.json").is_file():
        return _read(run, "evaluation.json")["step"]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return max(json.loads(line)["step"] for line in lines)


def _is_there(folder: RunFolder, identity: dict[str, Any]) -> bool:
    """Whether this evaluation is in the folder as a whole."""
    if folder.path.exists() and not folder.path.is_dir():
        raise EvaluationError(f"--out {folder.path} is a file, expected a folder")
    if not (folder.path / EVALUATED).exists():
        kept = {f".{EVALUATED}.partial", LOCK}
        if {path.name for path in folder.path.glob("*")} - kept:
            raise EvaluationError(
                f"--out {folder.path} is not empty and has no {EVALUATED}: choose a "
                "new or empty folder; nothing was written"
            )
        return False
    there = folder.read(EVALUATED)
    # Where the run lies may change: its parameters are known by their hash.
    where = ("run", "finished", "duration_s")
    differ = differences(
        {name: value for name, value in there.items() if name not in where},
        {name: value for name, value in identity.items() if name not in where},
        "there",
    )
    if differ:
        raise EvaluationError(
            f"--out {folder.path} holds another evaluation:{differ}\nChoose another "
            "--out; nothing was written over"
        )
    return bool(there.get("finished"))
