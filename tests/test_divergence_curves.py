"""Curves of pairs: against enumeration written out here, and by what must hold."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtscale_jax.divergence.curves import (
    REDUCTIONS,
    BranchError,
    Curves,
    choose,
    pair_curves,
    traced_curves,
)
from vtscale_jax.divergence.histograms import histograms
from vtscale_jax.divergence.kernels.tiled import cross_rows
from vtscale_jax.divergence.null import exchange, swaps
from vtscale_jax.divergence.theory import expected_positive_cosine

PSI = ("psi_equal", "psi_cross_aa", "psi_cross_bb", "psi_cross_ab")


def branches(B: int, n: int, d: int, seed: int = 0, shift: float = 0.3):
    """States of two branches with something in common, as those of real models."""
    rng = np.random.default_rng(seed)
    common = shift * rng.normal(size=d)
    a, b = rng.normal(size=(2, B, n, d)) + common
    return a.astype(np.float32), b.astype(np.float32)


def brute(a, b, lengths, reduction):
    """The definitions of spec math.md §1–2 and §6, in loops over single numbers."""
    B, n, _ = a.shape
    found = {name: np.full((B, n), np.nan) for name in Curves._fields[:-1]}

    def cos(x, y):
        size = math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))
        return float(x @ y) / size if size else 0.0

    def reduced(values):
        if reduction != "signed":
            values = [max(0.0, value) for value in values]
        return max(values) if reduction == "max" else sum(values) / len(values)

    for pair in range(B):
        x, y = a[pair].astype(np.float64), b[pair].astype(np.float64)
        for m in range(1, lengths[pair] + 1):
            delta = x[:m] - y[:m]
            at = (pair, m - 1)
            found["D"][at] = np.linalg.norm(delta.sum(axis=0))
            found["psi_equal"][at] = reduced([cos(x[i], y[i]) for i in range(m)])
            other = [(i, j) for i in range(m) for j in range(m) if i != j]
            if not other:
                continue
            for name, u, v in (("aa", x, x), ("bb", y, y), ("ab", x, y)):
                values = [cos(u[i], v[j]) for i, j in other]
                found[f"psi_cross_{name}"][at] = reduced(values)
            angles = [cos(delta[i], delta[j]) for i, j in other]
            found["psi_delta"][at] = sum(angles) / len(angles)
    return found


def check(found: Curves, expected, atol=1e-6):
    for name, value in expected.items():
        got = np.asarray(getattr(found, name))
        assert np.array_equal(np.isnan(got), np.isnan(value)), name
        np.testing.assert_allclose(got, value, rtol=1e-5, atol=atol, err_msg=name)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kernel", ["xla", "reference"])
@pytest.mark.parametrize("B, n, d", [(3, 1, 5), (2, 2, 1), (3, 9, 7), (3, 35, 17)])
def test_curves_are_those_of_the_definitions(B, n, d, kernel, reduction):
    a, b = branches(B, n, d, seed=n)
    lengths = np.array([n, max(1, n - 3), 1])[:B]
    if n > 4:
        a[0, 2] = 0  # zero vectors: a cosine with one is 0
        b[0, 3] = a[0, 3] = 0
    a[1, lengths[1] :] = np.nan  # beyond the length there may be anything
    found = pair_curves(a, b, lengths, reduction=reduction, kernel=kernel)
    expected = brute(np.nan_to_num(a), b, lengths, reduction)
    check(found, expected)
    kept = [np.concatenate([a[p, :m], b[p, :m]]) for p, m in enumerate(lengths)]
    largest = [np.linalg.norm(x, axis=1).max() for x in kept]
    np.testing.assert_allclose(found.norm, largest, rtol=1e-6)
    # The control: one number of one state.
    moved = a.copy()
    moved[0, 0, 0] += 0.5
    other = pair_curves(moved, b, lengths, reduction=reduction, kernel=kernel)
    with pytest.raises(AssertionError):
        check(other, expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("tile", [1, 5, 8, 64])
def test_tiles_change_nothing(tile, reduction):
    a, b = (jnp.asarray(x) for x in branches(2, 29, 6))
    lengths = jnp.array([29, 20])

    def rows(branch, *, reduction):
        return cross_rows(branch, reduction=reduction, tile=tile)

    found = traced_curves(a, b, lengths, reduction=reduction, cross_rows=rows)
    check(found, brute(np.asarray(a), np.asarray(b), [29, 20], reduction))


def test_one_pair_at_a_time_is_the_same():
    a, b = (jnp.asarray(x) for x in branches(3, 40, 8))
    lengths = jnp.array([40, 33, 2])
    found = [
        traced_curves(
            a, b, lengths, reduction="mean", cross_rows=choose("xla", platform)
        )
        for platform in ("cpu", "gpu")
    ]
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_bfloat16_states_are_taken_as_they_are():
    a, b = branches(2, 33, 24)
    half = [jnp.asarray(x, jnp.bfloat16) for x in (a, b)]
    rounded = [np.asarray(x, np.float32) for x in half]
    check(pair_curves(*half), brute(*rounded, [33, 33], "mean"))
    with pytest.raises(AssertionError):  # rounding is more than the tolerance
        check(pair_curves(*half), brute(a, b, [33, 33], "mean"))


def test_scale_does_not_matter():
    """Neither do states as large or small as float32 allows."""
    a, b = branches(1, 20, 12)
    usual = pair_curves(a, b)
    for power in (-100, 100):
        scale = np.float32(2.0**power)
        found = pair_curves(a * scale, b * scale)
        for name in (*PSI, "psi_delta"):
            assert np.array_equal(
                getattr(found, name), getattr(usual, name), equal_nan=True
            ), name
        np.testing.assert_allclose(found.D, np.asarray(usual.D) * scale, rtol=1e-6)
        np.testing.assert_allclose(found.norm, usual.norm * scale, rtol=1e-6)


@pytest.mark.parametrize("kernel", ["xla", "reference"])
def test_identical_branches(kernel):
    """D = 0, ψ_equal = 1 and ψ_AA = ψ_AB (spec math.md §5)."""
    a, _ = branches(2, 25, 9)
    found = pair_curves(a, a.copy(), kernel=kernel)
    assert np.all(found.D == 0)
    np.testing.assert_allclose(found.psi_equal, 1, rtol=1e-6)
    np.testing.assert_allclose(found.psi_cross_aa, found.psi_cross_ab, rtol=1e-6)
    assert np.all(found.psi_delta[:, 1:] == 0)


def test_squared_divergence_is_what_signed_cosines_say():
    """D² = 2n(1 − ψ_equal) + (n² − n)(ψ_AA + ψ_BB − 2ψ_AB) of unit vectors, exactly."""
    a, b = (x / np.linalg.norm(x, axis=2, keepdims=True) for x in branches(4, 50, 16))
    found = Curves(*map(np.asarray, pair_curves(a, b, reduction="signed")))
    n = np.arange(1, 51)
    cross = found.psi_cross_aa + found.psi_cross_bb - 2 * found.psi_cross_ab
    cross[:, 0] = 0  # no pair at n = 1
    squared = 2 * n * (1 - found.psi_equal) + (n**2 - n) * cross
    np.testing.assert_allclose(found.D**2, squared, rtol=2e-4)
    # The positive part is another measure.
    other = Curves(*map(np.asarray, pair_curves(a, b)))
    wrong = other.psi_cross_aa + other.psi_cross_bb - 2 * other.psi_cross_ab
    wrong[:, 0] = 0
    assert not np.allclose(
        found.D**2, 2 * n * (1 - other.psi_equal) + (n**2 - n) * wrong, rtol=1e-2
    )


def test_exchanged_positions_are_as_near_as_those_within():
    """E[½(ψ_AA + ψ_BB) − ψ_AB] = 0 after exchanges (spec math.md §5)."""
    rng = np.random.default_rng(0)
    apart = rng.normal(size=32)
    a, b = branches(64, 20, 32)
    a, b = (jnp.asarray(x, jnp.float32) for x in (a + apart, b - apart))
    swapped = swaps(np.arange(64), 20, 8, seed=0)

    def excess(a, b):
        found = pair_curves(a, b)
        within = (found.psi_cross_aa + found.psi_cross_bb) / 2
        return np.asarray(within - found.psi_cross_ab)[:, -1]

    real = excess(a, b)
    null = np.concatenate([excess(*exchange(a, b, s)) for s in jnp.asarray(swapped)])
    error = null.std() / math.sqrt(len(null))
    assert abs(null.mean()) < 4 * error
    assert real.mean() > 50 * error  # the control: what is there is found


def test_independent_directions():
    """E[(cos)_+] = Γ(d/2) / (2√π·Γ((d+1)/2)) of isotropic vectors in R^d."""
    for d in (2, 3, 64):
        a, b = np.random.default_rng(d).normal(size=(2, 16, 100, d)).astype(np.float32)
        found = pair_curves(a, b)
        for name in PSI:
            values = np.asarray(getattr(found, name))[:, -1]
            error = values.std() / math.sqrt(len(values))
            expected = float(expected_positive_cosine(d))
            assert abs(values.mean() - expected) < 5 * error, (d, name)


def test_earlier_positions_do_not_hear_of_later_ones():
    a, b = branches(1, 40, 8)
    before = pair_curves(a, b)
    a[0, 25] += 1
    after = pair_curves(a, b)
    for name in Curves._fields[:-1]:
        one, other = getattr(before, name), getattr(after, name)
        assert np.array_equal(one[:, :25], other[:, :25], equal_nan=True), name
        same = np.array_equal(one[:, 25:], other[:, 25:])
        assert same == (name == "psi_cross_bb"), name


def test_a_nan_state_is_not_hidden():
    a, b = branches(1, 6, 4)
    a[0, 3, 0] = np.nan
    found = pair_curves(a, b)
    for name in ("D", "psi_equal", "psi_cross_aa", "psi_cross_ab", "psi_delta"):
        curve = np.asarray(getattr(found, name))[0]
        assert np.isnan(curve[3:]).all(), name
    assert not np.isnan(found.psi_cross_bb[0, 1:]).any()


def test_the_gram_matrix_is_never_there():
    """No array of the program has n × n elements of one pair."""
    n, d = 2048, 8
    shape = jax.ShapeDtypeStruct((2, n, d), jnp.float32)
    lengths = jax.ShapeDtypeStruct((2,), jnp.int32)
    traced = jax.make_jaxpr(
        lambda a, b, m: traced_curves(
            a, b, m, reduction="mean", cross_rows=choose("xla", "cpu")
        )
    )(shape, shape, lengths)
    sizes = [math.prod(shape) for shape in all_shapes(traced.jaxpr)]
    assert max(sizes) >= 2 * n * d
    assert max(sizes) < n * n / 4


def all_shapes(jaxpr):
    """The shapes of everything that a program computes, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from all_shapes(inner)


@pytest.mark.parametrize(
    "a, b, lengths, options, said",
    [
        ((2, 3), (2, 3), None, {}, r"expected the same \[B, n, d\]"),
        ((2, 3, 4), (2, 4, 4), None, {}, r"\(2, 3, 4\) and \(2, 4, 4\)"),
        ((2, 0, 4), (2, 0, 4), None, {}, "no axis of 0"),
        ((2, 3, 4), (2, 3, 4), [3, 4], {}, r"lengths\[1\] is 4, expected 1 to 3"),
        ((2, 3, 4), (2, 3, 4), [3, 0], {}, r"lengths\[1\] is 0"),
        ((2, 3, 4), (2, 3, 4), [3], {}, "one for each pair"),
        ((2, 3, 4), (2, 3, 4), None, {"kernel": "cuda"}, "kernel is 'cuda'"),
    ],
)
def test_what_is_no_pair_of_branches(a, b, lengths, options, said):
    arrays = [np.zeros(shape, np.float32) for shape in (a, b)]
    given = None if lengths is None else np.array(lengths)
    with pytest.raises(BranchError, match=said):
        pair_curves(*arrays, given, **options)


def test_histograms_count_every_cosine_once():
    a, b = branches(3, 70, 5)
    lengths = np.array([70, 66, 1])
    a[0, 4] = 0
    found = histograms(jnp.asarray(a), jnp.asarray(b), jnp.asarray(lengths))
    expected = {name: [] for name in found._fields}
    for x, y, m in zip(a, b, lengths, strict=True):
        x, y = (
            np.divide(v, s, out=np.zeros_like(v), where=s > 0)
            for v in (x[:m].astype(np.float64), y[:m].astype(np.float64))
            for s in [np.linalg.norm(v, axis=1, keepdims=True)]
        )
        i, j = np.triu_indices(m, 1)
        expected["equal"].append(np.diag(x @ y.T))
        expected["cross_aa"].append((x @ x.T)[i, j])
        expected["cross_bb"].append((y @ y.T)[i, j])
        expected["cross_ab"].append((x @ y.T)[~np.eye(m, dtype=bool)])
    for name, values in expected.items():
        values, edges = np.concatenate(values), np.linspace(-1, 1, 101)
        counts, _ = np.histogram(values, edges)
        got = np.asarray(getattr(found, name))
        assert got.sum() == len(values), name
        # A cosine on an edge may fall on either side of it in float32.
        assert np.abs(got - counts).sum() <= 4, name
    assert np.asarray(found.cross_aa).std() > 10


def test_reference_is_no_kernel_of_a_program():
    """It enumerates on the host; nothing else may take its name."""
    for name in ("reference", "cuda"):
        with pytest.raises(BranchError, match="expected auto, xla or pallas"):
            choose(name, "cpu")
