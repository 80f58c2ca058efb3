"""The figures of measurements: they show the numbers of the result files."""

import dataclasses

import numpy as np
import pytest
from divergence_results import make_result
from figure_texts import overlapping
from matplotlib.text import Text
from PIL import Image

from vtscale_jax.divergence import theory
from vtscale_jax.divergence.figures import draw_all
from vtscale_jax.divergence.figures.divergence_figures import (
    balance_curve,
    draw_balance,
    draw_delta,
    draw_divergence,
    draw_first_divergence,
    root_spread,
)
from vtscale_jax.divergence.figures.measured_figures import (
    draw_excess,
    draw_histograms,
    draw_measures,
    draw_within,
)
from vtscale_jax.divergence.figures.panels import end_of_view, num_columns
from vtscale_jax.divergence.figures.theory_figures import (
    draw_bound_examples,
    draw_exponents,
)
from vtscale_jax.divergence.result import LEAST_COUNT
from vtscale_jax.report.drawing import fitting

OF_RESULTS = (
    *(draw_within, draw_measures, draw_divergence, draw_excess, draw_histograms),
    *(draw_delta, draw_first_divergence, draw_balance),
)
FIGURES = {
    *("fig01_bound", "fig02_exponent", "fig03_within", "fig04_measures"),
    *("fig05_divergence", "fig14_excess", "fig15_cosines", "n_balance"),
    *("v1_fig03_delta", "v1_fig04_divergence"),
}
LONG = "meta-llama/Llama-3.2-11B-Vision-Instruct-of-some-length $x_1$ \u65e5\u672c"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    kinds = (
        {"null": True},
        {"within": 0.0, "longest": 90},
        {"name": LONG, "layer": "12", "reduction": "max"},
        {"longest": 5},
        {"num_pairs": 4},
    )
    return [
        make_result(folder, **({"name": f"model-{i}"} | kinds[i % 5]), seed=i)
        for i in range(9)
    ]


def lines(ax):
    """Firm lines by label; the light part of one has `_` before."""
    return {line.get_label(): line for line in ax.get_lines()}


def shown(ax, label, band, counts, least=LEAST_COUNT):
    """Whether firm and light line together are `band`, each where it should be."""
    found = lines(ax)
    end = end_of_view(counts, least)
    firm = counts[:end] >= least
    n = np.arange(1, end + 1)
    np.testing.assert_array_equal(found[label].get_xdata(), n)
    expected = np.where(firm, band[:end], np.nan)
    np.testing.assert_array_equal(found[label].get_ydata(), expected)
    if not firm.all():
        light = np.asarray(found[f"_{label}"].get_ydata())
        np.testing.assert_array_equal(light[~firm], band[:end][~firm])
        assert found[f"_{label}"].get_alpha() < 1


CASES = [
    (draw_within, 0, ("psi_cross_aa", "psi_cross_bb", "psi_cross_symmetric")),
    (draw_measures, 0, ("psi_cross_symmetric", "psi_equal", "psi_cross_ab")),
    (draw_excess, 0, ("psi_cross_symmetric", "psi_cross_ab")),
    (draw_excess, 1, ("psi_excess",)),
    (draw_divergence, 0, ("D",)),
    (draw_first_divergence, 0, ("D",)),
    (draw_delta, 0, ("psi_delta",)),
]


def labelled(ax):
    return [name for name in lines(ax) if not name.startswith("_")]


@pytest.mark.parametrize("draw, row, names", CASES)
def test_lines_are_the_curves_of_the_file(results, draw, row, names):
    result = results[0]
    assert 0 < (result.counts < LEAST_COUNT).sum() < result.num_positions
    ax = draw([result]).axes[row]
    for label, name in zip(labelled(ax), names, strict=False):
        shown(ax, label, result.curve(name).mean, result.counts)
    # A changed curve changes its line, and no other.
    band = result.curve(names[0])
    moved = band._replace(mean=band.mean + 0.01)
    curves = result.curves | {names[0]: moved}
    other = draw([dataclasses.replace(result, curves=curves)]).axes[row]
    first = labelled(other)[0]
    shown(other, first, moved.mean, result.counts)
    with pytest.raises(AssertionError):
        shown(other, first, band.mean, result.counts)
    for label, name in zip(labelled(other)[1:], names[1:], strict=False):
        shown(other, label, result.curve(name).mean, result.counts)


def test_bands_are_those_of_the_file(results):
    result = results[0]
    ax = draw_within([result]).axes[0]
    corners = ax.collections[0].get_paths()[0].vertices
    band, firm = result.curve("psi_cross_aa"), result.counts >= LEAST_COUNT
    n = np.flatnonzero(firm)[1:] + 1  # no cross measure at n = 1
    for edge in (band.low, band.high):
        for x, y in zip(n, edge[n - 1], strict=True):
            assert np.any(np.all(np.isclose(corners, (x, y)), axis=1))


def test_the_fit_is_that_of_the_file(results):
    result = results[0]
    fitted = result.fits["symmetric"]
    above, below = draw_divergence([result]).axes
    values = fitted["lambda"] * root_spread(result)
    shown(above, r"$\lambda\sqrt{\Upsilon(n)}$", values, result.counts)
    power = fitted["power_scale"] * np.arange(1, 81.0) ** fitted["power_exponent"]
    shown(above, r"$c\,n^a$", power, result.counts)
    words = [text.get_text() for text in above.get_legend().get_texts()]
    assert words == [
        rf"$\lambda={fitted['lambda']:.3g}$",
        rf"$a={fitted['power_exponent']:.2f}$",
    ]
    end = end_of_view(result.counts)
    np.testing.assert_array_equal(
        lines(below)["_counts"].get_ydata(), result.counts[:end]
    )
    doubled = fitted | {"lambda": 2 * fitted["lambda"]}
    changed = dataclasses.replace(result, fits=result.fits | {"symmetric": doubled})
    shown(
        draw_divergence([changed]).axes[0],
        *(r"$\lambda\sqrt{\Upsilon(n)}$", 2 * values, result.counts),
    )


def test_without_fits_the_measurement_alone_is_drawn(results):
    bare = dataclasses.replace(results[0], fits={})
    for draw in (draw_divergence, draw_first_divergence, draw_delta):
        assert len(labelled(draw([bare]).axes[0])) == 1
        assert draw([bare]).axes[0].get_legend() is None


def test_where_there_is_no_bound_the_figure_says_so(results):
    result = results[0]
    band = result.curve("psi_cross_ab")
    above_within = band._replace(mean=result.curve("psi_cross_aa").mean + 0.1)
    worse = dataclasses.replace(
        result, curves=result.curves | {"psi_cross_ab": above_within}
    )
    first = np.flatnonzero(np.isnan(root_spread(worse)))[0] + 1
    said = [text.get_text() for text in draw_divergence([worse]).axes[0].texts]
    assert said == [rf"no bound at $n={first}$: $\Upsilon<0$"]
    assert not draw_divergence([result]).axes[0].texts


def test_the_null_measurement_is_drawn_when_there_is_one(results):
    label = "exchanged at random"
    with_null, without = results[0], results[1]
    mean = np.array(with_null.null["mean"], np.float64)
    shown(draw_excess([with_null]).axes[1], label, mean, with_null.counts)
    assert label not in lines(draw_excess([without]).axes[1])


def test_histograms_are_densities(results):
    result = results[0]
    steps = draw_histograms([result]).axes[0].patches
    for step, counts in zip(steps, result.histograms.values(), strict=True):
        values, edges, _ = step.get_data()
        np.testing.assert_array_equal(edges, result.edges)
        assert np.sum(values * np.diff(edges)) == pytest.approx(1)
        np.testing.assert_allclose(values / values.max(), counts / counts.max())
    empty = {name: 0 * counts for name, counts in result.histograms.items()}
    (ax,) = draw_histograms([dataclasses.replace(result, histograms=empty)]).axes
    assert "no pair is long enough" in [text.get_text() for text in ax.texts]


def test_thresholds_stand_where_the_fits_have_them(results):
    v1 = {"ratio_levels": [1.1, 1.01], "ratio_n": [12.5, 4e4]}
    v1 |= {"gradient_level": 1e-3, "gradient_n": None}
    (ax,) = draw_delta([dataclasses.replace(results[0], fits={"v1": v1})]).axes
    assert lines(ax)["$r=1.1$"].get_xdata() == [12.5, 12.5]
    (note,) = ax.texts
    assert note.get_text().splitlines() == [
        "$r=1.01$: $n$ = 40,000",
        r"$|\psi_\Delta'|\leq0.001$: never",
    ]


def test_balance(results):
    (ax,) = draw_balance(results[:2]).axes
    for result in results[:2]:
        values = balance_curve(result)
        expected = np.where(values > 0, values, np.nan)
        shown(ax, result.name, expected, result.counts)
        bar = np.asarray(lines(ax)[f"_no balance: {result.name}"].get_ydata())
        end = end_of_view(result.counts)
        none = result.curve("psi_excess").mean[:end] <= 0
        np.testing.assert_array_equal(~np.isnan(bar), none)
    assert none.any()  # of the second, where within and between are alike
    diagonal = lines(ax)["_diagonal"]
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())


def test_theory_figures_are_the_theory():
    left, middle, right = draw_bound_examples().axes
    psi = {"psi_equal": 0.3, "psi_within": 0.42, "psi_cross": 0.4}
    line = lines(left)["0.3"]
    values = np.sqrt(theory.constant_spread(line.get_xdata(), **psi))
    np.testing.assert_allclose(line.get_ydata(), values)
    ending = lines(middle)["−0.005"]
    assert ending.get_xdata()[-1] == pytest.approx(1 + 0.5 / 0.005)
    assert ending.get_ydata()[-1] == pytest.approx(0, abs=1e-6)
    (note,) = right.texts
    assert note.get_text() == r"$n_\mathrm{balance}=99$"
    for beta in (1.0, 0.4):
        (ax,) = draw_exponents(beta).axes
        line = lines(ax)["100"]
        values = theory.constant_exponent(line.get_xdata(), n_balance=100, beta=beta)
        np.testing.assert_array_equal(line.get_ydata(), values)
        np.testing.assert_array_equal(lines(ax)["∞"].get_ydata(), -beta / 2)
        assert ax.get_title() == f"β = {beta:g}"


@pytest.mark.parametrize("num", [1, 3, pytest.param(9, marks=pytest.mark.long)])
def test_nothing_overlaps_or_is_small(results, num):
    for draw in OF_RESULTS:
        figure = draw(results[:num])
        assert overlapping(figure) == [], draw.__name__
        assert min(text.get_fontsize() for text in figure.findobj(Text)) >= 7
        assert figure.get_figwidth() in (3.3, 6.8)
        if draw is not draw_balance:
            titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
            assert len(titles) == num


def test_theory_figures_do_not_overlap():
    assert overlapping(draw_bound_examples()) == []
    assert overlapping(draw_exponents(1.0)) == []


def test_overlaps_are_found(results):
    figure = draw_within(results[:1])
    ax = figure.axes[0]
    ax.set_xticks([10, 10.5], ["a long label", "another one"])
    assert ("another one", "a long label") in overlapping(figure)
    ax.set_title("much too long a title " * 5)
    assert len(overlapping(figure)) > 1


def test_short_and_empty_results(tmp_path, results):
    one = make_result(tmp_path, "one", longest=1)
    none = dataclasses.replace(results[0], counts=0 * results[0].counts)
    nothing = {
        name: type(band)(*(np.full_like(band.mean, np.nan) for _ in band))
        for name, band in none.curves.items()
    }
    none = dataclasses.replace(none, curves=nothing, fits={}, null=None)
    paths = draw_all([one, none], tmp_path / "figures")
    assert set(paths) == FIGURES
    with pytest.raises(ValueError, match="results is empty"):
        draw_all([], tmp_path)


def test_files(results, tmp_path):
    first = draw_all(results[:2], tmp_path / "a", beta=0.5)
    again = draw_all(results[:2], tmp_path / "b", beta=0.5)
    assert set(first) == FIGURES
    for name, path in first.items():
        assert path == tmp_path / "a" / f"{name}.svg"
        assert path.read_bytes() == again[name].read_bytes()
        with Image.open(path.with_suffix(".png")) as image:
            assert image.info["dpi"][0] >= 149.9
            assert len(np.unique(np.asarray(image.convert("L")))) > 20


def test_few_pairs_are_light_and_do_not_press_the_others_aside():
    counts = np.array([40] * 30 + [2] * 300)
    assert end_of_view(counts) == 40
    assert end_of_view(counts, least=2) == 330
    assert end_of_view(np.array([3, 3, 1, 0])) == 3
    assert [num_columns(n) for n in (1, 2, 3, 4, 5, 12)] == [1, 2, 3, 2, 3, 3]


def test_names_are_cut_in_the_middle():
    assert fitting("short") == "short"
    cut = fitting(LONG, 24)
    assert len(cut) == 24 and cut.startswith("meta-llama/…") and cut.endswith("□□")
    assert fitting("a\nb") == "a□b"


def test_a_single_vision_token_is_a_dot(tmp_path):
    """M = 1: one n, at which a line would not be seen."""
    result = make_result(tmp_path, longest=1)
    mean = result.curve("D").mean
    dots = [
        line.get_ydata()
        for axes in draw_divergence([result]).axes
        for line in axes.lines
        if line.get_marker() == "o"
    ]
    assert any(np.array_equal(values, mean) for values in dots)
    many = make_result(tmp_path, "many", longest=20)
    lines = [line for axes in draw_divergence([many]).axes for line in axes.lines]
    assert lines and all(line.get_marker() == "None" for line in lines)
