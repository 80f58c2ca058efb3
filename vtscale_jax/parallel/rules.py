"""Where every parameter and activation lies: logical axes, and what they are on a mesh.

Models name the axes of their activations (`nn.with_logical_constraint`); those of
parameters are said here by path. `AXIS_RULES` maps both to the mesh.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vtscale_jax import paths
from vtscale_jax.parallel.mesh import AXES, BATCH_AXES, MeshError, replicated
from vtscale_jax.vlm import ModelConfig

# Logical axis -> axes of the mesh.
AXIS_RULES: tuple[tuple[str, Any], ...] = (
    ("batch", BATCH_AXES),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
)

Axes = tuple[str | None, ...]

# Logical axes of each parameter, the last ones first to be matched; the axes of stacked
# layers in front are whole. The first full match wins, and a path that none matches is
# an error. Vectors (norms, biases of the width, single tokens) are copied: they are
# small, and would cost a message each.
PARAMETER_RULES: tuple[tuple[str, Axes], ...] = (
    (r".*/attn/(query|key|value)/kernel(_int8)?", ("embed", "heads")),
    (r".*/attn/(query|key|value)/bias", ("heads",)),
    (r".*/attn/out/kernel(_int8)?", ("heads", "embed")),
    (r".*/(up|gate)/kernel(_int8)?", ("embed", "mlp")),
    (r".*/up/bias", ("mlp",)),
    (r".*/down/kernel(_int8)?", ("mlp", "embed")),
    (r".*/(attn/out|down)/bias", (None,)),
    (r"llm/.*/kernel_scale", (None,)),
    (r".*/(norm1|norm2|norm|pre_norm|post_norm|final_norm)/(scale|bias)", (None,)),
    (r"(llm|fusion|text)/embed", ("vocab", "embed")),
    (r"llm/head", ("embed", "vocab")),
    (r"fusion/queries", (None, "embed")),
    (r"vision/patch_embed/kernel", (None, None, None, "embed")),
    (r"vision/merge/kernel", (None, None, "embed", None)),
    (r"(vision|text)/pos_embed", (None, "embed")),
    (r"vision/(class_embed|newline)", (None,)),
    (r"(projector|(align|text)/projection)/kernel", ("embed", None)),
    (r"align/logit_scale", ()),
)
FROZEN_LAYOUTS = ("sharded", "replicated")


@contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """While a function is traced inside, the axes that models name are those of
    `mesh`."""
    with (
        jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
        nn.logical_axis_rules(AXIS_RULES),
    ):
        yield


def parameter_shardings(shapes: dict, mesh: Mesh) -> dict:
    """The sharding of every parameter of a tree of shapes, by the rules.

    An axis that the mesh does not divide stays whole (`describe` shows it).
    ValueError for a path without a rule.
    """
    flat = paths.flatten(shapes)
    uncovered = [path for path in flat if not _covered(path)]
    if uncovered:
        raise ValueError(
            f"parameters without a sharding rule: {uncovered}; say their logical axes "
            "in PARAMETER_RULES of parallel/rules.py"
        )
    return paths.unflatten(
        {path: _sharding(path, leaf.shape, mesh) for path, leaf in flat.items()}
    )


def frozen_shardings(shapes: dict, mesh: Mesh, layout: str) -> dict:
    """As `parameter_shardings`, or a copy on each device for `layout` "replicated".

    Sharded, each layer is put together when it is needed: less memory, more traffic.
    """
    if layout not in FROZEN_LAYOUTS:
        raise ValueError(
            f"mesh.frozen is {layout!r}, expected one of {FROZEN_LAYOUTS} "
            "(--config.mesh.frozen=...)"
        )
    shardings = parameter_shardings(shapes, mesh)
    if layout == "sharded":
        return shardings
    return jax.tree.map(lambda _: replicated(mesh), shardings)


def state_shardings(state: Any, parameters: dict, mesh: Mesh) -> Any:
    """Shardings of a train state: what belongs to a parameter (a moment, an accumulated
    gradient) lies as it does; counters are copied.

    `state` is a tree of shapes, `parameters` the shardings of its parameters. A leaf
    belongs to the parameter whose path its own path ends with.
    """
    known = paths.flatten(parameters)

    def find(path: str, leaf: Any) -> NamedSharding:
        parts = path.split(paths.SEPARATOR)
        for start in range(len(parts)):
            tail = paths.SEPARATOR.join(parts[start:])
            if tail in known:
                return known[tail]
        if leaf.shape:
            raise ValueError(
                f"{path} of shape {leaf.shape} belongs to no parameter, so that its "
                "sharding is unknown; expected scalars and leaves named by parameters"
            )
        return replicated(mesh)

    flat = paths.flatten(state)
    leaves = [find(path, leaf) for path, leaf in flat.items()]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def check_model(mesh: Mesh, model: ModelConfig, *, align: bool) -> None:
    """MeshError when attention heads cannot be shared out over the tensor axis."""
    size = mesh.shape["tensor"]
    towers = ("vision", "fusion", "text") if align else ("vision", "fusion", "llm")
    for tower in towers:
        blocks = getattr(model, tower).blocks
        for field in ("num_heads", "num_kv_heads"):
            if getattr(blocks, field) % size:
                raise MeshError(
                    f"mesh.tensor is {size}, but model.{tower}.blocks.{field} is "
                    f"{getattr(blocks, field)}, and a head is not split: choose a "
                    "mesh.tensor that divides it (--config.mesh.tensor=1), and fsdp "
                    "for memory"
                )


def describe(sharding: NamedSharding, shape: tuple[int, ...]) -> str:
    """A sharding for people: what each device holds of which axis.

    For shape (20, 1024, 4096) on fsdp 8: "· fsdp:8 ·"; "copied" when all is whole.
    """
    spec = (*sharding.spec, *[None] * (len(shape) - len(sharding.spec)))
    words = []
    for axis in spec:
        names = (axis,) if isinstance(axis, str) else tuple(axis or ())
        sizes = {name: sharding.mesh.shape[name] for name in names}
        cut = [f"{name}:{size}" for name, size in sizes.items() if size > 1]
        words.append("+".join(cut) or "·")
    return " ".join(words) if any(word != "·" for word in words) else "copied"


def _covered(path: str) -> bool:
    return any(re.fullmatch(pattern, path) for pattern, _ in PARAMETER_RULES)


def _sharding(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    axes = paths.match(path, PARAMETER_RULES)
    table = dict(AXIS_RULES)
    # Stacked layers stand in front of what a rule speaks of.
    named = [None] * (len(shape) - len(axes)) + [table.get(a or "") for a in axes]
    spec = [
        axis if axis and length % math.prod(_sizes(mesh, axis)) == 0 else None
        for axis, length in zip(named, shape, strict=True)
    ]
    return NamedSharding(mesh, PartitionSpec(*spec))


def _sizes(mesh: Mesh, axis: str | tuple[str, ...]) -> list[int]:
    names = (axis,) if isinstance(axis, str) else axis
    assert set(names) <= set(AXES)
    return [mesh.shape[name] for name in names]
