"""Name tables: which tensor of a checkpoint is which of our parameters.

A layout is an ordered list of rules, read in both directions, so that what is imported
and exported again is the same file bit for bit. A rule's source may hold `{i}`, the
number of a layer: its layers are stacked on axis 0 of our one parameter.

    Rule("imgque_model.layers.{i}.mlp.up_proj.weight", ("fusion/blocks/up/kernel",),
         "transpose")

Nothing is guessed and nothing is half-loaded: every source tensor must be consumed and
every parameter filled with its own shape, or one error lists all that is left over.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vtscale_jax import paths

Shape = tuple[int, ...]
LAYER = "{i}"


class Transform(NamedTuple):
    """Two inverse functions of arrays, on views where that is possible."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


TRANSFORMS = {
    "same": Transform(lambda x: x, lambda x: x),
    # PyTorch's Linear keeps [out, in], ours [in, out].
    "transpose": Transform(lambda x: x.T, lambda x: x.T),
    # Convolution: OIHW there, HWIO here.
    "conv": Transform(
        lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
    ),
    # The newline token is [1, 1, D] there, [D] here.
    "squeeze": Transform(lambda x: x[0, 0], lambda x: x[None, None]),
}


class Rule(NamedTuple):
    """One source tensor (or one per layer) and the parameters it becomes.

    With several targets the source is cut along axis 0, in the order and with the row
    counts of the targets; targets that the model does not have take no rows.
    """

    source: str
    targets: tuple[str, ...]
    transform: str = "same"

    def under(self, source: str, target: str) -> "Rule":
        """The rule with prefixes in front of both names."""
        targets = tuple(target + name for name in self.targets)
        return Rule(source + self.source, targets, self.transform)


class Layout(NamedTuple):
    """All names of one kind of checkpoint.

    `renames` are (regex, replacement) applied to source names before the rules, for
    older spellings; they are not undone on export. `skipped` are regexes of tensors
    that have no place in our model, `duplicates` (tensor, original) pairs of which the
    first may be there, bit-equal to the second. All three are matched before renaming.
    """

    rules: tuple[Rule, ...]
    renames: tuple[tuple[str, str], ...] = ()
    skipped: tuple[str, ...] = ()
    duplicates: tuple[tuple[str, str], ...] = ()


class _Piece(NamedTuple):
    """One source tensor: its shape, its rule, and where in the targets it goes."""

    shape: Shape
    rule: Rule
    targets: tuple[str, ...]
    layer: int | None


def _pieces(layout: Layout, targets: Mapping[str, Shape]) -> dict[str, _Piece]:
    """The source tensors that a model of these shapes has, by name.

    Shapes are found by sending an array without memory back through the transform.
    """
    found: dict[str, _Piece] = {}
    for rule in layout.rules:
        present = tuple(path for path in rule.targets if path in targets)
        if not present:
            continue
        shapes = [targets[path] for path in present]
        stacked = LAYER in rule.source
        num_layers = shapes[0][0] if stacked else 1
        shape = shapes[0][1:] if stacked else shapes[0]
        if len(shapes) > 1:
            shape = (sum(s[0] for s in shapes), *shapes[0][1:])
        outline = np.broadcast_to(np.zeros((), np.bool_), shape)
        theirs = TRANSFORMS[rule.transform].to_theirs(outline).shape
        for i in range(num_layers):
            name = rule.source.replace(LAYER, str(i))
            found[name] = _Piece(theirs, rule, present, i if stacked else None)
    return found


def _covered(pieces: Mapping[str, _Piece]) -> set[str]:
    return {path for piece in pieces.values() for path in piece.targets}


def _current_names(layout: Layout, names: Sequence[str]) -> dict[str, str]:
    """Current name → name in the file, without skipped ones; one error on a clash."""
    current: dict[str, str] = {}
    for name in names:
        if any(re.fullmatch(pattern, name) for pattern in layout.skipped):
            continue
        new = name
        for pattern, replacement in layout.renames:
            new = re.sub(f"^{pattern}", replacement, new)
        if new in current:
            raise ValueError(
                f"checkpoint: got both {current[new]!r} and {name!r}, which are two "
                f"spellings of {new!r}; expected one; remove the other."
            )
        current[new] = name
    return current


def import_tree(
    layout: Layout,
    shapes: Mapping[str, Shape],
    read: Callable[[str], np.ndarray],
    targets: Mapping[str, Any],
    *,
    given: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Our parameters (nested dictionaries of NumPy arrays) from a checkpoint.

    `shapes` are those of the checkpoint's tensors and `read` gives one of them, so that
    a large file is never held twice. `targets` is our tree of anything with a shape
    (`jax.eval_shape` of `init`). `given` fills, by path, parameters that the checkpoint
    is known not to hold. Dtypes are kept.

    Raises one ValueError that lists every source tensor left over, every parameter left
    unfilled and every pair of different shapes; then nothing has been read.
    """
    given = dict(given or {})
    wanted = {path: tuple(leaf.shape) for path, leaf in paths.flatten(targets).items()}
    outer = {path: shape for path, shape in wanted.items() if path not in given}
    pieces = _pieces(layout, outer)
    files = _current_names(layout, list(shapes))
    extra = sorted(files.keys() - pieces.keys())
    twins = [(a, b) for a, b in layout.duplicates if a in extra and b in pieces]
    extra = [name for name in extra if name not in dict(twins)]
    missing = sorted(pieces.keys() - files.keys())
    unfilled = sorted(outer.keys() - _covered(pieces))
    unknown = sorted(given.keys() - wanted.keys())
    unlike = [
        f"{name}: {tuple(shapes[files[name]])} in the checkpoint, {piece.shape} "
        f"expected for {' + '.join(piece.targets)}"
        for name, piece in pieces.items()
        if name in files and tuple(shapes[files[name]]) != piece.shape
    ]
    unlike += [
        f"given {path}: {np.shape(leaf)}, {wanted[path]} expected"
        for path, leaf in given.items()
        if path in wanted and np.shape(leaf) != wanted[path]
    ]
    _raise_if_any(
        "checkpoint: it does not fit the model",
        "check the config that the model was built from, and that the file is of the "
        "kind it was read as",
        {
            "tensors without a place in the model": [files[name] for name in extra],
            "tensors that the model needs and the checkpoint lacks": missing,
            "parameters that no tensor fills": unfilled,
            "given parameters that the model does not have": unknown,
            "tensors of another shape": unlike,
        },
    )
    for copy, original in twins:
        if not np.array_equal(read(files[copy]), read(files[original])):
            raise ValueError(
                f"{copy}: got values unlike those of {original}, expected equal ones, "
                "because the model ties the two; build it with tie_embeddings=False."
            )
    filled = {path: np.asarray(leaf) for path, leaf in given.items()}
    for rule in layout.rules:
        names = [name for name, piece in pieces.items() if piece.rule is rule]
        if names:
            filled |= _fill(rule, [read(files[n]) for n in names], pieces, names, outer)
    return paths.unflatten({path: filled[path] for path in wanted})


def _fill(
    rule: Rule,
    tensors: list[np.ndarray],
    pieces: Mapping[str, _Piece],
    names: list[str],
    wanted: Mapping[str, Shape],
) -> dict[str, np.ndarray]:
    """The parameters of one rule."""
    to_ours = TRANSFORMS[rule.transform].to_ours
    piece = pieces[names[0]]
    if piece.layer is not None:
        return {piece.targets[0]: np.stack([to_ours(x) for x in tensors])}
    ends = np.cumsum([wanted[path][0] for path in piece.targets[:-1]])
    whole = to_ours(tensors[0])
    cuts = np.split(whole, ends) if len(ends) else [whole]
    return {
        path: np.ascontiguousarray(cut).reshape(wanted[path])
        for path, cut in zip(piece.targets, cuts, strict=True)
    }


def export_tree(layout: Layout, tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A checkpoint's tensors, by their names, from our parameters (or gradients).

    Raises ValueError listing the parameters that the layout has no name for.
    """
    flat = {path: np.asarray(leaf) for path, leaf in paths.flatten(tree).items()}
    pieces = _pieces(layout, {path: leaf.shape for path, leaf in flat.items()})
    _raise_if_any(
        "parameters: they do not fit the layout",
        "export with the layout of their own kind of model",
        {"parameters without a name": sorted(flat.keys() - _covered(pieces))},
    )
    tensors = {}
    for name, piece in pieces.items():
        leaves = [flat[path] for path in piece.targets]
        whole = np.concatenate(leaves) if len(leaves) > 1 else leaves[0]
        ours = whole if piece.layer is None else whole[piece.layer]
        theirs = TRANSFORMS[piece.rule.transform].to_theirs(ours)
        tensors[name] = np.ascontiguousarray(theirs).reshape(piece.shape)
    return tensors


def _raise_if_any(problem: str, remedy: str, lists: Mapping[str, list[str]]) -> None:
    """One error with all non-empty lists, or none."""
    parts = [
        f"{len(items)} {what}:\n    " + "\n    ".join(items)
        for what, items in lists.items()
        if items
    ]
    if parts:
        raise ValueError(f"{problem}; {remedy}.\n  " + "\n  ".join(parts))
