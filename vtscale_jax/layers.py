"""Building blocks of the four transformers: norms, linear maps, self-attention.

Two blocks cover all of them: `EncoderBlock` (CLIP: pre-LayerNorm, biases, quick-GELU)
for the vision and text towers, `DecoderBlock` (Llama: RMSNorm, rotary, gated MLP,
grouped-query attention) for the fusion decoder and the language model. `stack_blocks`
runs N of them as one scanned, optionally rematerialised layer, or one after another.
"""

import dataclasses
import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vtscale_jax.attention import KVCache, attend
from vtscale_jax.fused_attention import CausalRows, attend_by
from vtscale_jax.rotary import RopeScaling, rotate

Initializer = nn.initializers.Initializer
REMAT = ("none", "selective", "full")


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Size and numerics of one transformer block.

    `dtype` is the compute dtype ("float32" or "bfloat16"); parameters keep their own.
    `num_kv_heads` < `num_heads` is grouped-query attention. Decoders only: `rope_share`
    of the channels of a head are rotated, `window` is how many places back a token sees
    (None: all), `qkv_bias` gives the query, key and value projections a bias.

    `attention` is the kernel (`fused_attention.choose`) that computes attention where
    no cache is read. `remat` is what the backward pass computes again in place of
    keeping it: "none", "full" (each block from its input), or "selective" (all but the
    products with weights: attention, norms, activations). `unroll` blocks are laid out
    per scan step. `stacked` False keeps the parameters of every layer apart, which is
    what generation wants (see `BlockList`). `int8` reads weights that `llm.quantize`
    made.
    """

    width: int
    mlp_width: int
    num_heads: int
    num_layers: int
    num_kv_heads: int = 0
    head_dim: int = 0
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_share: float = 1.0
    window: int | None = None
    qkv_bias: bool = False
    activation: str = "silu"
    init_std: float = 0.02
    dtype: str = "float32"
    attention: str = "xla"
    remat: str = "none"
    unroll: int = 1
    stacked: bool = True
    int8: bool = False

    def __post_init__(self):
        if not self.head_dim:
            if self.width % self.num_heads:
                raise ValueError(
                    f"width {self.width} is not divisible by num_heads "
                    f"{self.num_heads}; give head_dim or change one of them"
                )
            object.__setattr__(self, "head_dim", self.width // self.num_heads)
        if not self.num_kv_heads:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} must be a multiple of num_kv_heads "
                f"{self.num_kv_heads}"
            )
        for field, known in (("activation", sorted(ACTIVATIONS)), ("remat", REMAT)):
            value = getattr(self, field)
            if value not in known:
                raise ValueError(
                    f"{field} {value!r} is unknown; one of {list(known)} was expected"
                )


def lay(x: Float[Array, "*any"], *axes: str | None) -> Float[Array, "*any"]:
    """Lays an activation's named axes over the mesh of a step; without one it does
    nothing.

    Names are "batch", "heads", "mlp" and "vocab"; what they are on a mesh is said once,
    in `parallel/rules.py`. None is an axis that every device has whole.
    """
    return cast(Array, nn.with_logical_constraint(x, axes))


def quick_gelu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """x·σ(1.702x), the activation of OpenAI's CLIP."""
    return x * nn.sigmoid(1.702 * x)


ACTIVATIONS = {
    "quick_gelu": quick_gelu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "silu": nn.silu,
}


class RMSNorm(nn.Module):
    """x / rms(x) · gain. The ratio is taken in float32 and cast back *before* the gain,
    as Llama does."""

    eps: float
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        gain = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return x32.astype(self.dtype) * gain.astype(self.dtype)


class LayerNorm(nn.Module):
    """LayerNorm in float32 with the two-pass variance (CLIP: eps 1e-5)."""

    eps: float
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        x32 -= jnp.mean(x32, axis=-1, keepdims=True)
        x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * scale + bias).astype(self.dtype)


class Linear(nn.Module):
    """x·kernel (+ bias) over the last axis, in `dtype`.

    With `int8` the kernel is held as whole numbers of −127…127 and one scale for each
    output: x·`kernel_int8`·`kernel_scale`. That is a quarter of float32's bytes to
    hold; XLA's CPU backend converts them to floats before a loop of steps all the same
    (`benchmarks/int8.py`).
    """

    features: int
    dtype: str
    bias: bool = False
    init: Initializer = nn.initializers.normal(0.02)
    int8: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B E"]:
        shape, zeros = (x.shape[-1], self.features), nn.initializers.zeros
        x = x.astype(self.dtype)
        if self.int8:
            whole = self.param("kernel_int8", zeros, shape, jnp.int8)
            scale = self.param("kernel_scale", nn.initializers.ones, shape[1:])
            y = (x @ whole.astype(self.dtype)) * scale.astype(self.dtype)
        else:
            y = x @ self.param("kernel", self.init, shape).astype(self.dtype)
        if self.bias:
            y += self.param("bias", zeros, shape[1:]).astype(self.dtype)
        return y


# One for each layer (`stacked` False), or one with all layers in front.
Caches = KVCache | tuple[KVCache, ...]


def empty_caches(config: BlockConfig, batch_size: int, length: int) -> Caches:
    """Zeroed caches of `length` places for all layers."""
    shape = (batch_size, config.num_kv_heads, length, config.head_dim)

    def zeros(*layers: int) -> KVCache:
        one = jnp.zeros((*layers, *shape), config.dtype)
        return KVCache(one, jnp.zeros_like(one))

    if config.stacked:
        return zeros(config.num_layers)
    return tuple(zeros() for _ in range(config.num_layers))


class SelfAttention(nn.Module):
    """Projections around attention; rotary when `rope`.

    Projections (and the MLPs below) see `[B·S, D]`: XLA's CPU backend is about twice
    as fast on the gradients of two-dimensional products, others do not care.
    """

    config: BlockConfig
    rope: bool
    in_bias: bool
    out_bias: bool
    in_init: Initializer
    out_init: Initializer

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "#B 1 S T"] | CausalRows | None,
        positions: Int[Array, "B S"] | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "B S D"], KVCache | None]:
        c = self.config
        B, S, D = x.shape
        tokens = x.reshape(B * S, D)

        def project(name, heads):
            size = heads * c.head_dim
            linear = Linear(
                size, c.dtype, self.in_bias, self.in_init, c.int8, name=name
            )
            split = linear(tokens).reshape(B, S, heads, c.head_dim)
            return lay(split, "batch", None, "heads", None)

        q = project("query", c.num_heads)
        k = project("key", c.num_kv_heads)
        v = project("value", c.num_kv_heads)
        if self.rope:
            assert positions is not None, "rotary attention needs positions"
            turn = functools.partial(
                rotate,
                positions=positions,
                theta=c.rope_theta,
                scaling=c.rope_scaling,
                length=S if cache is None else cache.length,
                share=c.rope_share,
            )
            q, k = turn(q), turn(k)
        k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # [B, K, S, C]
        if cache is not None:
            assert positions is not None, "a cache is written by positions"
            cache = cache.write(k, v, positions)
            k, v = cache.k.astype(c.dtype), cache.v.astype(c.dtype)
        if isinstance(mask, CausalRows) or (mask is None and c.attention != "xla"):
            y = attend_by(c.attention, q, k, v, mask, window=c.window)
        else:
            # Decoders' masks are causal; places of a cache are not those of the row.
            y = attend(q, k, v, mask, causal=self.rope and cache is None)
        y = y.reshape(B * S, c.num_heads * c.head_dim)
        out = Linear(c.width, c.dtype, self.out_bias, self.out_init, c.int8, name="out")
        return out(y).reshape(B, S, c.width), cache


def places(caches: Caches) -> Int[Array, " T"]:
    """The numbers of the places of a cache."""
    one = caches if isinstance(caches, KVCache) else caches[0]
    return jnp.arange(one.length)


class EncoderBlock(nn.Module):
    """CLIP block: x + attn(LN(x)), then x + MLP(LN(x)); initialised as CLIP is."""

    config: BlockConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "#B 1 T T"] | CausalRows | None,
    ) -> tuple[Float[Array, "B T D"], None]:
        c = self.config
        normal = nn.initializers.normal
        depth_std = c.width**-0.5 * (2 * c.num_layers) ** -0.5
        y = LayerNorm(c.norm_eps, c.dtype, name="norm1")(x)
        y, _ = SelfAttention(
            c,
            rope=False,
            in_bias=True,
            out_bias=True,
            in_init=normal(depth_std),
            out_init=normal(c.width**-0.5),
            name="attn",
        )(y, mask)
        x = x + y
        y = LayerNorm(c.norm_eps, c.dtype, name="norm2")(x).reshape(-1, c.width)
        up_init = normal((2 * c.width) ** -0.5)
        y = Linear(c.mlp_width, c.dtype, True, up_init, name="up")(y)
        y = lay(ACTIVATIONS[c.activation](y), "batch", "mlp")
        y = Linear(c.width, c.dtype, True, normal(depth_std), name="down")(y)
        x = lay(x + y.reshape(x.shape), "batch", None, None)
        self.sow("intermediates", "hidden", x)
        return x, None


class DecoderBlock(nn.Module):
    """Llama block: x + attn(RMS(x)), then x + down(act(gate(h))·up(h)), h = RMS(x).

    `cache`, when given, is this layer's; the updated one is returned beside x.
    """

    config: BlockConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "#B 1 S T"] | CausalRows,
        positions: Int[Array, "B S"],
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "B S D"], KVCache | None]:
        c = self.config
        init = nn.initializers.normal(c.init_std)
        dense = functools.partial(Linear, dtype=c.dtype, init=init, int8=c.int8)
        y = RMSNorm(c.norm_eps, c.dtype, name="norm1")(x)
        y, cache = SelfAttention(
            c,
            rope=True,
            in_bias=c.qkv_bias,
            out_bias=False,
            in_init=init,
            out_init=init,
            name="attn",
        )(y, mask, positions, cache)
        x = x + y
        y = RMSNorm(c.norm_eps, c.dtype, name="norm2")(x).reshape(-1, c.width)
        gate = ACTIVATIONS[c.activation](dense(c.mlp_width, name="gate")(y))
        y = lay(gate * dense(c.mlp_width, name="up")(y), "batch", "mlp")
        y = dense(c.width, name="down")(y).reshape(x.shape)
        x = lay(x + y, "batch", None, None)
        self.sow("intermediates", "hidden", x)
        return x, cache


class BlockList(nn.Module):
    """`config.num_layers` blocks one after another, each with parameters of its own
    under `layer<i>`.

    Takes longer to compile than a scan, and is faster where one token is decoded at a
    time: a scan copies every layer's weights out of their stack, and the caches of all
    layers at every step.
    """

    block: type[nn.Module]
    config: BlockConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], *args: Any
    ) -> tuple[Float[Array, "B S D"], Caches | None]:
        *shared, caches = args if len(args) > 1 else (*args, None)
        new = []
        for i in range(self.config.num_layers):
            own = [] if len(args) == 1 else [None if caches is None else caches[i]]
            block = self.block(self.config, name=f"layer{i}")
            x, cache = block(x, *shared, *own)
            new.append(cache)
        return x, None if caches is None else tuple(new)


def stack_blocks(
    block: type[EncoderBlock] | type[DecoderBlock], config: BlockConfig, name: str
) -> nn.Module:
    """`config.num_layers` blocks as one module, with parameters stacked on axis 0
    unless `config.stacked` is False.

    Call it as `stack(x, mask)` or `stack(x, mask, positions, caches)`; it returns
    (x, caches or None). Hidden states after every block are sown in the
    collection "intermediates" and cost nothing unless that collection is asked for.
    """
    if not config.stacked:
        return BlockList(block, config, name=name)
    # A decoder's arguments are mask, positions and cache, of which each layer has its
    # own; an encoder's is the mask.
    shared = nn.broadcast
    in_axes: Any = (shared, shared, 0) if block is DecoderBlock else (shared,)
    scanned = nn.scan(
        _again(block, config.remat),
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=config.num_layers,
        unroll=min(config.unroll, config.num_layers),
    )
    return scanned(config, name=name)


def _again(block: type[nn.Module], remat: str) -> type[nn.Module]:
    if remat == "none":
        return block
    # Attention's products have batch axes, those with weights have none (`[B·S, D]`).
    products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    keep = products if remat == "selective" else None
    return nn.remat(block, prevent_cse=False, policy=keep)
