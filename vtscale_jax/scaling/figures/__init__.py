"""The figures of an analysis of scores, drawn from results only.

    draw_all(analysis, Path("runs/scaling/figures"))

What the data do not allow is not drawn: no gains without a second kind of inputs, no
radar without other models. Files are sized for print: 3.3 in wide (a column) or 6.8 in
(a page), no text below 7 pt but sub- and superscripts.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from vtscale_jax.report.drawing import COLUMN, save
from vtscale_jax.scaling.clusters import clusters, normalised
from vtscale_jax.scaling.figures import captions
from vtscale_jax.scaling.figures.captions import Caption
from vtscale_jax.scaling.figures.curve_figures import draw_clusters, draw_normalised
from vtscale_jax.scaling.figures.first_version import Curve, draw_psi_delta
from vtscale_jax.scaling.figures.fit_figures import draw_fits, draw_without
from vtscale_jax.scaling.figures.gain_figures import draw_gains
from vtscale_jax.scaling.figures.law_figures import (
    POWER,
    draw_model_comparison,
    draw_power_exponents,
)
from vtscale_jax.scaling.figures.published_figures import (
    draw_radar,
    draw_token_reduction,
    shared_metrics,
)
from vtscale_jax.scaling.gains import gains
from vtscale_jax.scaling.result import Analysis, SeriesFits


class Extras(NamedTuple):
    """What is drawn only where it is given.

    `models` are scores by model and metric (Fig. 17); `token_reduction` rows of
    (n, method, metric, score) (Table 5); `without` the analysis of the same scores less
    some M (Fig. 11); `psi_delta` (n, ψ_Δ(n)) by the name of a divergence result.
    """

    models: Mapping[str, Mapping[str, float]] | None = None
    token_reduction: Iterable[tuple[int, str, str, float]] | None = None
    without: Analysis | None = None
    psi_delta: Mapping[str, Curve] | None = None


NO_EXTRAS = Extras()


class Drawn(NamedTuple):
    """A figure and its files: `path` is the SVG, the PNG lies beside it. `width` is
    "column" or "page"."""

    name: str
    caption: Caption
    path: Path
    width: str


def draw_all(
    analysis: Analysis,
    folder: Path,
    *,
    models: Mapping[str, Mapping[str, float]] | None = None,
    token_reduction: Iterable[tuple[int, str, str, float]] | None = None,
    without: Analysis | None = None,
    psi_delta: Mapping[str, Curve] | None = None,
) -> dict[str, Path]:
    """Writes every figure that the data allow into `folder` as PNG and SVG; returns the
    SVG paths by name. See `Extras` for what else can be given."""
    extras = Extras(models, token_reduction, without, psi_delta)
    return {one.name: one.path for one in draw(analysis, folder, extras)}


def draw(
    analysis: Analysis, folder: Path, extras: Extras = NO_EXTRAS
) -> tuple[Drawn, ...]:
    """As `draw_all`, with captions and widths, in the order in which to read them."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, caption, make in _plan(analysis, extras):
        figure = make(caption.title)
        width = "column" if figure.get_figwidth() <= COLUMN else "page"
        drawn.append(Drawn(name, caption, save(figure, folder, name), width))
    return tuple(drawn)


_Planned = tuple[str, Caption, Callable[[str], Figure]]


def _plan(analysis: Analysis, extras: Extras) -> Iterator[_Planned]:
    """Name, caption and maker (which takes the title) of each figure."""
    kinds = {
        inputs: [one for one in analysis.fits if one.series.inputs == inputs]
        for inputs in analysis.scores.inputs()
    }
    kinds = {inputs: own for inputs, own in kinds.items() if own}
    numbers = {"vqq": "fig09_fits", "vq_ft": "fig10_fits"}
    names = _file_words(kinds)
    powers = [(inputs, own) for inputs, own in kinds.items() if _has_power(own)]
    if powers:
        make = partial(draw_power_exponents, powers)
        yield "paper_law", captions.EXPONENTS, make
    for inputs, own in kinds.items():
        if _comparable(own):
            caption = captions.comparison_caption(inputs)
            make = partial(draw_model_comparison, own, analysis.cut)
            yield f"model_comparison{names[inputs]}", caption, make
    for inputs, own in kinds.items():
        name = f"{numbers.get(inputs, 'fits')}{names[inputs]}"
        yield name, captions.fits_caption(inputs), partial(draw_fits, own)
    yield from _thinned(analysis, extras.without)
    for name, less in (
        ("fig12_gain_over_vq_ft", "vq_ft"),
        ("fig13_gain_over_vq", "vq"),
    ):
        found = gains(analysis.scores, "vqq", less)
        if found.gains:
            yield name, captions.gains_caption("vqq", less), partial(draw_gains, found)
    if extras.models:
        yield from _beside(analysis, extras.models)
    for inputs in kinds:
        yield from _alike(analysis, inputs, names[inputs])
    if extras.token_reduction is not None:
        rows = list(extras.token_reduction)
        if rows:
            make = partial(draw_token_reduction, rows)
            yield "table5_token_reduction", captions.TOKEN_REDUCTION, make
    if extras.psi_delta:
        yield "v1_fig10", captions.PSI_DELTA, partial(draw_psi_delta, extras.psi_delta)


def _thinned(analysis: Analysis, without: Analysis | None) -> Iterator[_Planned]:
    """Series that have fewer M in `without`."""
    if without is None:
        return
    pairs = []
    for one in analysis.fits:
        other = without.of(one.series.metric, one.series.inputs)
        if other is not None and len(other.series.m) < len(one.series.m):
            pairs.append((one, other))
    if pairs:
        yield "fig11_without", captions.WITHOUT, partial(draw_without, pairs)


def _beside(
    analysis: Analysis, models: Mapping[str, Mapping[str, float]]
) -> Iterator[_Planned]:
    """The smallest, the middle and the largest M beside other models."""
    kinds = analysis.scores.inputs()
    inputs = "vqq" if "vqq" in kinds else kinds[0]
    series = [one for one in analysis.scores.series if one.inputs == inputs]
    budgets = sorted({int(m) for one in series for m in one.m})
    chosen = dict.fromkeys((budgets[-1], budgets[len(budgets) // 2], budgets[0]))
    own = {
        m: {one.metric: float(one.score[one.m == m][0]) for one in series if m in one.m}
        for m in chosen
    }
    if len(shared_metrics(own, models)) > 2:
        yield "fig17_radar", captions.RADAR, partial(draw_radar, own, models)


def _alike(analysis: Analysis, inputs: str, words: str) -> Iterator[_Planned]:
    """Normalised curves and their clusters, where there are curves to compare."""
    curves = normalised(analysis.scores, inputs)
    if not curves.metrics:
        return
    published = inputs == "vqq"
    name = "fig18_normalised" if published else f"normalised{words}"
    caption = captions.normalised_caption(inputs)
    yield name, caption, partial(draw_normalised, curves)
    found = clusters(curves, seed=analysis.seed) if len(curves.metrics) > 1 else None
    if found is not None:
        name = "fig19_clusters" if published else f"clusters{words}"
        yield name, captions.clusters_caption(inputs), partial(draw_clusters, found)


def _has_power(fits: Sequence[SeriesFits]) -> bool:
    return any(POWER in one.fits for one in fits)


def _comparable(fits: Sequence[SeriesFits]) -> bool:
    """Whether any law has an error beyond the cut, or an AICc."""
    found = [[f.extrapolation, f.aicc] for one in fits for f in one.fits.values()]
    return bool(np.isfinite(found).any())


def _file_words(kinds: Iterable[str]) -> dict[str, str]:
    """The end of a file's name for each kind of inputs: what a file system takes, and
    different for each."""
    found: dict[str, str] = {}
    for inputs in kinds:
        plain = re.sub(r"[^A-Za-z0-9]+", "_", inputs).strip("_")
        words = f"_{plain[:40]}" if plain else ""
        count = 2
        while words in found.values():
            words, count = f"_{plain[:40]}_{count}".replace("__", "_"), count + 1
        found[inputs] = words
    return found
