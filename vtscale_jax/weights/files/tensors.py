"""A checkpoint's tensors, read one at a time, or a part of one, and never kept.

    source = open_tensors(Path("Llama-2-7b-hf"))
    source.shapes["model.norm.weight"]                      ->  (4096,)
    source.read("lm_head.weight", (slice(0, 8000),))        ->  its first 8,000 rows

Opening reads headers only, and finds there what is damaged, truncated or missing. The
files are read, not mapped: pages of a mapped file count as resident memory for as long
as it stays open, and a shard of 5 GB would be held by its first tensors.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from vtscale_jax.weights.files.tensor_slices import (
    Index,
    Shape,
    TensorFileError,
    slice_bounds,
)
from vtscale_jax.weights.files.torch_files import TorchFiles

SAFETENSORS_INDEX = "model.safetensors.index.json"
TORCH_INDEX = "pytorch_model.bin.index.json"
TORCH_FILES = "pytorch_model*.bin"
# A part that does not lie in one run of bytes is cut out of blocks of rows this large.
BLOCK_BYTES = 16 * 2**20

# Safetensors' names of what NumPy can hold. Its types of four and six bits are packed
# and have no array type here.
DTYPES = {
    name: np.dtype(dtype)
    for name, dtype in {
        **{"BOOL": np.bool_, "U8": np.uint8, "I8": np.int8},
        **{"U16": np.uint16, "I16": np.int16, "U32": np.uint32, "I32": np.int32},
        **{"U64": np.uint64, "I64": np.int64, "C64": np.complex64},
        **{"F16": np.float16, "F32": np.float32, "F64": np.float64},
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    }.items()
}


@runtime_checkable
class TensorSource(Protocol):
    """A checkpoint's tensors by name, wherever they lie.

    `where` is the file or folder, for messages; `shapes` and `dtypes` are known without
    reading a tensor. `read` gives a tensor, or the part of it that `index` (one slice
    of step 1 per axis, later axes may be left out) cuts out, as an array of its own.
    """

    @property
    def where(self) -> str:
        """The file or folder."""
        ...

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Shape of every tensor."""
        ...

    @property
    def dtypes(self) -> Mapping[str, np.dtype]:
        """What `read` gives; bfloat16 and float8 types are those of ml_dtypes."""
        ...

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """The tensor, or a part of it."""
        ...


class ArrayTensors:
    """Arrays in memory as a `TensorSource`."""

    def __init__(self, arrays: Mapping[str, np.ndarray], where: str = "memory"):
        self.where = where
        self.shapes = {name: np.shape(array) for name, array in arrays.items()}
        self.dtypes = {name: array.dtype for name, array in arrays.items()}
        self._arrays = arrays

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """A copy of the array, or of a part of it."""
        return np.array(self._arrays[name][index or ()], order="C")


class _Place(NamedTuple):
    """Where a tensor's bytes lie."""

    file: Path
    offset: int
    shape: Shape
    dtype: np.dtype


class SafetensorsFiles:
    """One or several .safetensors files as one `TensorSource`.

    `files` says in which file each tensor is. Raises TensorFileError when a file is
    missing, damaged or truncated, holds a type that NumPy has not, or when two files
    hold the same name.
    """

    def __init__(self, where: str, files: Sequence[Path]):
        self.where = where
        self._places: dict[str, _Place] = {}
        for file in files:
            for name, place in _header(file).items():
                if name in self._places:
                    raise TensorFileError(
                        f"{name}: got it in {self._places[name].file.name} and in "
                        f"{file.name} of {where}, expected it once; keep one set of "
                        "files in the folder"
                    )
                self._places[name] = place
        self.files = {name: place.file for name, place in self._places.items()}
        self.shapes = {name: place.shape for name, place in self._places.items()}
        self.dtypes = {name: place.dtype for name, place in self._places.items()}

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """The tensor, or a part of it; bfloat16 stays bfloat16.

        TensorFileError when the file has become shorter since it was opened.
        """
        place = self._places[name]
        bounds = slice_bounds(place.shape, index)
        shape = tuple(stop - start for start, stop in bounds)
        row = math.prod(place.shape[1:])
        if shape[1:] == place.shape[1:]:
            start = bounds[0][0] * row if bounds else 0
            return _read_run(place, name, start, math.prod(shape)).reshape(shape)
        part = np.empty(shape, place.dtype)
        inner = tuple(slice(start, stop) for start, stop in bounds[1:])
        (first, last), step = bounds[0], max(1, BLOCK_BYTES // _row_bytes(place))
        for begin in range(first, last, step):
            end = min(begin + step, last)
            rows = _read_run(place, name, begin * row, (end - begin) * row)
            rows = rows.reshape(end - begin, *place.shape[1:])
            part[begin - first : end - first] = rows[(slice(None), *inner)]
        return part


def _row_bytes(place: _Place) -> int:
    """Bytes of one step along axis 0; at least 1."""
    return max(1, math.prod(place.shape[1:]) * place.dtype.itemsize)


def _read_run(place: _Place, name: str, start: int, count: int) -> np.ndarray:
    """`count` numbers in a row of the file, from number `start` of the tensor on."""
    size = place.dtype.itemsize
    offset = place.offset + start * size
    data = np.fromfile(place.file, np.uint8, count=count * size, offset=offset)
    if data.size != count * size:
        raise TensorFileError(
            f"{place.file}: got {data.size} of {count * size} bytes of {name}; the "
            "file has become shorter since it was opened; fetch it again"
        )
    return data.view(place.dtype)


def _header(file: Path) -> dict[str, _Place]:
    """Where the tensors of one .safetensors file lie."""
    if not file.is_file():
        raise TensorFileError(f"{file}: got no such file, expected a .safetensors file")
    try:
        # The library checks that header and file size fit, and that the tensors fill
        # the file without gap or overlap.
        with safe_open(file, framework="np"):
            pass
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            entries = json.loads(stream.read(length))
    except (SafetensorError, OSError) as error:
        raise TensorFileError(
            f"{file}: damaged, truncated or no safetensors file ({error}; it has "
            f"{file.stat().st_size:,} bytes); fetch it again"
        ) from error
    entries.pop("__metadata__", None)
    strange = {n: e["dtype"] for n, e in entries.items() if e["dtype"] not in DTYPES}
    if strange:
        listed = "\n  ".join(f"{name}: {dtype}" for name, dtype in strange.items())
        raise TensorFileError(
            f"{file}: got {len(strange)} tensors of types that cannot be read, expected"
            f" {', '.join(DTYPES)}; take the unquantised checkpoint:\n  {listed}"
        )
    return {
        name: _Place(
            file,
            8 + length + entry["data_offsets"][0],
            tuple(entry["shape"]),
            DTYPES[entry["dtype"]],
        )
        for name, entry in entries.items()
    }


def indexed_shards(index: Path) -> dict[str, list[str]]:
    """Shard file → names of its tensors, as a Hugging Face `*.index.json` says.

    Raises TensorFileError when it is no such index, when it names a file outside its
    own folder, and when shards are missing: with the tensors that they should hold.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise TensorFileError(
            f"{index}: got no weight_map, expected tensor names and the file of each; "
            "fetch the file again"
        )
    shards: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise TensorFileError(
                f"{index}: got {file!r} for {name}, expected the name of a file in the "
                "same folder"
            )
        shards.setdefault(file, []).append(name)
    missing = {
        f: names for f, names in shards.items() if not (index.parent / f).exists()
    }
    if missing:
        listed = "\n  ".join(f"{f}: {_some(names)}" for f, names in missing.items())
        raise TensorFileError(
            f"{index.parent}: {len(missing)} of the {len(shards)} shards that "
            f"{index.name} names are missing; copy or fetch them, nothing was loaded:"
            f"\n  {listed}"
        )
    return shards


def check_index(
    index: Path, shards: Mapping[str, list[str]], found: Mapping[str, Path]
) -> None:
    """TensorFileError when a tensor is not in the shard that the index names for it."""
    astray = [
        f"{name}: in {found[name].name if name in found else 'no shard'}, "
        f"{file} expected"
        for file, names in shards.items()
        for name in names
        if name not in found or found[name].name != file
    ]
    if astray:
        raise TensorFileError(
            f"{index}: {len(astray)} tensors are not where it says; index and shards "
            "are of different checkpoints, fetch both again:\n  " + "\n  ".join(astray)
        )


def open_tensors(path: Path) -> TensorSource:
    """The tensors of a file (.safetensors, .bin), or of a folder.

    Of a folder: the shards that `model.safetensors.index.json` names (other files are
    then not looked at), or else every .safetensors file, or else PyTorch's
    `pytorch_model*.bin` in the same two ways.

    Raises TensorFileError when there is none, and as the readers do.
    """
    if path.is_file():
        kind = TorchFiles if path.suffix == ".bin" else SafetensorsFiles
        return kind(str(path), [path])
    for index_name, pattern, kind in (
        (SAFETENSORS_INDEX, "*.safetensors", SafetensorsFiles),
        (TORCH_INDEX, TORCH_FILES, TorchFiles),
    ):
        index = path / index_name
        if index.is_file():
            shards = indexed_shards(index)
            source = kind(str(path), [path / file for file in sorted(shards)])
            check_index(index, shards, source.files)
            return source
        files = sorted(path.glob(pattern))
        if files:
            return kind(str(path), files)
    raise TensorFileError(
        f"{path}: got no .safetensors file (nor {TORCH_FILES}), expected at least one"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; TensorFileError when it is something else."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TensorFileError(f"{path}: no readable JSON file ({error})") from error
    if not isinstance(value, dict):
        raise TensorFileError(
            f"{path}: got a JSON {type(value).__name__}, expected an object"
        )
    return value


def _some(names: Sequence[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"should hold {', '.join(names[:shown])}{more}"
