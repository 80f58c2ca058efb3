"""Rotary position embedding and the scalings of it that language models use.

A pair of channels turns by position · frequency (Su et al., arXiv 2104.09864). The
scalings change the frequencies, and two of them also the length of what is turned:

    linear    all frequencies / factor (position interpolation, arXiv 2306.15595)
    llama3    only slow frequencies / factor, with a ramp between (Llama 3.1)
    yarn      the same by number of rotations, and longer vectors (arXiv 2309.00071)
    longrope  a factor for each frequency, one list for short rows and one for long
              ones, and longer vectors (Phi-3; arXiv 2402.13753)
    factors   a given factor for each frequency (what GGUF files hold for llama3)
"""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

KINDS = ("linear", "llama3", "yarn", "longrope", "factors")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How frequencies are scaled; which fields are read depends on `kind`.

    `original_length` is the number of positions before the scaling (llama3, yarn,
    longrope). `attention_factor` is the length of turned vectors (yarn, longrope).
    `factors` has a divisor for each frequency (factors; longrope on rows of up to
    `original_length` places), `long_factors` those for longer rows.
    """

    kind: str
    factor: float = 1.0
    original_length: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    factors: Sequence[float] = ()
    long_factors: Sequence[float] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"rope_scaling.kind is {self.kind!r}, expected one of {KINDS}"
            )
        if self.kind in ("llama3", "yarn", "longrope") and self.original_length < 1:
            raise ValueError(
                f"rope_scaling.original_length is {self.original_length}, but "
                f"{self.kind} needs the number of positions before the scaling"
            )
        # Lists of a config file; a dataclass that jit hashes holds tuples.
        for field in ("factors", "long_factors"):
            object.__setattr__(self, field, tuple(map(float, getattr(self, field))))


def frequencies(
    size: int, theta: float, scaling: RopeScaling | None, length: int
) -> Float[np.ndarray, " half"]:
    """Angle per position, float32, of each of the `size` / 2 pairs of channels.

    `length` is the number of places of the row, or of the cache: it alone decides
    between longrope's lists, so that all keys of one generation are turned alike.
    (transformers looks at the largest position so far, and recomputes the cache when
    that passes the original length.)

    Raises ValueError when a list of factors has another length than size / 2.
    """
    # In float32 and in the order of transformers (where torch divides a number by a
    # tensor it multiplies by the inverse): a last bit more or less turns a vector by
    # 1e-4 after a thousand places.
    exponents = (np.arange(0, size, 2) / size).astype(np.float32)
    powers = (np.float64(np.float32(theta)) ** exponents).astype(np.float32)
    plain = 1 / powers
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        scaled = plain / scaling.factor
    elif scaling.kind == "llama3":
        lengths = 1 / plain * (2 * math.pi)
        turns = 1 / lengths * scaling.original_length
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = np.clip((turns - low) / (high - low), 0, 1)
        scaled = kept * plain + (1 - kept) * plain / scaling.factor
    elif scaling.kind == "yarn":
        kept = _yarn_kept(size, theta, scaling)
        scaled = kept * plain + (1 - kept) * (1 / (scaling.factor * powers))
    else:
        long = scaling.kind == "longrope" and length > scaling.original_length
        factors = scaling.long_factors if long else scaling.factors
        if len(factors) != len(plain):
            raise ValueError(
                f"rope_scaling.{'long_factors' if long else 'factors'} has "
                f"{len(factors)} numbers, expected {len(plain)}: one for each pair of "
                "rotated channels"
            )
        scaled = 1 / (np.asarray(factors, np.float32) * powers)
    return scaled


def _yarn_kept(
    size: int, theta: float, scaling: RopeScaling
) -> Float[np.ndarray, " half"]:
    """The share of each frequency that is kept: 1 for fast ones, 0 for slow ones."""

    def pair(rotations: float) -> float:
        """The pair of channels that turns so often within the original length."""
        around = scaling.original_length / (rotations * 2 * math.pi)
        return size * math.log(around) / (2 * math.log(theta))

    low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001  # a ramp needs a width
    pairs = np.arange(size // 2, dtype=np.float32)
    return 1 - np.clip((pairs - low) / (high - low), 0, 1)


def rotate(
    x: Float[Array, "B S H C"],
    positions: Int[Array, "B S"],
    theta: float,
    scaling: RopeScaling | None = None,
    *,
    length: int = 0,
    share: float = 1.0,
) -> Float[Array, "B S H C"]:
    """x with its channels turned by their positions, in Llama's layout: of the first
    `share` of the channels the first half is paired with the second half, not a channel
    with its neighbour. `length` is as in `frequencies`. Angles are float32 whatever the
    dtype of x.
    """
    size = int(x.shape[-1] * share)
    half = size // 2
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies(
        size, theta, scaling, length
    )  # [B,S,1,half]
    stretch = 1.0 if scaling is None else scaling.attention_factor
    cos = (jnp.cos(angles) * stretch).astype(x.dtype)
    sin = (jnp.sin(angles) * stretch).astype(x.dtype)
    first, second, rest = x[..., :half], x[..., half:size], x[..., size:]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*turned, rest], axis=-1)
