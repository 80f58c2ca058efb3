"""The folder of one run: its config, its manifest, and what must not be written over.

runs/m256-embedded/
    config.json      resolved config          manifest.json   versions, hashes, time
    metrics.jsonl    tensorboard/             checkpoints/    weights.safetensors
    evaluation.json  samples.jsonl  samples/  *.png *.svg     report.html
"""

import json
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "jax jaxlib flax optax orbax-checkpoint grain numpy transformers pillow "
    "scikit-learn ml_collections"
).split()

# Fields that may change between two launches of one run: they alter what is written
# and when, never the parameters.
PRESENTATION = ("name", "log", "eval", "checkpoint", "data.num_threads")


class RunFolderError(ValueError):
    """A work folder that belongs to another config, or is not a run folder."""


class RunFolder:
    """Reads and writes the JSON files of a run folder, each atomically."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def claim(self, config: Mapping[str, Any]) -> None:
        """Makes the folder this config's, or raises as `check` does and writes nothing.

        Fields that only present the run take their new values.
        """
        self.check(config)
        self.write("config.json", config)

    def check(self, config: Mapping[str, Any]) -> None:
        """Writes nothing; RunFolderError, naming the fields that differ, when the
        folder belongs to another config, or holds something that is no run."""
        file = self.path / "config.json"
        config = json.loads(json.dumps(config))  # tuples become lists, as in the file
        if not file.exists():
            if self.path.exists() and any(self.path.iterdir()):
                raise RunFolderError(
                    f"--workdir {self.path} is not empty and has no config.json: it is "
                    "not a run folder. Choose a new or empty folder; nothing was "
                    "written."
                )
            return
        theirs, ours = _flat(self.read("config.json")), _flat(config)
        differ = sorted(
            name
            for name in theirs.keys() | ours.keys()
            if theirs.get(name) != ours.get(name) and not _is_presentation(name)
        )
        if differ:
            listed = "\n  ".join(
                f"{name}: {theirs.get(name, '(absent)')} there, "
                f"{ours.get(name, '(absent)')} now"
                for name in differ[:12]
            )
            raise RunFolderError(
                f"--workdir {self.path} belongs to a run with another config:\n  "
                f"{listed}\nChoose another --workdir (or --config.name), or the same "
                "config to go on with that run; nothing was written over."
            )

    def read(self, name: str) -> Any:
        """A JSON file of the folder; RunFolderError names it when it is malformed."""
        file = self.path / name
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise RunFolderError(
                f"{file} cannot be read ({error}); restore it, or use another --workdir"
            ) from error

    def write(self, name: str, content: Any) -> None:
        """Writes a JSON file whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / f".{name}.partial"
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.path / name)

    def write_lines(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Writes a JSONL file whole or not at all."""
        temporary = self.path / f".{name}.partial"
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        temporary.write_text("".join(lines), encoding="utf-8")
        temporary.replace(self.path / name)

    def finished(self) -> bool:
        """Whether the run has come to its end."""
        file = self.path / "manifest.json"
        return file.exists() and bool(self.read("manifest.json").get("finished"))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        found[name] = metadata.version(name)
    return found


def code_version() -> dict[str, str | None]:
    """This package's version and, in a git checkout of it, the commit (with "+" when
    files were changed since)."""
    root = Path(__file__).resolve().parent.parent
    commit = None
    if (root / ".git").exists():
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
        commit = described.stdout.strip() or None
    return {"vtscale_jax": metadata.version("vtscale_jax"), "commit": commit}


def _is_presentation(name: str) -> bool:
    return any(name == p or name.startswith(f"{p}.") for p in PRESENTATION)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    items = [_flat(v, f"{prefix}.{k}" if prefix else k) for k, v in tree.items()]
    return {name: value for item in items for name, value in item.items()}
