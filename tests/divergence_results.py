"""Made-up measurements: random states of known dependence, through result files."""

import warnings

import numpy as np

from vtscale_jax.divergence.result import (
    CURVES,
    Band,
    Result,
    read_result,
    write_result,
)
from vtscale_jax.divergence.summary import summarize

EDGES = np.linspace(-1, 1, 81)


def make_states(rng, n, *, shared=0.3, within=0.2, equal=0.3, d=48):
    """Two branches `[n, d]` whose expected cosines are known, of norm about 7.

    between: `shared` · within a branch: `shared + within` · equal positions:
    `shared + equal`.
    """
    noise = 1 - shared - within - equal
    common, at = rng.standard_normal((1, d)), rng.standard_normal((n, d))
    return [
        np.sqrt(shared) * common
        + np.sqrt(within) * rng.standard_normal((1, d))
        + np.sqrt(equal) * at
        + np.sqrt(noise) * rng.standard_normal((n, d))
        for _ in "ab"
    ]


def curves_of(a, b):
    """The curves of one pair for n = 1…N and its cosines by histogram."""

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def cross(gram):
        n = np.arange(1, len(gram) + 1)
        total = np.cumsum(np.cumsum(gram, 0), 1).diagonal()
        with np.errstate(invalid="ignore"):
            return (total - np.cumsum(gram.diagonal())) / np.where(n > 1, n**2 - n, 0)

    ua, ub, delta = unit(a), unit(b), a - b
    equal = (ua * ub).sum(-1)
    grams = {"aa": ua @ ua.T, "bb": ub @ ub.T, "ab": ua @ ub.T}
    off = ~np.eye(len(a), dtype=bool)
    positive = {k: cross(np.maximum(gram, 0)) for k, gram in grams.items()}
    curves = {
        "D": np.linalg.norm(np.cumsum(delta, 0), axis=-1),
        "psi_equal": np.cumsum(np.maximum(equal, 0)) / np.arange(1, len(a) + 1),
        **{f"psi_cross_{k}": curve for k, curve in positive.items()},
        "psi_delta": cross(unit(delta) @ unit(delta).T),
        "psi_cross_symmetric": (positive["aa"] + positive["bb"]) / 2,
    }
    curves["psi_excess"] = curves["psi_cross_symmetric"] - curves["psi_cross_ab"]
    cosines = {"equal": equal, **{f"cross_{k}": g[off] for k, g in grams.items()}}
    return curves, cosines


def make_band(values, rng):
    """`values` [pairs, N], NaN beyond a pair's length."""
    picks = rng.integers(0, len(values), (100, len(values)))
    means = np.nanmean(values[picks], axis=1)
    return Band(
        mean=np.nanmean(values, 0),
        sd=np.nanstd(values, 0),
        low=np.nanpercentile(means, 2.5, axis=0),
        high=np.nanpercentile(means, 97.5, axis=0),
        least=np.nanmin(values, 0),
        largest=np.nanmax(values, 0),
    )


def make_null(longest, rng, differs=False):
    """As a measurement with `--null` has it."""
    mean = rng.normal(0, 0.004, longest)
    mean[0] = np.nan
    p_value = 0.002 if differs else 0.41
    test = {"statistic": 2.1, "p_value": p_value, "at": 7, "differs": differs}
    low, high = mean - 0.01, mean + 0.01
    return {"swaps": 4, "mean": mean, "low": low, "high": high, "test": test}


def make_result(folder, name="tiny", *, seed=0, num_pairs=30, longest=80, **fields):
    """A result as `read_result` gives it; `fields` replace those of the file.

    The lengths of the pairs spread from a third of `longest` to `longest`. `null` is
    True for a null measurement of noise. Fields that are not of a Result go to
    `make_states`.
    """
    rng = np.random.default_rng(seed)
    own = {k: fields.pop(k) for k in list(fields) if k in Result.__dataclass_fields__}
    lengths = np.sort(rng.integers(max(1, longest // 3), longest + 1, num_pairs))
    lengths[-1] = longest
    stacked = {k: np.full((num_pairs, longest), np.nan) for k in CURVES}
    histograms = dict.fromkeys(("equal", "cross_aa", "cross_bb", "cross_ab"), 0)
    for i, length in enumerate(lengths):
        curves, cosines = curves_of(*make_states(rng, length, **fields))
        for key, curve in curves.items():
            stacked[key][i, :length] = curve
        for key, values in cosines.items():
            histograms[key] = histograms[key] + np.histogram(values, EDGES)[0]
    with warnings.catch_warnings():
        # Cross measures have no value at n = 1.
        warnings.simplefilter("ignore", RuntimeWarning)
        bands = {key: make_band(values, rng) for key, values in stacked.items()}
    counts = (lengths[:, None] > np.arange(longest)).sum(0)
    if own.get("null") is True:
        own["null"] = make_null(longest, rng)
    values = {
        "name": name,
        "kind": "text",
        "reduction": "mean",
        "layer": "final",
        "counts": counts,
        "curves": bands,
        "edges": EDGES,
        "histograms": histograms,
        "largest_norm": 9.5,
        "fits": summarize({k: band.mean for k, band in bands.items()}, counts, 9.5)
        | {"excess": None},
        "null": None,
        "pairs": {"source": "made up", "used": num_pairs},
        "manifest": {"seed": seed},
    } | own
    path = folder / f"{name.replace('/', '-')}.json"
    write_result(path, Result(**values))
    return read_result(path)
