"""Properties of the model that hold for any weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vtscale_jax import losses, paths
from vtscale_jax.attention import attend, causal_mask
from vtscale_jax.eval.decoding import greedy
from vtscale_jax.layers import BlockConfig
from vtscale_jax.llm import splice
from vtscale_jax.optim import OptimConfig, make_optimizer
from vtscale_jax.rotary import rotate
from vtscale_jax.stages import align_terms, get_stage, init_params
from vtscale_jax.step import initial_state, make_steps
from vtscale_jax.tokens import QueryLayout
from vtscale_jax.types import Kind
from vtscale_jax.vision import pack_crops
from vtscale_jax.vlm import VLM, AlignModel, fuse, take_slots

CONFIG = tiny.model_config()
LAYOUT = QueryLayout(8, 3, tiny.VOCAB)


@pytest.fixture(scope="module")
def params():
    fresh = init_params(get_stage("finetune"), CONFIG, 0)
    # Every parameter moved: fresh norms are 1 and biases 0, which would hide errors.
    flat = paths.flatten(jax.device_get(fresh))
    rng = np.random.default_rng(1)
    moved = {k: v + 0.05 * rng.normal(size=v.shape) for k, v in flat.items()}
    return paths.unflatten({k: jnp.asarray(v, jnp.float32) for k, v in moved.items()})


@functools.partial(jax.jit, static_argnames="config")
def _logits(params, batch, config):
    return VLM(config).apply({"params": params}, batch)


def logits(params, batch, config=CONFIG):
    return np.asarray(_logits(params, batch, config))


def _fuse(model, inputs):
    return fuse(model.look(inputs.crops), model.fusion, inputs)


@jax.jit
def fusion_states(params, inputs):
    return VLM(CONFIG).apply({"params": params}, inputs, method=_fuse)


def test_logits_only_at_loss_positions_equal_those_of_whole_rows(params):
    batch = tiny.batch(LAYOUT)
    model = VLM(CONFIG)
    hidden = model.apply({"params": params}, batch.fusion, batch.llm, method=VLM.hidden)
    everywhere = model.apply({"params": params}, hidden, method=VLM.logits)
    positions = np.asarray(batch.llm.loss_positions)
    expected = np.take_along_axis(np.asarray(everywhere), positions[:, :, None], axis=1)
    mask = np.asarray(batch.llm.loss_mask)
    np.testing.assert_allclose(logits(params, batch)[mask], expected[mask], atol=1e-5)


def test_a_sample_does_not_depend_on_its_neighbours_or_on_the_buckets(params):
    rng = np.random.default_rng(3)
    samples = [tiny.sample(rng, LAYOUT, crops=c) for c in (1, 3, 2)]
    together = tiny.collate(samples, tiny.SPEC)
    larger = dataclasses.replace(
        tiny.SPEC, crops=(17,), fusion_length=(77,), llm_length=(90,), query_slots=(31,)
    )
    for row, sample in enumerate(samples):
        alone = tiny.collate([sample], larger)
        number = int(alone.llm.loss_mask.sum())
        np.testing.assert_allclose(
            logits(params, together)[row, :number],
            logits(params, alone)[0, :number],
            atol=2e-5,
        )


def test_fusion_is_causal_by_gradient(params):
    inputs = tiny.batch(LAYOUT).fusion
    first, second = inputs.slots[1, 2], inputs.slots[1, 9]

    @jax.jit
    def state(crops, position):
        return fusion_states(params, inputs._replace(crops=crops))[1, position]

    # Sample 1's crops are rows 1 and 2; those of other samples must not matter.
    gradient = jax.grad(lambda c: jnp.sum(state(c, first)))(jnp.asarray(inputs.crops))
    touched = np.abs(np.asarray(gradient)).max(axis=(1, 2, 3))
    assert touched[1] > 0 and touched[2] > 0
    assert np.all(np.delete(touched, [1, 2]) == 0)

    def of_words(table, position):
        moved = paths.flatten(params) | {"fusion/embed": table}
        return fusion_states(paths.unflatten(moved), inputs)[1, position]

    # A word of the second question only: it reaches the later slot, not the earlier.
    row, kinds = np.asarray(inputs.ids[1]), np.asarray(inputs.kinds[1])
    questions = np.flatnonzero(kinds == Kind.QUE)
    late = set(row[questions[questions > int(first)]]) - set(row[: int(first) + 1])
    assert late, "the made-up sample has no word that only the second question uses"
    table = jnp.asarray(params["fusion"]["embed"])
    for position, reached in ((first, False), (second, True)):
        gradient = jax.grad(lambda t, p=position: jnp.sum(of_words(t, p)))(table)
        size = np.abs(np.asarray(gradient)[sorted(late)]).max()
        assert (size > 0) == reached


def test_queries_nest(params):
    """Outputs of the first k queries do not depend on later ones (paper §4.3)."""
    rng = np.random.default_rng(5)
    seeds = rng.integers(10**6)
    states = {}
    for num_queries in (8, 5):
        layout = QueryLayout(num_queries, 1, tiny.VOCAB)
        sample = tiny.sample(np.random.default_rng(seeds), layout, turns=1)
        inputs = tiny.collate([sample], tiny.SPEC).fusion
        every = take_slots(fusion_states(params, inputs), inputs.slots)
        states[num_queries] = np.asarray(every)[0]
    np.testing.assert_allclose(states[8][:4], states[5][:4], atol=1e-5)
    assert np.abs(states[8][4] - states[5][4]).max() > 1e-2  # a query, an ⟨eos⟩


def test_one_query_needs_no_query_parameter():
    config = tiny.model_config(num_query_rows=0)
    fresh = init_params(get_stage("finetune"), config, 0)
    assert "queries" not in fresh["fusion"]
    batch = tiny.batch(QueryLayout(1, 1, tiny.VOCAB))
    assert np.all(np.isfinite(logits(fresh, batch, config)))


def test_crop_order_matters_and_crops_land_in_their_rows():
    tokens = jnp.arange(3 * 2 * 1, dtype=jnp.float32).reshape(3, 2, 1) + 1
    rows = jnp.zeros((2, 5, 1))
    packed = pack_crops(tokens, rows, jnp.array([0, 0, 1]), jnp.array([0, 1, 0]))
    assert packed[..., 0].tolist() == [[1, 2, 3, 4, 0], [5, 6, 0, 0, 0]]
    dropped = pack_crops(tokens, rows, jnp.array([0, 0, 2]), jnp.array([0, 1, 0]))
    assert dropped[1].sum() == 0


def test_splice_writes_by_position_and_drops_fillers():
    rows = splice(
        jnp.zeros((2, 4, 1)),
        jnp.array([[[1.0], [2.0]], [[3.0], [9.0]]]),
        jnp.array([[1, 3], [0, 4]]),
    )
    assert rows[..., 0].tolist() == [[0, 1, 0, 2], [3, 0, 0, 0]]


def test_a_sample_without_image_is_finite_and_changes_nothing_else(params):
    rng = np.random.default_rng(7)
    with_image = tiny.sample(rng, LAYOUT, crops=2)
    no_slots = QueryLayout(1, 1, tiny.VOCAB)
    text = tiny.sample(rng, no_slots, crops=0)
    llm = text.llm
    keep = llm.kinds != Kind.QED
    text = text._replace(llm=type(llm)(llm.ids[keep], llm.kinds[keep]))
    both = logits(params, tiny.collate([with_image, text], tiny.SPEC))
    alone = logits(params, tiny.collate([with_image], tiny.SPEC))
    assert np.all(np.isfinite(both))
    number = 9
    np.testing.assert_allclose(both[0, :number], alone[0, :number], atol=1e-5)


def test_remat_and_unroll_change_nothing(params):
    batch = tiny.batch(LAYOUT)

    def loss(params, config):
        return jnp.sum(VLM(config).apply({"params": params}, batch) ** 2)

    plain, plain_grad = jax.value_and_grad(loss)(params, CONFIG)
    assert "remat" not in str(
        jax.make_jaxpr(jax.grad(loss), static_argnums=1)(params, CONFIG)
    )
    for more in ({"remat": "full"}, {"remat": "selective"}, {"unroll": 2}):
        config = tiny.model_config(**more)
        other, grad = jax.value_and_grad(loss)(params, config)
        np.testing.assert_allclose(plain, other, rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
            plain_grad,
            grad,
        )
        jaxpr = jax.make_jaxpr(jax.grad(loss), static_argnums=1)(params, config)
        assert ("remat" in str(jaxpr)) == ("remat" in more)


def test_shared_crops_are_seen_as_if_they_were_each_one_s_own(params):
    rng = np.random.default_rng(12)
    samples = [tiny.sample(rng, LAYOUT, crops=crops) for crops in (3, 2, 3)]
    samples[2] = samples[2]._replace(crops=samples[0].crops)
    plain = tiny.collate(samples, tiny.SPEC)
    shared = tiny.collate(samples, dataclasses.replace(tiny.SPEC, distinct_crops=(6,)))
    assert len(plain.fusion.crops) == 12 and len(shared.fusion.crops) == 6

    def logits(batch):
        return np.asarray(VLM(CONFIG).apply({"params": params}, batch))

    np.testing.assert_allclose(logits(shared), logits(plain), rtol=1e-5, atol=1e-6)
    # Control: the third sample's crops taken for the second's.
    index = shared.fusion.crop_index.at[5].set(3)
    other = shared._replace(fusion=shared.fusion._replace(crop_index=index))
    wrong = ~np.isclose(logits(other), logits(plain), rtol=1e-3, atol=1e-3)
    assert wrong[2].any() and not wrong[:2].any()


def test_greedy_decoding_equals_full_recomputation(params):
    rng = np.random.default_rng(11)
    samples = []
    for crops, turns in ((1, 1), (2, 2), (3, 1)):
        sample = tiny.sample(rng, LAYOUT, crops=crops, turns=turns)
        cut = int(np.flatnonzero(sample.llm.kinds == Kind.QUE)[-1]) + 1
        llm = type(sample.llm)(sample.llm.ids[:cut], sample.llm.kinds[:cut])
        samples.append(sample._replace(llm=llm))
    batch = tiny.collate(samples, tiny.SPEC)
    made = np.asarray(
        greedy(params, batch, config=CONFIG, max_new_tokens=6, eos_id=VOCAB_END)
    )
    for row, sample in enumerate(samples):
        ids, kinds = sample.llm
        for token in made[row]:
            one = tiny.collate(
                [sample._replace(llm=type(sample.llm)(ids, kinds))], tiny.SPEC
            )
            hidden = VLM(CONFIG).apply(
                {"params": params}, one.fusion, one.llm, method=VLM.hidden
            )
            last = VLM(CONFIG).apply(
                {"params": params}, hidden[0, len(ids) - 1], method=VLM.logits
            )
            assert int(jnp.argmax(last)) == token
            if token == VOCAB_END:
                break
            ids = np.append(ids, token).astype(np.int32)
            kinds = np.append(kinds, int(Kind.ANS)).astype(np.int32)


VOCAB_END = 2


def test_a_step_changes_all_trainable_and_no_frozen_parameters(params):
    stage = get_stage("finetune")
    trainable, frozen = paths.partition(params, stage.trains)
    optimizer = make_optimizer(OptimConfig(10, 1e-2, warmup=0.0), trainable)
    train_step, _ = make_steps(stage, CONFIG, optimizer)
    before = paths.content_hash(frozen)
    state, metrics = jax.jit(train_step)(
        initial_state(trainable, optimizer), frozen, tiny.batch(LAYOUT)
    )
    assert np.isfinite(metrics["loss"]) and int(state.step) == 1
    assert paths.content_hash(frozen) == before
    assert set(paths.flatten(state.params)) == set(paths.flatten(trainable))
    old, new = paths.flatten(trainable), paths.flatten(jax.device_get(state.params))
    assert [p for p in old if np.array_equal(old[p], new[p])] == []
    moments = [p for p in paths.flatten(state.opt_state) if "/mu/" in p]
    assert len(moments) == len(old)
    assert not any("llm" in p.split("/") for p in paths.flatten(state.opt_state))


def test_the_frozen_row_of_a_fresh_fusion_table_is_zero():
    fusion = dataclasses.replace(CONFIG.fusion, frozen_id=3)
    config = dataclasses.replace(CONFIG, fusion=fusion)
    table = init_params(get_stage("align"), config, 0)["fusion"]["embed"]
    assert [i for i, row in enumerate(np.asarray(table)) if not row.any()] == [3]


def test_the_frozen_row_of_the_fusion_table_gets_no_gradient(params):
    batch = tiny.batch(LAYOUT)
    asked = np.asarray(batch.fusion.kinds[0]) == Kind.QUE
    word = int(np.asarray(batch.fusion.ids[0])[asked][0])

    def loss(table, frozen_id):
        config = dataclasses.replace(
            CONFIG, fusion=dataclasses.replace(CONFIG.fusion, frozen_id=frozen_id)
        )
        moved = paths.unflatten(paths.flatten(params) | {"fusion/embed": table})
        return jnp.sum(VLM(config).apply({"params": moved}, batch) ** 2)

    table = jnp.asarray(params["fusion"]["embed"])
    assert np.abs(jax.grad(loss)(table, None)[word]).max() > 0
    assert np.abs(jax.grad(loss)(table, word)[word]).max() == 0


def test_grouped_queries_equal_repeated_keys():
    rng = np.random.default_rng(2)
    q = jnp.asarray(rng.normal(size=(2, 5, 4, 8)), jnp.float32)
    k, v = jnp.asarray(rng.normal(size=(2, 2, 2, 5, 8)), jnp.float32)
    mask = causal_mask(jnp.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], bool))
    grouped = attend(q, k, v, mask)
    repeated = attend(q, jnp.repeat(k, 2, axis=1), jnp.repeat(v, 2, axis=1), mask)
    np.testing.assert_allclose(grouped, repeated, atol=1e-6)
    wrong = attend(q, jnp.tile(k, (1, 2, 1, 1)), jnp.tile(v, (1, 2, 1, 1)), mask)
    assert np.abs(np.asarray(grouped - wrong)).max() > 1e-2


def test_the_mask_is_the_picture_of_its_docstring():
    mask = causal_mask(jnp.array([[True, True, True, False]]))[0, 0].astype(int)
    assert mask.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]


def test_rotary_scores_depend_on_distance_only():
    rng = np.random.default_rng(4)
    q, k = jnp.asarray(rng.normal(size=(2, 1, 1, 1, 8)), jnp.float32)

    def score(i, j):
        at = lambda p: jnp.array([[p]])  # noqa: E731
        return float(jnp.sum(rotate(q, at(i), 1e4) * rotate(k, at(j), 1e4)))

    assert score(7, 3) == pytest.approx(score(504, 500), abs=1e-4)
    assert abs(score(7, 3) - score(7, 4)) > 1e-3


def test_align_loss_ignores_what_only_fills_buckets():
    config = tiny.model_config()
    fresh = init_params(get_stage("align"), config, 0)
    batch = tiny.batch(LAYOUT, align=True)
    wide = dataclasses.replace(
        tiny.SPEC, answers=(13,), query_slots=(33,), answer_length=(14,)
    )
    padded = tiny.batch(LAYOUT, spec=wide, align=True)
    model = AlignModel(config)

    @jax.jit
    def terms(params, batch):
        return align_terms(model.apply({"params": params}, batch), batch)

    one, two = terms(fresh, batch), terms(fresh, padded)
    np.testing.assert_allclose(one.loss, two.loss, atol=1e-5)
    np.testing.assert_allclose(one.orthogonality, two.orthogonality, atol=1e-6)
    grad = jax.jit(jax.grad(lambda p: terms(p, padded).loss))(fresh)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grad))


@pytest.mark.parametrize(("slots", "width"), [(5, 12), (40, 12)])
def test_orthogonality_is_that_of_all_pairs_of_slots(slots, width):
    rng = np.random.default_rng(0)
    e = jnp.asarray(rng.normal(size=(slots + 3, width)), jnp.float32)
    mask = jnp.arange(slots + 3) < slots

    def pairs(e):  # as the specification has it
        unit = e[:slots] / jnp.linalg.norm(e[:slots], axis=1, keepdims=True)
        return jnp.mean(jnp.square(unit @ unit.T - jnp.eye(slots)))

    overlap = losses.mean_square_overlap
    ours, gradient = jax.value_and_grad(overlap)(e, mask)
    theirs, expected = jax.value_and_grad(pairs)(e)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    # A length changes nothing, a direction does.
    longer, turned = e.at[0].multiply(1.5), e.at[0, 0].add(1.0)
    assert losses.mean_square_overlap(longer, mask) == pytest.approx(
        float(ours), rel=1e-5
    )
    assert losses.mean_square_overlap(turned, mask) != pytest.approx(
        float(ours), rel=1e-3
    )


def test_outliers_are_zeroed_by_batch_statistics():
    r = jnp.array([[0.0, 1.0, 2.0], [3.0, 4.0, 50.0]])
    zeroed = losses.zero_outliers(r, jnp.array([True, True]))
    values = np.array([0, 1, 2, 3, 4, 50.0])
    inside = np.abs(values - values.mean()) <= values.std(ddof=1)
    np.testing.assert_array_equal(zeroed, np.where(inside, values, 0).reshape(2, 3))
    alone = losses.zero_outliers(r, jnp.array([True, False]))
    np.testing.assert_array_equal(alone[0], [0.0, 1.0, 2.0])


def test_bad_sizes_are_errors():
    with pytest.raises(ValueError, match="vision.patch_size"):
        dataclasses.replace(CONFIG.vision, patch_size=5)
    with pytest.raises(ValueError, match="cannot be merged"):
        dataclasses.replace(CONFIG.vision, image_size=12)
    with pytest.raises(ValueError, match="num_kv_heads"):
        BlockConfig(64, 64, 4, 1, num_kv_heads=3)
    with pytest.raises(ValueError, match="activation"):
        BlockConfig(64, 64, 4, 1, activation="relu6")
    with pytest.raises(ValueError, match="fusion width"):
        dataclasses.replace(
            CONFIG,
            fusion=dataclasses.replace(CONFIG.fusion, blocks=BlockConfig(32, 8, 2, 1)),
        )
