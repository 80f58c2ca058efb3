"""The parts of a sweep: what each one runs, and how far it is, as its files say.

    m8-vqq     adapted to M = 8, with the question in the fusion input
    m8-vq_ft   adapted without it
    m8-vq      the checkpoint of m8-vqq, evaluated without it: nothing is trained

Nothing here loads JAX: a sweep's own process holds no device.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vtscale_jax.config_files import config_file
from vtscale_jax.run_folder import LOCK, RunFolder, differences

INPUTS = ("vqq", "vq", "vq_ft")
EMBEDDED = "embedded"
BASE_QUERIES = 256  # of the shipped base
RECORD = "sweep.json"
FINISHED, INTERRUPTED, TO_DO = "finished", "interrupted", "to do"
# Of Digit Pages, whose longest texts the probed pages show: one shape to compile in
# place of up to four. It is no part of what is learnt (`run_folder.PRESENTATION`).
ONE_SHAPE = ("--config.data.headroom=1.1",)
TAKEN = (
    *("--config", "--workdir", "--dry_run", "--flagfile"),
    *("--config.weights.init_from", "--config.num_queries", "--config.inputs"),
    *("--config.stage", "--config.preset"),
)


class SweepError(ValueError):
    """A sweep that cannot be made as asked."""


class Base(NamedTuple):
    """What all runs of a sweep start from; `sha256` is None for the shipped one."""

    path: str
    preset: str
    num_queries: int
    sha256: str | None = None


class Part(NamedTuple):
    """One child process: a training run, or (where `of` names one) an evaluation."""

    name: str
    num_queries: int
    inputs: str
    folder: Path
    module: str
    arguments: tuple[str, ...]
    of: str | None = None
    asked: bool = True

    @property
    def command(self) -> list[str]:
        """What is executed."""
        return [sys.executable, "-m", self.module, *self.arguments]

    @property
    def typed(self) -> str:
        """The same, as one would type it."""
        return shlex.join(["python", "-m", self.module, *self.arguments])


def read_base(base: str, preset: str | None) -> Base:
    """The base that --base names; SweepError unless all M can be adapted from it."""
    if base == EMBEDDED:
        if preset not in (None, EMBEDDED):
            raise SweepError(
                f"--preset {preset} needs a base of its own: --base RUN, the folder of "
                f"a finished run of stage finetune (python -m vtscale_jax.train "
                f"--config configs/m256.py:{preset},stage=finetune)"
            )
        return Base(EMBEDDED, EMBEDDED, BASE_QUERIES)
    folder = Path(base)
    for name in ("config.json", "manifest.json"):
        if not (folder / name).is_file():
            raise SweepError(
                f"--base {base} has no {name}, expected the folder of a finished run, "
                f"or {EMBEDDED} for the base that ships with the package"
            )
    config, manifest = (
        RunFolder(folder).read(f"{name}.json") for name in ("config", "manifest")
    )
    absent = {"stage", "preset", "num_queries"} - set(config)
    if absent:
        raise SweepError(
            f"{folder / 'config.json'} lacks {', '.join(sorted(absent))}: it is not "
            "the config of a run"
        )
    if config["stage"] == "align":
        start = config_file(config["num_queries"], config["preset"], "stage=finetune")
        raise SweepError(
            f"--base {base} is of stage align, which has not learnt to answer: run "
            f"stage finetune from it first (python -m vtscale_jax.train --config "
            f"{start} --config.weights.init_from={base})"
        )
    whole = manifest.get("finished") and (folder / "weights.safetensors").is_file()
    if not whole or "params_sha256" not in manifest:
        raise SweepError(
            f"--base {base} is not finished: go on with it by the command it was "
            f"started with, which {folder / 'manifest.json'} has"
        )
    if preset not in (None, config["preset"]):
        raise SweepError(
            f"--preset is {preset}, but --base {base} is a run of preset "
            f"{config['preset']}: leave --preset out"
        )
    return Base(
        base, config["preset"], config["num_queries"], manifest["params_sha256"]
    )


def check_train_arguments(given: Sequence[str]) -> None:
    """SweepError for an argument of train that the sweep sets for each part."""
    for word in given:
        name = "--" + word.lstrip("-").removeprefix("no").partition("=")[0]
        if word.startswith("-") and name in TAKEN:
            raise SweepError(
                f"{word} is set for each part of the sweep; see --base, --num_queries, "
                "--inputs, --preset, --out"
            )
        if not word.startswith("--"):
            raise SweepError(
                f"train argument {word!r} does not begin with --: give values as "
                "--config.optim.steps=50"
            )


def make_parts(
    base: Base,
    out: Path,
    queries: Sequence[int],
    inputs: Sequence[str],
    train_arguments: Sequence[str] = (),
    *,
    blank: bool = False,
) -> list[Part]:
    """The parts of a sweep, the costliest first, each after the one that it needs."""
    parts = []
    for m in sorted(queries, reverse=True):
        for kind, run_inputs in (("vqq", "vqq"), ("vq_ft", "vq")):
            needed = kind == "vqq" and "vq" in inputs
            if kind not in inputs and not needed:
                continue
            name, asked = f"m{m}-{kind}", kind in inputs
            file = config_file(m, base.preset, f"inputs={run_inputs}")
            own = ONE_SHAPE if base.preset == EMBEDDED else ()
            folder = out / name
            arguments = (
                *("--config", file, "--workdir", str(folder)),
                f"--config.weights.init_from={base.path}",
                f"--config.eval.blank={blank}",
                *(*own, *train_arguments),
            )
            module = "vtscale_jax.train"
            parts.append(Part(name, m, kind, folder, module, arguments, asked=asked))
        if "vq" in inputs:
            name, of = f"m{m}-vq", f"m{m}-vqq"
            folder = out / name
            arguments = (
                *("heldout", "--run", str(out / of), "--inputs", "vq"),
                *("--out", str(folder), *(() if blank else ("--no_blank",))),
            )
            part = Part(name, m, "vq", folder, "vtscale_jax.eval", arguments, of)
            parts.append(part)
    return parts


def state(part: Part) -> str:
    """How far a part is."""
    if part.of is None:
        if not (part.folder / "manifest.json").exists():
            return TO_DO
        return FINISHED if RunFolder(part.folder).finished() else INTERRUPTED
    if not (part.folder / "evaluated.json").exists():
        return TO_DO
    there = RunFolder(part.folder).read("evaluated.json")
    run = RunFolder(part.folder.parent / part.of)
    if not (run.path / "manifest.json").exists() or not there.get("finished"):
        return INTERRUPTED
    # Of a run that was trained anew since, it is not this part's result.
    own = there.get("params_sha256") == run.read("manifest.json").get("params_sha256")
    return FINISHED if own else INTERRUPTED


def scores(part: Part) -> dict[str, float]:
    """Accuracy of each family; none of a run whose data have no families."""
    if not (part.folder / "evaluation.json").is_file():
        return {}
    families = RunFolder(part.folder).read("evaluation.json")["families"]
    return {name: row["accuracy"] for name, row in families.items()}


def identity(base: Base, train_arguments: Sequence[str], blank: bool) -> dict[str, Any]:
    """What all parts of a sweep have in common; M and inputs may be added later."""
    return {
        "base": base.path,
        "base_sha256": base.sha256,
        "preset": base.preset,
        "train_arguments": list(train_arguments),
        "blank": blank,
    }


def check_folder(out: Path, wanted: dict[str, Any]) -> None:
    """SweepError when `out` holds anything but this sweep; nothing is written."""
    if out.exists() and not out.is_dir():
        raise SweepError(f"--out {out} is a file, expected a folder")
    if not (out / RECORD).exists():
        kept = {f".{RECORD}.partial", LOCK}
        if {path.name for path in out.glob("*")} - kept:
            raise SweepError(
                f"--out {out} is not empty and has no {RECORD}: choose a new or empty "
                "folder; nothing was written"
            )
        return
    there = RunFolder(out).read(RECORD)
    theirs, ours = (
        {name: json.dumps(tree.get(name)) for name in wanted}
        for tree in (there, wanted)
    )
    differ = differences(theirs, ours, "there")
    if differ:
        raise SweepError(
            f"--out {out} belongs to another sweep:{differ}\nChoose another --out, or "
            "give the same base, preset and train arguments to go on with it; nothing "
            "was written over"
        )
