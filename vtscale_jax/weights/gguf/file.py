"""The GGUF file format: metadata, the table of tensors, and tensors dequantised.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3).
Type numbers, block sizes and the arithmetic of dequantising are the `gguf` library's.
The header is walked here, because the library's reader takes what lies past the end of
a short file for empty arrays; here every length is held against the size of the file
before anything is read.
"""

import mmap
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGMLQuantizationType,
    GGUFValueType,
)
from gguf.quants import dequantize

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4
# Rows dequantised at once: the library's working memory is that of one piece.
PIECE = 2048

# struct letters of the scalar value types; all are little-endian.
SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}

Type = GGMLQuantizationType
# Kept as they are.
PLAIN = {
    Type.F32: np.dtype(np.float32),
    Type.F16: np.dtype(np.float16),
    Type.BF16: np.dtype(ml_dtypes.bfloat16),
}
# Dequantised to float32. Q5_* are what llama.cpp falls back to, or mixes in.
QUANTISED = (
    *(Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1),
    *(Type.Q4_K, Type.Q5_K, Type.Q6_K),
)


class GGUFError(ValueError):
    """A GGUF file that is damaged, or that holds what is not supported."""


class StoredTensor(NamedTuple):
    """One tensor of the file: row-major shape, type, and where its bytes lie."""

    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    num_bytes: int

    @property
    def dtype(self) -> np.dtype:
        """What `GGUFFile.read` gives."""
        return PLAIN.get(self.type, np.dtype(np.float32))


class _Cursor:
    """Reads the header from front to back and never past the end."""

    def __init__(self, path: Path, data: memoryview):
        self.path, self.data, self.at = path, data, 0

    def damaged(self, what: str) -> GGUFError:
        return GGUFError(
            f"{self.path}: is truncated or damaged: {what} (the file has "
            f"{len(self.data):,} bytes); download or copy it again."
        )

    def claim(self, size: int, what: str) -> int:
        """The place of the next `size` bytes, which are passed over."""
        if size > len(self.data) - self.at:
            raise self.damaged(f"{what} needs {size:,} bytes at byte {self.at:,}")
        self.at += size
        return self.at - size

    def number(self, letter: str, what: str) -> Any:
        layout = struct.Struct("<" + letter)
        return layout.unpack_from(self.data, self.claim(layout.size, what))[0]

    def text(self, what: str) -> str:
        size = self.number("Q", what)
        start = self.claim(size, what)
        try:
            return str(self.data[start : start + size], "utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} is not UTF-8") from error

    def value(self, what: str) -> Any:
        kind = self.value_type(what)
        if kind == GGUFValueType.ARRAY:
            kind, count = self.value_type(what), self.number("Q", what)
            if kind in SCALARS:
                layout = np.dtype("<" + SCALARS[kind])
                start = self.claim(count * layout.itemsize, what)
                return np.frombuffer(self.data, layout, count, start).tolist()
            if kind == GGUFValueType.STRING:
                # Every string has 8 bytes at least: no loop over a wild number.
                if count * 8 > len(self.data) - self.at:
                    raise self.damaged(f"{what} says it has {count:,} strings")
                return [self.text(what) for _ in range(count)]
            raise self.damaged(f"{what} is an array of arrays, which is not supported")
        return self.scalar(kind, what)

    def scalar(self, kind: GGUFValueType, what: str) -> Any:
        if kind == GGUFValueType.STRING:
            return self.text(what)
        return self.number(SCALARS[kind], what)

    def value_type(self, what: str) -> GGUFValueType:
        number = self.number("I", what)
        if number not in GGUFValueType.__members__.values():
            raise self.damaged(f"{what} has the unknown value type {number}")
        return GGUFValueType(number)

    def table(self, count: int, what: str, read: Callable[[str], Any]) -> dict:
        """`count` named entries; their names are unique."""
        entries: dict[str, Any] = {}
        for i in range(count):
            name = self.text(f"name of {what} {i} of {count:,}")
            if name in entries:
                raise self.damaged(f"{what} {name!r} is there twice")
            entries[name] = read(f"{what} {name!r}")
        return entries


class GGUFFile:
    """An open GGUF file.

    `metadata` holds its key-value pairs as Python numbers, strings and lists; `tensors`
    says of each tensor where and as what it is stored. A tensor is read when `read`
    asks for it, and not kept.

    Raises GGUFError for what is no GGUF file, for another version or byte order, and
    for a file that is shorter than it says.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise GGUFError(f"{path}: there is no such file; give the path of a .gguf.")
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
            if magic != MAGIC:
                raise GGUFError(
                    f"{path}: begins with {magic!r}, expected {MAGIC!r}: it is no GGUF "
                    "file, or it was not downloaded whole; get it again."
                )
            # Mapped for the header only: the pages of a mapped file count as resident
            # memory for as long as it stays mapped.
            with (
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
                memoryview(mapped) as data,
            ):
                self.metadata, self.tensors = _header(_Cursor(path, data))
        _refuse_types(path, self.tensors)

    def read(self, name: str, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """A tensor, or some of its rows (axis 0), as an array of its own.

        Plain types keep their dtype; quantised ones are dequantised to float32, and
        only the rows that are asked for.
        """
        tensor = self.tensors[name]
        if len(tensor.shape) == 1:
            # Its only axis may be packed, so entries are chosen from the whole.
            packed = self._bytes(name, tensor, 0, tensor.num_bytes)
            return _unpacked(packed[None], tensor)[0][rows].copy()
        wanted = np.arange(tensor.shape[0])[rows]
        if not wanted.size:
            return np.empty((0, *tensor.shape[1:]), tensor.dtype)
        first, size = wanted.min(), tensor.num_bytes // tensor.shape[0]
        run = int(wanted.max() + 1 - first)
        packed = self._bytes(name, tensor, int(first) * size, run * size)
        packed = packed.reshape(run, size)
        if run != wanted.size or np.any(np.diff(wanted) != 1):
            packed = packed[wanted - first]
        return _unpacked(packed, tensor).reshape(-1, *tensor.shape[1:])

    def _bytes(
        self, name: str, tensor: StoredTensor, start: int, count: int
    ) -> np.ndarray:
        found = np.fromfile(self.path, np.uint8, count, offset=tensor.offset + start)
        if len(found) != count:
            raise GGUFError(
                f"{self.path}: tensor {name!r} ends early: the file has become shorter "
                "since it was opened; copy it again."
            )
        return found


def _unpacked(packed: np.ndarray, tensor: StoredTensor) -> np.ndarray:
    """Values of [rows, bytes], as [rows, values of a row]."""
    if tensor.type in PLAIN:
        return packed.view(tensor.dtype)
    per_block, block_bytes = GGML_QUANT_SIZES[tensor.type]
    length = tensor.shape[-1]
    # A row of axis 0 may hold several of the rows that blocks lie in.
    lines = packed.reshape(-1, length // per_block * block_bytes)
    found = np.empty((len(lines), length), np.float32)
    for i in range(0, len(lines), PIECE):
        found[i : i + PIECE] = dequantize(lines[i : i + PIECE], tensor.type)
    return found.reshape(len(packed), -1)


def _header(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Metadata and tensors; everything lies inside the file."""
    cursor.claim(len(MAGIC), "magic number")
    version = cursor.number("I", "version")
    if version not in VERSIONS:
        # A big-endian file has its version in the upper bytes.
        kind = "version" if version & 0xFFFF else "big-endian, version bytes"
        raise GGUFError(
            f"{cursor.path}: GGUF {kind} {version}, expected little-endian version 2 "
            "or 3; convert the model anew with the current llama.cpp."
        )
    num_tensors, num_keys = cursor.number("Q", "counts"), cursor.number("Q", "counts")
    metadata = cursor.table(num_keys, "key", cursor.value)
    entries = cursor.table(num_tensors, "tensor", lambda what: _entry(cursor, what))
    alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 8 or alignment % 8:
        raise cursor.damaged(f"general.alignment is {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    tensors = {
        name: _stored(cursor, name, entry, start, alignment)
        for name, entry in entries.items()
    }
    return metadata, tensors


class _Entry(NamedTuple):
    shape: tuple[int, ...]
    type: int
    offset: int


def _entry(cursor: _Cursor, what: str) -> _Entry:
    num_dims = cursor.number("I", what)
    if not 1 <= num_dims <= MAX_DIMS:
        raise cursor.damaged(f"{what} has {num_dims} dimensions")
    # The file counts dimensions from the fastest to the slowest.
    shape = tuple(cursor.number("Q", what) for _ in range(num_dims))[::-1]
    if 0 in shape:
        raise cursor.damaged(f"{what} has the shape {shape}")
    return _Entry(shape, cursor.number("I", what), cursor.number("Q", what))


def _stored(
    cursor: _Cursor, name: str, entry: _Entry, start: int, alignment: int
) -> StoredTensor:
    """The entry with its type's meaning; its bytes lie inside the file."""
    if entry.type not in Type.__members__.values():
        raise GGUFError(
            f"{cursor.path}: tensor {name!r} has the type number {entry.type}, which "
            f"is unknown; supported: {supported_types()}. Convert the model anew to "
            "one of these (llama.cpp: convert_hf_to_gguf.py, llama-quantize)."
        )
    kind = Type(entry.type)
    per_block, block_bytes = GGML_QUANT_SIZES[kind]
    if entry.shape[-1] % per_block or entry.offset % alignment:
        raise cursor.damaged(
            f"tensor {name!r}, {kind.name} {entry.shape} at {entry.offset:,}, does not "
            f"lie on blocks of {per_block} values and {alignment} bytes"
        )
    count = 1
    for size in entry.shape:  # Python numbers: no overflow of a wild shape
        count *= size
    num_bytes = count // per_block * block_bytes
    end = start + entry.offset + num_bytes
    if end > len(cursor.data):
        raise cursor.damaged(f"tensor {name!r} ends at byte {end:,}")
    return StoredTensor(entry.shape, kind, start + entry.offset, num_bytes)


def supported_types() -> str:
    """Names of the tensor types that can be read, for messages."""
    return ", ".join(kind.name for kind in (*PLAIN, *QUANTISED))


def _refuse_types(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    bad = [(n, t.type.name) for n, t in tensors.items() if t.type not in PLAIN]
    bad = [(n, kind) for n, kind in bad if Type[kind] not in QUANTISED]
    if bad:
        name, kind = bad[0]
        more = f" (and {len(bad) - 1} more tensors)" if len(bad) > 1 else ""
        raise GGUFError(
            f"{path}: tensor {name!r} has the type {kind}{more}, supported: "
            f"{supported_types()}. Take another file of the model (…Q4_K_M, …Q8_0, "
            "…F16) or make one: llama-quantize from the F16 file."
        )
