"""PyTorch's `.bin` files as a source of tensors, where torch is installed.

Such a file is a pickle. It is read by `torch.load(weights_only=True)` alone, which
builds tensors and nothing else, and refuses a file that asks for more.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vtscale_jax.weights.files.tensor_slices import Index, TensorFileError, slice_bounds

REMEDY = (
    "convert it to safetensors where torch is installed (transformers: "
    "model.save_pretrained(FOLDER)), or install torch: pip install torch"
)


class TorchFiles:
    """One or several .bin files as one `tensors.TensorSource`.

    Opening reads the names only: the data stays in the file, mapped while it is open,
    and each `read` opens it anew. Raises TensorFileError without torch, and when a file
    is damaged, older than PyTorch 1.6, or holds anything but tensors by name.
    """

    def __init__(self, where: str, files: Sequence[Path]):
        self.where = where
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype] = {}
        for file in files:
            for name, tensor in _load(file).items():
                if name in self.files:
                    raise TensorFileError(
                        f"{name}: got it in {self.files[name].name} and in {file.name} "
                        f"of {where}, expected it once; keep one set of files"
                    )
                self.files[name] = file
                self.shapes[name] = tuple(tensor.shape)
                self.dtypes[name] = _dtype(file, name, tensor)

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """The tensor, or a part of it, as an array of its own."""
        import torch

        tensor = _load(self.files[name])[name]
        bounds = slice_bounds(tuple(tensor.shape), index)
        for axis, (start, stop) in enumerate(bounds):
            tensor = tensor.narrow(axis, start, stop - start)
        # By way of bytes, because NumPy has no bfloat16 of its own; a copy, because the
        # mapped file is closed.
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().copy()
        return data.view(self.dtypes[name]).reshape(tuple(tensor.shape))


def _load(file: Path) -> dict[str, Any]:
    """Tensors of one file by name, their data left in the file."""
    if not file.is_file():
        raise TensorFileError(f"{file}: got no such file, expected a .bin file")
    try:
        import torch
    except ImportError as error:
        raise TensorFileError(
            f"{file}: a .bin file is read by torch, which is not installed; {REMEDY}"
        ) from error
    try:
        found = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # of torch, zip or pickle: whatever the bytes lead to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TensorFileError(
            f"{file}: damaged, truncated, older than PyTorch 1.6, or holding more than "
            f"tensors ({reason}); fetch it again, or convert it to safetensors with a "
            "program that you trust"
        ) from error
    tensors = isinstance(found, dict) and all(
        isinstance(name, str) and isinstance(x, torch.Tensor)
        for name, x in found.items()
    )
    if not tensors:
        raise TensorFileError(
            f"{file}: got a {type(found).__name__} that holds more than tensors by "
            "name, expected a model's state_dict; save model.state_dict() alone"
        )
    return found


def _dtype(file: Path, name: str, tensor: Any) -> np.dtype:
    plain = str(tensor.dtype).removeprefix("torch.")
    try:
        return np.dtype(getattr(ml_dtypes, plain, plain))
    except TypeError as error:
        raise TensorFileError(
            f"{file}: {name} is of type {tensor.dtype}, which NumPy has not; take the "
            "unquantised checkpoint"
        ) from error
