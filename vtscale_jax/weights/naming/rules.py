"""Rules and layouts: tables of names, and the tensors that a model has by them."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vtscale_jax.weights.files.tensor_slices import Shape
from vtscale_jax.weights.naming.transforms import TRANSFORMS

LAYER = "{i}"


class Rule(NamedTuple):
    """One source tensor (or one per layer) and the parameters it becomes.

    With several targets the source is cut along its axis 0, in the order of the targets
    and with as many rows as each of them needs; targets that the model does not have
    take no rows. The transform is of each cut, so a fused projection of PyTorch's
    `[out, in]` is cut into its rows and every cut transposed:

        Rule("layers.{i}.qkv_proj.weight",
             ("attn/query/kernel", "attn/key/kernel", "attn/value/kernel"), "transpose")
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
    that have no place in our model, in the file's own spelling. `duplicates` are
    (tensor, original) pairs of which the first may be there, bit-equal to the second.
    """

    rules: tuple[Rule, ...]
    renames: tuple[tuple[str, str], ...] = ()
    skipped: tuple[str, ...] = ()
    duplicates: tuple[tuple[str, str], ...] = ()


class Share(NamedTuple):
    """A parameter's part of a source tensor: rows along axis 0, None for all of it."""

    path: str
    rows: tuple[int, int] | None
    shape: Shape


class Piece(NamedTuple):
    """One source tensor: its shape, its rule, and where in the targets it goes."""

    shape: Shape
    rule: Rule
    layer: int | None
    shares: tuple[Share, ...]


def source_tensors(layout: Layout, targets: Mapping[str, Shape]) -> dict[str, Piece]:
    """The source tensors that a model of these shapes has, by name.

    Raises ValueError for a rule that cannot hold for these shapes, whatever the file.
    """
    found: dict[str, Piece] = {}
    claimed: dict[str, str] = {}
    for rule in layout.rules:
        present = [path for path in rule.targets if path in targets]
        if not present:
            continue
        stacked = LAYER in rule.source
        try:
            layers, shape, shares = _shares(rule, stacked, present, targets)
        except (ValueError, IndexError) as error:
            listed = ", ".join(f"{path} {targets[path]}" for path in present)
            raise ValueError(
                f"layout: {rule.source} ({rule.transform}) cannot be {listed}: {error};"
                " mend the rule, or the shapes of the model"
            ) from error
        for path in present:
            if path in claimed:
                raise ValueError(
                    f"layout: {path} is a target of {claimed[path]} and of "
                    f"{rule.source}, expected one; remove one of the rules"
                )
            claimed[path] = rule.source
        for i in range(layers):
            name = rule.source.replace(LAYER, str(i))
            found[name] = Piece(shape, rule, i if stacked else None, shares)
    return found


def _shares(
    rule: Rule, stacked: bool, present: list[str], targets: Mapping[str, Shape]
) -> tuple[int, Shape, tuple[Share, ...]]:
    """Number of layers, shape of the source, and each target's rows of it."""
    transform = TRANSFORMS[rule.transform]
    cuts = {
        path: transform.per_axis(targets[path][1:] if stacked else targets[path], 1)
        for path in present
    }
    layers = {targets[path][0] if stacked else 1 for path in present}
    if len(layers) > 1 or len({shape[1:] for shape in cuts.values()}) > 1:
        raise ValueError(f"its cuts are of unlike shapes, {list(cuts.values())}")
    (first, *rest), num_layers = cuts.values(), layers.pop()
    if not rest:
        return num_layers, first, (Share(present[0], None, first),)
    shares, start = [], 0
    for path, shape in cuts.items():
        shares.append(Share(path, (start, start + shape[0]), shape))
        start += shape[0]
    return num_layers, (start, *first[1:]), tuple(shares)


def current_names(layout: Layout, names: Iterable[str]) -> dict[str, str]:
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
