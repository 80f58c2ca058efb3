"""The figures of scores: they show the numbers of the analysis, and nothing else."""

import numpy as np
import pytest
from figure_texts import overlapping
from matplotlib.colors import same_color
from matplotlib.text import Text
from PIL import Image
from scaling_analyses import FAMILIES, M, make_analysis, make_fits, make_scores

from vtscale_jax.report.drawing import GREEN, ORANGE
from vtscale_jax.scaling.clusters import clusters, normalised
from vtscale_jax.scaling.figures import Extras, draw, draw_all
from vtscale_jax.scaling.figures.curve_figures import draw_clusters, draw_normalised
from vtscale_jax.scaling.figures.first_version import draw_psi_delta
from vtscale_jax.scaling.figures.fit_figures import draw_fits, draw_without
from vtscale_jax.scaling.figures.gain_figures import draw_gains
from vtscale_jax.scaling.figures.law_figures import (
    draw_model_comparison,
    draw_power_exponents,
    standings,
)
from vtscale_jax.scaling.figures.panels import folded, number, percent
from vtscale_jax.scaling.figures.published_figures import (
    draw_radar,
    draw_token_reduction,
)
from vtscale_jax.scaling.gains import gains
from vtscale_jax.scaling.result import Interval
from vtscale_jax.scaling.scores import Scores, Series

LONG = {
    "HallusionBench-of-some-length/Overall $x_1$ of all": (20.0, -0.1),
    "\u65e5\u672c\u8a9e/\u7cbe\u5ea6": (50.0, -0.02),
}
WHY = "α cannot be told from 0, and so much more is wrong that it fills two lines"


@pytest.fixture(scope="module")
def embedded():
    """6 metrics × 7 M × 3 kinds of inputs, with items."""
    return make_analysis(make_scores(n_items=300))


@pytest.fixture(scope="module")
def long():
    names = list(LONG)
    return make_analysis(make_scores(families=LONG), {names[0]: (WHY,)})


def of(analysis, inputs):
    return [one for one in analysis.fits if one.series.inputs == inputs]


def line(ax, start):
    (found,) = [one for one in ax.get_lines() if one.get_label().startswith(start)]
    return found


def said(ax):
    return "\n".join(text.get_text() for text in ax.texts)


def test_dots_and_lines_are_those_of_the_analysis(embedded):
    fits = of(embedded, "vqq")
    axes = draw_fits(fits, "title").axes
    assert [ax.get_title(loc="left") for ax in axes] == list(FAMILIES)
    for ax, one in zip(axes, fits, strict=True):
        np.testing.assert_array_equal(line(ax, "score").get_xdata(), M)
        np.testing.assert_array_equal(line(ax, "score").get_ydata(), one.series.score)
        power = one.fits["power"]
        drawn = line(ax, "power law")
        np.testing.assert_array_equal(drawn.get_ydata(), power.predict(one.grid))
        alpha = power.estimates["alpha"]
        assert f"α {alpha:.3f} [{alpha - 0.05:.3f}, {alpha + 0.05:.3f}]" in said(
            ax
        ).replace("−", "-")
        others = [x for x in ax.get_lines() if "(smallest AICc)" in x.get_label()]
        assert len(others) == (one.chosen != "power")
        assert ax.get_xscale() == "log"
    assert {one.chosen for one in fits} > {"power"}


def test_the_band_is_that_of_the_analysis():
    (one,) = make_analysis(make_scores(("",), {"read": (4.0, -0.6)})).fits
    (ax,) = draw_fits([one], "title").axes
    corners = ax.collections[0].get_paths()[0].vertices
    for edge in one.bands["power"]:
        for point in zip(one.grid, edge, strict=True):
            assert np.any(np.all(np.isclose(corners, point), axis=1))
    shifted = one._replace(bands={"power": tuple(e + 1 for e in one.bands["power"])})
    (other,) = draw_fits([shifted], "title").axes
    corners = other.collections[0].get_paths()[0].vertices
    point = one.grid[0], one.bands["power"][0][0]
    assert not np.any(np.all(np.isclose(corners, point), axis=1))


def test_errors_of_scores_are_drawn_where_they_are_known(embedded):
    (bare,) = make_analysis(make_scores(("",), {"read": (4.0, -0.6)})).fits
    for one, there in ((embedded.fits[0], True), (bare, False)):
        (ax,) = draw_fits([one], "title").axes
        bars = [c for c in ax.containers if c.get_label().startswith("_")]
        assert bool(bars) == there
    items = embedded.fits[0].series.items
    segments = draw_fits(embedded.fits[:1], "t").axes[0].containers[0][2][0]
    ends = np.array([path[:, 1] for path in segments.get_segments()])
    expected = 2 * 1.96 * 100 * items.std(1, ddof=1) / np.sqrt(items.shape[1])
    np.testing.assert_allclose(ends[:, 1] - ends[:, 0], expected)


def test_what_is_not_identified_is_said_and_drawn_lighter(long):
    first, second = draw_fits(of(long, "vqq"), "title").axes
    assert "not identified: α cannot be told from 0" in said(first)
    assert "not identified" not in said(second)
    assert "−∞, ∞" in said(first)
    doubtful, firm = line(first, "power law"), line(second, "power law")
    assert doubtful.get_alpha() < 1 and doubtful.is_dashed()
    assert firm.get_alpha() is None and not firm.is_dashed()


def test_a_law_that_failed_is_said_so():
    series = Series("", "read", np.array([4]), np.array([3.0]))
    one = make_fits(series, laws=())._replace(failed={"power": "1 usable score"})
    (ax,) = draw_fits([one], "title").axes
    assert "no power law: 1 usable score" in said(ax)
    assert len(ax.get_lines()) == 1


def test_without_some_m_the_hollow_ones_are_left_out(embedded):
    every = embedded.fits[0]
    keep = ~np.isin(M, [16, 32])
    series = every.series
    part = make_fits(
        Series(series.inputs, series.metric, M[keep], series.score[keep]), (WHY,)
    )
    (ax,) = draw_without([(every, part)], "Fig. 11").axes
    np.testing.assert_array_equal(line(ax, "left out").get_xdata(), [16, 32])
    np.testing.assert_array_equal(line(ax, "score").get_xdata(), M[keep])
    drawn = line(ax, "power law without")
    np.testing.assert_array_equal(
        drawn.get_ydata(), part.fits["power"].predict(every.grid)
    )
    assert "without 16, 32 (not identified):" in said(ax)
    assert "all M:" in said(ax)


def test_bars_are_the_gains():
    scores = make_scores(("vqq", "vq"), n_items=200)
    last = scores.series[-1]
    fewer = Series(last.inputs, last.metric, last.m[:-1], last.score[:-1])
    scores = scores._replace(series=(*scores.series[:-1], fewer))
    found = gains(scores, "vqq", "vq")
    figure = draw_gains(found, "Fig. 13")
    assert "(1 score without a partner)" in figure.get_suptitle()
    kinds = set()
    for ax, gain in zip(figure.axes, found.gains, strict=True):
        heights = {
            round(bar.get_x() + bar.get_width() / 2): bar.get_height()
            for bar in ax.patches
        }
        np.testing.assert_array_equal(
            [heights[i] for i in range(len(gain.m))], gain.absolute
        )
        for bar in ax.patches:
            color = ORANGE if bar.get_height() < 0 else GREEN
            kinds.add(color)
            assert same_color(bar.get_facecolor(), color)
        low, high = gain.relative_range
        assert said(ax) == f"{percent(low)} to {percent(high)}"
    assert kinds == {ORANGE, GREEN}


def test_normalised_curves_and_clusters():
    scores = make_scores(("vqq",))
    flat = Series("vqq", "flat", M, np.full(7, 3.0))
    curves = normalised(scores._replace(series=(*scores.series, flat)), "vqq")
    figure = draw_normalised(curves, "Fig. 18")
    assert "Left out: flat (flat: the same score at every M)" in figure.get_suptitle()
    (ax,) = figure.axes
    for name, values in zip(curves.metrics, curves.values, strict=True):
        np.testing.assert_array_equal(line(ax, name).get_ydata(), values)
    found = clusters(curves)
    axes = draw_clusters(found, "Fig. 19").axes
    assert len(axes) == found.k == 4
    for label, ax in enumerate(axes):
        names = [text.get_text() for text in ax.get_legend().get_texts()]
        assert names == [*found.members(label), "centre"]
        for name in found.members(label):
            values = curves.values[curves.metrics.index(name)]
            np.testing.assert_array_equal(line(ax, name).get_ydata(), values)
        np.testing.assert_array_equal(
            line(ax, "centre").get_ydata(), found.centres[label]
        )


def test_what_a_model_lacks_is_a_gap():
    own = {64: {"a": 50.0, "b": 20.0, "c": 30.0, "own": 1.0}}
    models = {"x": {"a": 100.0, "b": 10.0, "c": 15.0}, "y": {"a": 0.0, "z": 5.0}}
    (ax,) = draw_radar(own, models, "Fig. 17").axes
    assert said(ax).split() == ["a", "b", "c"]
    np.testing.assert_allclose(line(ax, "this").get_ydata(), [0.5, 1, 1, 0.5])
    np.testing.assert_allclose(line(ax, "x").get_ydata(), [1, 0.5, 0.5, 1])
    np.testing.assert_allclose(line(ax, "y").get_ydata(), [0, np.nan, np.nan, 0])
    with pytest.raises(ValueError, match="no metric of these scores"):
        draw_radar({64: {"own": 1.0}}, models, "Fig. 17")


def test_token_reduction_is_one_line_for_each_method():
    rows = [(64, "A", "read", 3.0), (16, "A", "read", 1.0), (16, "B", "count", 2.0)]
    read, count = draw_token_reduction(rows, "Table 5").axes
    np.testing.assert_array_equal(line(read, "A").get_xdata(), [16, 64])
    np.testing.assert_array_equal(line(read, "A").get_ydata(), [1, 3])
    assert [one.get_label() for one in count.get_lines()] == ["B"]


def test_the_form_of_the_first_version():
    n = np.arange(1, 65)
    psi = 0.5 * n**-0.25
    curves = {
        "exact": (n, psi),
        "signs": (n, np.where(n % 2, psi, -0.1)),
        "flat": (n, np.full(64, 0.3)),
        "none": (n, np.full(64, np.nan)),
        "negative": (n, -psi),
    }
    exact, signs, flat, none, negative = draw_psi_delta(curves, "v1").axes
    assert said(exact) == "c 0.5, α 0.25, c' 0.0625"
    np.testing.assert_allclose(
        line(exact, "$c").get_ydata(), 0.5 * line(exact, "$c").get_xdata() ** -0.25
    )
    assert "32 of 64 not above 0" in said(signs).replace("\n", " ")
    assert "c' undefined (α near 0)" in said(flat).replace("\n", " ")
    assert "no value" in said(none) and not none.get_lines()
    assert "no fit" in said(negative) and len(negative.get_lines()) == 1


def errors(one, last, **laws):
    fits = {
        name: one.fits[name]._replace(extrapolation=error, aicc=float(place))
        for place, (name, error) in enumerate(laws.items())
    }
    return one._replace(fits=fits, last_value_extrapolation=last)


def test_the_comparison_shows_who_beats_the_last_value(embedded):
    fits = of(embedded, "vqq")
    made = [
        errors(fits[0], 0.10, power=0.20, constant=0.30, logarithmic=0.05),
        errors(fits[1], 0.10, power=0.02, constant=0.30, logarithmic=0.15),
        errors(fits[2], np.nan, power=np.nan, constant=np.nan, logarithmic=np.nan),
        errors(fits[3], 0.10, power=0.09, constant=np.nan, logarithmic=0.15),
    ]
    power, constant, logarithmic = standings(made)
    assert (power.better, power.metrics, power.median) == (2, 3, 0.09)
    assert (constant.better, constant.metrics) == (0, 2)
    assert (logarithmic.better, logarithmic.metrics) == (1, 3)
    figure = draw_model_comparison(made, 16, "title")
    left, right = figure.axes
    rows = [text.get_text() for text in left.get_yticklabels()]
    assert rows == [made[i].series.metric for i in (1, 3, 0, 2)]
    # Two rows above the dashed line.
    (divider,) = {x.get_ydata()[0] for x in left.get_lines() if x.get_ydata()[0] % 1}
    assert divider == 1.5
    points = {(x.get_xdata()[0], x.get_ydata()[0]) for x in left.get_lines()}
    assert {(0.02, 0), (0.10, 0), (0.09, 1), (0.05, 2), (0.30, 2)} <= points
    assert "no extrapolation" in said(left)
    assert "M ≤ 16" in left.get_xlabel()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "power: median 9.0 %, beats last value in 2 of 3" in legend
    assert "last value repeated: median 10.0 %" in legend
    # AICc of the laws are 0, 1, 2 in the order above.
    assert {(0.0, 0), (1.0, 0), (2.0, 0)} <= {
        (x.get_xdata()[0], x.get_ydata()[0]) for x in right.get_lines()
    }


def test_criteria_of_other_errors_are_not_compared(embedded):
    one = embedded.fits[0]
    fits = one.fits | {"power_weighted": one.fits["power"]._replace(aicc=-500.0)}
    weighted = one._replace(fits=fits)
    for series, count in ((one, 3), (weighted, 3)):
        right = draw_model_comparison([series], 16, "title").axes[1]
        dots = [x for x in right.get_lines() if len(x.get_xdata()) == 1]
        assert len(dots) == count


def test_exponents_with_their_intervals(embedded):
    fits = of(embedded, "vqq")[:3]
    power = fits[1].fits["power"]
    endless = power._replace(
        intervals={"budgets": {"alpha": Interval(-np.inf, 0.5)}}, problems=(WHY,)
    )
    fits[1] = fits[1]._replace(fits=fits[1].fits | {"power": endless})
    figure = draw_power_exponents([("vqq", fits)], "title")
    (ax,) = figure.axes
    exponents = [one.fits["power"].estimates["alpha"] for one in fits]
    dots = {x.get_ydata()[0]: x for x in ax.get_lines() if x.get_marker() in ("o", "s")}
    assert [dots[row].get_xdata()[0] for row in range(3)] == sorted(exponents)[::-1]
    hollow = [row for row in range(3) if dots[row].get_markerfacecolor() == "white"]
    rows = [text.get_text() for text in ax.get_yticklabels()]
    assert [rows[row] for row in hollow] == [fits[1].series.metric]
    arrows = [x.get_marker() for x in ax.get_lines() if x.get_marker() in ("<", ">")]
    assert "<" in arrows
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["vqq", "not identified"]
    legend = draw_power_exponents([("vqq", fits[:1])], "title").legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["vqq"]


def all_figures(analysis, inputs):
    fits = of(analysis, inputs)
    yield draw_fits(fits, "Scores and their laws (Fig. 9)")
    yield draw_model_comparison(fits, analysis.cut, "Which law predicts more tokens")
    kinds = [(kind, of(analysis, kind)) for kind in analysis.scores.inputs()]
    yield draw_power_exponents(kinds, "Exponents")
    curves = normalised(analysis.scores, inputs)
    yield draw_normalised(curves, "Normalised scores")
    yield draw_clusters(clusters(curves), "Clusters")
    found = gains(analysis.scores, inputs, "vq")
    if found.gains:
        yield draw_gains(found, "What it adds")
    yield draw_without([(fits[0], fits[0])], "Without")


@pytest.mark.parametrize("case", ["embedded", "long", "one"])
def test_nothing_overlaps_or_is_small(case, request):
    if case == "one":
        analysis = make_analysis(make_scores(("",), {"read": (4.0, -0.6)}))
    else:
        analysis = request.getfixturevalue(case)
    for figure in all_figures(analysis, analysis.scores.inputs()[0]):
        assert overlapping(figure) == [], figure.get_suptitle()
        assert min(text.get_fontsize() for text in figure.findobj(Text)) >= 7
        assert figure.get_figwidth() in (3.3, 6.8)
        for text in figure.findobj(Text):
            if "$x_1$" in text.get_text() and text.get_visible():
                assert not text.get_parse_math()


def test_only_what_the_data_allow_is_drawn(embedded, tmp_path):
    alone = make_analysis(make_scores(("",), {"read": (4.0, -0.6)}))
    names = draw_all(alone, tmp_path / "alone", without=alone, models={"x": {"a": 1.0}})
    assert set(names) == {"fits", "paper_law", "model_comparison", "normalised"}
    two = embedded._replace(
        scores=make_scores(("vqq", "mine"), m=M),
        fits=tuple(one for one in embedded.fits if one.series.inputs == "vqq"),
    )
    models = {"x": {"read": 50.0, "count": 20.0, "exists": 60.0}}
    rows = [(16, "A", "read", 1.0)]
    psi = {"m8": (np.arange(1, 9), np.linspace(0.5, 0.3, 8))}
    thinner = embedded._replace(
        fits=(make_fits(Series("vqq", "read", M[:4], np.arange(1.0, 5.0))),)
    )
    drawn = draw(two, tmp_path / "two", Extras(models, rows, thinner, psi))
    assert [one.name for one in drawn] == [
        *("paper_law", "model_comparison_vqq", "fig09_fits_vqq", "fig11_without"),
        *("fig17_radar", "fig18_normalised", "fig19_clusters"),
        *("table5_token_reduction", "v1_fig10"),
    ]
    widths = {one.name: one.width for one in drawn}
    assert widths["v1_fig10"] == "column" and widths["paper_law"] == "page"
    for one in drawn:
        assert one.path == tmp_path / "two" / f"{one.name}.svg"
        assert one.caption.title in one.path.read_text() or one.caption.text
        with Image.open(one.path.with_suffix(".png")) as image:
            assert image.info["dpi"][0] >= 149.9
            assert len(np.unique(np.asarray(image.convert("L")))) > 20


def test_gains_have_the_papers_numbers(tmp_path):
    analysis = make_analysis(make_scores(("vqq", "vq", "vq_ft"), {"read": (4, -0.6)}))
    names = draw_all(analysis, tmp_path)
    assert {"fig09_fits_vqq", "fig10_fits_vq_ft", "fits_vq"} <= set(names)
    assert {"fig12_gain_over_vq_ft", "fig13_gain_over_vq"} <= set(names)


def test_names_of_inputs_are_no_paths(tmp_path):
    kinds = ("../up", ".. up", "a" * 300)
    analysis = make_analysis(make_scores(kinds, {"read": (4.0, -0.6)}))
    folder = tmp_path / "figures"
    names = draw_all(analysis, folder)
    assert {"fits_up", "fits_up_2", f"fits_{'a' * 40}"} <= set(names)
    assert {path.parent for path in names.values()} == {folder}
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]


def test_hostile_scores_are_drawn_or_left_out(tmp_path):
    """One M, zeros, equal scores: panels that say so, no error, no warning."""
    scores = Scores(
        "hostile",
        (
            Series("vqq", "one", np.array([4]), np.array([3.0])),
            Series("vqq", "zero", M, np.zeros(7)),
            Series("vqq", "flat", M, np.full(7, 5.0)),
            Series("vq", "one", np.array([8]), np.array([3.0])),
        ),
    )
    bare = {"laws": ()}
    analysis = make_analysis(scores, **bare)
    assert set(draw_all(analysis, tmp_path)) == {"fig09_fits_vqq", "fits_vq"}


def test_words_and_numbers():
    assert folded("one two three four", 8, 2) == "one two\nthree f…"
    assert folded("x" * 20, 8, 3) == f"{'x' * 8}\n{'x' * 8}\n{'x' * 4}"
    assert folded("", 8, 2) == ""
    values = (1067.6, -0.05164, np.inf, -np.inf, np.nan, 2e7)
    assert [number(v) for v in values] == [
        *("1,068", "−0.0516", "∞", "−∞", "–", "2e+07")
    ]
    assert percent(0.021) == "+2.1 %" and percent(-0.3) == "−30 %"
