"""What most would run next, as commands to type."""

import shlex
from pathlib import Path

from ml_collections import ConfigDict

from vtscale_jax.config_files import config_file


def ask_it(config: ConfigDict, workdir: Path) -> list[str]:
    """The command that asks the model about one of its sample pages."""
    pages = sorted((workdir / "samples").glob("*.png"))
    if config.stage == "align" or not pages:
        return []
    command = f"python -m vtscale_jax.ask --run {workdir} --image {pages[0]}"
    return [f"Ask:     {command}"]


def _data_flags(config: ConfigDict) -> list[str]:
    """What the command needs to train on the same data, where those are files."""
    data = config.data
    if data.name == "digit_pages":
        return []
    fields = ("name", "path", "heldout_path", "image_root")
    return [
        f"--config.data.{field}={shlex.quote(data[field])}"
        for field in fields
        if data[field]
    ]


def next_stage(config: ConfigDict, workdir: Path) -> str:
    """The command that most would run next, in a run folder of its own."""

    def command(num_queries: int, stage: str, init_from: str, name: str = "") -> str:
        words = [config.preset]
        words += [f"stage={stage}"] if stage != "adapt" else []
        words += [f"inputs={config.inputs}"] if config.inputs != "vqq" else []
        file = config_file(num_queries, *words)
        line = f"Next:    python -m vtscale_jax.train --config {file}"
        if init_from != "embedded":
            line += f" --config.weights.init_from={init_from}"
        line += "".join(f" {flag}" for flag in _data_flags(config))
        return line + (f" --config.name={name}" if name else "")

    if config.stage == "align":
        return command(config.num_queries, "finetune", str(workdir))
    if config.stage == "finetune":
        return command(16, "adapt", str(workdir), f"m16-of-{workdir.name}")
    other = 16 if config.num_queries != 16 else 64
    own = config.name.replace(f"m{config.num_queries}-", f"m{other}-", 1)
    return command(other, "adapt", config.weights.init_from, own)
