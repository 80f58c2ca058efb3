"""Name tables: which tensor of a checkpoint is which of our parameters.

A layout is an ordered list of rules, read in both directions, so that what is imported
and exported again is the same file bit for bit. A rule's source may hold `{i}`, the
number of a layer: its layers are stacked on axis 0 of our one parameter.

    Rule("imgque_model.layers.{i}.mlp.up_proj.weight", ("fusion/blocks/up/kernel",),
         "transpose")

Nothing is guessed and nothing is half-loaded: every source tensor must be consumed and
every parameter filled with its own shape, or one error lists all that is left over.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vtscale_jax import paths
from vtscale_jax.weights.files.tensor_slices import Index, Shape
from vtscale_jax.weights.files.tensors import BLOCK_BYTES, TensorSource
from vtscale_jax.weights.naming.placing import (
    Cut,
    Dtypes,
    Leaf,
    chosen_dtype,
    convert,
    place_leaf,
    read_leaf,
    sharding_problem,
)
from vtscale_jax.weights.naming.rules import (
    LAYER,
    Layout,
    Piece,
    Rule,
    current_names,
    source_tensors,
)
from vtscale_jax.weights.naming.transforms import TRANSFORMS


def import_tree(
    layout: Layout,
    source: TensorSource,
    targets: Mapping[str, Any],
    *,
    given: Mapping[str, np.ndarray] | None = None,
    dtype: Dtypes = None,
    shardings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Our parameters (nested dictionaries) from a checkpoint, tensor by tensor.

    `targets` is our tree of anything with a shape (`jax.eval_shape` of `init`). `given`
    fills, by path, parameters that the checkpoint is known not to hold. `dtype` is what
    floating point parameters become; without it they keep what the file has.

    Without `shardings` the leaves are NumPy arrays. With them (NamedShardings of our
    own shapes, layer axis included, as a tree like `targets` or by path) every leaf is
    a jax.Array made on its devices, and of a tensor only that is read which the devices
    of this process hold: beside them the host has one tensor's part.

    Raises one ValueError that lists every source tensor left over, every parameter left
    unfilled, every pair of different shapes, and every dtype or sharding that cannot
    be; then nothing has been read.
    """
    given = dict(given or {})
    wanted = {path: tuple(leaf.shape) for path, leaf in paths.flatten(targets).items()}
    placed = None if shardings is None else _by_path(shardings)
    leaves, dtypes, twins = _fitted(layout, source, wanted, given, dtype, placed)
    _check_twins(source, twins)
    filled: dict[str, Any] = {}
    for path, made in dtypes.items():
        if path in given:
            leaf = convert(np.asarray(given[path]), made, f"given {path}")
            filled[path] = (
                leaf if placed is None else jax.device_put(leaf, placed[path])
            )
        elif placed is None:
            filled[path] = read_leaf(leaves[path], source, made)
        else:
            filled[path] = place_leaf(leaves[path], source, made, placed[path])
    return paths.unflatten(filled)


class ImportedTensors:
    """A checkpoint as a `TensorSource` under our paths, `import_tree` leaf by leaf.

    `used` are the source's tensors that the model is made of, in their own names:
    without those that the layout skips, and without second copies of tied ones.

    Raises ValueError as `import_tree` does; nothing has been read then.
    """

    def __init__(
        self,
        layout: Layout,
        source: TensorSource,
        targets: Mapping[str, Any],
        dtype: Dtypes = None,
    ):
        self.where = source.where
        self.shapes = {
            p: tuple(leaf.shape) for p, leaf in paths.flatten(targets).items()
        }
        self._source = source
        self._leaves, self.dtypes, twins = _fitted(
            layout, source, self.shapes, {}, dtype, None
        )
        _check_twins(source, twins)
        cuts = [cut for leaf in self._leaves.values() for cut in leaf.cuts]
        self.used = tuple(dict.fromkeys(cut.name for cut in cuts))

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """The parameter, or a part of it, as an array of its own."""
        whole = read_leaf(self._leaves[name], self._source, self.dtypes[name])
        return whole if index is None else np.array(whole[index], order="C")


def _fitted(
    layout: Layout,
    source: TensorSource,
    wanted: Mapping[str, Shape],
    given: Mapping[str, np.ndarray],
    dtype: Dtypes,
    placed: Mapping[str, Any] | None,
) -> tuple[dict[str, Leaf], dict[str, np.dtype], list[tuple[str, str]]]:
    """What is to be read for each parameter and the dtype of each, in the order of
    `wanted`, and the tensors that must be equal; one error for all that does not fit.
    """
    outer = {path: shape for path, shape in wanted.items() if path not in given}
    pieces = source_tensors(layout, outer)
    files = current_names(layout, source.shapes)
    extra = sorted(files.keys() - pieces.keys())
    twins = [(a, b) for a, b in layout.duplicates if a in extra and b in pieces]
    extra = [name for name in extra if name not in dict(twins)]
    leaves = _leaves(pieces, files, outer)
    unlike = [
        f"{name}: {tuple(source.shapes[files[name]])} in the checkpoint, {piece.shape} "
        f"expected for {' + '.join(share.path for share in piece.shares)}"
        for name, piece in pieces.items()
        if name in files and tuple(source.shapes[files[name]]) != piece.shape
    ]
    unlike += [
        f"given {path}: {np.shape(leaf)}, {wanted[path]} expected"
        for path, leaf in given.items()
        if path in wanted and np.shape(leaf) != wanted[path]
    ]
    found = {
        path: {source.dtypes[cut.name] for cut in leaf.cuts if cut.name}
        for path, leaf in leaves.items()
    }
    found |= {path: {np.asarray(leaf).dtype} for path, leaf in given.items()}
    on_mesh = placed is not None
    dtypes = {p: chosen_dtype(dtype, p, some, on_mesh) for p, some in found.items()}
    misplaced = (
        {
            path: sharding_problem(wanted.get(path), placed.get(path))
            for path in sorted(wanted.keys() | placed.keys())
        }
        if placed is not None
        else {}
    )
    _raise_if_any(
        f"checkpoint {source.where}: it does not fit the model",
        "check the config that the model was built from, and that the file is of the "
        "kind it was read as",
        {
            "tensors without a place in the model": [files[name] for name in extra],
            "tensors that the model needs and the checkpoint lacks": sorted(
                pieces.keys() - files.keys()
            ),
            "parameters that no tensor fills": sorted(outer.keys() - leaves.keys()),
            "given parameters that the model does not have": sorted(
                given.keys() - wanted.keys()
            ),
            "tensors of another shape": unlike,
            "dtypes that cannot be made": [
                f"{path}: {problem}" for path, (_, problem) in dtypes.items() if problem
            ],
            "shardings that do not fit": [
                f"{path}: {problem}" for path, problem in misplaced.items() if problem
            ],
        },
    )
    chosen = {path: dtypes[path][0] for path in wanted}
    return leaves, chosen, [(files[copy], files[original]) for copy, original in twins]


def _leaves(
    pieces: Mapping[str, Piece], files: Mapping[str, str], wanted: Mapping[str, Shape]
) -> dict[str, Leaf]:
    """The parameters that tensors fill, each with its cuts in order of layer."""
    cuts: dict[str, list[Cut]] = {}
    rules: dict[str, Rule] = {}
    for name, piece in pieces.items():
        for share in piece.shares:
            # A tensor that the file lacks is listed by the caller and never read.
            cut = Cut(files.get(name, ""), share.rows, share.shape)
            cuts.setdefault(share.path, []).append(cut)
            rules[share.path] = piece.rule
    return {
        path: Leaf(
            path,
            wanted[path],
            TRANSFORMS[rules[path].transform],
            LAYER in rules[path].source,
            tuple(found),
        )
        for path, found in cuts.items()
    }


def _by_path(shardings: Mapping[str, Any]) -> dict[str, Any]:
    """Shardings by path, from a tree of them or from such a mapping itself."""
    if any(paths.SEPARATOR in key for key in shardings):
        return dict(shardings)
    return paths.flatten(shardings)


def _check_twins(source: TensorSource, twins: list[tuple[str, str]]) -> None:
    """ValueError when a second copy of a tied tensor differs from the first."""
    for copy, original in twins:
        if not _same_bits(source, copy, original):
            raise ValueError(
                f"{copy}: got values unlike those of {original}, expected equal ones, "
                "because the model ties the two; build it with tie_embeddings=False."
            )


def _same_bits(source: TensorSource, one: str, other: str) -> bool:
    """Whether two tensors are alike bit for bit (NaN included), read in blocks."""
    shape = source.shapes[one]
    if shape != source.shapes[other] or source.dtypes[one] != source.dtypes[other]:
        return False
    length = shape[0] if shape else 1
    row = int(np.prod(shape[1:])) * source.dtypes[one].itemsize
    step = max(1, BLOCK_BYTES // max(1, row))
    for start in range(0, length, step):
        rows = (slice(start, start + step),) if shape else None
        if source.read(one, rows).tobytes() != source.read(other, rows).tobytes():
            return False
    return True


class ExportedTensors:
    """Our parameters as a `TensorSource` under a checkpoint's names.

    A tensor is cut out, turned and fused when it is read, so that a large model is
    written without being held twice. Leaves may be jax.Arrays whose every part this
    process can reach.

    Raises ValueError listing the parameters that the layout has no name for, and those
    of one tensor whose dtypes differ.
    """

    where = "the exported parameters"

    def __init__(self, layout: Layout, tree: Mapping[str, Any]):
        self._flat = paths.flatten(tree)
        shapes = {path: tuple(leaf.shape) for path, leaf in self._flat.items()}
        self._pieces = source_tensors(layout, shapes)
        dtypes = {
            name: [np.dtype(self._flat[share.path].dtype) for share in piece.shares]
            for name, piece in self._pieces.items()
        }
        covered = {s.path for piece in self._pieces.values() for s in piece.shares}
        _raise_if_any(
            "parameters: they do not fit the layout",
            "export with the layout of their own kind of model, and one dtype for the "
            "parts of a tensor",
            {
                "parameters without a name": sorted(self._flat.keys() - covered),
                "tensors whose parts are of different dtypes": [
                    f"{name}: {', '.join(map(str, found))}"
                    for name, found in dtypes.items()
                    if len(set(found)) > 1
                ],
            },
        )
        self.shapes = {name: piece.shape for name, piece in self._pieces.items()}
        self.dtypes = {name: found[0] for name, found in dtypes.items()}

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """The tensor, or a part of it, as an array of its own."""
        piece = self._pieces[name]
        transform = TRANSFORMS[piece.rule.transform]
        parts = []
        for share in piece.shares:
            leaf = self._flat[share.path]
            ours = np.asarray(leaf if piece.layer is None else leaf[piece.layer])
            parts.append(transform.to_theirs(ours))
        whole = np.concatenate(parts) if len(parts) > 1 else parts[0]
        return np.array(whole[index or ()], order="C")


def export_tree(layout: Layout, tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A checkpoint's tensors, by their names, from our parameters (or gradients).

    Raises ValueError as `ExportedTensors` does.
    """
    tensors = ExportedTensors(layout, jax.tree.map(np.asarray, tree))
    return {name: tensors.read(name) for name in tensors.shapes}


def _raise_if_any(problem: str, remedy: str, lists: Mapping[str, list[str]]) -> None:
    """One error with all non-empty lists, or none."""
    parts = [
        f"{len(items)} {what}:\n    " + "\n    ".join(items)
        for what, items in lists.items()
        if items
    ]
    if parts:
        raise ValueError(f"{problem}; {remedy}.\n  " + "\n  ".join(parts))
