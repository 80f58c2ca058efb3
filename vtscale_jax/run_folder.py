"""The folder of one run: its config, its manifest, and what must not be written over.

runs/m256-embedded/
    config.json      resolved config          manifest.json   versions, hashes, time
    metrics.jsonl    tensorboard/             checkpoints/    weights.safetensors
    evaluation.json  samples.jsonl  samples/  plots/          report.html
"""

import contextlib
import fcntl
import json
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "jax jaxlib flax optax orbax-checkpoint grain numpy transformers pillow "
    "scikit-learn ml_collections"
).split()

# Fields that may change between two launches of one run: they alter what is written
# and when, and where it is computed, never what.
PRESENTATION = (
    *("name", "log", "eval", "checkpoint"),
    *("data.num_threads", "data.num_workers", "data.prefetch", "data.headroom"),
    *("data.max_unreadable", "mesh", "hosts", "stop", "model.remat"),
)
LOCK = ".lock"


class RunFolderError(ValueError):
    """A work folder that belongs to another config, or is not a run folder."""


class RunFolder:
    """Reads and writes the JSON files of a run folder, each atomically.

    Of several processes only the one with `writes` changes anything in it.
    """

    def __init__(self, path: str | Path, *, writes: bool = True):
        self.path = Path(path)
        self.writes = writes

    @contextlib.contextmanager
    def claimed(self, config: Mapping[str, Any]) -> Iterator[None]:
        """The folder is this config's, and this process's while the context lasts.

        Raises as `check` does, or RunFolderError when another process is in it, and
        writes nothing then. Fields that only present the run take their new values.
        """
        self.check(config)
        if not self.writes:
            yield
            return
        in_use = RunFolderError(
            f"--workdir {self.path} is in use by another process: wait for its end, or "
            "choose another --workdir."
        )
        with held(self.path, in_use):
            self.write("config.json", config)
            yield

    def check(self, config: Mapping[str, Any]) -> None:
        """Writes nothing; RunFolderError, naming the fields that differ, when the
        folder belongs to another config, or holds something that is no run."""
        file = self.path / "config.json"
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(
                f"--workdir {self.path} is a file, expected a folder; nothing was "
                "written."
            )
        if not file.exists():
            # What a kill may have left of our own first file is no one else's work.
            left_over = {".config.json.partial", LOCK}
            if {path.name for path in self.path.glob("*")} - left_over:
                raise RunFolderError(
                    f"--workdir {self.path} is not empty and has no config.json: it is "
                    "not a run folder. Choose a new or empty folder; nothing was "
                    "written."
                )
            return
        differ = differences(self.read("config.json"), config, "there")
        if differ:
            raise RunFolderError(
                f"--workdir {self.path} belongs to a run with another config:"
                f"{differ}\nChoose another --workdir (or --config.name), or the same "
                "config to go on with that run; nothing was written over."
            )

    def check_shared(self, patience_s: float = 30.0) -> None:
        """RunFolderError when this process does not see what the one that writes has
        written: each host would be in a folder of its own."""
        file = self.path / "config.json"
        if not comes(file, patience_s):
            raise RunFolderError(
                f"--workdir {self.path} is not the same folder on all hosts: "
                f"{platform.node()} does not see {file}, which the first host has "
                "written. Give a folder that all of them share."
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
        if not self.writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_whole(self.path / name, text.encode())

    def write_lines(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Writes a JSONL file whole or not at all."""
        if not self.writes:
            return
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_whole(self.path / name, "".join(lines).encode())

    def check_inputs(self, inputs: Mapping[str, Any]) -> None:
        """RunFolderError when the run was started with other `inputs` (hashes of its
        starting weights and data, dtypes): it would go on as a different run."""
        if not (self.path / "manifest.json").exists():
            return
        theirs = self.read("manifest.json").get("inputs", {})
        differ = differences(theirs, inputs, "when it was started")
        if differ:
            raise RunFolderError(
                f"--workdir {self.path}: the run cannot go on, as what it was started "
                f"from has changed:{differ}\nBring that back, or start anew in "
                "another --workdir; nothing was written over."
            )

    def finished(self) -> bool:
        """Whether the run has come to its end."""
        file = self.path / "manifest.json"
        return file.exists() and bool(self.read("manifest.json").get("finished"))


@contextlib.contextmanager
def held(folder: Path, in_use: ValueError) -> Iterator[None]:
    """The folder, made where there is none, is this process's while the context lasts;
    raises `in_use` when it is another's."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as lock:  # given up however the process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise in_use from error
        yield


def comes(file: Path, patience_s: float) -> bool:
    """Whether a file that another host has written is seen here, in `patience_s`
    seconds at the latest: network file systems show it late."""
    end = time.monotonic() + patience_s
    while not file.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def write_whole(file: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    temporary = file.with_name(f".{file.name}.partial")
    temporary.write_bytes(content)
    temporary.replace(file)


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


def differences(theirs: Any, ours: Mapping[str, Any], then: str) -> str:
    """A line for each of the first dozen fields that differ, presentation apart."""
    theirs = _flat(theirs)
    ours = _flat(json.loads(json.dumps(ours)))  # tuples become lists, as in the file
    differ = sorted(
        name
        for name in theirs.keys() | ours.keys()
        if theirs.get(name) != ours.get(name) and not _is_presentation(name)
    )
    return "".join(
        f"\n  {name}: {theirs.get(name, '(absent)')} {then}, "
        f"{ours.get(name, '(absent)')} now"
        for name in differ[:12]
    )


def _is_presentation(name: str) -> bool:
    return any(name == p or name.startswith(f"{p}.") for p in PRESENTATION)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    items = [_flat(v, f"{prefix}.{k}" if prefix else k) for k, v in tree.items()]
    return {name: value for item in items for name, value in item.items()}
