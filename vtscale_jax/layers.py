"""Building blocks of the four transformers: norms, rotary embedding, attention, MLP.

Two blocks cover all of them: `EncoderBlock` (CLIP: pre-LayerNorm, biases, quick-GELU)
for the vision and text towers, `DecoderBlock` (Llama: RMSNorm, rotary, gated MLP,
grouped-query attention) for the fusion decoder and the language model. `stack_blocks`
runs N of them as one scanned, optionally rematerialised layer.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Initializer = nn.initializers.Initializer


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Size and numerics of one transformer block.

    `dtype` is the compute dtype ("float32" or "bfloat16"); parameters keep their own.
    `num_kv_heads` < `num_heads` is grouped-query attention. `remat` rematerialises each
    block in the backward pass; `unroll` blocks are laid out per scan step.
    """

    width: int
    mlp_width: int
    num_heads: int
    num_layers: int
    num_kv_heads: int = 0
    head_dim: int = 0
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    activation: str = "silu"
    init_std: float = 0.02
    dtype: str = "float32"
    remat: bool = False
    unroll: int = 1

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
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation {self.activation!r} is unknown; "
                f"one of {sorted(ACTIVATIONS)} was expected"
            )


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


def rotate(
    x: Float[Array, "B S H C"], positions: Int[Array, "B S"], theta: float
) -> Float[Array, "B S H C"]:
    """Rotary position embedding (Su et al., arXiv 2104.09864) in Llama's layout: the
    first half of the channels is paired with the second half, not with its neighbour.
    Angles are float32 whatever the dtype of x.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = (
        positions.astype(jnp.float32)[:, :, None, None] * frequencies
    )  # [B,S,1,C/2]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )


def causal_mask(keep: Bool[Array, "B S"]) -> Bool[Array, "B 1 S S"]:
    """Who may look at whom in a right-padded causal row (True = may).

    For keep = [1, 1, 1, 0] (rows are queries, columns keys):

        1 0 0 0
        1 1 0 0
        1 1 1 0
        1 1 1 0    <- a padding query; nothing reads its output
    """
    length = keep.shape[-1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    return causal[None, None] & keep[:, None, None, :]


def attend(
    q: Float[Array, "B S H C"],
    k: Float[Array, "B T K C"],
    v: Float[Array, "B T K C"],
    mask: Bool[Array, "#B 1 S T"] | None,
) -> Float[Array, "B S H C"]:
    """softmax(q·k / √C)·v with H/K query heads sharing each key head.

    Scores and softmax are float32. A query whose keys are all masked gets their mean:
    finite, as in the reference, and read by nothing.
    """
    B, S, H, C = q.shape
    K = k.shape[2]
    G = H // K
    # Batch and head axes in front and the G query heads of a key head in one axis with
    # the queries: only the small operands are transposed, never the scores.
    q = q.reshape(B, S, K, G, C).transpose(0, 2, 3, 1, 4).reshape(B, K, G * S, C)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    scores = jnp.einsum("BKQC,BKTC->BKQT", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(B, K * G, S, -1) * C**-0.5
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = nn.softmax(scores, axis=-1).astype(v.dtype)
    y = jnp.einsum("BKQT,BKTC->BKQC", weights.reshape(B, K, G * S, -1), v)
    return y.reshape(B, K, G, S, C).transpose(0, 3, 1, 2, 4).reshape(B, S, H, C)


class KVCache(NamedTuple):
    """Keys and values of past positions, one layer or all of them stacked in front."""

    k: Float[Array, "*N B T K C"]
    v: Float[Array, "*N B T K C"]

    def write(
        self,
        k: Float[Array, "B S K C"],
        v: Float[Array, "B S K C"],
        positions: Int[Array, "B S"],
    ) -> "KVCache":
        """The cache with row b's new keys at `positions[b]` (one layer)."""
        rows = jnp.arange(k.shape[0])[:, None]
        return KVCache(
            self.k.at[rows, positions].set(k.astype(self.k.dtype), mode="drop"),
            self.v.at[rows, positions].set(v.astype(self.v.dtype), mode="drop"),
        )


class SelfAttention(nn.Module):
    """Projections around `attend`; rotary when `rope`, biases when `bias`.

    Projections (and the MLPs below) see `[B·S, D]`: XLA's CPU backend is about twice
    as fast on the gradients of two-dimensional products, others do not care.
    """

    config: BlockConfig
    rope: bool
    bias: bool
    in_init: Initializer
    out_init: Initializer

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "#B 1 S T"] | None,
        positions: Int[Array, "B S"] | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "B S D"], KVCache | None]:
        c = self.config
        B, S, D = x.shape
        tokens = x.reshape(B * S, D)

        def project(name, heads):
            y = nn.Dense(
                heads * c.head_dim,
                use_bias=self.bias,
                dtype=c.dtype,
                kernel_init=self.in_init,
                name=name,
            )(tokens)
            return y.reshape(B, S, heads, c.head_dim)

        q = project("query", c.num_heads)
        k = project("key", c.num_kv_heads)
        v = project("value", c.num_kv_heads)
        if self.rope:
            assert positions is not None, "rotary attention needs positions"
            q = rotate(q, positions, c.rope_theta)
            k = rotate(k, positions, c.rope_theta)
        if cache is not None:
            assert positions is not None, "a cache is written by positions"
            cache = cache.write(k, v, positions)
            k, v = cache.k.astype(c.dtype), cache.v.astype(c.dtype)
        y = attend(q, k, v, mask).reshape(B * S, c.num_heads * c.head_dim)
        y = nn.Dense(
            c.width,
            use_bias=self.bias,
            dtype=c.dtype,
            kernel_init=self.out_init,
            name="out",
        )(y)
        return y.reshape(B, S, c.width), cache


class EncoderBlock(nn.Module):
    """CLIP block: x + attn(LN(x)), then x + MLP(LN(x)); initialised as CLIP is."""

    config: BlockConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], mask: Bool[Array, "#B 1 T T"] | None
    ) -> tuple[Float[Array, "B T D"], None]:
        c = self.config
        normal = nn.initializers.normal
        depth_std = c.width**-0.5 * (2 * c.num_layers) ** -0.5
        y = LayerNorm(c.norm_eps, c.dtype, name="norm1")(x)
        y, _ = SelfAttention(
            c,
            rope=False,
            bias=True,
            in_init=normal(depth_std),
            out_init=normal(c.width**-0.5),
            name="attn",
        )(y, mask)
        x = x + y
        y = LayerNorm(c.norm_eps, c.dtype, name="norm2")(x).reshape(-1, c.width)
        up_init = normal((2 * c.width) ** -0.5)
        y = nn.Dense(c.mlp_width, dtype=c.dtype, kernel_init=up_init, name="up")(y)
        y = ACTIVATIONS[c.activation](y)
        y = nn.Dense(
            c.width, dtype=c.dtype, kernel_init=normal(depth_std), name="down"
        )(y)
        x = x + y.reshape(x.shape)
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
        mask: Bool[Array, "#B 1 S T"],
        positions: Int[Array, "B S"],
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "B S D"], KVCache | None]:
        c = self.config
        init = nn.initializers.normal(c.init_std)

        def dense(features, name):
            return nn.Dense(
                features, use_bias=False, dtype=c.dtype, kernel_init=init, name=name
            )

        y = RMSNorm(c.norm_eps, c.dtype, name="norm1")(x)
        y, cache = SelfAttention(
            c, rope=True, bias=False, in_init=init, out_init=init, name="attn"
        )(y, mask, positions, cache)
        x = x + y
        y = RMSNorm(c.norm_eps, c.dtype, name="norm2")(x).reshape(-1, c.width)
        y = ACTIVATIONS[c.activation](dense(c.mlp_width, "gate")(y)) * dense(
            c.mlp_width, "up"
        )(y)
        x = x + dense(c.width, "down")(y).reshape(x.shape)
        self.sow("intermediates", "hidden", x)
        return x, cache


def stack_blocks(
    block: type[EncoderBlock] | type[DecoderBlock], config: BlockConfig, name: str
) -> nn.Module:
    """`config.num_layers` blocks as one module with parameters stacked on axis 0.

    Call it as `stack(x, mask)` or `stack(x, mask, positions, cache)`; it returns
    (x, stacked caches or None). Hidden states after every block are sown in the
    collection "intermediates" and cost nothing unless that collection is asked for.
    """
    # A decoder's arguments are mask, positions and cache, of which each layer has its
    # own; an encoder's is the mask.
    shared = nn.broadcast
    in_axes: Any = (shared, shared, 0) if block is DecoderBlock else (shared,)
    scanned = nn.scan(
        nn.remat(block, prevent_cse=False) if config.remat else block,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=config.num_layers,
        unroll=min(config.unroll, config.num_layers),
    )
    return scanned(config, name=name)
