"""The curves of arrays in a file, so that anyone can check the kernels.

np.savez("states.npz", a=a, b=b, len=lengths)     # [B, n, d], [B, n, d], [B]
python -m vtscale_jax.divergence kernel --npz states.npz --json
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from vtscale_jax.divergence.curves import BranchError, Reduction, pair_curves
from vtscale_jax.divergence.estimate import Estimate, derived
from vtscale_jax.divergence.result import CURVES, PAIR_CURVES


def curves_of_file(path: Path, reduction: Reduction, kernel: str) -> dict[str, Any]:
    """Curves over n = 1…N of the arrays `a`, `b` and `len` (optional) of a .npz file.

    For each of `CURVES` its mean over the pairs that reach n, under its name, and the
    largest of any pair under `largest`; `counts` says how many pairs reach n. A value
    that is not defined is NaN. float64 arrays are rounded to float32 first.

    Raises BranchError, naming file and array, for what cannot be measured.
    """
    arrays = _read(path)
    for name in ("a", "b"):
        if name not in arrays:
            raise BranchError(
                f"{path} holds {sorted(arrays)}, expected arrays a and b [B, n, d], "
                "and len [B] where pairs are shorter than n"
            )
        if arrays[name].dtype.kind not in "fiu":
            raise BranchError(
                f"{path}: {name} has dtype {arrays[name].dtype}, expected floats; save "
                "bfloat16 states as float32"
            )
    a, b = (arrays[name].astype(np.float32) for name in ("a", "b"))
    lengths = arrays.get("len")
    if lengths is not None and lengths.dtype.kind not in "iu":
        raise BranchError(f"{path}: len has dtype {lengths.dtype}, expected integers")
    try:
        curves = pair_curves(a, b, lengths, reduction=reduction, kernel=kernel)
    except BranchError as error:
        raise BranchError(f"{path}: {error}") from error
    found = {name: np.asarray(getattr(curves, name)) for name in PAIR_CURVES}
    B, n = found["D"].shape
    # No intervals are asked for here: one replicate, which nobody reads.
    estimate = Estimate.empty(n, replicates=1).add(np.arange(B), derived(found))
    bands = estimate.bands()
    return {
        "reduction": reduction,
        "kernel": kernel,
        "shape": list(a.shape),
        "counts": estimate.counts(),
        **{name: bands[name].mean for name in CURVES},
        "largest": {name: bands[name].largest for name in CURVES},
        "largest_norm": float(np.max(curves.norm)),
    }


def table(found: dict[str, Any], shown: int = 12) -> str:
    """The curves at a dozen n, for people."""
    counts = found["counts"]
    N = len(counts)
    places = sorted({*np.geomspace(1, N, shown).round().astype(int).tolist()})
    if N <= shown:
        places = list(range(1, N + 1))
    lines = ["  ".join(f"{name:>19}" for name in ("n", "pairs", *CURVES))]
    for n in places:
        values = [f"{found[name][n - 1]:.6g}" for name in CURVES]
        lines.append("  ".join(f"{v:>19}" for v in (n, counts[n - 1], *values)))
    return "\n".join(lines)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here: numpy leaves a damaged file open.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise BranchError(
            f"{path} cannot be read as .npz ({error}); write it with "
            "np.savez(FILE, a=a, b=b, len=lengths)"
        ) from error
