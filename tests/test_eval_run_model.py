"""Lengths of batches, and names of models in results."""

import pytest
from ml_collections import ConfigDict

from vtscale_jax.eval.run_model import model_name, rung


def test_lengths_are_few_and_hold_what_they_must():
    sizes = {rung(length, 16) for length in range(1, 5000)}
    for length in range(1, 5000):
        size = rung(length, 16)
        assert size >= length and size % 16 == 0
        assert length <= 128 or size <= 1.5 * length
        assert length > 128 or size < length + 16
    assert len(sizes) <= 8 + 2 * 6
    assert [rung(n, 16) for n in (1, 16, 70, 128, 129, 200, 300)] == [
        *(16, 16, 80, 128, 192, 256, 384)
    ]


@pytest.mark.parametrize(
    ("run", "m", "inputs", "trained", "name"),
    [
        ("m64-embedded", 64, "vqq", "vqq", "m64-embedded-vqq"),
        ("m64-embedded", 8, "vq", "vqq", "m8-embedded-vq"),
        ("m64-vq_ft", 64, "vq", "vq", "m64-vq_ft"),
        ("mine", 4, "vqq", "vqq", "m4-mine-vqq"),
    ],
)
def test_a_model_s_name_says_its_tokens_and_inputs(run, m, inputs, trained, name):
    config = ConfigDict({"num_queries": m, "inputs": inputs})
    assert model_name(run, config, trained) == name
