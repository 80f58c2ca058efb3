"""Every law fitted to every series, with its intervals and its errors."""

import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vtscale_jax.scaling import comparison
from vtscale_jax.scaling.fitting import Fitted
from vtscale_jax.scaling.law_fits import Points, explained_by_items, fit_law, points
from vtscale_jax.scaling.laws import (
    LAWS,
    MEASURED_THEORY,
    POWER,
    WEIGHTED_POWER,
    Law,
    measured_theory,
    on_scale,
)
from vtscale_jax.scaling.noise import log_noise, noise_of
from vtscale_jax.scaling.result import Analysis, SeriesFits
from vtscale_jax.scaling.scores import Excluded, Scores, ScoresError, Series

REPLICATES = 1000
GRID = 48


class How(NamedTuple):
    """How series are fitted: the cut of extrapolation (None: a quarter of the largest
    M), the bend of Huber's loss in log S (None: squares), replicates and seed of the
    bootstrap, and Υ(n) of a divergence result."""

    cut: int | None = None
    huber: float | None = None
    replicates: int = REPLICATES
    seed: int = 0
    upsilon: Mapping[int, float] | None = None


PLAIN = How()


def analyse(
    scores: Scores, how: How = PLAIN, progress: Callable[[str], object] | None = None
) -> Analysis:
    """All laws for all series; `progress` hears the name of each series that is done.

    What a law cannot take is listed under `excluded` and `failed`, never dropped.
    Raises ScoresError when there is nothing to fit.
    """
    if not scores.series:
        raise ScoresError(f"{scores.source}: no scores to fit")
    fits, excluded = [], list(scores.excluded)
    for series in scores.series:
        found, left_out = fit_series(series, how)
        fits.append(found)
        excluded += left_out
        if progress is not None:
            progress(series.name)
    cuts = {found.cut for found in fits}
    return Analysis(
        scores._replace(excluded=tuple(excluded)),
        tuple(fits),
        cuts.pop() if len(cuts) == 1 else None,
        how.seed,
        how.replicates,
    )


def fit_series(
    series: Series, how: How = PLAIN
) -> tuple[SeriesFits, tuple[Excluded, ...]]:
    """Every law fitted to one series, and the scores that laws could not take.

    With errors of items or of known size, `power` is still the paper's fit of
    logarithms, and `power_weighted` stands beside the other laws. AICc compares laws
    with the same errors to the same scores; where every law leaves more than the items
    explain, the deviance is divided by what the best of them leaves (QAICc).
    """
    noise = noise_of(series, how.huber)
    logs = series.score > 0
    used = logs if noise.kind == "log" else np.ones_like(logs)
    given = points(series, noise, used)
    cut = how.cut
    if cut is None and used.any():
        cut = comparison.default_cut(given.m)
    grid = _grid(given.m)
    laws = dict(LAWS)
    data = dict.fromkeys((*laws, WEIGHTED_POWER.name), given)
    if noise.kind != "log":
        laws[WEIGHTED_POWER.name] = WEIGHTED_POWER
        data[POWER.name] = points(series, log_noise(), logs)
    failed: dict[str, str] = {}
    if how.upsilon is not None:
        missing = sorted({1, *given.m, *grid} - set(how.upsilon))
        if missing:
            failed[MEASURED_THEORY] = f"Υ was not measured at M = {missing[0]:g}"
        else:
            laws[MEASURED_THEORY] = measured_theory(how.upsilon)
            data[MEASURED_THEORY] = given
    laws = {name: on_scale(law, given.upper) for name, law in laws.items()}
    best = _best_fits(laws, data, failed)
    dispersion = _dispersion(best, laws, given)
    fits, bands = {}, {}
    for name, fitted in best.items():
        law, own = laws[name], data[name]
        twin = WEIGHTED_POWER.name if name == POWER.name else name
        fits[name], bands[name] = fit_law(
            law,
            own,
            fitted,
            grid,
            fits_items=twin in best and explained_by_items(law, given, best[twin]),
            dispersion=1.0 if own is not given else dispersion,
            cut=cut,
            replicates=how.replicates,
            rng=_generator(how.seed, series, name),
        )
    comparable = {
        name: one.aicc
        for name, one in fits.items()
        if np.isfinite(one.aicc) and data[name] is given
    }
    found = SeriesFits(
        series,
        noise.kind,
        fits,
        grid,
        bands,
        min(comparable, key=comparable.__getitem__) if comparable else None,
        *_last_value(given, cut),
        failed,
        cut,
        dispersion,
    )
    return found, _without_logarithm(series, logs, noise.kind)


def _best_fits(
    laws: Mapping[str, Law], data: Mapping[str, Points], failed: dict[str, str]
) -> dict[str, Fitted]:
    """The fit of each law; adds to `failed` what has none."""
    best = {}
    for name, law in laws.items():
        end = _only_end(data[name])
        if end is not None:
            failed[name] = f"every score is {end:g}, an end of the scale"
            continue
        number = len(data[name].m)
        if number < law.num_parameters:
            failed[name] = f"{number} usable scores, {law.num_parameters} needed"
            continue
        fitted = data[name].best(law)
        if np.isfinite(fitted.loss[0]):
            best[name] = fitted
        else:
            failed[name] = "no curve of this law stays on the scale"
    return best


def _only_end(given: Points) -> float | None:
    """The end of the scale that every score is at; None: not so. All questions went one
    way there, and resampled ones would too: nothing says how sure a law is."""
    if given.noise.kind != "items":
        return None
    ends = (0.0, given.upper)
    return next((end for end in ends if np.all(given.series.score == end)), None)


def _dispersion(
    best: Mapping[str, Fitted], laws: Mapping[str, Law], given: Points
) -> float:
    """By how much the variance of scores exceeds that of their items under the law that
    leaves least; 1 where the items explain all, or errors are of no known size."""
    if not given.noise.scale_is_known:
        return 1.0
    left = [
        fitted.loss[0] / (len(given.m) - laws[name].num_parameters)
        for name, fitted in best.items()
        if name != POWER.name and len(given.m) > laws[name].num_parameters
    ]
    return max(1.0, float(min(left))) if left else 1.0


def _last_value(given: Points, cut: int | None) -> tuple[float, float]:
    """Errors of repeating the last score: of the M before, and of the last M up to the
    cut."""
    score = given.series.score
    near = far = float("nan")
    if len(score) > 1:
        near = comparison.relative_error(comparison.neighbour(score), score)
    known = given.m <= (cut or 0)
    if known.any() and not known.all():
        guess = np.full((~known).sum(), score[known][-1])
        far = comparison.relative_error(guess, score[~known])
    return near, far


def _grid(m: Float[np.ndarray, " K"]) -> Float[np.ndarray, " G"]:
    """Whole M between the smallest and the largest, even on a logarithmic axis."""
    if not m.size:
        return np.zeros(0)
    return np.unique(np.round(np.geomspace(m.min(), m.max(), GRID)))


def _generator(seed: int, series: Series, law: str) -> np.random.Generator:
    """Of this series and law alone: results do not depend on what else is fitted."""
    name = f"{series.inputs}\n{series.metric}\n{law}"
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _without_logarithm(
    series: Series, logs: np.ndarray, kind: str
) -> tuple[Excluded, ...]:
    of = "every law" if kind == "log" else "the paper's power law"
    return tuple(
        Excluded(
            series.inputs,
            series.metric,
            int(m),
            f"{score:g}",
            f"not above 0, so that it has no logarithm; left out of {of}",
            series.name,
        )
        for m, score in zip(series.m[~logs], series.score[~logs], strict=True)
    )
