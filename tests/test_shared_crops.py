"""Batches in which samples about one image share its crops."""

from dataclasses import replace

import numpy as np
import pytest
from test_loader import ADAPT, LAYOUT, SPEC, VIEW, assert_equal, leaves, sample

from vtscale_jax.collate import blank_batch, collate
from vtscale_jax.encoding import Seen, encode


def test_samples_may_share_their_crops():
    """Crops that are one array are there once; without sizes for that, each has its
    own. What a place shows is the same."""
    first, other = (encode(sample(n), ADAPT, LAYOUT) for n in (5, 0))
    # The same image again: another question, the same array of crops.
    again = encode(sample(2), ADAPT, LAYOUT, lambda *_: Seen(first.crops, VIEW, VIEW))
    equal = other._replace(id="equal", crops=other.crops.copy())
    blind = encode(sample(7, image=False), ADAPT, LAYOUT)
    samples = [first, other, blind, again, equal]
    plain = collate(samples, replace(SPEC, batch_size=5))
    spec = replace(SPEC, batch_size=5, distinct_crops=(4, 7, 12))
    shared = collate(samples, spec)
    assert again.crops is first.crops
    assert len(plain.fusion.crops) == 12 and plain.fusion.crop_index is None
    assert len(shared.fusion.crops) == 7  # 3 of two samples, 2 and 2
    index = shared.fusion.crop_index
    assert index.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 0, 0]
    used = shared.fusion.crop_row < 5
    assert used.sum() == 10
    assert np.array_equal(shared.fusion.crops[index][used], plain.fusion.crops[used])
    rest = shared._replace(
        fusion=shared.fusion._replace(crops=plain.fusion.crops, crop_index=None)
    )
    assert_equal(rest, plain)
    blank = blank_batch(spec, "adapt", VIEW)
    shapes = {name: leaf.shape for name, leaf in leaves(blank).items()}
    forced = collate(samples, spec.largest())
    assert shapes == {name: leaf.shape for name, leaf in leaves(forced).items()}
    assert "U 4|7|12" in spec.describe("adapt")


def test_shared_crops_that_do_not_fit():
    samples = [encode(sample(n), ADAPT, LAYOUT) for n in (0, 5)]
    few = replace(SPEC, distinct_crops=(4,))
    with pytest.raises(ValueError, match="distinct_crops, but 2 .* 'sample-5' needs 3"):
        collate(samples, few)
    with pytest.raises(ValueError, match="one process collates whole"):
        collate(samples, replace(SPEC, distinct_crops=(6,)), rows=(0, 1))
