"""Fused attention gives what `attend` gives at every query that something reads.

cuDNN needs a GPU: its call is run with JAX's own "xla" in cuDNN's place, which shows
layout, scale, masks and padding. Splash runs interpreted.
"""

import functools
import importlib.util
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtscale_jax import fused_attention
from vtscale_jax.attention import attend, causal_mask
from vtscale_jax.fused_attention import (
    LONGEST_TILE,
    CausalRows,
    KernelError,
    attend_by,
    by_cudnn,
    by_splash,
    choose,
    on_own_rows,
    tiles,
    visible,
)
from vtscale_jax.parallel import rules
from vtscale_jax.parallel.mesh import AXES, make_mesh
from vtscale_jax.parallel.plans.topologies import topology

WAYS = {
    "cudnn": functools.partial(by_cudnn, implementation="xla"),
    "splash": functools.partial(by_splash, interpret=True),
}


class Case(NamedTuple):
    """An attention of the model, with fewer heads and channels.

    `kept` are the tokens of each row, None where everyone sees everyone; `samples` the
    lengths of those that share a row.
    """

    length: int
    heads: int
    kv_heads: int
    channels: int
    kept: tuple[int, ...] | None
    window: int | None = None
    samples: tuple[tuple[int, ...], ...] | None = None

    @property
    def rows(self) -> int:
        return 2 if self.kept is None else len(self.kept)

    def keep(self) -> np.ndarray:
        """Tokens that something reads, [B, S]."""
        kept = (self.length,) * self.rows if self.kept is None else self.kept
        return np.arange(self.length) < np.array(kept)[:, None]

    def segments(self) -> np.ndarray | None:
        """Numbers of the samples from 1, and 0 for padding, [B, S]."""
        if self.samples is None:
            return None
        found = np.zeros((self.rows, self.length), np.int32)
        for row, lengths in zip(found, self.samples, strict=True):
            numbers = np.repeat(np.arange(len(lengths)) + 1, lengths)
            row[: len(numbers)] = numbers
        return found

    def mask(self) -> jax.Array | None:
        """Who sees whom, for `attend`."""
        if self.kept is None:
            return None
        segments = self.segments()
        segments = None if segments is None else jnp.array(segments)
        return causal_mask(jnp.array(self.keep()), self.window, segments)

    def seen(self, kernel: str) -> CausalRows | None:
        """The same for a kernel."""
        if self.kept is None:
            return None
        segments = self.segments()
        segments = None if segments is None else jnp.array(segments)
        found = visible(kernel, jnp.array(self.keep()), self.window, segments)
        assert isinstance(found, CausalRows)
        return found


CASES = {
    "vision": Case(197, 2, 2, 64, None),
    "vision, whole tiles": Case(128, 2, 2, 64, None),
    "fusion": Case(390, 2, 2, 64, (390, 211, 0)),
    "llm": Case(150, 4, 2, 128, (150, 1, 77)),
    "llm, one key head": Case(130, 3, 1, 64, (130, 90)),
    "llm, window": Case(300, 2, 1, 64, (300, 41), window=37),
    "text tower": Case(17, 2, 2, 64, (17, 5, 0)),
}
PACKED = {
    "packed": Case(280, 4, 2, 64, (280, 31, 0), None, ((100, 130, 50), (30, 1), ())),
    "packed, window": Case(280, 2, 1, 64, (270,), 40, ((100, 130, 40),)),
}
RUNS = [(way, name) for way in WAYS for name in CASES]
RUNS += [("splash", name) for name in PACKED]


@pytest.fixture(autouse=True)
def _several_tiles(monkeypatch):
    """Short rows have several tiles, too."""
    monkeypatch.setattr(fused_attention, "LONGEST_TILE", 256)


def operands(case: Case, dtype=jnp.float32) -> tuple[jax.Array, ...]:
    """q, k, v and the cotangent, which is zero at padding; scores are of order 3."""
    rng = np.random.default_rng(0)
    B, S, H, K, C = case.rows, case.length, case.heads, case.kv_heads, case.channels
    shapes = ((B, S, H, C), (B, K, S, C), (B, K, S, C), (B, S, H, C))
    scales = (3.0, 1.0, 1.0, 1.0)
    q, k, v, towards = (
        (rng.normal(size=shape) * scale).astype(np.float32)
        for shape, scale in zip(shapes, scales, strict=True)
    )
    towards *= case.keep()[:, :, None, None]
    return tuple(jnp.asarray(x, dtype) for x in (q, k, v, towards))


def results(attention, case: Case, dtype=jnp.float32) -> list[np.ndarray]:
    """The output where something reads it, and the gradients of q, k and v."""
    q, k, v, towards = operands(case, dtype)
    y, back = jax.vjp(attention, q, k, v)
    assert y.shape == q.shape and y.dtype == dtype
    kept = jnp.where(case.keep()[:, :, None, None], y, 0)
    found = [np.asarray(x, np.float32) for x in (kept, *back(towards))]
    assert np.isfinite(np.asarray(y, np.float32)).all()  # at padding as well
    assert all(np.isfinite(x).all() for x in found)
    return found


def unlike(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """The largest difference there is."""
    return max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True))


def fused(way: str, case: Case):
    return lambda q, k, v: WAYS[way](q, k, v, case.seen(way), window=case.window)


def plain(case: Case):
    return lambda q, k, v: attend(q, k, v, case.mask())


@pytest.mark.parametrize(("way", "name"), RUNS)
def test_kernels_agree_with_attend(way, name):
    case = (CASES | PACKED)[name]
    assert unlike(results(fused(way, case), case), results(plain(case), case)) < 2e-5


# (case, what is changed in it): each must show.
OTHERS = [
    ("vision", {"kept": (197, 197)}),
    ("llm", {"kept": None}),
    ("llm, window", {"window": 38}),
    ("packed", {"samples": None}),
]


@pytest.mark.parametrize(("name", "change"), OTHERS)
def test_another_rule_is_told_apart(name, change):
    case = (CASES | PACKED)[name]
    other = case._replace(**change)
    for way in WAYS if name in CASES else ["splash"]:
        ours = results(fused(way, case), case)
        assert unlike(ours, results(plain(other), case)) > 0.05


@pytest.mark.parametrize("way", WAYS)
def test_bfloat16(way):
    case = CASES["llm"]
    exact = results(plain(case), case)
    ours = results(fused(way, case), case, jnp.bfloat16)
    theirs = results(plain(case), case, jnp.bfloat16)
    # Rounding moves both from the exact result, the kernel not much further.
    assert 1e-3 < unlike(theirs, exact)
    assert unlike(ours, exact) < 1.5 * unlike(theirs, exact)


def test_padding_moves_nothing():
    case = CASES["fusion"]
    q, k, v, _ = operands(case)
    padding = ~case.keep()
    junk = 1e3 * jnp.asarray(padding[:, :, None, None], jnp.float32)
    for way, attention in WAYS.items():
        seen = case.seen(way)
        first = attention(q, k, v, seen)
        keys = junk.transpose(0, 2, 1, 3)
        second = attention(q + junk, k + keys, v + keys, seen)
        kept = case.keep()
        np.testing.assert_array_equal(first[kept], second[kept])
        assert np.abs(np.asarray(first - second)[padding]).max() > 1


def test_packed_samples_do_not_meet():
    case = PACKED["packed"]
    q, k, v, _ = operands(case)
    start, end = 100, 230  # the second sample of the first row

    def rest(k, v):
        y = WAYS["splash"](q, k, v, case.seen("splash"))
        return jnp.sum(y[0, :start] ** 2) + jnp.sum(y[0, end:] ** 2)

    for gradient in jax.grad(rest, argnums=(0, 1))(k, v):
        assert not gradient[0, :, start:end].any()
        assert gradient[0, :, :start].any() and gradient[0, :, end:].any()


@pytest.mark.parametrize("length", [1, 17, 128, 577, 641, 1100, 1500, 2300, 8192])
def test_tiles(length, monkeypatch):
    monkeypatch.setattr(fused_attention, "LONGEST_TILE", LONGEST_TILE)
    tile, whole = tiles(length)
    assert tile % 128 == 0 and tile <= LONGEST_TILE
    assert whole % tile == 0 and whole >= length
    assert whole - length < 128 * whole // tile  # less than 128 more in each


def test_tiles_of_the_paper(monkeypatch):
    monkeypatch.setattr(fused_attention, "LONGEST_TILE", LONGEST_TILE)
    found = [tiles(length) for length in (100, 577, 1100, 2300)]
    assert found == [(128, 128), (640, 640), (640, 1280), (640, 2560)]


def test_visible():
    keep = jnp.array(CASES["fusion"].keep())
    segments = jnp.array(PACKED["packed"].segments())
    packed = jnp.array(PACKED["packed"].keep())
    assert visible("cudnn", keep) == CausalRows(None)
    assert visible("splash", keep, 5) == CausalRows(None)
    found = visible("splash", packed, None, segments)
    assert isinstance(found, CausalRows)
    np.testing.assert_array_equal(found.segments, segments)
    # cuDNN has no segments.
    for kernel, more in (("xla", (keep, 5)), ("cudnn", (packed, 7, segments))):
        np.testing.assert_array_equal(visible(kernel, *more), causal_mask(*more))


def test_attend_by_runs_what_it_names(monkeypatch):
    case = CASES["fusion"]
    *qkv, _ = operands(case)
    ran = []

    def stand_in(way):
        def attention(*args, **more):
            ran.append((way, more))
            return WAYS[way](*args, **more)

        return attention

    monkeypatch.setattr(fused_attention, "by_cudnn", stand_in("cudnn"))
    monkeypatch.setattr(fused_attention, "by_splash", stand_in("splash"))
    expected = attend(*qkv, case.mask())
    for way in WAYS:
        found = attend_by(way, *qkv, CausalRows())
        np.testing.assert_allclose(found[0], expected[0], atol=2e-5)
        attend_by(way, *qkv, None)
        attend_by(way, *qkv, CausalRows(), window=9)
    assert [window["window"] for _, window in ran] == [None, None, 9] * 2
    assert [way for way, _ in ran] == ["cudnn"] * 3 + ["splash"] * 3


def test_cudnn_is_asked_for_cudnn(monkeypatch):
    case = CASES["vision"]
    *qkv, _ = operands(case)
    asked = []

    def instead(q, k, v, *, implementation, **more):
        asked.append((q.shape, k.shape, implementation, more))
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    attend_by("cudnn", *qkv, None)
    attend_by("cudnn", *qkv, CausalRows(), window=9)
    shape = (2, 256, 2, 64)  # rows, padded places, heads, channels
    (*first, every), (*second, causal) = asked
    assert first == second == [shape, shape, "cudnn"]
    assert every["key_value_seq_lengths"].tolist() == [197, 197]
    assert causal["key_value_seq_lengths"] is None
    assert every["local_window_size"] is None and causal["local_window_size"] == (8, 0)
    assert not every["is_causal"] and causal["is_causal"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("sizes", "rows", "own"),
    [
        ((2, 2, 2), 8, (2, 2)),
        ((1, 8, 1), 8, (1, 4)),
        ((4, 1, 2), 6, (6, 2)),  # rows that cannot be shared out
        ((1, 1, 4), 6, (6, 4)),  # key heads that cannot
        ((1, 1, 1), 6, (6, 4)),
    ],
)
def test_each_device_has_its_own_rows_and_heads(way, sizes, rows, own):
    kept = tuple(range(20, 20 + rows))
    samples = tuple((10, number - 10) for number in kept)
    case = Case(40, 4, 2, 16, kept, samples=samples if way == "splash" else None)
    *qkv, towards = operands(case)
    count = int(np.prod(sizes))
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), jax.devices()[:count])
    shapes = []

    def noted(q, k, v, seen):
        shapes.append((q.shape[0], q.shape[2]))
        assert k.shape[1] == q.shape[2] // 2
        return WAYS[way](q, k, v, seen)

    @jax.jit
    def step(qkv, towards, seen):
        with rules.on_mesh(mesh):
            y, back = jax.vjp(lambda *qkv: on_own_rows(noted, *qkv, seen), *qkv)
            return y, *back(towards)

    seen = case.seen(way)
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    y, *gradients = step(*jax.device_put((tuple(qkv), towards, seen), replicated))
    assert set(shapes) == {own}
    found = [np.where(case.keep()[:, :, None, None], y, 0), *map(np.asarray, gradients)]
    assert unlike(found, results(plain(case), case)) < 2e-5
    # Where rows are shared out, so is the result.
    assert y.sharding.shard_shape(y.shape)[:3:2] == own


HEADS = {"vision": 64, "fusion": 64, "llm": 128}


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_auto_is_attend_until_a_kernel_was_measured(platform):
    for dtype in ("float32", "bfloat16"):
        found = choose("auto", platform=platform, dtype=dtype, head_dims=HEADS)
        assert found == "xla"
        assert choose("xla", platform=platform, dtype=dtype, head_dims={}) == "xla"


def test_auto_takes_a_kernel_where_it_fits(monkeypatch):
    monkeypatch.setitem(fused_attention.AUTO, "gpu", "cudnn")
    fits = {"platform": "gpu", "dtype": "bfloat16", "head_dims": HEADS}
    assert choose("auto", **fits) == "cudnn"
    assert choose("auto", **{**fits, "dtype": "float32"}) == "xla"
    assert choose("auto", **{**fits, "head_dims": {"llm": 256}}) == "xla"
    assert choose("auto", **{**fits, "platform": "cpu"}) == "xla"


def test_a_kernel_asked_for_by_name_is_taken():
    for kernel, platform in (("cudnn", "gpu"), ("splash", "tpu")):
        found = choose(kernel, platform=platform, dtype="bfloat16", head_dims=HEADS)
        assert found == kernel


@pytest.mark.parametrize(
    ("kernel", "platform", "dtype", "head_dims", "why"),
    [
        ("flash", "gpu", "bfloat16", HEADS, "expected auto, xla, cudnn, splash"),
        ("cudnn", "cpu", "bfloat16", HEADS, "runs on gpu only, and this is cpu"),
        ("splash", "gpu", "bfloat16", HEADS, "runs on tpu only, and this is gpu"),
        ("splash", "tpu", "float32", HEADS, "model.dtype is float32"),
        ("cudnn", "gpu", "bfloat16", {"llm": 256}, "of at most 128 .* llm have 256"),
        (
            "cudnn",
            "gpu",
            "bfloat16",
            {"fusion": 36},
            "multiple of 8, .* fusion have 36",
        ),
    ],
)
def test_a_kernel_that_does_not_fit(kernel, platform, dtype, head_dims, why):
    with pytest.raises(KernelError, match=f"model.attention is '{kernel}'.*{why}"):
        choose(kernel, platform=platform, dtype=dtype, head_dims=head_dims)


# (rows, length, heads, key heads, channels, causal, packed): those of the paper, and
# grouped queries and short heads beside them.
ON_TPU = {
    "vision": (8, 577, 16, 16, 64, False, False),
    "fusion": (2, 2032, 16, 16, 64, True, False),
    "llm": (2, 1472, 32, 32, 128, True, False),
    "packed": (2, 1472, 32, 8, 128, True, True),
    "text tower": (4, 512, 8, 8, 64, True, False),
    "embedded": (4, 90, 4, 4, 32, True, False),
}


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu (extra plan-tpu)"
)
@pytest.mark.parametrize("name", ON_TPU)
def test_splash_compiles_for_tpus(name, monkeypatch):
    monkeypatch.setattr(fused_attention, "LONGEST_TILE", LONGEST_TILE)
    rows, length, heads, kv_heads, channels, causal, packed = ON_TPU[name]
    device = topology("v5e-16").devices()[0]
    here = jax.sharding.SingleDeviceSharding(device)

    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=here)

    def temporaries(attention) -> int:
        """Bytes beside the operands and results, forward and backward."""

        def both(q, k, v, towards, seen):
            y, back = jax.vjp(lambda *qkv: attention(*qkv, seen), q, k, v)
            return y, back(towards)

        compiled = jax.jit(both).lower(q, k, k, q, seen).compile()
        stats = compiled.memory_analysis()
        assert stats is not None
        return stats.temp_size_in_bytes

    q = shape(rows, length, heads, channels)
    k = shape(rows, kv_heads, length, channels)
    seen = CausalRows(shape(rows, length, dtype=jnp.int32) if packed else None)
    scores = 4 * rows * heads * length**2
    held = temporaries(by_splash if causal else lambda *qkv: by_splash(*qkv[:3], None))
    if length > 1000:
        assert held < scores / 2
    if name == "llm":  # and that is worth something
        assert temporaries(lambda q, k, v, _: attend(q, k, v, None)) > 2 * scores
