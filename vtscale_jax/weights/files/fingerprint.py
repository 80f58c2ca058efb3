"""One hash for all tensors of a checkpoint, whatever files they lie in."""

import hashlib

import numpy as np

from vtscale_jax.weights.files.tensors import TensorSource


def tensors_sha256(source: TensorSource) -> str:
    """SHA-256 (hex) of every tensor's name, dtype, shape and bytes, one at a time.

    It does not depend on how the tensors are shared out over files, on the device, or
    on the dtype that a run keeps them in. A source under our paths has the hash that
    `paths.content_hash` gives for the same leaves.
    """
    digest = hashlib.sha256()
    for name in sorted(source.shapes):
        array = source.read(name)
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
