"""Result files that are malformed are named by file and field; constants stand once."""

import inspect
import json
import math
import re

import pytest
from divergence_results import make_result

from vtscale_jax.divergence import fits, result, summary
from vtscale_jax.divergence.figures import draw_all, panels
from vtscale_jax.divergence.overview import write_overview
from vtscale_jax.divergence.result import ResultError, read_result


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    make_result(folder, "one", longest=12)
    path = folder / "one.json"
    return path, json.loads(path.read_text())


def bins(content, **changes):
    return {"histograms": content["histograms"] | changes}


def mean(content, values):
    band = content["curves"]["D"] | {"mean": values}
    return {"curves": content["curves"] | {"D": band}}


MALFORMED = [
    (lambda c: {"histograms": [1, 2]}, r"histograms is \[1, 2\], expected a table"),
    (lambda c: {"histograms": None}, "histograms is None"),
    (lambda c: {"histograms": {}}, "histograms lacks equal, cross_aa"),
    (lambda c: bins(c, equal="many"), "histograms.equal is 'many', expected a list"),
    (lambda c: bins(c, equal={"a": 1}), "histograms.equal is "),
    (lambda c: bins(c, cross_ab=[0, -1]), r"histograms.cross_ab\[1\] is -1"),
    (lambda c: bins(c, cross_ab=[[0], [1, 2]]), r"histograms.cross_ab\[0\] is \[0\]"),
    (lambda c: bins(c, cross_bb=[1, 2]), "cross_bb has 2 bins, expected 80"),
    (lambda c: {"counts": None}, "counts is None, expected a list"),
    (lambda c: {"counts": {"1": 2}}, "counts is "),
    (lambda c: {"counts": 7}, "counts is 7"),
    (lambda c: {"counts": ["x"] * 12}, r"counts\[0\] is 'x', expected a whole number"),
    (lambda c: {"counts": [1, -3]}, r"counts\[1\] is -3"),
    (lambda c: {"counts": [1.5]}, r"counts\[0\] is 1.5"),
    (lambda c: {"counts": [True]}, r"counts\[0\] is True"),
    (lambda c: {"counts": [2**63]}, r"counts\[0\] is 9223372036854775808"),
    (lambda c: {"counts": [[1, 2], [3]]}, r"counts\[0\] is \[1, 2\]"),
    (lambda c: {"edges": "wide"}, "edges is 'wide', expected a list of numbers"),
    (lambda c: {"edges": [-1, "0", 1]}, r"edges\[1\] is '0', expected a number"),
    (lambda c: {"edges": [-1, [0], 1]}, r"edges\[1\] is \[0\]"),
    (
        lambda c: {"edges": [-1, None, 1]},
        "edges is .*expected two or more",
    ),
    (lambda c: {"edges": [1, 0, -1]}, "edges is .*expected two or more"),
    (lambda c: {"edges": [0]}, "edges is .*expected two or more"),
    (lambda c: {"edges": [0, 10**400]}, r"edges\[1\] is 1000"),
    (lambda c: {"curves": [1]}, r"curves is \[1\], expected a table"),
    (lambda c: mean(c, "high"), "curves.D.mean is 'high'"),
    (lambda c: mean(c, [[1], 2]), r"curves.D.mean\[0\] is \[1\]"),
    (lambda c: mean(c, ["1"] * 12), r"curves.D.mean\[0\] is '1'"),
    (lambda c: {"fits": []}, r"fits is \[\], expected a table of fields"),
    (lambda c: {"null": 3}, "null is 3, expected a table of fields or null"),
    (lambda c: {"name": None}, "name is None, expected text"),
    (lambda c: {"largest_norm": "9"}, "largest_norm is '9', expected a number"),
    (lambda c: {"largest_norm": -1}, "largest_norm is -1"),
]


@pytest.mark.parametrize("change, words", MALFORMED)
def test_what_is_malformed_is_named(written, tmp_path, change, words):
    content = written[1]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(content | change(content)))
    with pytest.raises(ResultError, match=words) as raised:
        read_result(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert len(str(raised.value)) < len(str(path)) + 200


def test_numbers_that_are_no_json_are_named(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text("[" + "1" * 10_000 + "]")
    with pytest.raises(ResultError, match="cannot be read"):
        read_result(path)


def test_null_in_a_curve_is_no_value(written):
    path, content = written
    assert content["curves"]["psi_excess"]["mean"][0] is None
    assert math.isnan(read_result(path).curve("psi_excess").mean[0])


def default(function, name):
    return inspect.signature(function).parameters[name].default


def test_constants_stand_in_one_place():
    for function, name in (
        (fits.fitted_points, "least_count"),
        (fits.weighted_mean, "least_count"),
        (summary.summarize, "least_count"),
        (panels.draw_curve, "least"),
        (draw_all, "least"),
        (write_overview, "least"),
    ):
        assert default(function, name) == result.LEAST_COUNT == 10
    assert default(fits.fit_scores, "confidence") == result.CONFIDENCE == 0.95
    # Not a last bit more: of 1,000 replicates that may be one rank.
    assert summary.QUANTILES == (0.025, 0.975)
    stated = re.compile(r"^(LEAST_COUNT|CONFIDENCE)\b.*=|(count|confidence).*= *[\d.]")
    for module in (fits, summary, panels):
        for line in inspect.getsource(module).splitlines():
            own = stated.search(line.strip()) and "least_count=10)" not in line
            assert not own, f"{module.__name__}: {line}"
    assert stated.search("least_count: int = 10,") and stated.search("CONFIDENCE = 1")
