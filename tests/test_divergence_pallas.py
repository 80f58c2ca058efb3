"""The fused kernel: interpreted against enumeration, and compiled for what is not here.

Pairs of one batch have different lengths, zero vectors in the middle and identical
branches. A cosine is exact to about 1e-7 of 1 in float32, so beside 1e-5 of the value
1e-6 of a cosine are allowed: a small one is what is left of large products.
"""

import functools
import math
import re

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from vtscale_jax.divergence.kernels import pallas_gpu, pallas_tpu
from vtscale_jax.divergence.kernels.pallas import PallasError, cross_rows
from vtscale_jax.divergence.kernels.rows import Branches, CrossRows
from vtscale_jax.parallel.plans.topologies import TopologyError, topology

BACKENDS = ("tpu", "gpu")
DTYPES = (jnp.float32, jnp.bfloat16)


def inverse_norms(states):
    norms = np.linalg.norm(np.asarray(states, np.float64), axis=-1)
    return np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)


def branches(n, d, dtype=jnp.float32, seed=0):
    """Three pairs: a whole one, a shorter one with holes, one of equal branches."""
    rng = np.random.default_rng(seed)
    # A common part, so that cosines are of all sizes.
    a, b = rng.normal(size=(2, 3, n, d)) + 0.5 * rng.normal(size=(3, 1, d))
    length = max(1, n - n // 3)
    a[1, length:], b[1, length:] = 0, 0
    a[1, length // 2], b[1, length // 3] = 0, 0
    b[2] = a[2]
    return scaled(jnp.asarray(a, dtype), jnp.asarray(b, dtype))


def scaled(a, b):
    norms = (jnp.asarray(inverse_norms(x), jnp.float32) for x in (a, b))
    return Branches(a, b, *norms)


def shapes(shape, dtype, **placed):
    states = jax.ShapeDtypeStruct(shape, dtype, **placed)
    norms = jax.ShapeDtypeStruct(shape[:2], jnp.float32, **placed)
    return Branches(states, states, norms, norms)


def enumerated(of: Branches, reduction, *, itself=False):
    """Every pair of positions, one after another, in float64; with `itself` j = i too,
    which is wrong."""
    a, b = (np.asarray(x, np.float64) for x in of[:2])
    unit_a, unit_b = (x * inverse_norms(x)[..., None] for x in (a, b))
    batch, n, _ = a.shape
    rows = np.zeros((3, batch, n))
    join = {"sum": lambda x, y: x + y, "max": max}[reduction]
    for p, i in np.ndindex(batch, n):
        for j in range(i + itself):
            a_i, b_i = unit_a[p, i], unit_b[p, i]
            a_j, b_j = unit_a[p, j], unit_b[p, j]
            kinds = (0, a_i, a_j), (1, b_i, b_j), (2, a_i, b_j), (2, b_i, a_j)
            for kind, x, y in kinds:
                rows[kind, p, i] = join(rows[kind, p, i], max(x @ y, 0.0))
    return rows


def interpreted(of: Branches, reduction, backend, tile=None):
    kernel = functools.partial(
        cross_rows, reduction=reduction, tile=tile, backend=backend, interpret=True
    )
    rows = jax.jit(kernel)(of)
    assert isinstance(rows, CrossRows)
    assert all(row.dtype == jnp.float32 for row in rows)
    return np.stack(rows)


def close(rows, expected):
    return np.allclose(rows, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=("f32", "bf16"))
@pytest.mark.parametrize(
    "n, d, tile, reduction",
    [
        (1, 3, 8, "sum"),
        (2, 64, 8, "max"),
        (7, 130, 8, "sum"),
        (8, 3, 8, "max"),
        (15, 64, 16, "sum"),
        (17, 130, 16, "max"),
        (35, 64, 16, "sum"),
        (35, 3, 16, "max"),
        (33, 130, 32, "sum"),
    ],
)
def test_equals_enumeration(backend, dtype, n, d, tile, reduction):
    of = branches(n, d, dtype)
    rows = interpreted(of, reduction, backend, tile)
    expected = enumerated(of, reduction)
    assert close(rows, expected)
    assert rows.shape == (3, 3, n)
    assert not rows[:, :, 0].any()
    # Had the diagonal been taken in, this is what would have come out.
    assert not close(rows, enumerated(of, reduction, itself=True))
    # Identical branches: each cosine of ab is there twice.
    aa, bb, ab = rows[:, 2]
    times = {"sum": 2, "max": 1}[reduction]
    assert np.array_equal(aa, bb) and close(ab, times * aa)
    # Nothing where the state is zero.
    hole = (of.inv_a[1] == 0) & (of.inv_b[1] == 0)
    assert not rows[:, 1, hole].any()
    assert not rows[0, 1, of.inv_a[1] == 0].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_enumeration_with_tiles_of_its_own_choice(backend):
    of = branches(9, 5)
    assert close(interpreted(of, "sum", backend), enumerated(of, "sum"))


def test_several_steps_over_d_on_tpu(monkeypatch):
    # The GPU's steps are of 32 and 64 numbers: those of d = 130 above are several.
    monkeypatch.setattr(pallas_tpu, "BLOCK_BYTES", 1)
    assert pallas_tpu.chunk_for(130, 8, jnp.float32) == 128
    of = branches(11, 130)
    assert close(interpreted(of, "max", "tpu", 8), enumerated(of, "max"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["sum", "max"])
def test_a_changed_state_shows_from_there_on(backend, reduction):
    of = branches(21, 3)
    before = interpreted(of, reduction, backend, 8)
    for k in (8, 12):  # the first of a tile, and one within
        # Nearly one that comes later, so that maxima see it too.
        a = of.a.at[0, k].set(of.a[0, 20] * 2 + 1e-3)
        changed = scaled(a, of.b)
        after = interpreted(changed, reduction, backend, 8)
        assert np.array_equal(before[:, :, :k], after[:, :, :k])
        assert not close(after[0, 0, k], before[0, 0, k])
        assert not close(after[0, 0, 20], before[0, 0, 20])
        if reduction == "sum":  # a larger cosine may hide it from the maximum
            assert not close(after[2, 0, 20], before[2, 0, 20])
        assert np.array_equal(before[1], after[1])  # bb sees nothing of a
        assert np.array_equal(before[:, 1:], after[:, 1:])  # nor do other pairs
        assert close(after, enumerated(changed, reduction))


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_and_small_states(backend):
    # Cosines do not change with the lengths of vectors.
    of = branches(9, 64)
    sizes = jnp.asarray([1e-6, 1, 1e6])[:, None, None]
    rows = interpreted(scaled(of.a * sizes, of.b * sizes), "sum", backend, 8)
    assert close(rows, enumerated(of, "sum"))


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_nothing_gives_nothing(shape):
    states = jnp.zeros(shape)
    of = Branches(states, states, jnp.zeros(shape[:2]), jnp.zeros(shape[:2]))
    rows = cross_rows(of, reduction="sum", backend="tpu", interpret=True)
    assert rows.ab.shape == shape[:2] and not rows.ab.any()


def largest(text):
    """Elements of the largest array of a lowered program."""
    shapes = re.findall(r"tensor<((?:\d+x)+)[a-z]", text)
    return max(math.prod(map(int, shape.split("x")[:-1])) for shape in shapes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_matrix_of_cosines_never_exists(backend):
    n, d = 512, 16  # 16 tiles, so that n² is more than what d is filled up to
    of = branches(n, d)
    kernel = functools.partial(
        cross_rows, reduction="sum", tile=32, backend=backend, interpret=True
    )
    one = Branches(*(x[:1] for x in of))
    assert largest(jax.jit(kernel).lower(one).as_text()) < n * n
    gram = jax.jit(lambda of: jnp.sum(jnp.maximum(of.a[0] @ of.b[0].T, 0)))
    assert largest(gram.lower(one).as_text()) >= n * n


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=("f32", "bf16"))
def test_the_program(backend, dtype):
    # Tiles above the diagonal are not computed, and no float32 is rounded: neither
    # shows in what a CPU gives.
    n, d, tile = 1024, 300, 128
    form = {"tpu": pallas_tpu, "gpu": pallas_gpu}[backend]
    chunk = form.chunk_for(d, tile, dtype)
    kernel = functools.partial(cross_rows, reduction="sum", tile=tile, backend=backend)
    found = list(equations(jax.make_jaxpr(kernel)(shapes((3, n, d), dtype)).jaxpr))
    [call] = (of for of in found if of.primitive.name == "pallas_call")
    tiles = 8 * 9 // 2
    expected = (3, tiles, math.ceil(d / chunk)) if backend == "tpu" else (tiles, 4, 3)
    assert call.params["grid_mapping"].grid == expected
    products = [of.params for of in found if of.primitive.name == "dot_general"]
    assert len(products) == (4 if backend == "tpu" else 1)
    highest = (jax.lax.Precision.HIGHEST,) * 2
    for product in products:
        assert product["preferred_element_type"] == jnp.float32
        assert (product["precision"] == highest) == (dtype == jnp.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=("f32", "bf16"))
@pytest.mark.parametrize("form", [pallas_tpu, pallas_gpu], ids=BACKENDS)
def test_tiles_fit(form, dtype):
    for n in (1, 16, 100, 128, 129, 1024, 8192):
        tile = form.tile_for(n, dtype)
        assert form.SMALLEST_TILE <= tile <= form.LARGEST_TILE
        assert -n % tile < max(n, form.SMALLEST_TILE)  # under half of it in vain
        for d in (1, 64, 130, 576, 4096, 8192):
            chunk = form.chunk_for(d, tile, dtype)
            assert -d % chunk < max(d, 128)
            if form is pallas_tpu:
                assert chunk % 128 == 0
                assert tile * chunk * jnp.dtype(dtype).itemsize <= form.BLOCK_BYTES
            else:
                assert chunk.bit_count() == 1 and chunk >= form.SMALLEST_CHUNK


def refused(match, of=None, **settings):
    settings = {"reduction": "sum", "backend": "tpu", "interpret": True, **settings}
    with pytest.raises(PallasError, match=match):
        cross_rows(branches(4, 3) if of is None else of, **settings)


def test_errors():
    of = branches(4, 3)
    refused("tile is 24, expected a power of two from 8 to 512", tile=24)
    refused("from 128 to 512", tile=64, interpret=False)
    refused("from 16 to 128", tile=8, interpret=False, backend="gpu")
    refused("tile is 256", tile=256, backend="gpu")
    refused("no fused program for 'cpu'.*interpret=True", backend=None)
    a, b = of[:2]
    half = scaled(a.astype(jnp.float16), b.astype(jnp.float16))
    refused("float16 and float16.*range", half)
    refused("float32 and bfloat16", of._replace(b=b.astype(jnp.bfloat16)))
    refused(r"\(3, 4, 3\) and \(3, 2, 3\).*zeros", of._replace(b=b[:, :2]))
    refused(r"norms are \(3, 4\) and \(3, 2\)", of._replace(inv_b=of.inv_b[:, :2]))


def compiled(name, backend, shape, dtype, reduction):
    """The kernel as a program for one device of a machine that is not here."""
    machine = topology(name)
    try:
        place = SingleDeviceSharding(machine.devices()[0])
    except TopologyError as error:
        pytest.skip(str(error))
    kernel = functools.partial(cross_rows, reduction=reduction, backend=backend)
    lowered = jax.jit(kernel).lower(shapes(shape, dtype, sharding=place))
    return lowered.compile(machine.compiler_options or None)


SHAPES = [(1, 1, 3), (2, 100, 130), (8, 1024, 4096), (1, 8192, 8192)]


@pytest.mark.parametrize("name", ["v4-16", "v5e-16", "v5p-16", "v6e-16"])
@pytest.mark.parametrize("dtype", DTYPES, ids=("f32", "bf16"))
@pytest.mark.parametrize("reduction", ["sum", "max"])
def test_compiles_for_tpus(name, dtype, reduction):
    for batch, n, d in SHAPES:
        program = compiled(name, "tpu", (batch, n, d), dtype, reduction)
        assert 'custom_call_target="tpu_custom_call"' in program.as_text()
        # Inputs filled up to whole tiles where they are not, and nothing of n².
        filled = 2 * batch * (n + 511) * (d + 511) * jnp.dtype(dtype).itemsize
        whole = n % 512 == d % 512 == 0
        stats = program.memory_analysis()
        assert stats.temp_size_in_bytes < (2**20 if whole else 2 * filled)


def test_a_tpu_program_too_large_is_refused(monkeypatch):
    # What the test above would see if vector memory were not enough.
    monkeypatch.setattr(pallas_tpu, "BLOCK_BYTES", 4 * 2**20)
    with pytest.raises(jax.errors.JaxRuntimeError, match="(?i)vmem"):
        compiled("v5e-16", "tpu", (1, 8192, 8192), jnp.bfloat16, "sum")


@pytest.mark.parametrize("name", ["a100-40gb:1", "h100:1"])
@pytest.mark.parametrize("dtype", DTYPES, ids=("f32", "bf16"))
@pytest.mark.parametrize("reduction", ["sum", "max"])
def test_compiles_for_gpus(name, dtype, reduction):
    for batch, n, d in SHAPES:
        program = compiled(name, "gpu", (batch, n, d), dtype, reduction)
        assert 'custom_call_target="__gpu$xla.gpu.triton"' in program.as_text()
        # Both branches in one array, and the row sums of tiles.
        tile = pallas_gpu.tile_for(n, dtype)
        n, d = n + -n % tile, d + -d % 64
        states = 2 * batch * n * d * jnp.dtype(dtype).itemsize
        sums = 4 * 4 * batch * n * n // tile
        # Twice where the two have to be filled up first.
        stats = program.memory_analysis()
        assert stats.temp_size_in_bytes < 2 * states + sums + 2**20


def test_a_gpu_program_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(pallas_gpu, "chunk_for", lambda d, tile, dtype: 1024)
    with pytest.raises(jax.errors.JaxRuntimeError, match="(?i)shared memory"):
        compiled("a100-40gb:1", "gpu", (1, 1024, 1024), jnp.bfloat16, "sum")
