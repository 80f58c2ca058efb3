"""Analyses of scores as figures and reports get them, made without a bootstrap."""

import numpy as np

from vtscale_jax.scaling.laws import LAWS
from vtscale_jax.scaling.result import Analysis, Interval, LawFit, SeriesFits
from vtscale_jax.scaling.scores import Scores, Series

M = 2 ** np.arange(7)
FAMILIES = {
    "read": (4.0, -0.6),
    "locate": (11.0, -0.45),
    "count": (30.0, -0.1),
    "exists": (55.0, -0.03),
    "choice": (28.0, -0.15),
    "describe": (40.0, 0.01),
}


def make_scores(
    kinds=("vqq", "vq", "vq_ft"), families=None, m=M, n_items=0, seed=0, noise=0.03
):
    """A power law with noise for each family and kind of inputs; with `n_items`, also
    single questions."""
    rng = np.random.default_rng(seed)
    made = []
    for place, inputs in enumerate(kinds):
        for name, (c, alpha) in (families or FAMILIES).items():
            score = c * (1 - 0.08 * place) * np.array(m, float) ** -alpha
            score = np.clip(score * np.exp(noise * rng.standard_normal(len(m))), 0, 99)
            more = {}
            if n_items:
                skill = rng.random(n_items)
                items = (skill < score[:, None] / 100).astype(float)
                score = 100 * items.mean(1)
                more = {
                    "upper": 100.0,
                    "n_items": np.full(len(m), n_items),
                    "items": items,
                    "item_ids": tuple(f"page/{i}" for i in range(n_items)),
                }
            made.append(Series(inputs, name, np.array(m), score, **more))
    return Scores("made up", tuple(made))


def make_fit(name, series, problems=(), width=0.05):
    """Least squares of logarithms (power, constant) or of scores (logarithmic)."""
    x, y = np.log(series.m), np.log(np.maximum(series.score, 1e-3))
    if name == "logarithmic":
        b, a = np.polyfit(x, series.score, 1) if len(x) > 1 else (0.0, series.score[0])
        theta, names = np.array([a, b]), ("a", "b")
    elif name == "constant":
        theta, names = np.array([y.mean()]), ("c",)
    else:
        slope, start = np.polyfit(x, y, 1) if len(x) > 1 else (0.0, y[0])
        theta, names = np.array([start, -slope]), ("c", "alpha")
    law = LAWS[name]
    estimates = {k: float(v[0]) for k, v in law.estimates(theta[None]).items()}
    residual = y - np.log(np.maximum(law.curve(theta[None], series.m * 1.0)[0], 1e-9))
    rms = float(np.sqrt(np.mean(residual**2)))
    ends = {
        key: Interval(estimates[key] - width, estimates[key] + width) for key in names
    }
    if problems:
        ends = {key: Interval(-np.inf, np.inf) for key in names}
    aicc = len(x) * np.log(max(rms, 1e-4)) * 2 + 2 * len(theta)
    return LawFit(
        law, theta, estimates, {"budgets": ends}, "budgets", tuple(problems), aicc,
        rms, 1.2 * rms, 2.5 * rms,
    )  # fmt: skip


def make_fits(series, problems=(), laws=("constant", "power", "logarithmic")):
    """All laws of a series; the band of the power law is its line ± 5 %."""
    fits = {name: make_fit(name, series, problems) for name in laws}
    grid = np.geomspace(series.m.min(), series.m.max(), 60)
    line = fits["power"].predict(grid) if "power" in fits else grid
    chosen = min(fits, key=lambda name: fits[name].aicc) if fits else None
    last = float(abs(series.score[-1] / max(series.score[-2], 1e-3) - 1)) if len(
        series.m
    ) > 1 else float("nan")  # fmt: skip
    return SeriesFits(
        series, "log", fits, grid, {"power": (0.95 * line, 1.05 * line)}, chosen,
        last, 1.5 * last, {},
    )  # fmt: skip


def make_analysis(scores, problems=None, **options):
    """`problems` are those of a metric's laws by its name."""
    problems = problems or {}
    fits = tuple(
        make_fits(one, problems.get(one.metric, ()), **options) for one in scores.series
    )
    return Analysis(scores, fits, 16, 0, 100)
