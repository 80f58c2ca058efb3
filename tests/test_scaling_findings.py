"""The sentences about an analysis: what they count, and when they turn."""

import numpy as np
import pytest
from scaling_analyses import make_analysis, make_fits, make_scores

from vtscale_jax.scaling.findings import (
    by_subject,
    extrapolation_means,
    findings,
    number,
)
from vtscale_jax.scaling.gains import gains
from vtscale_jax.scaling.result import LAST_VALUE, Analysis
from vtscale_jax.scaling.scores import Excluded, Scores
from vtscale_jax.scaling.theory_check import MEASURED, Check


def scores():
    return make_scores(("vqq",), {"a": (4.0, -0.6), "b": (30.0, -0.1)})


def with_errors(errors, last=0.2):
    """An analysis of as many metrics with these extrapolation errors by law."""
    number_of = len(next(iter(errors.values())))
    families = {f"m{i}": (10.0, -0.2) for i in range(number_of)}
    made = make_scores(("vqq",), families)
    fits = []
    for i, series in enumerate(made.series):
        one = make_fits(series, laws=tuple(errors))
        laws = {
            name: fit._replace(extrapolation=errors[name][i])
            for name, fit in one.fits.items()
        }
        fits.append(one._replace(fits=laws, last_value_extrapolation=last, cut=16))
    return Analysis(made, tuple(fits), 16, 0, 100)


def texts(analysis, **more):
    return [one.text for one in findings(analysis, **more)]


def said(analysis, start, **more):
    """The one finding that has these words."""
    (found,) = [one for one in findings(analysis, **more) if start in one.text]
    return found


def test_growth_that_is_sure_everywhere():
    found = said(make_analysis(scores()), "M matters")
    assert found.tone == "good" and "vqq" in found.about
    assert found.text.endswith("for 2 of 2 metrics.")


def test_growth_that_is_sure_somewhere_names_where_it_is_not():
    unsure = {"b": ("α cannot be told from 0",)}
    found = said(make_analysis(scores(), unsure), "M matters")
    assert found.tone == "plain"
    assert found.text.endswith("for 1 of 2 metrics; not identified for b.")
    nowhere = dict.fromkeys("ab", ("α cannot be told from 0",))
    found = said(make_analysis(scores(), nowhere), "M matters")
    assert found.tone == "bad"
    assert found.text.endswith("for 0 of 2 metrics; not identified for a, b.")


def test_scores_that_fall_are_said_to_fall():
    made = make_scores(("vqq",), {"a": (10.0, -0.6), "b": (30.0, 0.3)}, noise=0.0)
    found = said(make_analysis(made), "fall")
    assert found.tone == "bad" and found.text.endswith("fall for b.")
    assert not any("fall" in text for text in texts(make_analysis(scores())))


def test_steepest_and_flattest():
    families = {f"m{i}": (2.0, -0.1 * i) for i in range(1, 8)}
    families["down"] = (10.0, 0.2)
    analysis = make_analysis(make_scores(("vqq",), families, noise=0.0))
    (text,) = [one for one in texts(analysis) if "Steepest" in one]
    steep, flat = text.split("Flattest")
    places = [steep.find(f"m{i} ") for i in (7, 6, 5)]
    assert min(places) > 0 and places == sorted(places)
    places = [flat.find(f"m{i} ") for i in (1, 2, 3)]
    assert min(places) > 0 and places == sorted(places)
    assert "m4" not in text and "down" not in text
    assert "m7 −0.7 (" in steep
    assert not [
        one for one in texts(make_analysis(scores(), {"a": ("x",)})) if "Stee" in one
    ]


def test_how_far_the_power_law_is_behind_is_counted():
    analysis = with_errors({"power": [0.1] * 6, "constant": [0.1] * 6})
    fits = []
    for one, behind in zip(analysis.fits, (0, 1.9, 5, 9.9, 10.1, 40), strict=True):
        power = one.fits["power"]._replace(aicc=7.0 + behind)
        best = one.fits["constant"]._replace(aicc=7.0)
        both = {"power": power, "constant": best}
        fits.append(one._replace(fits=both, chosen="constant"))
    found = said(analysis._replace(fits=tuple(fits)), "AICc takes")
    assert found.text.endswith(
        "as good as the best (ΔAICc ≤ 2) for 2 and ruled out (> 10) for 2."
    )


def test_laws_that_aicc_takes_are_counted():
    analysis = with_errors({"power": [0.1] * 6, "constant": [0.1] * 6})
    fits = [one._replace(chosen="power_weighted") for one in analysis.fits[:2]]
    fits += [one._replace(chosen="saturating") for one in analysis.fits[2:]]
    found = said(analysis._replace(fits=tuple(fits)), "AICc takes")
    assert found.tone == "bad"
    assert found.text.startswith(
        "AICc takes the power law for 2 of 6 metrics; saturating for 4 (m2, m3, m4, "
        "m5)."
    )
    most = tuple(one._replace(chosen="power") for one in analysis.fits)
    assert said(analysis._replace(fits=most), "AICc takes").tone == "good"
    none = tuple(one._replace(chosen=None) for one in analysis.fits)
    text = said(analysis._replace(fits=none), "AICc").text
    assert text == "There are too few M to compare laws by AICc."


@pytest.mark.parametrize("power, beats", [(0.1, True), (0.3, False)])
def test_prediction_is_told_against_the_last_value(power, beats):
    errors = {
        "power": [power, power],
        "constant": [0.4, 0.5],
        "logarithmic": [0.2, 0.3],
    }
    found = said(with_errors(errors), "misses larger M")
    assert found.tone == ("good" if beats else "bad")
    assert found.text.startswith(
        f"Fitted to M ≤ 16, the power law misses larger M by {power:.1%} (mean of 2 "
    )
    assert "the last value misses by 20.0%, the logarithmic law by 25.0%." in found.text
    assert found.text.endswith(f"in {2 if beats else 0} of 2 metrics.")


def test_a_power_law_alone_is_told_against_the_last_value():
    # Where every score is at the end of the scale, no other law is fitted.
    text = said(with_errors({"power": [0.1]}), "misses larger M").text
    assert "repeating the last value misses by 20.0%. The power law" in text


def test_means_are_over_the_metrics_that_all_laws_have():
    nan = float("nan")
    analysis = with_errors({"power": [0.1, 0.3, 0.5], "logarithmic": [0.2, nan, 0.4]})
    means = extrapolation_means(analysis.fits)
    assert means["power"] == (pytest.approx(0.3), 2)
    assert means["logarithmic"] == (pytest.approx(0.3), 2)
    assert means["last value"] == (pytest.approx(0.2), 2)
    # A law that has none anywhere keeps no other from its mean.
    nowhere = with_errors({"power": [0.1, 0.3], "logarithmic": [nan, nan]})
    assert set(extrapolation_means(nowhere.fits)) == {"power", "last value"}
    none = with_errors({"power": [nan, nan]})
    assert set(extrapolation_means(none.fits)) == {"last value"}
    assert not any("misses" in text for text in texts(none))
    assert extrapolation_means(with_errors({"power": [0.1]}, last=nan).fits) == {}


def test_no_power_law_is_said():
    analysis = make_analysis(scores(), laws=("constant",))
    assert "The power law could not be fitted to any metric." in texts(analysis)


def test_fusion_is_told_by_its_gains():
    made = make_scores(("vqq", "vq_ft"), {"a": (4.0, -0.6), "b": (30.0, -0.1)}, noise=0)
    analysis = make_analysis(made)
    found = said(analysis, "against vq_ft", gains=[gains(made, "vqq", "vq_ft")])
    assert found.tone == "good"
    assert "raises 100% of all scores, and at every M those of 2 of 2" in found.text
    worse = said(analysis, "against vqq", gains=[gains(made, "vq_ft", "vqq")])
    assert worse.tone == "bad" and "raises 0% of all" in worse.text
    assert worse.text.endswith("0 of 2 metrics; at no M those of a, b.")


def test_checks_and_what_was_left_out_are_told():
    made = scores()
    left_out = Excluded("vqq", "a", 4, "nan", "no score", "s.csv, line 3")
    analysis = make_analysis(Scores("s", made.series, (left_out,)))
    fits = (analysis.fits[0]._replace(failed={"theory": "too few"}), analysis.fits[1])
    checks = [
        Check("m", "vqq", "a", verdict=verdict, sentence=f"It is {verdict}.")
        for verdict in ("predicts", "fails", "cannot be checked")
    ]
    found = findings(analysis._replace(fits=fits), checks=checks)
    tones = {one.text: one.tone for one in found}
    assert tones["It is predicts."] == "good"
    assert tones["It is fails."] == "bad"
    assert tones["It is cannot be checked."] == "plain"
    assert any(text.startswith("1 scores were left out") for text in tones)
    assert any(text.startswith("1 fits were not possible") for text in tones)
    plain = texts(make_analysis(made))
    assert not any("left out" in text or "not possible" in text for text in plain)


def test_kinds_of_inputs_are_told_apart():
    made = make_scores(("vqq", "vq"), {"a": (4.0, -0.6), "b": (30.0, -0.1)})
    groups = by_subject(findings(make_analysis(made)))
    first, second = groups
    assert "vqq" in first and "vq" in second and "vqq" not in second
    for found in groups.values():
        assert sum("M matters" in one.text for one in found) == 1
    bare = Scores("s", tuple(one._replace(inputs="") for one in scores().series))
    assert len({one.about for one in findings(make_analysis(bare))}) == 1


def test_numbers_are_written_for_people():
    assert number(-0.03714) == "−0.0371" and number(0.0) == "0"
    assert number(float("nan")) == "–"
    assert (number(np.inf), number(-np.inf)) == ("∞", "−∞")
    assert number(1234.5, 5) == "1234.5"


def test_scores_that_no_law_explains_are_said():
    analysis = with_errors({"power": [0.1] * 3, "constant": [0.1] * 3})
    fits = []
    for one, main in zip(analysis.fits, ("items", "both", "budgets"), strict=True):
        ends = next(iter(one.fits["power"].intervals.values()))
        power = one.fits["power"]._replace(main=main, intervals={main: ends})
        laws = one.fits | {"power": power}
        fits.append(one._replace(fits=laws, chosen="power", errors="items"))
    found = said(analysis._replace(fits=tuple(fits)), "even that law leaves more")
    assert found.tone == "bad" and found.text.startswith("For 2 of 3 metrics (m1, m2)")
    logs = tuple(one._replace(errors="log") for one in fits)
    text = " ".join(one.text for one in findings(analysis._replace(fits=logs)))
    assert "even that law" not in text


def test_many_checks_of_the_theory_are_summed_up():
    analysis = with_errors({"power": [0.1]})

    def made(number, theory, last, verdict):
        errors = {MEASURED: theory, LAST_VALUE: last}
        return Check(
            "m", "vqq", f"m{number}", errors=errors, verdict=verdict, sentence="whole"
        )

    checks = [
        made(0, 0.1, 0.2, "predicts"),
        made(1, 0.3, 0.2, "fails"),
        made(2, 0.1, 0.2, "fails"),
        made(3, 0.5, 0.2, "fails"),
        Check("m", "vqq", "m4"),
    ]
    found = [one for one in findings(analysis, checks=checks) if "theory" in one.about]
    assert [one.tone for one in found] == ["bad", "plain"]
    assert (
        "best of all for 1 of 4 series (m0 (vqq)); for 2 it is worse" in found[0].text
    )
    assert found[1].text.startswith("1 series could not be checked")
    few = findings(analysis, checks=checks[:4])
    assert [one.text for one in few if "theory" in one.about] == ["whole"] * 4
