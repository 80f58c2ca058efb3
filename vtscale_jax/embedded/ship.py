"""Puts trained tiny weights into the package, with a manifest of how they were made."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from vtscale_jax import paths
from vtscale_jax.embedded.vocabulary import save_tokenizer
from vtscale_jax.run_folder import RunFolder
from vtscale_jax.stages import get_stage

_TRAIN = "vtscale_jax.train --config configs/m256.py:stage="
_CLIP = "--config.weights.clip=runs/pretrain-clip"
_LLM = "--config.weights.llm=runs/pretrain-llm"
# All of the shipped weights from nothing. The second base, from another seed, shows how
# far scores depend on the seed; only its scores are kept.
COMMANDS = (
    "vtscale_jax.embedded pretrain clip",
    "vtscale_jax.embedded pretrain llm",
    f"{_TRAIN}align {_CLIP}",
    f"{_TRAIN}finetune {_LLM}",
    f"{_TRAIN}align {_CLIP} --config.seed=1 --config.name=again-align",
    f"{_TRAIN}finetune {_LLM} --config.weights.init_from=runs/again-align "
    "--config.seed=1 --config.name=again",
    "vtscale_jax.embedded ship",
    # The baseline, from the CLIP and the LLM that have just been shipped.
    "vtscale_jax.embedded pretrain llava",
    "vtscale_jax.embedded ship --only_llava",
)
WEIGHTS = Path(__file__).parent / "weights"
# Half precision keeps the package small; the rounding (2⁻¹¹ relative) is below what
# training moves in a step. The hashes of files are of the rounded weights; the scores
# and hashes of runs are theirs, before rounding.
STORED = np.float16
FILE = "weights.safetensors"


def make() -> None:
    """Runs COMMANDS one after the other in the current folder, a checkout of the
    repository: hours on two cores (the manifest has the seconds of each). What is
    finished already is passed over; RuntimeError when a command fails."""
    for command in COMMANDS:
        if command.startswith("vtscale_jax.embedded pretrain"):
            done = Path(f"runs/pretrain-{command.split()[-1]}") / "pretrain.json"
            if done.exists():
                continue
        print(f"\n$ python -m {command}", flush=True)
        ended = subprocess.run([sys.executable, "-m", *command.split()], check=False)
        if ended.returncode:
            raise RuntimeError(
                f"python -m {command} ended with status {ended.returncode}; the same "
                "command goes on from there once the cause is mended"
            )


def ship(
    clip: Path, llm: Path, align: Path, base: Path, again_align: Path, again: Path
) -> dict[str, Any]:
    """Copies the tiny CLIP, the tiny LLM and the base model into the package.

    Each argument is a folder: those of `pretrain`, the align run and the finetune run,
    and those two again from another seed, of which only the scores are kept. Returns
    the manifest, which is also written beside the weights. A LLaVA that ships is taken
    out, having been trained before another LLM: `ship_llava` puts a new one in.

    ValueError if a run is not finished, or did not start from the weights of the one
    before (rounded, as they are shipped, or not).
    """
    files = {"clip": clip / FILE, "llm": llm / FILE, "base": base / FILE}
    for folder in (align, base, again_align, again):
        if not RunFolder(folder).finished():
            raise ValueError(
                f"{folder} is no finished run; train it to its end first, with the "
                "same command"
            )
    for run, group, before in (
        (align, "clip", clip),
        (again_align, "clip", clip),
        (base, "llm", llm),
        (again, "llm", llm),
        (base, "init_from", align),
        (again, "init_from", again_align),
    ):
        _check_origin(run, group, before / FILE)
    WEIGHTS.mkdir(exist_ok=True)
    manifest: dict[str, Any] = {"stored_as": np.dtype(STORED).name, "files": {}}
    for name, file in files.items():
        shipped = WEIGHTS / f"{name}.safetensors"
        paths.save(paths.unflatten(load_file(file)), shipped, STORED)
        tensors = load_file(shipped)
        manifest["files"][name] = {
            "sha256": paths.content_hash(paths.unflatten(tensors)),
            "parameters": sum(t.size for t in tensors.values()),
        }
    save_tokenizer(WEIGHTS)
    for name, folder in (("clip", clip), ("llm", llm)):
        about = json.loads((folder / "pretrain.json").read_text())
        command = f"python -m vtscale_jax.embedded pretrain {name}"
        command += f" --seed {about['seed']}"
        manifest[name] = {"command": command, **about, "curve": _curve(folder)}
    for name, folder in (
        ("align", align),
        ("finetune", base),
        ("again_align", again_align),
        ("again", again),
    ):
        manifest[name] = _run(folder)
    (WEIGHTS / "llava.safetensors").unlink(missing_ok=True)
    (WEIGHTS / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def ship_llava(folder: Path) -> dict[str, Any]:
    """Copies the tiny LLaVA's tower and projector into the package, beside the LLM that
    it was trained before; the other files stay as they are.

    `folder` is that of `pretrain llava`. Returns its entry of the manifest, which says
    how it was made, its held-out accuracy by family, and what its file is: the models
    under "files" are those that the package's own runs start from.

    ValueError if it was trained from another CLIP or LLM than those that ship.
    """
    manifest = json.loads((WEIGHTS / "manifest.json").read_text())
    about = json.loads((folder / "pretrain.json").read_text())
    ours = {name: manifest["files"][name]["sha256"] for name in about["from"]}
    if about["from"] != ours:
        raise ValueError(
            f"{folder} was trained from {about['from']} (pretrain.json), but the "
            f"package has {ours}: train it anew, python -m vtscale_jax.embedded "
            "pretrain llava"
        )
    shipped = WEIGHTS / "llava.safetensors"
    paths.save(paths.unflatten(load_file(folder / FILE)), shipped, STORED)
    tensors = load_file(shipped)
    command = f"python -m vtscale_jax.embedded pretrain llava --seed {about['seed']}"
    manifest["llava"] = {
        "command": command,
        **about,
        "sha256": paths.content_hash(paths.unflatten(tensors)),
        "parameters": sum(t.size for t in tensors.values()),
        "align_curve": _curve(folder / "align"),
        "curve": _curve(folder),
    }
    (WEIGHTS / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest["llava"]


def _check_origin(run: Path, group: str, file: Path) -> None:
    """ValueError unless the run's starting weights `group` are those of `file`."""
    folder = RunFolder(run)
    stage = get_stage(folder.read("config.json")["stage"])
    tensors = load_file(file)
    wanted = {
        path: tensor
        for path, tensor in tensors.items()
        if any(re.fullmatch(rule, path) for rule, by in stage.sources if by == group)
    }
    rounded = {path: t.astype(STORED).astype(t.dtype) for path, t in wanted.items()}
    started = folder.read("manifest.json")["weights"][group]["sha256"]
    if started not in (
        paths.content_hash(paths.unflatten(tree)) for tree in (wanted, rounded)
    ):
        raise ValueError(
            f"{run} did not start from {file} (its manifest has another hash for "
            f"weights.{group}): give the folders of one chain of runs"
        )


def _run(folder: Path) -> dict[str, Any]:
    run = RunFolder(folder)
    config, made = run.read("config.json"), run.read("manifest.json")
    row = {
        "command": made["command"],
        "seed": config["seed"],
        "seconds": round(made["duration_s"], 1),
        "device": made["device"],
        "versions": made["versions"],
        "code": made["code"],
        "params_sha256": made["params_sha256"],
        "curve": _curve(folder),
    }
    if (folder / "evaluation.json").exists():
        families = run.read("evaluation.json")["families"]
        row["accuracy"] = {name: found["accuracy"] for name, found in families.items()}
    return row


def _curve(folder: Path) -> list[dict[str, float]]:
    """About forty points of the loss, train and held-out."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    train = [row for row in rows if row["split"] == "train"]
    kept = train[:: max(1, len(train) // 40)]
    kept += [row for row in rows if row["split"] == "heldout"]
    names = ("step", "split", "loss", "num_queries", "accuracy", "token_accuracy")
    return [
        {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in row.items()
            if name in names or name.startswith("accuracy/")
        }
        for row in kept
    ]
