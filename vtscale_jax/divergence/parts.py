"""What a measurement has so far: one file for every chunk of rows.

A chunk's file holds the curves of its pairs as they are, so that the whole can be put
together in one order whoever measured which: a run that was interrupted goes on with
the chunks that are missing, and several processes share one folder.
"""

import contextlib
import io
import json
import platform
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vtscale_jax.divergence.histograms import Histograms
from vtscale_jax.divergence.result import PAIR_CURVES
from vtscale_jax.run_folder import LOCK, comes, differences, held, write_whole

SETTINGS = "settings.json"


class PartsError(ValueError):
    """A folder of parts that belongs to another measurement, or is damaged."""


class Part(NamedTuple):
    """The pairs of one chunk, in the order of their rows.

    rows:       numbers in the data              lengths: n that each pair reaches
    curves:     by `PAIR_CURVES`, [P, n]         norm: largest of each pair
    histograms: over all of them
    null:       mean over swaps of ½(ψ_AA + ψ_BB) − ψ_AB, [P, n], or None
    bad:        rows left out: {"line", "reason", "detail"}
    notes:      how many pairs have each note
    """

    rows: Int[np.ndarray, " P"]
    lengths: Int[np.ndarray, " P"]
    curves: dict[str, Float[np.ndarray, "P n"]]
    norm: Float[np.ndarray, " P"]
    histograms: Histograms
    null: Float[np.ndarray, "P n"] | None
    bad: list[dict[str, Any]]
    notes: dict[str, int]


class Parts:
    """The parts of one measurement in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def claimed(
        self, settings: Mapping[str, Any], *, writes: bool = True
    ) -> Iterator[None]:
        """The folder is that of a measurement with these settings, and of no other run
        while the context lasts.

        Of several processes only the first `writes`. PartsError when another run is in
        it, or when it holds parts of a measurement with other settings, which would be
        mixed; settings without any part are replaced.
        """
        if not writes:
            yield
            return
        in_use = PartsError(
            f"{self.folder} is in use by another measurement: wait for its end, or "
            "choose another --out or --name"
        )
        with held(self.folder, in_use):
            self._settle(json.loads(json.dumps(settings)))
            yield

    def _settle(self, wanted: dict[str, Any]) -> None:
        """Writes the settings; PartsError where parts of others are."""
        file = self.folder / SETTINGS
        theirs = {}
        if file.exists():
            theirs = json.loads(file.read_text(encoding="utf-8"))
        differ = differences(theirs, wanted, "there")
        if differ and any(self.folder.glob("*.npz")):
            raise PartsError(
                f"{self.folder} holds part of a measurement with other settings:"
                f"{differ}\nGo on with those, delete the folder, or choose another "
                "--out"
            )
        write_whole(file, (json.dumps(wanted, indent=2) + "\n").encode())

    def check_shared(self, patience_s: float = 30.0) -> None:
        """PartsError when this process does not see what the first one has written:
        each host would wait for chunks in a folder of its own."""
        file = self.folder / SETTINGS
        if not comes(file, patience_s):
            raise PartsError(
                f"{platform.node()} does not see {file}, which the first host has "
                "written: --out must be a folder that all hosts share"
            )

    def path(self, chunk: int) -> Path:
        """The file of a chunk."""
        return self.folder / f"{chunk:06d}.npz"

    def missing(self, chunks: int) -> list[int]:
        """Which of the first `chunks` chunks are not there yet."""
        return [chunk for chunk in range(chunks) if not self.path(chunk).exists()]

    def write(self, chunk: int, part: Part) -> None:
        """Writes a chunk's file whole or not at all."""
        arrays = {
            "rows": part.rows,
            "lengths": part.lengths,
            "norm": part.norm,
            **{f"curve_{name}": part.curves[name] for name in PAIR_CURVES},
            **{
                f"histogram_{name}": counts
                for name, counts in part.histograms._asdict().items()
            },
            "bad": _as_bytes(part.bad),
            "notes": _as_bytes(part.notes),
        }
        if part.null is not None:
            arrays["null"] = part.null
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.path(chunk), content.getvalue())

    def read(self, chunk: int) -> Part:
        """A chunk's part; PartsError names a file that is damaged."""
        path = self.path(chunk)
        if not path.exists():
            raise PartsError(f"{path} is gone; run the same command again")
        try:
            # Opened here: numpy leaves a damaged file open.
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return Part(
                arrays["rows"],
                arrays["lengths"],
                {name: arrays[f"curve_{name}"] for name in PAIR_CURVES},
                arrays["norm"],
                Histograms(*(arrays[f"histogram_{n}"] for n in Histograms._fields)),
                arrays.get("null"),
                json.loads(arrays["bad"].tobytes()),
                json.loads(arrays["notes"].tobytes()),
            )
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise PartsError(
                f"{path} is damaged ({error}); delete it and run the same command again"
            ) from error

    def all(self, chunks: int) -> Iterator[Part]:
        """The parts of all chunks in order, one in memory at a time."""
        for chunk in range(chunks):
            yield self.read(chunk)

    def remove(self) -> None:
        """Deletes what this class has written."""
        for file in [*self.folder.glob("*.npz"), *self.folder.glob(".*.partial")]:
            file.unlink()
        for name in (SETTINGS, LOCK):
            (self.folder / name).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def _as_bytes(value: Any) -> np.ndarray:
    """JSON as an array of bytes, which a file of arrays can hold without pickle."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)
