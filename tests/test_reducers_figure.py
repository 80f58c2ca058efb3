"""The table and the figure of accuracy against tokens, from made-up results."""

import copy
import re

import pytest

from vtscale_jax.eval.baselines.figure import METHODS, draw, table

FAMILIES = ("read", "count")


def row(method, n, accuracy, extension="", asked=512):
    families = {
        name: {"n": asked, "accuracy": value, "low": value - 0.04, "high": value + 0.02}
        for name, value in zip(FAMILIES, accuracy, strict=True)
    }
    return {"method": method, "n": n, "extension": extension, "families": families}


@pytest.fixture
def results():
    why = "reducer downsample: n = {} tokens were asked for, expected a square number"
    added = "vispruner: at most the half"
    return {
        "questions": 512,
        "patches": 144,
        "rows": [
            row("none", 144, (0.75, 0.875)),
            row("vispruner", 16, (0.5, 0.25)),
            row("vispruner", 2, (0.125, 0.25), added),
            row("vispruner", 1, (0.0, 0.25), added),
            row("queries vqq", 16, (0.625, 1.0)),
        ],
        "not_measured": [
            {"method": "downsample", "n": n, "why": why.format(n)} for n in (2, 8)
        ],
    }


def test_the_table_says_everything(results):
    text = table(results)
    rows = re.findall(r"^\| (?!method)(.*) \|$", text, re.MULTILINE)
    assert rows == [
        "M queries, question fused | 16 | 62.5 | 100.0 | 81.2",
        "LLaVA, all patches | 144 | 75.0 | 87.5 | 81.2",
        "VisPruner | 1 † | 0.0 | 25.0 | 12.5",
        "VisPruner | 2 † | 12.5 | 25.0 | 18.8",
        "VisPruner | 16 | 50.0 | 25.0 | 37.5",
    ]
    assert "at most ± 3.0" in text
    assert "- † n = 1, 2: vispruner: at most the half\n" in text
    assert (
        "- not measured: smaller image, n = 2, 8: reducer downsample: n tokens were "
        "asked for, expected a square number\n"
    ) in text
    assert "questions of each family\n" not in text


def test_other_numbers_of_questions_are_said(results):
    changed = copy.deepcopy(results)
    changed["questions"] = 64
    assert "- VisPruner: on 512 questions of each family\n" in table(changed)


def test_the_figure_shows_every_method(results, tmp_path):
    path = draw(results, tmp_path)
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
    first = path.read_bytes()
    assert draw(results, tmp_path).read_bytes() == first
    # One less method is another figure.
    results["rows"].pop()
    assert draw(results, tmp_path).read_bytes() != first


def test_every_reducer_has_a_look():
    from vtscale_jax.eval.baselines.named import NAMES

    assert set(NAMES) <= set(METHODS)
    looks = [(look.color, look.dashes, marker) for look, marker, _ in METHODS.values()]
    assert len({str(one) for one in looks}) == len(METHODS)
