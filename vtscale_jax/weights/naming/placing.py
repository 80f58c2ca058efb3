"""One parameter from the tensors it is made of, on the host or straight on a mesh.

A stacked parameter is written layer by layer into its place, so that beside it the host
holds one layer's tensor. On a mesh every process reads only what its own devices hold,
in the order of the checkpoint; a device transposes its own part while writing it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import DTypeLike

from vtscale_jax.weights.files.tensor_slices import Index, Shape, slice_bounds
from vtscale_jax.weights.files.tensors import TensorSource
from vtscale_jax.weights.naming.transforms import Transform

# A dtype for all parameters, or for each by its path; None keeps that of the file.
Dtypes = Callable[[str], DTypeLike | None] | DTypeLike | None


class Cut(NamedTuple):
    """Rows `rows` (start, stop) along axis 0 of a source tensor; all of it for None.

    `shape` is the cut's own, before the transform.
    """

    name: str
    rows: tuple[int, int] | None
    shape: Shape

    def read(self, source: TensorSource, index: Index = ()) -> np.ndarray:
        """The cut, or a part of it by an index into the cut."""
        bounds = slice_bounds(self.shape, index)
        if self.rows is not None:
            (start, stop), *inner = bounds
            bounds = [(self.rows[0] + start, self.rows[0] + stop), *inner]
        if bounds == [(0, length) for length in source.shapes[self.name]]:
            return source.read(self.name)
        return source.read(self.name, tuple(slice(*bound) for bound in bounds))


class Leaf(NamedTuple):
    """One parameter of ours: a cut, or one per layer, stacked on axis 0."""

    path: str
    shape: Shape
    transform: Transform
    stacked: bool
    cuts: tuple[Cut, ...]


def chosen_dtype(
    dtype: Dtypes, path: str, found: set[np.dtype], on_mesh: bool
) -> tuple[np.dtype, str]:
    """The dtype that a parameter gets whose tensors are of the dtypes `found`, and what
    is wrong with that ("" for nothing)."""
    asked: Any = dtype
    # Types are callable too: np.float32 is a dtype, not a function of paths.
    if callable(asked) and not isinstance(asked, type):
        asked = asked(path)
    first = min(found, key=str, default=np.dtype(np.float32))
    made = first if asked is None else np.dtype(asked)
    listed = " and ".join(sorted(map(str, found)))
    problem = ""
    if asked is None and len(found) > 1:
        problem = f"its tensors are {listed}; say with `dtype` what it shall be"
    elif any(one != made and not _are_floats(one, made) for one in found):
        problem = (
            f"{listed} in the checkpoint, {made} asked for; only floats are converted"
        )
    elif on_mesh and jax.dtypes.canonicalize_dtype(made) != made:
        problem = f"{made} is not held by JAX as it is set up here; ask for float32"
    return made, problem


def _are_floats(*dtypes: np.dtype) -> bool:
    return all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes)


def sharding_problem(shape: Shape | None, sharding: Any) -> str:
    """What is wrong with a parameter's sharding, or ""; None is an absent one of the
    two."""
    if shape is None or sharding is None:
        absent = "no such parameter" if shape is None else "no sharding for it"
        return f"{absent}; shardings must be those of the model"
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return f"got {sharding}, expected a NamedSharding on a mesh of devices"
    try:
        sharding.shard_shape(shape)
    except ValueError as error:
        return f"{shape} cannot be laid out as {sharding.spec} ({error})"
    return ""


def convert(array: np.ndarray, dtype: np.dtype, where: str) -> np.ndarray:
    """The array in another floating point dtype, rounded to nearest.

    Raises ValueError, naming `where`, when finite numbers would become infinite.
    """
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):  # counted below
        converted = array.astype(dtype)
    if ml_dtypes.finfo(dtype).max < ml_dtypes.finfo(array.dtype).max:
        lost = np.isfinite(array) & ~np.isfinite(converted)
        if lost.any():
            raise ValueError(
                f"{where}: got {int(lost.sum())} values beyond the range of {dtype}, "
                f"the largest {float(np.abs(array[lost].astype(np.float64)).max()):.3g}"
                f", expected at most {float(ml_dtypes.finfo(dtype).max):.3g}; keep the "
                "dtype of the file, or take bfloat16 or float32"
            )
    return converted


def read_leaf(leaf: Leaf, source: TensorSource, dtype: np.dtype) -> np.ndarray:
    """The parameter as a NumPy array of its own."""
    whole = np.empty(leaf.shape, dtype)
    for layer, cut in enumerate(leaf.cuts):
        part = leaf.transform.to_ours(cut.read(source))
        whole[layer if leaf.stacked else ...] = convert(part, dtype, cut.name)
    return whole


def place_leaf(
    leaf: Leaf, source: TensorSource, dtype: np.dtype, sharding: NamedSharding
) -> jax.Array:
    """The parameter on its sharding; every process calls this for the same leaves in
    the same order.

    Where the layers are shared out over a mesh axis of L parts, step k places layers
    k, k + N/L, k + 2N/L … at once, each where it belongs:

        N = 6 on L = 2:   step 0 places 0 and 3, step 1 places 1 and 4, then 2 and 5
    """
    mesh = sharding.mesh
    assert isinstance(mesh, Mesh), "an abstract mesh has no devices to place on"
    spec = (*sharding.spec, *[None] * (len(leaf.shape) - len(sharding.spec)))
    if not leaf.stacked:
        theirs = P(*leaf.transform.per_axis(spec, None))
        cut = leaf.cuts[0]
        piece = _placed(
            cut.shape,
            NamedSharding(mesh, theirs),
            lambda index: _shrunk(cut, source, index, dtype),
        )
        turned = _turn(
            piece, transform=leaf.transform, dtype=dtype, mesh=mesh, spec=P(*spec)
        )
        return jax.device_put(jax.block_until_ready(turned), sharding)

    num_layers = leaf.shape[0]
    steps = sharding.shard_shape(leaf.shape)[0]
    parts = num_layers // steps if steps else 0
    theirs = P(spec[0], *leaf.transform.per_axis(spec[1:], None))
    everywhere = NamedSharding(mesh, P())
    make = functools.partial(jnp.zeros, leaf.shape, dtype)
    whole = jax.jit(make, out_shardings=NamedSharding(mesh, P(*spec)))()
    for k in range(steps):

        def read(index: Index, k: int = k) -> np.ndarray:
            part = index[0].indices(parts)[0]
            cut = leaf.cuts[part * steps + k]
            return _shrunk(cut, source, index[1:], dtype)[None]

        piece = _placed((parts, *leaf.cuts[0].shape), NamedSharding(mesh, theirs), read)
        layer = jax.device_put(np.int32(k), everywhere)
        whole = _write(
            whole, piece, layer, transform=leaf.transform, mesh=mesh, spec=P(*spec)
        )
        # Waiting here bounds the memory: without it all layers could be on their way.
        jax.block_until_ready(whole)
    return jax.device_put(whole, sharding)


def _shrunk(
    cut: Cut, source: TensorSource, index: Index, dtype: np.dtype
) -> np.ndarray:
    """A part of a cut, converted where that makes it no larger: a narrow one travels to
    the device as it is and is widened there."""
    part = cut.read(source, index)
    return part if dtype.itemsize > part.itemsize else convert(part, dtype, cut.name)


def _placed(
    shape: Shape, sharding: NamedSharding, read: Callable[[Index], np.ndarray]
) -> jax.Array:
    """An array whose shards are read one by one; equal ones are read once."""
    parts: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def part(index: Index | None) -> np.ndarray:
        index = index or ()
        key = tuple(slice_bounds(shape, index))
        if key not in parts:
            parts[key] = read(tuple(slice(*bound) for bound in key))
        return parts[key]

    # Once they have arrived the host's parts can go, before more memory is asked for.
    return jax.block_until_ready(jax.make_array_from_callback(shape, sharding, part))


@functools.partial(
    jax.jit, static_argnames=("transform", "mesh", "spec"), donate_argnames="whole"
)
def _write(
    whole: jax.Array,
    piece: jax.Array,
    layer: jax.Array,
    *,
    transform: Transform,
    mesh: Mesh,
    spec: P,
) -> jax.Array:
    """`whole` with its layer number `layer` (of every part of the layer axis) set.

    The layer is an argument, so all layers share one compilation, and `whole` is
    donated, so that it is written in place.
    """

    def put(whole: jax.Array, piece: jax.Array, layer: jax.Array) -> jax.Array:
        ours = transform.to_ours(piece[0]).astype(whole.dtype)[None]
        return jax.lax.dynamic_update_slice_in_dim(whole, ours, layer, axis=0)

    theirs = P(spec[0], *transform.per_axis(tuple(spec)[1:], None))
    # Every device writes its own shard: nothing is exchanged between them.
    return jax.shard_map(put, mesh=mesh, in_specs=(spec, theirs, P()), out_specs=spec)(
        whole, piece, layer
    )


@functools.partial(jax.jit, static_argnames=("transform", "dtype", "mesh", "spec"))
def _turn(
    piece: jax.Array, *, transform: Transform, dtype: np.dtype, mesh: Mesh, spec: P
) -> jax.Array:
    """A parameter without layers from its tensor, shard by shard."""
    theirs = P(*transform.per_axis(tuple(spec), None))

    def turn(piece: jax.Array) -> jax.Array:
        return transform.to_ours(piece).astype(dtype)

    return jax.shard_map(turn, mesh=mesh, in_specs=theirs, out_specs=spec)(piece)
