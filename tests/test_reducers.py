"""What holds for every token reducer: exactly n or a refusal, order, no duplicates, and
one image at a time.

The choices of VisPruner and VisionZip are compared with a float64 restatement of their
rules for every n; sizes at which two scores are too near for float32 are counted, not
passed over.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reducer_oracle
from reducer_images import seen_image

from vtscale_jax.eval.baselines.controls import (
    Downsample,
    NoReduction,
    Pool,
    Random,
    cells,
    drawn,
    resize_positions,
)
from vtscale_jax.eval.baselines.named import NAMES, named
from vtscale_jax.eval.baselines.reducers import (
    Plan,
    Reducer,
    ReducerError,
    Seen,
    image_key,
)
from vtscale_jax.eval.baselines.visionzip import VisionZip, zipped
from vtscale_jax.eval.baselines.vispruner import VisPruner, prune

PATCHES = 36
# Differences of scores that float32 cannot be held to.
NEAR = 1e-6


@functools.cache
def applied(name):
    """A reducer compiled for one image."""
    return jax.jit(named(name).apply, static_argnums=1)


def rows_of(vectors, rows):
    """Which row of `rows` each vector is; -1 where it is none of them."""
    same = np.all(np.asarray(vectors)[:, None] == np.asarray(rows)[None], axis=-1)
    return np.where(same.any(1), same.argmax(1), -1)


@pytest.mark.parametrize("name", ["random", "vispruner"])
def test_a_pruner_keeps_n_patches_in_order(name):
    seen = seen_image(1)
    for n in range(1, PATCHES + 1):
        vectors = applied(name)(seen, named(name).settle(PATCHES, n))
        kept = rows_of(vectors, seen.features)
        assert len(kept) == n
        assert kept.min() >= 0 and np.all(np.diff(kept) > 0), (n, kept)


def test_visionzip_keeps_the_class_row_and_n_minus_c():
    seen, reducer = seen_image(1), VisionZip()
    for n in range(1, PATCHES + 2):
        plan = reducer.settle(PATCHES, n)
        vectors = applied("visionzip")(seen, plan)
        kept = rows_of(vectors, seen.hidden)[: plan.dominant]
        assert vectors.shape == (n, 16)
        assert kept[0] == 0 and np.all(np.diff(kept) > 0), (n, kept)
        assert plan.dominant + plan.contextual == n
        assert plan.contextual == min(10, n - 1)


def test_visionzip_merges_every_row_once():
    seen = seen_image(2)
    for n in (2, 11, 20, 36, 37):
        rows = zipped(seen.cls_attention, seen.keys, VisionZip().settle(PATCHES, n))
        everything = np.concatenate([rows.kept, rows.targets, rows.sources])
        assert sorted(everything.tolist()) == list(range(PATCHES + 1))
        assert len(rows.assigned) == len(rows.sources)
        assert set(np.asarray(rows.assigned).tolist()) <= set(range(len(rows.targets)))


def test_visionzip_adds_the_mean_to_the_target():
    """One row besides the targets, by hand; none besides them at n = 1 + P."""
    seen = seen_image(3)
    plan = VisionZip().settle(PATCHES, PATCHES)
    rows = zipped(seen.cls_attention, seen.keys, plan)
    ((source,), (target,)) = rows.sources, rows.assigned
    vectors = np.asarray(applied("visionzip")(seen, plan))
    expected = np.asarray(seen.hidden)[rows.targets]
    expected[target] += np.asarray(seen.hidden)[source]
    np.testing.assert_allclose(vectors[-10:], expected, atol=1e-6)
    whole = applied("visionzip")(seen, VisionZip().settle(PATCHES, PATCHES + 1))
    assert sorted(rows_of(whole, seen.hidden)) == list(range(PATCHES + 1))


@pytest.mark.parametrize("name", NAMES)
def test_a_reducer_refuses_what_it_cannot_give(name):
    most = PATCHES + (name == "visionzip")
    for n in (-1, 0, most + 1, most + 9, 600):
        with pytest.raises(ReducerError, match=f"{name}: n = {n} tokens .* expected"):
            named(name).settle(PATCHES, n)
    assert named(name).settle(PATCHES, PATCHES).n == PATCHES


def test_a_smaller_image_is_square():
    possible = []
    for n in range(1, PATCHES + 1):
        try:
            plan = Downsample().settle(PATCHES, n)
        except ReducerError as error:
            assert f"n = {n} tokens" in str(error)
        else:
            possible.append(n)
            assert (plan.grid or 6) ** 2 == n
    assert possible == [1, 4, 9, 16, 25, 36]
    with pytest.raises(ReducerError, match="nearest is n = 9 or 16"):
        Downsample().settle(PATCHES, 12)
    with pytest.raises(ReducerError, match="gave 36 patches, expected 16"):
        Downsample().apply(seen_image(0), Downsample().settle(PATCHES, 16))
    with pytest.raises(ReducerError, match="expected 36, all patches"):
        NoReduction().settle(PATCHES, 35)


@pytest.mark.parametrize("name", NAMES)
def test_all_patches_are_all_features(name):
    """At n = P nothing is lost, but for VisionZip, which has the class row and merges
    one."""
    seen = seen_image(4)
    vectors = applied(name)(seen, named(name).settle(PATCHES, PATCHES))
    assert np.array_equal(vectors, seen.features) == (name != "visionzip")


def compared(r_or_c, n_of, choose):
    """Sizes at which a choice differs from the oracle's, and those with near ties."""
    wrong, near = [], []
    for seed in range(3):
        seen = seen_image(100 + seed)
        for n in n_of:
            same, gap = choose(seen, n, r_or_c)
            (near if gap < NEAR else wrong).extend([] if same else [(seed, n, gap)])
    return wrong, near


@functools.partial(jax.jit, static_argnums=2)
def pruned(features, attention, plan):
    return prune(features, attention, plan)


def prunes_alike(seen, n, r):
    plan = VisPruner(r).settle(PATCHES, n)
    found = pruned(seen.features, seen.cls_attention, plan)
    kept, important, gap = reducer_oracle.vispruner(
        seen.features, seen.cls_attention, n, r
    )
    return found.kept.tolist() == kept and found.important.tolist() == important, gap


def test_vispruner_restated_for_every_n():
    assert compared(0.5, range(1, PATCHES + 1), prunes_alike) == ([], [])


@pytest.mark.parametrize("r", [0.0, 0.25, 0.75, 1.0])
def test_vispruner_restated_for_other_shares(r):
    assert compared(r, (1, 2, 5, 8, 11, 23, 36), prunes_alike) == ([], [])


@functools.partial(jax.jit, static_argnums=(1, 2))
def zipped_alone(seen, reducer, plan):
    return reducer.apply(seen, plan)


def zips_alike(seen, n, c):
    plan = VisionZip(c).settle(PATCHES, n)
    made = zipped_alone(seen, VisionZip(c), plan)
    out, _, gap = reducer_oracle.visionzip(
        seen.hidden, seen.cls_attention, seen.keys, n - c, c
    )
    return np.allclose(made, out, rtol=1e-5, atol=2e-6), gap


def test_visionzip_restated_for_every_n():
    assert compared(10, range(11, PATCHES + 2), zips_alike) == ([], [])


@pytest.mark.parametrize("c, n_of", [(1, (2, 19, 37)), (3, (4, 5, 20, 36, 37))])
def test_visionzip_restated_for_other_c(c, n_of):
    assert compared(c, n_of, zips_alike) == ([], [])


@pytest.mark.parametrize("n", [1, 8, 13, 66, 575])
def test_vispruner_of_a_whole_image(n):
    """576 patches, also where the published code fails. The seed has no near ties."""
    seen = seen_image(7, num_patches=576, width=32)
    plan = VisPruner().settle(576, n)
    found = pruned(seen.features, seen.cls_attention, plan).kept.tolist()
    kept, _, gap = reducer_oracle.vispruner(seen.features, seen.cls_attention, n, 0.5)
    assert len(set(found)) == n
    assert found == kept or gap < NEAR, gap


@pytest.mark.parametrize("grid", [6, 12, 24])
def test_which_sizes_are_extensions(grid):
    """Every size can be given, and says whether the published code gives it."""
    published = [
        n
        for n in range(1, grid * grid + 1)
        if not VisPruner().settle(grid * grid, n).extension
    ]
    if grid == 24:  # spec, section B
        expected = [n for n in range(1, 576) if n >= 12 and n % 4 < 2]
        assert published == [5, 9, *expected, 576]
    for n in range(1, grid * grid + 2):
        extension = VisionZip().settle(grid * grid, n).extension
        assert bool(extension) == (n <= 10)
        assert not extension or f"visionzip: {n - 1} contextual" in extension
    odd = VisPruner().settle(576, 66).extension
    small = VisPruner().settle(576, 8).extension
    assert "odd pool" in odd and "at most the half" not in odd
    assert "odd pool" not in small and "at most the half" in small


def alternating(values):
    """Attention rows of two heads that average to `values`, the class column first."""
    rows = np.stack([np.array(values) * 1.5, np.array(values) * 0.5])
    return jnp.asarray(np.pad(rows, ((0, 0), (1, 0))), jnp.float32)


def test_ties_go_to_the_earlier_patch():
    """All alike: the first patches are important, and the pool keeps its last half."""
    attention = alternating([0.01] * 16)
    features = jnp.ones((16, 3))
    rows = prune(features, attention, VisPruner().settle(16, 8))
    # The pool is 4 … 15; E is 4 6 … 14, of which 8 > 6 should leave: all 6 do, then of
    # 5 7 9 11 13 15 the first two of E = 5 9 13.
    assert rows.important.tolist() == [0, 1, 2, 3]
    assert rows.kept.tolist() == [0, 1, 2, 3, 7, 11, 13, 15]
    keys = jnp.ones((2, 17, 2))
    zip_rows = zipped(attention, keys, VisionZip(2).settle(16, 5))
    assert zip_rows.kept.tolist() == [0, 1, 2]
    assert set(zip_rows.assigned.tolist()) == {0}


def test_a_worked_example():
    """Four directions in a pool of four: the third is like the fourth, and leaves."""
    features = jnp.eye(4)[jnp.array([0, 1, 2, 3, 3])] + 0.0
    attention = alternating([0.5, 0.4, 0.3, 0.2, 0.1])
    plan = VisPruner(0.4).settle(5, 4)
    assert plan.important == 1 and plan.rounds == ((4, 1),)
    # Pool 1 2 3 4; E = 1 3, O = 2 4: patch 3 has similarity 1 with 4.
    assert prune(features, attention, plan).kept.tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize("name", ["vispruner", "visionzip", "random", "pool"])
@pytest.mark.parametrize("n", [1, 13])
def test_an_image_is_reduced_alone(name, n):
    """In a batch of eight, in another order, and next to others: the same vectors."""
    images = [seen_image(seed) for seed in range(8)]
    plan = named(name).settle(PATCHES, n)
    mapped = jax.jit(jax.vmap(lambda seen: named(name).apply(seen, plan)))

    def reduced(order):
        batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *order)
        return np.asarray(mapped(Seen(*batch)))

    alone = np.stack([applied(name)(image, plan) for image in images])
    np.testing.assert_allclose(reduced(images), alone, atol=1e-6)
    np.testing.assert_allclose(reduced(images[::-1])[::-1], alone, atol=1e-6)
    np.testing.assert_allclose(reduced(images[:3]), alone[:3], atol=1e-6)
    assert np.abs(alone[0] - alone[1]).max() > 0.1


@pytest.mark.parametrize("name", ["vispruner", "visionzip"])
def test_the_order_of_patches_does_not_choose(name):
    """Patches in another order: VisPruner keeps the same ones, and so do the dominant
    tokens of VisionZip, whose targets stand at places."""
    seen = seen_image(5)
    order = np.random.default_rng(0).permutation(PATCHES)
    rows = np.concatenate([[0], 1 + order])
    turned = Seen(
        seen.features[order],
        seen.hidden[rows],
        seen.cls_attention[:, rows],
        seen.keys[:, rows],
        seen.key,
    )
    for n in (1, 8, 12, 20, 35):
        plan = named(name).settle(PATCHES, n)
        count = n if name == "vispruner" else plan.dominant
        one, other = (
            rows_of(applied(name)(image, plan)[:count], seen.hidden).tolist()
            for image in (seen, turned)
        )
        assert sorted(one) == sorted(other)
        if n == 20:
            assert one != other


def test_copies_leave_first():
    """A pool in which each patch of E has its copy in O loses these before any other;
    with all of one kind, exactly n are left all the same."""
    seen = seen_image(6)
    by_attention = np.argsort(-np.asarray(seen.cls_attention)[:, 1:].mean(0))
    features = np.asarray(seen.features).copy()
    pool = by_attention[15:]  # with n = 30, r = 0.5; 21 of which 6 leave
    features[pool[[0, 4, 8, 12, 16, 20]]] = features[pool[[1, 5, 9, 13, 17, 19]]]
    rows = prune(jnp.asarray(features), seen.cls_attention, VisPruner().settle(36, 30))
    gone = set(range(36)) - set(rows.kept.tolist())
    assert gone == set(pool[[0, 4, 8, 12, 16, 20]].tolist())
    same = jnp.ones_like(seen.features)
    for n in (1, 2, 9, 24):
        kept = prune(same, seen.cls_attention, VisPruner().settle(36, n)).kept
        assert len(set(kept.tolist())) == n


def test_random_belongs_to_the_image():
    plan = Random().settle(PATCHES, 9)
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    other = image.copy()
    other[3, 3, 2] += 1
    keys = [
        image_key(image),
        image_key(np.asfortranarray(image)),
        image_key(other),
        image_key(image.reshape(2, 8, 3)),
        image_key(image, seed=1),
    ]
    sets = [tuple(drawn(jnp.asarray(key), plan).tolist()) for key in keys]
    assert sets[0] == sets[1]
    assert len(set(sets[1:])) == 4
    # Fixed for good: another draw would make scores of different versions differ.
    assert keys[0].tolist() == [318957977, 1982894391]
    assert sets[0] == (3, 11, 12, 13, 17, 19, 26, 28, 32)
    larger = drawn(jnp.asarray(keys[0]), Random().settle(PATCHES, 20)).tolist()
    assert set(sets[0]) < set(larger)


def test_random_draws_each_patch_alike():
    plan = Plan("random", 9, 3)
    keys = jnp.asarray(
        [image_key(np.full((1, 1, 3), i % 250, np.uint8), seed=i) for i in range(900)]
    )
    found = np.asarray(jax.vmap(lambda key: drawn(key, plan))(keys))
    counts = np.bincount(found.ravel(), minlength=9)
    assert np.all(np.abs(counts - 300) < 70), counts  # 5 standard deviations


@pytest.mark.parametrize("grid", [1, 2, 3, 5, 6, 12, 24])
def test_cells_cover_the_image_once(grid):
    for n in range(1, grid * grid + 1):
        cell = cells(grid, n).reshape(grid, grid)
        assert sorted(set(cell.ravel().tolist())) == list(range(n))
        for i in range(n):
            rows, columns = np.nonzero(cell == i)
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert len(rows) == height * width  # a rectangle
        # In raster order of their first patches.
        firsts = [int(np.flatnonzero(cell.ravel() == i)[0]) for i in range(n)]
        assert firsts == sorted(firsts)


def test_cells_are_near_equal():
    """At most four times as large as the smallest (whole patches), often alike."""
    for n in range(1, 577):
        sizes = np.bincount(cells(24, n))
        assert sizes.max() <= 4 * sizes.min(), (n, sizes)
    assert set(np.bincount(cells(24, 64)).tolist()) == {9}
    assert cells(4, 3).tolist() == [0, 0, 1, 1] * 3 + [2] * 4


def test_pool_is_the_mean():
    seen = seen_image(8)
    for n in (1, 2, 5, 9, 17, 36):
        vectors = np.asarray(applied("pool")(seen, Pool().settle(PATCHES, n)))
        cell = cells(6, n)
        sizes = np.bincount(cell)[:, None]
        total = np.asarray(seen.features, np.float64).sum(0)
        np.testing.assert_allclose((vectors * sizes).sum(0), total, atol=1e-4)
        mean = np.asarray(seen.features)[cell == n - 1].mean(0)
        np.testing.assert_allclose(vectors[-1], mean, atol=1e-6)
    blocks = np.asarray(seen.features).reshape(3, 2, 3, 2, 16).mean((1, 3))
    nine = applied("pool")(seen, Pool().settle(PATCHES, 9))
    np.testing.assert_allclose(nine, blocks.reshape(9, 16), atol=1e-6)


def test_positions_of_a_smaller_image():
    """A table that is linear in the place stays so; its class row stays itself."""
    y, x = np.mgrid[0:12, 0:12] + 0.5
    table = np.stack([y, x, np.full_like(x, 7.0)], -1).reshape(144, 3) / 12
    rows = jnp.asarray(np.concatenate([np.full((1, 3), -5.0), table]), jnp.float32)
    small = np.asarray(resize_positions(rows, 4))
    assert small[0].tolist() == [-5.0] * 3
    centres = (np.arange(4) + 0.5) / 4
    np.testing.assert_allclose(small[1:, 0], np.repeat(centres, 4), atol=1e-3)
    np.testing.assert_allclose(small[1:, 1], np.tile(centres, 4), atol=1e-3)
    np.testing.assert_allclose(small[1:, 2], 7 / 12, atol=1e-6)
    assert resize_positions(rows, 12) is rows
    with pytest.raises(ReducerError, match="has 11 patches, expected a square"):
        resize_positions(rows[:12], 2)


def test_dtypes_stay_those_of_the_features():
    seen = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), seen_image(9)[:4])
    seen = Seen(*seen, key=seen_image(9).key)
    for name in ("vispruner", "visionzip", "random", "pool"):
        for n in (1, 20):
            vectors = applied(name)(seen, named(name).settle(PATCHES, n))
            assert vectors.dtype == jnp.bfloat16, name


def test_features_that_are_not_numbers_still_give_n():
    """A row of zeros has no direction (0/0): still n patches, each once."""
    seen = seen_image(10)
    features = seen.features.at[jnp.array([3, 17])].set(0.0)
    for n in (1, 8, 17, 30, 36):
        kept = pruned(features, seen.cls_attention, VisPruner().settle(36, n)).kept
        assert len(set(kept.tolist())) == n


def test_names_and_options():
    assert [named(name).name for name in NAMES] == list(NAMES)
    assert all(isinstance(named(name), Reducer) for name in NAMES)
    assert named("vispruner", important=0.75).name == "vispruner-r0.75"
    assert named("visionzip", contextual=20).name == "visionzip-c20"
    assert named("pool", important=0.75) == named("pool")
    assert hash(named("vispruner")) == hash(VisPruner(0.5))
    with pytest.raises(ReducerError, match="got 'pooling', expected one of none, down"):
        named("pooling")
    with pytest.raises(ReducerError, match=r"important \(r\) is 1.5"):
        named("vispruner", important=1.5)
    with pytest.raises(ReducerError, match=r"contextual \(c\) is 0"):
        named("visionzip", contextual=0)
    with pytest.raises(ReducerError, match="tower has 35 patches, expected a square"):
        named("pool").settle(35, 4)
