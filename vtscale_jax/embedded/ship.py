"""Puts trained tiny weights into the package, with a manifest of how they were made."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from vtscale_jax import paths
from vtscale_jax.run_folder import RunFolder

SHIP_COMMANDS = """\
all of the shipped weights again, from nothing (hours on two cores):

  python -m vtscale_jax.embedded pretrain clip
  python -m vtscale_jax.embedded pretrain llm
  python -m vtscale_jax.train --config configs/m256.py:stage=align \\
      --config.weights.clip=runs/pretrain-clip
  python -m vtscale_jax.train --config configs/m256.py:stage=finetune \\
      --config.weights.llm=runs/pretrain-llm
  python -m vtscale_jax.embedded ship

with `--config.seed=1 --config.name=again-align` and so on for a second base, whose
scores go into the manifest beside the shipped one's (`ship --again runs/again`).
"""
WEIGHTS = Path(__file__).parent / "weights"
# Half precision keeps the package small; the rounding (2⁻¹¹ relative) is below what
# training moves in a step. Hashes and scores are of the rounded weights.
STORED = np.float16
FILE = "weights.safetensors"


def ship(
    clip: Path, llm: Path, align: Path, base: Path, again: Path | None = None
) -> dict[str, Any]:
    """Copies the tiny CLIP, the tiny LLM and the base model into the package.

    Each argument is a folder: those of `pretrain`, the align run and the finetune run
    (whose starting weights were, in turn, those of the one before). `again` is a
    finetune run from another seed, of which only the scores are kept. Returns the
    manifest, which is also written beside the weights.
    """
    files = {"clip": clip / FILE, "llm": llm / FILE, "base": base / FILE}
    for folder in filter(None, (align, base, again)):
        if not RunFolder(folder).finished():
            raise ValueError(
                f"{folder} is no finished run; train it to its end first, with the "
                "same command"
            )
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
    for name, folder in (("clip", clip), ("llm", llm)):
        about = json.loads((folder / "pretrain.json").read_text())
        command = f"python -m vtscale_jax.embedded pretrain {name}"
        command += f" --seed {about['seed']}"
        manifest[name] = {"command": command, **about, "curve": _curve(folder)}
    for name, folder in (("align", align), ("finetune", base)):
        manifest[name] = _run(folder)
    if again is not None:
        manifest["again"] = _run(again)
    (WEIGHTS / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


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
