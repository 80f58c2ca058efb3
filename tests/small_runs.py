"""Runs of the real command, small enough for tests: one layer each, random weights."""

import importlib
import json
from pathlib import Path

from ml_collections import ConfigDict

OVERRIDES = {
    "model.vision.blocks.num_layers": 1,
    "model.fusion.blocks.num_layers": 1,
    "model.llm.blocks.num_layers": 1,
    "model.text.blocks.num_layers": 1,
    "weights.clip": "fresh",
    "weights.llm": "fresh",
    "weights.init_from": "fresh",
    "data.batch_size": 8,
    "data.num_records": 64,
    "data.subset": 1.0,
    "optim.steps": 6,
    "log.every": 1,
    "eval.every": 4,
    "eval.questions": 2,
    "eval.batch_size": 8,
    "eval.max_new_tokens": 3,
    "checkpoint.every": 2,
}


def small_config(num_queries: int = 4, stage: str = "adapt", **more) -> ConfigDict:
    """The embedded config with `OVERRIDES`; `more` has dots written as `__`."""
    arg = f"stage={stage}"
    base = importlib.import_module("configs.base")
    config = base.with_queries(num_queries)(arg)
    changes = OVERRIDES | {k.replace("__", "."): v for k, v in more.items()}
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    if stage != "finetune":
        config.query_schedule = ()
    return config


def flags(num_queries: int = 4, **more) -> list[str]:
    """The same as arguments of the command line (with configs/m8.py)."""
    changes = OVERRIDES | {"num_queries": num_queries}
    changes |= {k.replace("__", "."): v for k, v in more.items()}
    return [f"--config.{name}={value}" for name, value in changes.items()]


def rows(folder: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def manifest(folder: Path) -> dict:
    """A run's manifest.json."""
    return json.loads((folder / "manifest.json").read_text())
