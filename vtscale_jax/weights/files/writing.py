"""Checkpoints written tensor by tensor, and folders written whole or not at all.

    with whole_folder(Path("llama")) as folder:
        write_shards(folder, source)      # model.safetensors, or shards and an index

Nothing is held but the tensor that is being written, so a model of any size can be
copied, renamed or converted on a small machine.
"""

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from vtscale_jax.weights.files.tensor_slices import Index, Shape
from vtscale_jax.weights.files.tensors import DTYPES, SAFETENSORS_INDEX, TensorSource
from vtscale_jax.weights.naming.placing import convert

SHARD_BYTES = 5 * 10**9
# Written into every file: transformers refuses files that do not say so.
METADATA = {"format": "pt"}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# What floating point tensors may be written as.
FLOATS = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in ("float32", "bfloat16", "float16")
}


class OutputError(ValueError):
    """A place that cannot be written to without harm."""


class ChosenTensors:
    """Tensors of one or several sources as one `TensorSource`, under names of their
    own: `{"lm_head.weight": (source, "llm_backbone.lm_head.weight")}`.

    With `dtype` (of `FLOATS`) floating point tensors are converted when they are read;
    numbers beyond its range are a ValueError that names the tensor.
    """

    def __init__(
        self,
        where: str,
        chosen: Mapping[str, tuple[TensorSource, str]],
        dtype: str | None = None,
    ):
        self.where = where
        self._chosen = dict(chosen)
        self.shapes: dict[str, Shape] = {
            name: tuple(source.shapes[old]) for name, (source, old) in chosen.items()
        }
        self.dtypes = {
            name: _converted(source.dtypes[old], dtype)
            for name, (source, old) in chosen.items()
        }

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """The tensor, or a part of it."""
        source, old = self._chosen[name]
        return convert(source.read(old, index), self.dtypes[name], name)


def _converted(found: np.dtype, dtype: str | None) -> np.dtype:
    is_float = jnp.issubdtype(found, jnp.floating)
    return FLOATS[dtype] if dtype is not None and is_float else found


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to be filled, which becomes `out` when the context ends without an
    error, and is gone otherwise.

    Raises OutputError when `out` is a file or a folder that is not empty.
    """
    out = out.absolute()
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, so that the last step is a rename.
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield draft
        draft.chmod(0o755)
        check_free(out)
        draft.replace(out)  # an empty folder may be there
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_free(out: Path) -> None:
    """OutputError when `out` is a file, or a folder that holds something."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        kind = "is a folder that is not empty" if out.is_dir() else "exists already"
        raise OutputError(
            f"{out} {kind}; nothing was written over: name a new one, or remove it"
        )


def write_tensors(file: Path, source: TensorSource) -> None:
    """Writes all tensors of a source as one .safetensors file, whole or not at all.

    Raises OutputError for a dtype that the format does not have.
    """
    names = sorted(source.shapes, key=lambda n: (-source.dtypes[n].itemsize, n))
    header: dict[str, object] = {"__metadata__": METADATA}
    offset = 0
    # Wide numbers first: readers view the bytes in place, so each must be aligned.
    for name in names:
        dtype, end = source.dtypes[name], offset + _num_bytes(source, name)
        if dtype not in NAMES:
            raise OutputError(
                f"{source.where}: {name} is {dtype}, expected one of "
                f"{', '.join(map(str, NAMES))}, which .safetensors has"
            )
        header[name] = {
            "dtype": NAMES[dtype],
            "shape": list(source.shapes[name]),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    draft = file.with_name(f".{file.name}.partial")
    try:
        with draft.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                array = source.read(name)
                little = array.astype(array.dtype.newbyteorder("<"), copy=False)
                bits = np.ascontiguousarray(little).reshape(-1).view(np.uint8)
                stream.write(bits.data)
        os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)


def write_shards(
    folder: Path, source: TensorSource, *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes all tensors of a source in Hugging Face's layout: `model.safetensors`, or
    shards of at most `shard_bytes` (or one tensor) and `model.safetensors.index.json`.
    """
    shards: list[list[str]] = []
    size = shard_bytes
    for name in source.shapes:
        more = _num_bytes(source, name)
        if not shards or size + more > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += more
    files = ["model.safetensors"]
    if len(shards) > 1:
        count = len(shards)
        files = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    for file, names in zip(files, shards, strict=True):
        part = ChosenTensors(source.where, {name: (source, name) for name in names})
        write_tensors(folder / file, part)
    if len(files) > 1:
        total = sum(_num_bytes(source, name) for name in source.shapes)
        index = {
            "metadata": {"total_size": total},
            "weight_map": {
                name: file
                for file, names in zip(files, shards, strict=True)
                for name in names
            },
        }
        write_json(folder / SAFETENSORS_INDEX, index)


def one_dtype(tensors: TensorSource) -> str:
    """What a config.json calls the dtype of its tensors: the widest that occurs."""
    found = {name for name, dtype in FLOATS.items() if dtype in tensors.dtypes.values()}
    return found.pop() if len(found) == 1 else "float32"


def write_json(file: Path, content: Mapping[str, object]) -> None:
    """Writes a JSON object as people read it."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8")


def _num_bytes(source: TensorSource, name: str) -> int:
    return math.prod(source.shapes[name]) * source.dtypes[name].itemsize
