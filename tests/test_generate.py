"""Generation: with and without cache, alone and in batches, chosen and drawn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtscale_jax.generate import GREEDY, Sampling, begin, choose, generate, read, write
from vtscale_jax.layers import BlockConfig
from vtscale_jax.llm import LLM, LLMConfig, quantize, unstack

BLOCKS = BlockConfig(24, 40, 6, 2, num_kv_heads=2, rope_theta=500.0)
CONFIG = LLMConfig(31, BLOCKS)
APART = LLMConfig(31, dataclasses.replace(BLOCKS, stacked=False))
NEVER = (31,)  # an id that no token has
PROMPTS = [[5, 3, 8, 13, 2, 9], [7], [4, 4, 11, 30, 6, 2, 9, 17, 25]]


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(3)
    model = LLM(CONFIG)
    ids = jnp.zeros((1, 2), jnp.int32)

    def run(llm, ids):
        return llm.logits(llm(llm.embed(ids), ids >= 0).hidden)

    shapes = jax.eval_shape(
        lambda key: model.init(key, ids, method=run), jax.random.key(0)
    )["params"]
    draw = lambda leaf: rng.normal(size=leaf.shape, scale=0.5).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, shapes)


def padded(prompts, length=12):
    ids = np.zeros((len(prompts), length), np.int32)
    keep = np.zeros(ids.shape, bool)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)], keep[row, : len(prompt)] = prompt, True
    return jnp.asarray(ids), jnp.asarray(keep)


@functools.partial(jax.jit, static_argnames="config")
def logits_of(params, ids, config=CONFIG):
    def run(llm, ids):
        return llm.logits(llm(llm.embed(ids), ids >= 0).hidden)

    return LLM(config).apply({"params": params}, ids, method=run)


def recomputed(params, prompt, number):
    """Greedy tokens without a cache: the whole row anew for every token."""
    row = list(prompt)
    for _ in range(number):
        # Causal: what stands behind the row does not matter.
        ids = np.zeros((1, 32), np.int32)
        ids[0, : len(row)] = row
        row.append(int(jnp.argmax(logits_of(params, ids)[0, len(row) - 1])))
    return row[len(prompt) :]


def answers(params, prompts, number=10, config=CONFIG, eos_ids=NEVER, **more):
    ids, keep = padded(prompts)
    made = jax.jit(
        functools.partial(
            generate, config=config, max_new_tokens=number, eos_ids=eos_ids, **more
        )
    )(params, ids, keep)
    return np.asarray(made).tolist()


def test_a_batch_of_unequal_prompts_is_its_rows_alone_and_without_cache(params):
    together = answers(params, PROMPTS)
    for prompt, row in zip(PROMPTS, together, strict=True):
        assert answers(params, [prompt]) == [row]
        assert recomputed(params, prompt, 10) == row
    # Negative control: another model says something else.
    other = jax.tree.map(lambda leaf: leaf * 1.2, params)
    assert answers(other, PROMPTS) != together


def test_layers_apart_are_the_same_model(params):
    apart = unstack(dict(params))
    assert answers(apart, PROMPTS, config=APART) == answers(params, PROMPTS)
    ids = padded(PROMPTS)[0]
    one, other = logits_of(params, ids), logits_of(apart, ids, config=APART)
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)
    # Negative control: the layers in another order.
    blocks = apart["blocks"]
    turned = {"layer0": blocks["layer1"], "layer1": blocks["layer0"]}
    swapped = logits_of({**apart, "blocks": turned}, ids, config=APART)
    assert np.abs(np.asarray(swapped - other)).max() > 0.1


@pytest.mark.parametrize("config", [CONFIG, APART], ids=["stacked", "apart"])
def test_a_second_turn_goes_on_in_the_cache(params, config):
    own = params if config is CONFIG else unstack(dict(params))
    same = {"config": config, "eos_ids": NEVER}
    state = begin(config, 3, 40)
    state = read(own, state, *padded(PROMPTS), **same)
    said = [[int(x)] for x in state.ids]
    state, tokens = write(own, state, num_steps=4, **same)
    said = [a + b for a, b in zip(said, np.asarray(tokens).tolist(), strict=True)]
    # What was chosen last is not in the cache, so the next turn begins with it.
    follow = [[row[-1], 3 + i] for i, row in enumerate(said)]
    state = read(own, state, *padded(follow), **same)
    state, tokens = write(own, state, num_steps=3, **same)
    for i, prompt in enumerate(PROMPTS):
        whole = [*prompt, *said[i], 3 + i]
        assert np.asarray(tokens)[i].tolist() == recomputed(params, whole, 4)[1:]


def test_rows_end_by_themselves_and_keep_their_cache(params):
    free = answers(params, PROMPTS)
    end = free[1][3]
    made = answers(params, PROMPTS, eos_ids=(end, free[0][5]))
    for row, said in zip(made, free, strict=True):
        ends = [i for i, token in enumerate(said) if token in (end, free[0][5])]
        stop = ends[0] if ends else len(said)
        assert row[: stop + 1] == said[: stop + 1]
        assert set(row[stop + 1 :]) <= {end}

    same = {"config": CONFIG, "eos_ids": (end,)}
    state = read(params, begin(CONFIG, 3, 40), *padded(PROMPTS), **same)
    state, _ = write(params, state, num_steps=3, **same)
    assert bool(state.ended[1]) and not bool(state.ended[2])
    # All at their end: nothing more is made, whatever number of steps is asked for.
    state = state._replace(ended=jnp.ones(3, bool))
    lengths = np.asarray(state.lengths)
    state, tokens = write(params, state, num_steps=5, **same)
    assert (np.asarray(tokens) == end).all()
    assert np.array_equal(state.lengths, lengths)
    state = state._replace(ended=jnp.array([False, True, False]))
    before = np.asarray(state.caches.k[:, 1]), int(state.lengths[1])
    state, _ = write(params, state, num_steps=4, **same)
    assert np.array_equal(before[0], state.caches.k[:, 1])
    assert int(state.lengths[1]) == before[1]


def test_drawn_tokens_have_the_probabilities_of_the_softmax():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    keys = jax.random.split(jax.random.key(0), 20_000)
    rows = jnp.repeat(logits, len(keys), axis=0)

    def shares(**how):
        drawn = choose(rows, Sampling(**how), keys)
        return np.bincount(np.asarray(drawn), minlength=4) / len(keys)

    atol = 0.012  # three deviations of a share of 20,000 draws
    half = np.sqrt([0.5, 0.3, 0.15, 0.05])
    expected = {
        (1.0, 0, 1.0): [0.5, 0.3, 0.15, 0.05],
        (2.0, 0, 1.0): half / half.sum(),
        (1.0, 2, 1.0): [0.625, 0.375, 0, 0],
        # 0.5 + 0.3 is the least that has 0.7 of the probability.
        (1.0, 0, 0.7): [0.625, 0.375, 0, 0],
        (1.0, 0, 0.5): [1, 0, 0, 0],
        # Colder, the first has 0.25 of 0.365: 0.685. The share is taken after that.
        (0.5, 0, 0.68): [1, 0, 0, 0],
        # After top_k the first alone has 0.625.
        (1.0, 2, 0.6): [1, 0, 0, 0],
    }
    for (temperature, top_k, top_p), want in expected.items():
        got = shares(temperature=temperature, top_k=top_k, top_p=top_p)
        np.testing.assert_allclose(got, want, atol=atol)
        assert all(g == 0 for g, w in zip(got, want, strict=True) if w == 0)
    assert shares(temperature=0.0).tolist() == [1, 0, 0, 0]


def test_every_token_is_drawn_anew(params):
    """Were the noise the same at every step, a hot model would repeat one token."""
    flat = jax.tree.map(np.zeros_like, params)  # all tokens equally likely
    (row,) = answers(flat, [PROMPTS[0]], 24, sampling=Sampling(1.0), seed=3)
    assert len(set(row)) > 8


def test_one_token_and_a_row_of_padding(params):
    assert answers(params, PROMPTS, 1) == [row[:1] for row in answers(params, PROMPTS)]
    ids, keep = padded([*PROMPTS, [1]])
    keep = keep.at[3].set(False)
    same = {"config": CONFIG, "eos_ids": NEVER}
    state = read(params, begin(CONFIG, 4, 30), ids, keep, **same)
    assert np.asarray(state.ended).tolist() == [False, False, False, True]


def test_bfloat16_is_near_and_its_angles_are_wide(params):
    """Angles, scores and softmax are float32 whatever the dtype of the rest."""
    blocks = dataclasses.replace(BLOCKS, dtype="bfloat16")
    config = dataclasses.replace(CONFIG, blocks=blocks)
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, 31, (1, 600)), jnp.int32)
    small = jax.tree.map(lambda leaf: leaf * 0.3, params)
    exact = np.asarray(logits_of(small, ids))
    near = np.asarray(logits_of(small, ids, config=config), np.float32)
    # Positions to 600 in bfloat16 would be off by whole turns of the fastest channel.
    assert np.abs(near - exact)[:, 500:].max() < 0.05 * np.abs(exact).max()
    assert begin(config, 1, 8).caches.k.dtype == jnp.bfloat16


def test_what_a_row_draws_depends_on_its_seed_and_place_only(params):
    warm = Sampling(temperature=1.5)
    one = answers(params, PROMPTS, sampling=warm, seed=1)
    assert answers(params, PROMPTS, sampling=warm, seed=1) == one
    assert answers(params, PROMPTS, sampling=warm, seed=2) != one
    changed = [PROMPTS[0], [8, 8], PROMPTS[2]]
    again = answers(params, changed, sampling=warm, seed=1)
    assert [again[0], again[2]] == [one[0], one[2]]


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1e-40}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_settings_that_mean_nothing_are_refused(how, named):
    with pytest.raises(ValueError, match=named):
        Sampling(**how)
    assert Sampling() == GREEDY


def test_int8_weights_are_near_and_are_what_is_read(params):
    small = quantize(dict(params))
    config = dataclasses.replace(CONFIG, blocks=dataclasses.replace(BLOCKS, int8=True))
    kernel = params["blocks"]["gate"]["kernel"]
    whole = np.asarray(small["blocks"]["gate"]["kernel_int8"], np.float32)
    scale = np.asarray(small["blocks"]["gate"]["kernel_scale"])
    assert np.abs(whole).max() == 127
    # Nearest: no weight is further off than half a step of its column.
    off = np.abs(whole * scale[:, None] - kernel)
    assert (off <= scale[:, None] * 0.501).all()
    assert "kernel" not in small["blocks"]["attn"]["query"]

    ids = padded(PROMPTS)[0]
    exact = np.asarray(logits_of(params, ids))
    near = np.asarray(logits_of(small, ids, config=config))
    error = np.sqrt(np.mean((near - exact) ** 2)) / exact.std()
    assert 1e-4 < error < 0.05
    # Negative control: the scales matter.
    small["blocks"]["gate"]["kernel_scale"] = jnp.ones_like(scale)
    assert np.abs(np.asarray(logits_of(small, ids, config=config)) - exact).max() > 1


def test_a_column_of_zeros_stays_zero(params):
    kernel = params["blocks"]["gate"]["kernel"].copy()
    kernel[:, :, 3] = 0
    changed = {**params["blocks"], "gate": {"kernel": kernel}}
    small = quantize({**params, "blocks": changed})["blocks"]["gate"]
    assert not np.asarray(small["kernel_int8"])[:, :, 3].any()
    assert np.isfinite(np.asarray(small["kernel_scale"])).all()
    # No 0/0 on the way, which a cast to whole numbers would hide.
    with jax.debug_nans(True):
        quantize({**params, "blocks": changed})
