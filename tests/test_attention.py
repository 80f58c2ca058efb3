"""Causal attention in pieces is causal attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtscale_jax import attention
from vtscale_jax.attention import LONG, PIECES, attend, causal_mask


def operands(S: int, seed: int = 0):
    """Two rows of four heads over two key heads, the second row right-padded."""
    rng = np.random.default_rng(seed)
    q = jnp.asarray(rng.normal(size=(2, S, 4, 8)), jnp.float32)
    k, v = jnp.asarray(rng.normal(size=(2, 2, 2, S, 8)), jnp.float32)
    keep = jnp.arange(S) < jnp.array([S, S - S // 3])[:, None]
    segments = jnp.where(keep, 1 + (jnp.arange(S) >= S // 2), 0)
    return q, k, v, keep, segments


MORE = [pytest.param(S, marks=pytest.mark.long) for S in (LONG + 1, 301)]


@pytest.mark.parametrize("S", [LONG, LONG + PIECES - 1, *MORE])
@pytest.mark.parametrize("window, packed", [(None, False), (70, False), (None, True)])
def test_pieces_compute_the_same(S, window, packed):
    q, k, v, keep, segments = operands(S)
    mask = causal_mask(keep, window, segments if packed else None)
    towards = jnp.where(keep[:, :, None, None], jnp.cos(q), 0)

    def results(causal: bool):
        y, back = jax.vjp(
            functools.partial(attend, mask=mask, causal=causal), *(q, k, v)
        )
        return [jnp.where(keep[:, :, None, None], y, 0), *back(towards)]

    for whole, pieces in zip(results(False), results(True), strict=True):
        np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=5e-6)


def test_a_mask_that_is_not_causal_is_told_apart():
    """Negative control: the promise is used."""
    q, k, v, keep, _ = operands(LONG)
    everyone = keep[:, None, None, :] & jnp.ones((1, 1, LONG, 1), bool)
    whole = attend(q, k, v, everyone)
    assert np.abs(whole - attend(q, k, v, everyone, causal=True)).max() > 0.1


def test_pieces_leave_most_pairs_out_that_the_mask_hides():
    """5/8 of the scores are computed, by XLA's own count; short rows are one piece."""
    short, long = LONG - PIECES, 4 * LONG

    def operations(S: int, causal: bool) -> float:
        q, k, v, keep, _ = operands(S)
        compute = jax.jit(functools.partial(attend, causal=causal))
        found = compute.lower(q, k, v, causal_mask(keep)).compile().cost_analysis()
        return found["flops"]

    assert operations(long, True) / operations(long, False) == pytest.approx(
        (PIECES + 1) / (2 * PIECES), rel=0.01
    )
    assert operations(short, True) == operations(short, False)


def test_decoders_say_that_they_are_causal(monkeypatch):
    """And encoders, and tokens that are read with a cache, do not."""
    from vtscale_jax import layers

    seen = []

    def spy(*arguments, causal=False):
        seen.append(causal)
        return attention.attend(*arguments, causal=causal)

    monkeypatch.setattr(layers, "attend", spy)
    config = layers.BlockConfig(16, 24, 2, 1)
    x, keep = jnp.ones((1, 3, 16)), jnp.ones((1, 3), bool)
    positions = jnp.arange(3)[None]
    decoder = layers.DecoderBlock(config)
    cache = attention.KVCache(*jnp.zeros((2, 1, 2, 8, 8)))
    key = jax.random.key(0)
    params = decoder.init(key, x, causal_mask(keep), positions)
    decoder.apply(params, x, jnp.ones((1, 1, 3, 8), bool), positions, cache)
    layers.EncoderBlock(config).init(key, x, causal_mask(keep))
    assert seen == [True, False, False]
