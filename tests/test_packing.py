"""Samples that share rows of the language model: nothing of what is trained changes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import manifest, rows, small_config

from vtscale_jax import settings
from vtscale_jax.assemble import assemble, open_source
from vtscale_jax.attention import causal_mask
from vtscale_jax.collate import collate
from vtscale_jax.encoding import empty_sample, encode
from vtscale_jax.losses import answer_loss
from vtscale_jax.packing import first_fit, pack
from vtscale_jax.train import train
from vtscale_jax.types import Kind
from vtscale_jax.vlm import VLM

BATCH = 12


@pytest.fixture(scope="module")
def made():
    """A model, its parameters, and twelve samples of one to four turns."""
    config = small_config(
        4, data__questions_per_page=1, data__batch_size=BATCH, data__num_records=64
    )
    model = settings.model_config(config, "float32")
    parts = assemble(config, model.vision)
    source = open_source(config, "train")
    layout = parts.layout(4)
    records = [source[i] for i in range(BATCH)]
    long = [record.turns for record in (source[i] for i in range(20, 40))]
    # Every third sample has three turns: lengths differ.
    records = [
        record._replace(turns=(*record.turns, *long[2 * i], *long[2 * i + 1]))
        if i % 3 == 0
        else record
        for i, record in enumerate(records)
    ]
    samples = [encode(record, parts.encoding, layout) for record in records]
    plain = parts.buckets(records, parts.encoding, 4, BATCH)
    packed = parts.buckets(records, parts.encoding, 4, BATCH, packed=True)
    loose = collate(samples, plain.largest())
    params = VLM(model).init(jax.random.key(0), jax.tree.map(jnp.asarray, loose))[
        "params"
    ]
    # Nothing is as it was drawn: a zero would hide what is read wrongly.
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    params = jax.tree.map(
        lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape), params
    )
    return model, params, samples, plain.largest(), packed, parts


def loss_of(model, params, batch):
    batch = jax.tree.map(jnp.asarray, batch)
    logits = VLM(model).apply({"params": params}, batch)
    return answer_loss(logits, batch.llm.loss_targets, batch.llm.loss_mask)


def test_first_fit():
    needs = np.array([[4, 1], [2, 1], [5, 1], [3, 1]])
    assert first_fit(needs, (7, 2)).tolist() == [1, 0, 0, 1]
    # Room for tokens is not enough: each row has one loss position.
    assert first_fit(needs, (7, 1)).tolist() == [1, 3, 0, 2]
    assert first_fit(needs, (14, 4)).tolist() == [0, 0, 0, 0]


def test_rows_never_overflow():
    rng = np.random.default_rng(0)
    for _ in range(200):
        room = (int(rng.integers(8, 40)), int(rng.integers(4, 20)))
        number = int(rng.integers(1, 30))
        needs = np.stack([rng.integers(0, limit + 1, number) for limit in room], 1)
        found = first_fit(needs, room)
        for row in range(found.max() + 1):
            assert np.all(needs[found == row].sum(axis=0) <= room)
            assert np.any(found == row)


def test_mask_of_segments():
    keep = jnp.array([[True, True, True, True, False]])
    segments = jnp.array([[1, 1, 2, 2, 0]])
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0],  # a padding query; nothing reads its output
    ]
    assert causal_mask(keep, None, segments)[0, 0].astype(int).tolist() == expected
    assert causal_mask(keep)[0, 0, 2].astype(int).tolist() == [1, 1, 1, 0, 0]


def test_packing_moves_samples_and_nothing_else(made):
    model, params, samples, plain, spec, parts = made
    loose, packed = collate(samples, plain), collate(samples, spec)
    assert packed.llm.ids.shape[0] < loose.llm.ids.shape[0] == BATCH
    assert packed.llm.packing.segments.max() > 1
    for mine, theirs in zip(packed.fusion, loose.fusion, strict=True):
        assert np.array_equal(mine, theirs)
    packing = packed.llm.packing
    for b, sample in enumerate(samples):
        row = packing.sample_row[b]
        own = packed.llm.slots[b][packed.llm.slots[b] < packed.llm.ids.shape[1]]
        segment = packing.segments[row, own[0]]
        here = packing.segments[row] == segment
        assert np.array_equal(packed.llm.ids[row, here], sample.llm.ids)
        assert np.array_equal(packed.llm.kinds[row, here], sample.llm.kinds)
        assert packing.positions[row, here].tolist() == [*range(len(sample.llm.ids))]
        assert np.all(packed.llm.kinds[row, own] & Kind.QED)
    where, what, mask = packed.llm[3:6]
    assert mask.sum() == loose.llm.loss_mask.sum()
    picked = np.take_along_axis(packed.llm.ids, where + 1, axis=1)
    assert np.array_equal(picked[mask], what[mask])
    assert np.all((packed.llm.kinds == Kind.PAD) == (packing.segments == 0))


def test_loss_and_gradient_are_those_of_separate_rows(made):
    model, params, samples, plain, spec, parts = made
    loose, packed = collate(samples, plain), collate(samples, spec)

    @jax.jit
    def both(params, batch):
        return jax.value_and_grad(lambda p: loss_of(model, p, batch).loss)(params)

    (one, grads), (two, packed_grads) = both(params, loose), both(params, packed)
    np.testing.assert_allclose(one, two, atol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), grads, packed_grads
    )
    # Controls: without segments a sample sees its neighbours; positions and rows that
    # are wrong show too.
    packing = packed.llm.packing
    rolled = np.roll(packing.sample_row, 1)
    for wrong in (
        packing._replace(segments=(packing.segments > 0).astype(np.int32)),
        packing._replace(positions=2 * packing.positions),
        packing._replace(sample_row=rolled),
    ):
        changed = packed._replace(llm=packed.llm._replace(packing=wrong))
        assert abs(float(both(params, changed)[0] - one)) > 1e-4


def test_a_skipped_sample_takes_no_place(made):
    model, params, samples, plain, spec, parts = made
    gone = [*samples[:3], empty_sample("gone", parts.encoding), *samples[4:]]
    one = loss_of(model, params, collate(gone, spec))
    two = loss_of(model, params, collate(gone, plain))
    rest = [sample for i, sample in enumerate(gone) if i != 3]
    three = loss_of(model, params, collate(rest, replace(plain, batch_size=BATCH)))
    np.testing.assert_allclose(one.loss, three.loss, atol=1e-5)
    np.testing.assert_allclose(two.loss, three.loss, atol=1e-5)
    assert one.count == two.count == three.count
    whole = loss_of(model, params, collate(samples, spec))
    assert abs(float(whole.loss - one.loss)) > 1e-5


def test_the_largest_number_of_rows_holds_any_batch(made):
    model, params, samples, plain, spec, parts = made
    longest = max(samples, key=lambda sample: len(sample.llm.ids))
    batch = collate([longest] * BATCH, replace(spec, crops=(200,)))
    assert len(batch.llm.ids) <= BATCH
    with pytest.raises(StopIteration):
        pack(collate([longest] * BATCH, replace(plain, crops=(200,))).llm, (1,))


@pytest.mark.long  # its gradient is compared above
def test_a_packed_run_learns_the_same(tmp_path):
    """Six steps of the real command, packed and not."""
    more = {"data__questions_per_page": 1, "data__batch_size": 16, "optim__steps": 4}
    for name, packed in (("loose", False), ("packed", True)):
        train(small_config(4, data__pack=packed, **more), tmp_path / name)
    losses = [
        [row["loss"] for row in rows(tmp_path / name)] for name in ("loose", "packed")
    ]
    np.testing.assert_allclose(*losses, atol=2e-4)
    assert manifest(tmp_path / "packed")["finished"]
