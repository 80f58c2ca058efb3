"""Rotary embeddings: every scaling against its definition, and what rotation keeps."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from vtscale_jax.rotary import RopeScaling, frequencies, rotate

SIZE, THETA = 32, 10000.0
PAIRS = SIZE // 2
SCALINGS = {
    "none": None,
    "linear": RopeScaling("linear", factor=4.0),
    "llama3": RopeScaling("llama3", factor=8.0, original_length=64),
    "yarn": RopeScaling(
        "yarn", factor=4.0, original_length=512, attention_factor=1.1386
    ),
    "longrope": RopeScaling(
        "longrope",
        original_length=100,
        attention_factor=1.2,
        factors=tuple(1 + 0.1 * i for i in range(PAIRS)),
        long_factors=tuple(2.0 + i for i in range(PAIRS)),
    ),
    "factors": RopeScaling("factors", factors=tuple(1.0 + i for i in range(PAIRS))),
}


def plain(pair):
    return THETA ** (-2 * pair / SIZE)


def llama3(pair, s):
    """By wavelength: below L/high kept, above L/low divided, a ramp between."""
    wavelength = 2 * math.pi / plain(pair)
    if wavelength < s.original_length / s.high_freq_factor:
        return plain(pair)
    if wavelength > s.original_length / s.low_freq_factor:
        return plain(pair) / s.factor
    smooth = s.original_length / wavelength - s.low_freq_factor
    smooth /= s.high_freq_factor - s.low_freq_factor
    return (1 - smooth) * plain(pair) / s.factor + smooth * plain(pair)


def yarn(pair, s):
    """A ramp between the pairs that turn beta_fast and beta_slow times."""

    def border(turns):
        length = s.original_length / (turns * 2 * math.pi)
        return SIZE * math.log(length) / (2 * math.log(THETA))

    low = max(math.floor(border(s.beta_fast)), 0)
    high = min(math.ceil(border(s.beta_slow)), SIZE - 1)
    slow = min(max((pair - low) / (high - low), 0), 1)
    return slow * plain(pair) / s.factor + (1 - slow) * plain(pair)


DEFINITIONS = {
    "none": lambda pair, s: plain(pair),
    "linear": lambda pair, s: plain(pair) / s.factor,
    "llama3": llama3,
    "yarn": yarn,
    "longrope": lambda pair, s: plain(pair) / s.factors[pair],
    "factors": lambda pair, s: plain(pair) / s.factors[pair],
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_frequencies_are_those_of_the_definition(kind):
    scaling = SCALINGS[kind]
    found = frequencies(SIZE, THETA, scaling, 100)
    expected = [DEFINITIONS[kind](pair, scaling) for pair in range(PAIRS)]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=5e-7)
    # Negative control: no scaling is another's, and each changes most frequencies.
    others = [
        frequencies(SIZE, THETA, other, 100)
        for name, other in SCALINGS.items()
        if name != kind
    ]
    assert all(np.max(np.abs(other / found - 1)) > 0.05 for other in others)


def test_a_ramp_has_a_kept_a_mixed_and_a_slowed_part():
    for kind in ("llama3", "yarn"):
        ratio = frequencies(SIZE, THETA, SCALINGS[kind], 0)
        ratio = frequencies(SIZE, THETA, None, 0) / ratio
        factor = SCALINGS[kind].factor
        assert np.isclose(ratio[0], 1) and np.isclose(ratio[-1], factor)
        assert np.any((ratio > 1.01) & (ratio < factor * 0.99))
        assert np.all(np.diff(ratio) > -1e-5)


def test_longrope_takes_its_list_by_the_length_of_the_row():
    scaling = SCALINGS["longrope"]
    short, long = (frequencies(SIZE, THETA, scaling, n) for n in (100, 101))
    np.testing.assert_allclose(short * scaling.factors, long * scaling.long_factors)
    assert np.all(long < short)
    x = jnp.ones((1, 3, 1, SIZE))
    positions = jnp.arange(3)[None]
    turned = [rotate(x, positions, THETA, scaling, length=n) for n in (3, 100, 101)]
    assert np.array_equal(turned[0], turned[1])
    assert not np.allclose(turned[1], turned[2])


@pytest.mark.parametrize("kind", SCALINGS)
def test_products_depend_on_the_distance_only(kind):
    """And turning changes no length but by the attention factor."""
    scaling = SCALINGS[kind]
    rng = np.random.default_rng(0)
    q, k = (jnp.array(rng.normal(size=(1, 1, 1, SIZE)), jnp.float32) for _ in "qk")

    def product(at_q, at_k):
        turned = [
            rotate(x, jnp.full((1, 1), at), THETA, scaling)
            for x, at in ((q, at_q), (k, at_k))
        ]
        return float(jnp.vdot(*turned))

    assert math.isclose(product(7, 3), product(507, 503), abs_tol=2e-3)
    assert not math.isclose(product(7, 3), product(7, 5), abs_tol=2e-2)
    stretch = 1.0 if scaling is None else scaling.attention_factor
    length = float(jnp.linalg.norm(rotate(q, jnp.full((1, 1), 9), THETA, scaling)))
    assert math.isclose(length, float(jnp.linalg.norm(q)) * stretch, rel_tol=1e-5)


def test_linear_scaling_is_slower_counting():
    x = jnp.array(np.random.default_rng(1).normal(size=(1, 50, 2, SIZE)), jnp.float32)
    places = jnp.arange(50)[None]
    slow = rotate(x, 4 * places, THETA, SCALINGS["linear"])
    np.testing.assert_allclose(slow, rotate(x, places, THETA), atol=1e-5)


def test_halves_are_paired_and_the_rest_is_left_alone():
    """Of 12 of 16 channels the first 6 are paired with the second 6."""
    x = np.random.default_rng(2).normal(size=(1, 3, 1, 16)).astype(np.float32)
    turned = rotate(jnp.array(x), jnp.array([[0, 1, 5]]), THETA, share=0.75)
    assert np.array_equal(turned[..., 12:], x[..., 12:])
    assert np.allclose(turned[0, 0], x[0, 0])
    for place, position in ((1, 1), (2, 5)):
        for c in range(6):
            angle = position * THETA ** (-2 * c / 12)
            a, b = x[0, place, 0, c], x[0, place, 0, c + 6]
            expected = [
                a * math.cos(angle) - b * math.sin(angle),
                b * math.cos(angle) + a * math.sin(angle),
            ]
            found = turned[0, place, 0, [c, c + 6]]
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_errors_name_the_field():
    with pytest.raises(ValueError, match=r"rope_scaling\.kind is 'ntk', expected one"):
        RopeScaling("ntk")
    for kind in ("llama3", "yarn", "longrope"):
        with pytest.raises(ValueError, match=rf"original_length is 0, but {kind}"):
            RopeScaling(kind)
    short = RopeScaling("longrope", original_length=9, factors=(1.0,) * PAIRS)
    frequencies(SIZE, THETA, short, 9)
    with pytest.raises(ValueError, match="long_factors has 0 numbers, expected 16"):
        frequencies(SIZE, THETA, short, 10)


REAL = [
    ("llama", {"head_dim": 128, "rope_theta": 500000.0}),
    (
        "llama",
        {
            "head_dim": 128,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
    (
        "qwen2",
        {
            "rope_theta": 1000000.0,
            "rope_scaling": {
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
            },
        },
    ),
    (
        "mistral",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 16.0,
                "original_max_position_embeddings": 1024,
                "mscale": 1.3,
                "mscale_all_dim": 0.7,
                "beta_fast": 20.0,
                "beta_slow": 2.0,
                "truncate": False,
            }
        },
    ),
    (
        "phi3",
        {
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "type": "yarn",  # as the first files of the family called longrope
                "short_factor": [1 + 0.03 * i for i in range(48)],
                "long_factor": [1.5 * 1.1**i for i in range(48)],
            },
        },
    ),
    ("phi3", {"partial_rotary_factor": 0.75}),
]


@pytest.mark.parity
@pytest.mark.parametrize("kind, given", REAL)
def test_frequencies_are_those_of_transformers(kind, given):
    """To the last bit of float32 or the one before, at the sizes of real models."""
    import copy

    import torch
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    from vtscale_jax.weights.huggingface.families import llm_config

    theirs = AutoConfig.for_model(kind, **copy.deepcopy(given))
    classes = {"phi3": Phi3RotaryEmbedding}
    module = classes.get(kind, LlamaRotaryEmbedding)(theirs)
    blocks = llm_config({"model_type": kind, **given}).blocks
    size = int(blocks.head_dim * blocks.rope_share)
    stretch = blocks.rope_scaling.attention_factor if blocks.rope_scaling else 1.0
    for length in (64, 20000):
        module(torch.zeros(1), torch.tensor([[length - 1]]))
        ours = frequencies(size, blocks.rope_theta, blocks.rope_scaling, length)
        np.testing.assert_array_max_ulp(ours, module.inv_freq.numpy(), 1)
        assert math.isclose(stretch, module.attention_scaling, rel_tol=1e-12)
    if kind == "phi3" and blocks.rope_scaling:
        assert not np.allclose(
            frequencies(size, 10000.0, blocks.rope_scaling, 64), ours
        )
