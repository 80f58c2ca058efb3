"""Pytrees addressed by path: every leaf has one "/"-joined name.

Parameter paths are part of the interface (`vision/…`, `fusion/queries`, `llm/…`): what
trains, what is sharded how, and what a checkpoint holds are all said by ordered regular
expressions over them. This module alone turns trees into paths and back.

    flatten({"llm": {"norm": {"scale": x}}})  ->  {"llm/norm/scale": x}
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from numpy.typing import DTypeLike
from safetensors.numpy import save_file

Value = TypeVar("Value")
SEPARATOR = "/"


def flatten(
    tree: Any, *, is_leaf: Callable[[Any], bool] | None = None
) -> dict[str, Any]:
    """Leaves of a pytree by path, in the tree's own order.

    Dictionary keys, sequence indices and field names become parts of the path, so
    `{"a": (x, y)}` gives `{"a/0": x, "a/1": y}`. As everywhere in JAX, None and empty
    containers hold no leaves; `is_leaf` says what else is to be kept whole.

    Raises ValueError when the tree is itself a leaf, or when a key is empty or holds
    "/" (two leaves could then share a path).
    """
    flat: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]:
        parts = [jax.tree_util.keystr((key,), simple=True) for key in keys]
        path = SEPARATOR.join(parts)
        if not parts:
            raise ValueError(
                f"tree: got a single leaf of type {type(leaf).__name__}, expected a "
                "container whose leaves have names; wrap it in a dict."
            )
        if any(not part or SEPARATOR in part for part in parts):
            raise ValueError(
                f"tree: got the keys {parts}, expected non-empty keys without "
                f"{SEPARATOR!r}; rename the key or nest its parts."
            )
        if path in flat:
            raise ValueError(
                f"tree: got two leaves at {path!r}, expected one; rename one of them."
            )
        flat[path] = leaf
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries from leaves by path; undoes `flatten` on nested dictionaries.

    Sequences and named tuples come back as dictionaries, since a path does not say
    which container it went through.

    Raises ValueError when a path has an empty part, or is at once a leaf and the prefix
    of another leaf.
    """
    tree: dict[str, Any] = {}
    # Containers made here, told apart from leaves that happen to be dictionaries.
    nodes: dict[str, dict[str, Any]] = {"": tree}
    for path, leaf in flat.items():
        parts = path.split(SEPARATOR)
        if not all(parts):
            raise ValueError(
                f"path: got {path!r}, expected non-empty parts joined by "
                f"{SEPARATOR!r}; remove the empty part."
            )
        node, prefix = tree, ""
        for part in parts[:-1]:
            prefix = f"{prefix}{SEPARATOR}{part}" if prefix else part
            if prefix not in nodes:
                if part in node:
                    _raise_prefix(prefix, path)
                nodes[prefix] = node[part] = {}
            node = nodes[prefix]
        if parts[-1] in node:
            _raise_prefix(path, next(p for p in flat if p.startswith(path + SEPARATOR)))
        node[parts[-1]] = leaf
    return tree


def match(path: str, rules: Sequence[tuple[str, Value]]) -> Value:
    """Value of the first `(regex, value)` rule whose regex matches the whole path.

    Order is meaning: `[("llm/.*", None), (".*", 1e-3)]` treats the LLM apart.

    Raises ValueError naming the path when no rule matches: a parameter that nobody
    thought of must not get a silent default.
    """
    for pattern, value in rules:
        if re.fullmatch(pattern, path):
            return value
    raise ValueError(
        f"path: got {path!r}, expected one matched by the rules "
        f"{[pattern for pattern, _ in rules]}; add a rule for it."
    )


def partition(
    tree: Any, select: Callable[[str], bool] | Sequence[tuple[str, bool]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tree as `(selected, rest)`, nested dictionaries that share no leaf.

    `select` is a predicate on paths, or ordered `(regex, bool)` rules as in `match`.
    `merge(*partition(tree, select))` is the tree again.

    Raises ValueError, listing every such path, when rules leave a path uncovered.
    """
    flat = flatten(tree)
    if callable(select):
        chosen = {path: bool(select(path)) for path in flat}
    else:
        # All uncovered paths at once: one run shows the whole list to mend.
        patterns = [pattern for pattern, _ in select]
        uncovered = [p for p in flat if not any(re.fullmatch(r, p) for r in patterns)]
        if uncovered:
            raise ValueError(
                f"path: got {uncovered}, expected each to be matched by one of the "
                f"rules {patterns}; add a rule for them."
            )
        chosen = {path: match(path, select) for path in flat}
    selected = {path: leaf for path, leaf in flat.items() if chosen[path]}
    rest = {path: leaf for path, leaf in flat.items() if not chosen[path]}
    return unflatten(selected), unflatten(rest)


def merge(first: Any, second: Any) -> dict[str, Any]:
    """One nested dictionary with the leaves of both trees.

    Raises ValueError, naming the paths, when the trees share a path, or when a leaf of
    one lies where the other has a container.
    """
    one, two = flatten(first), flatten(second)
    overlap = sorted(one.keys() & two.keys())
    if overlap:
        raise ValueError(
            f"path: got {overlap} in both trees, expected no path in common; remove "
            "them from one of the trees."
        )
    return unflatten({**one, **two})


def save(tree: Any, file: Path, dtype: DTypeLike = "float32") -> None:
    """Writes the leaves, named by their paths, as safetensors: the whole file or none.

    `dtype` is what every leaf is stored as.
    """
    tensors = {path: np.asarray(x).astype(dtype) for path, x in flatten(tree).items()}
    draft = file.with_suffix(".partial")
    save_file(tensors, draft)
    draft.chmod(0o644)  # safetensors makes files that only their owner can read
    draft.replace(file)


def content_hash(tree: Any) -> str:
    """SHA-256 (hex) of every leaf's path, dtype, shape and bytes.

    Leaves are taken in order of path and read as little-endian row-major bytes, so the
    hash does not depend on the order of insertion, the device, the sharding or the
    memory layout. It names weights in manifests and checkpoints.

    Raises ValueError naming the path when a leaf is not an array of numbers.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(tree).items()):
        array = _number_array(path, leaf)
        # Each field ends in a character that it cannot hold, and the shape gives the
        # number of bytes: no two trees write the same stream.
        digest.update(f"{path}\0{array.dtype.name}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _number_array(path: str, leaf: Any) -> np.ndarray:
    """The leaf on the host in little-endian bytes; refuses anything but numbers."""
    # A ShapeDtypeStruct or a typed random key has a dtype but no bytes of its own, and
    # a Python number would hash by the platform's default width.
    is_array = isinstance(leaf, np.ndarray | np.generic | jax.Array)
    kind = np.dtype(leaf.dtype).kind if is_array and _is_numpy_dtype(leaf) else None
    if kind is None or kind in "OSUMm":
        raise ValueError(
            f"{path}: got {type(leaf).__name__} ({getattr(leaf, 'dtype', 'no dtype')}),"
            " expected an array of numbers; convert it first (np.asarray, or "
            "jax.random.key_data for a random key)."
        )
    array = np.asarray(leaf)
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _is_numpy_dtype(leaf: Any) -> bool:
    return not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)


def _raise_prefix(leaf_path: str, longer_path: str) -> None:
    raise ValueError(
        f"path: got a leaf at {leaf_path!r} and another below it at {longer_path!r}, "
        "expected a path to be a leaf or a container; rename one of them."
    )
