"""Hidden states of branches: those of the whole row read at once, from one prefix."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vtscale_jax.divergence.states import (
    LayerError,
    Rows,
    branch_states,
    through_layer,
)
from vtscale_jax.layers import BlockConfig
from vtscale_jax.llm import LLM, LLMConfig, unstack
from vtscale_jax.rotary import RopeScaling

LENGTHS = [(7, 5), (1, 12), (12, 1), (0, 9)]  # of prefix and branch


def llm(**more) -> tuple[LLMConfig, dict]:
    blocks = dataclasses.replace(tiny.model_config().llm.blocks, num_layers=3, **more)
    config = LLMConfig(tiny.VOCAB, blocks)
    params = LLM(config).init(
        jax.random.key(0), jnp.zeros((1, 1), jnp.int32), method=everything
    )["params"]
    # Norms and small weights too: each parameter must matter.
    keys = iter(jax.random.split(jax.random.key(1), 99))
    return config, jax.tree.map(
        lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape), params
    )


def everything(module, ids):
    return module.logits(module(module.embed(ids), ids >= 0).hidden)


def rows(seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)

    def ids(length):
        return jnp.asarray(rng.integers(0, tiny.VOCAB, (4, length)), jnp.int32)

    prefixes, lengths = (jnp.asarray(x, jnp.int32) for x in zip(*LENGTHS, strict=True))
    return Rows(ids(12), prefixes, ids(12), ids(12), lengths)


def read_whole(config, params, inputs, branch, layer=None):
    """States of each pair's branch, the row read without padding and without cache."""
    found = []
    for pair, (p, n) in enumerate(LENGTHS):
        parts = [inputs.prefix[pair, :p], branch[pair, :n]]
        row = jnp.concatenate(parts)[None]

        def run(module, row=row):
            return module(module.embed(row), row >= 0).hidden

        hidden, sown = LLM(config).apply(
            {"params": params}, method=run, mutable="intermediates"
        )
        if layer is not None:
            hidden = sown["intermediates"]["blocks"]["hidden"][0][layer - 1]
        found.append(np.asarray(hidden)[0, p:])
    return found


def check(found, expected):
    for pair, (_, n) in enumerate(LENGTHS):
        np.testing.assert_allclose(
            np.asarray(found)[pair, :n], expected[pair], atol=2e-5
        )


@pytest.mark.parametrize("more", [{}, {"window": 4}, {"num_kv_heads": 4}])
def test_states_are_those_of_the_whole_row(more):
    config, params = llm(**more)
    inputs = rows()
    found = branch_states(params, inputs, config=config, final=True)
    for states, branch in zip(found, (inputs.a, inputs.b), strict=True):
        check(states, read_whole(config, params, inputs, branch))
    # The control: another token at the end of the prefix.
    other = inputs._replace(prefix=inputs.prefix.at[0, LENGTHS[0][0] - 1].add(1))
    moved = branch_states(params, other, config=config, final=True)
    with pytest.raises(AssertionError):
        check(moved[0], read_whole(config, params, inputs, inputs.a))


def test_padding_and_neighbours_do_not_matter():
    config, params = llm()
    inputs = rows()
    found = branch_states(params, inputs, config=config, final=True)
    wider = inputs._replace(
        prefix=jnp.pad(inputs.prefix, ((0, 0), (0, 20)), constant_values=3),
        a=jnp.pad(inputs.a, ((0, 0), (0, 4)), constant_values=5),
        b=jnp.pad(inputs.b, ((0, 0), (0, 4)), constant_values=7),
    )
    other = branch_states(params, wider, config=config, final=True)
    alone = branch_states(
        params, jax.tree.map(lambda x: x[1:2], inputs), config=config, final=True
    )
    for one, two, three in zip(found, other, alone, strict=True):
        for pair, (_, n) in enumerate(LENGTHS):
            np.testing.assert_allclose(one[pair, :n], two[pair, :n], atol=1e-5)
        np.testing.assert_allclose(one[1, :12], three[0, :12], atol=1e-5)


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("stacked", [True, False])
def test_layers(layer, stacked):
    config, params = llm()
    inputs = rows()
    expected = read_whole(config, params, inputs, inputs.b, layer)
    whole, tree = config, params
    if not stacked:
        blocks = dataclasses.replace(config.blocks, stacked=False)
        whole, tree = dataclasses.replace(config, blocks=blocks), unstack(dict(params))
    cut_params, cut = through_layer(tree, whole, str(layer))
    assert cut.blocks.num_layers == layer
    _, found = branch_states(cut_params, inputs, config=cut, final=False)
    check(found, expected)
    with pytest.raises(AssertionError):  # not the states after the norm
        check(branch_states(cut_params, inputs, config=cut, final=True)[1], expected)


def test_vectors_stand_for_tokens():
    config, params = llm()
    inputs = rows()
    vectors = inputs._replace(a=params["embed"][inputs.a], b=params["embed"][inputs.b])
    found = branch_states(params, vectors, config=config, final=True)
    expected = branch_states(params, inputs, config=config, final=True)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_what_layer_there_is():
    config, params = llm()
    assert through_layer(params, config, "final") == (params, config)
    for layer in ("0", "4", "-1", "last", "1.5"):
        with pytest.raises(LayerError, match="a block of the model, 1 to 3"):
            through_layer(params, config, layer)


def test_padding_must_not_cross_the_border_of_longrope():
    scaling = RopeScaling(
        "longrope",
        original_length=20,
        factors=(1.0,) * 6,
        long_factors=(2.0,) * 6,
    )
    blocks = BlockConfig(48, 72, 4, 1, num_kv_heads=2, rope_scaling=scaling)
    config = LLMConfig(tiny.VOCAB, blocks)
    with pytest.raises(LayerError, match="lower --max_prefix or --max_length"):
        branch_states({}, rows(), config=config, final=True)
