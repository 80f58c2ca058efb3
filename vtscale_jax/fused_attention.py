"""Attention by kernels that never hold its scores: cuDNN's on GPU, splash on TPU.

`attend` writes float32 scores of [B, H, S, S] to memory, forward and backward. A fused
kernel keeps a tile of them at a time on the chip, and skips the tiles that causality
leaves empty. Both are JAX's own: `jax.nn.dot_product_attention` and
`jax.experimental.pallas.ops.tpu.splash_attention`.

Kernels take who sees whom as a rule (`CausalRows`, or None: everyone everyone), never
as a mask of places: caches are read, and everything on a CPU is computed, by `attend`.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from vtscale_jax.attention import causal_mask

# The kernels, and where each runs (None: anywhere).
KERNELS = {"xla": None, "cudnn": "gpu", "splash": "tpu"}
# What "auto" means on each platform. A kernel becomes it when it has been measured
# there, in speed and against `attend`: one that is wrong shows in no loss curve.
AUTO = {"cpu": "xla", "gpu": "xla", "tpu": "xla"}
# Both kernels tile in multiples of 128 places, and rows are padded to them here. For
# cuDNN that is no need but a precaution: some versions return NaN gradients where the
# last tile of keys is not full (NVIDIA/cudnn-frontend issue 160, pytorch 196678).
TILE = 128
# Splash: one tile holds a crop of 577 tokens. It compiles for every head size here;
# whether it is the fastest is not measured.
LONGEST_TILE = 640


class KernelError(ValueError):
    """A kernel that is not known, or that cannot compute a model's attention."""


class CausalRows(NamedTuple):
    """Who may look at whom in right-padded causal rows, said without a mask.

    A token sees itself and what stands before it: in its row, or with `segments` (see
    `types.Packing`; 0 is padding) in its segment. Padding needs no word, because it
    stands behind every token that is kept. So a padding query sees other keys than with
    `causal_mask`, always some; its output is finite, and read by nothing.
    """

    segments: Int[Array, "B S"] | None = None


def choose(
    asked: str, *, platform: str, dtype: str, head_dims: Mapping[str, int]
) -> str:
    """The kernel of a run, from `config.model.attention`.

    `platform` is "cpu", "gpu" or "tpu", `dtype` the compute dtype, `head_dims` the
    channels of a head by tower. "auto" is what `AUTO` has of the platform, and "xla"
    (`attend`) where that kernel does not fit the model; a kernel that was asked for by
    name and does not fit is a KernelError.
    """
    if asked not in ("auto", *KERNELS):
        raise KernelError(
            f"model.attention is {asked!r}, expected auto, {', '.join(KERNELS)} "
            "(--config.model.attention=...)"
        )
    kernel = AUTO.get(platform, "xla") if asked == "auto" else asked
    why = _refusal(kernel, platform, dtype, head_dims)
    if why and asked == "auto":
        return "xla"
    if why:
        raise KernelError(
            f"model.attention is {asked!r}, which {why}: choose "
            "--config.model.attention=xla"
        )
    return kernel


def _refusal(
    kernel: str, platform: str, dtype: str, head_dims: Mapping[str, int]
) -> str:
    """Why a kernel cannot compute a model's attention; empty where it can."""
    if kernel == "xla":
        return ""
    if platform != KERNELS[kernel]:
        return f"runs on {KERNELS[kernel]} only, and this is {platform}"
    if dtype != "bfloat16":
        return f"computes in bfloat16, and model.dtype is {dtype}"
    for tower, size in head_dims.items():
        # cuDNN: more than 128 on newer GPUs only.
        if kernel == "cudnn" and (size % 8 or size > 128):
            return (
                "takes heads of at most 128 channels, a multiple of 8, and those of "
                f"{tower} have {size}"
            )
    return ""


def visible(
    kernel: str,
    keep: Bool[Array, "B S"],
    window: int | None = None,
    segments: Int[Array, "B S"] | None = None,
) -> Bool[Array, "B 1 S S"] | CausalRows:
    """Who may look at whom in right-padded causal rows, as the kernel is told of it.

    cuDNN has segments only by way of a mask and of its gradient, so packed rows have
    `causal_mask` there, and are computed by `attend`.
    """
    if kernel == "xla" or (kernel == "cudnn" and segments is not None):
        return causal_mask(keep, window, segments)
    return CausalRows(segments)


def attend_by(
    kernel: str,
    q: Float[Array, "B S H C"],
    k: Float[Array, "B K S C"],
    v: Float[Array, "B K S C"],
    seen: CausalRows | None,
    *,
    window: int | None = None,
) -> Float[Array, "B S H C"]:
    """`attend` by the kernel "cudnn" or "splash".

    `seen` is from `visible`, or None: every query sees every key. `window` is how many
    places back a token of `CausalRows` sees. On the mesh of a step each device computes
    its own rows and heads.
    """
    by = {"cudnn": by_cudnn, "splash": by_splash}[kernel]
    return on_own_rows(functools.partial(by, window=window), q, k, v, seen)


def by_cudnn(
    q: Float[Array, "B S H C"],
    k: Float[Array, "B K S C"],
    v: Float[Array, "B K S C"],
    seen: CausalRows | None,
    *,
    window: int | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B S H C"]:
    """`attend` by cuDNN's flash attention, in bfloat16; `seen` has no segments.

    `implementation` "xla" is the same call without cuDNN, in any dtype, for tests.
    """
    assert seen is None or seen.segments is None, "packed rows have a mask"
    B, S = q.shape[:2]
    q, k, v = (
        _padded(x, S + -S % TILE, 1)
        for x in (q, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3))
    )
    # Causal rows are right without lengths: padding is behind. Where everyone sees
    # everyone, keys end at S; all queries are told to be real, so that none is without
    # keys, for which cuDNN promises nothing.
    lengths = jnp.full((B,), S, jnp.int32) if seen is None else None
    y = jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=seen is not None,
        key_value_seq_lengths=lengths,
        local_window_size=None if seen is None or window is None else (window - 1, 0),
        implementation=implementation,
    )
    return y[:, :S]


def by_splash(
    q: Float[Array, "B S H C"],
    k: Float[Array, "B K S C"],
    v: Float[Array, "B K S C"],
    seen: CausalRows | None,
    *,
    window: int | None = None,
    interpret: bool = False,
) -> Float[Array, "B S H C"]:
    """`attend` by splash attention; `interpret` runs it on any device, for tests.

    The kernel has no scale: q is scaled in its own dtype, which rounds it once more
    where √C is no power of two (heads of 128).
    """
    # Only now: Pallas takes a while to import, and only TPUs need it.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    B, S, H, C = q.shape
    block, length = tiles(S)
    q = (q * C**-0.5).astype(q.dtype).transpose(0, 2, 1, 3)  # [B, H, S, C]
    q, k, v = (_padded(x, length, 2) for x in (q, k, v))
    segments: Array | None
    if seen is not None:
        segments = seen.segments
        segments = None if segments is None else _padded(segments, length, 1)
    elif length > S:
        # Padding is a segment of its own, which sees itself: no query is without keys.
        real = (jnp.arange(length) < S).astype(jnp.int32)
        segments = jnp.broadcast_to(real, (B, length))
    else:
        segments = None
    if seen is None:
        rule = splash.FullMask((length, length))
    elif window is None:
        rule = splash.CausalMask((length, length))
    else:
        rule = splash.LocalMask((length, length), (window - 1, 0), offset=0)
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([rule] * H),
        block_sizes=splash.BlockSizes(
            *(block, block, block),  # forward: queries, keys, keys at a time
            *(block, block, block),  # gradients of keys and values
            *(block, block),  # of queries
        ),
        interpret=interpret,
    )
    ids = None if segments is None else splash.SegmentIds(segments, segments)
    y = cast(Array, jax.vmap(kernel)(q, k, v, ids))
    return y[:, :, :S].transpose(0, 2, 1, 3)


def tiles(length: int) -> tuple[int, int]:
    """Places of a tile of splash attention, and of a row that is padded to whole tiles.

    Tiles are equal and as few as may be, so less than `TILE` places are added to each:

    >>> tiles(100), tiles(577), tiles(1100), tiles(2300)
    ((128, 128), (640, 640), (640, 1280), (640, 2560))
    """
    count = math.ceil(length / LONGEST_TILE)
    tile = TILE * math.ceil(length / (count * TILE))
    return tile, count * tile


def on_own_rows(
    attention: Callable[..., Array],
    q: Float[Array, "B S H C"],
    k: Float[Array, "B K S C"],
    v: Float[Array, "B K S C"],
    seen: CausalRows | None,
) -> Float[Array, "B S H C"]:
    """`attention(q, k, v, seen)`, by each device of the mesh for its rows and heads.

    A compiler cannot share out a kernel as it does a product. Mesh and layout are those
    of `layers.lay`: the axes "batch" and "heads". One that does not divide its axis
    here is left out, and its devices compute the same.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return attention(q, k, v, seen)
    batch, heads = nn.logical_to_mesh_axes(("batch", "heads")) or (None, None)
    batch = _dividing(batch, mesh.shape, q.shape[0])
    heads = _dividing(heads, mesh.shape, math.gcd(q.shape[2], k.shape[1]))
    queries = PartitionSpec(batch, None, heads, None)
    keys = PartitionSpec(batch, heads, None, None)
    return jax.shard_map(
        attention,
        in_specs=(queries, keys, keys, PartitionSpec(batch, None)),
        out_specs=queries,
        # Kernels do not say over which axes their results vary.
        check_vma=False,
    )(q, k, v, seen)


def _dividing(axes: Any, sizes: Mapping[str, int], length: int) -> Any:
    """The axes of the mesh, or None where they do not cut the length evenly."""
    names = (axes,) if isinstance(axes, str) else tuple(axes or ())
    return axes if length % math.prod(sizes[name] for name in names) == 0 else None


def _padded(x: Array, length: int, axis: int) -> Array:
    """x with zeros behind it on an axis, up to `length`."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, length - x.shape[axis])
    return jnp.pad(x, widths)
