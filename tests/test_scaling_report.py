"""The page about scores: all it needs is in it, and it says what does not hold."""

import json
import re

import numpy as np
import pytest
from scaling_analyses import make_scores

from vtscale_jax.scaling.analysis import How, analyse
from vtscale_jax.scaling.figures import Extras
from vtscale_jax.scaling.report import write_report
from vtscale_jax.scaling.scores import Scores, Series
from vtscale_jax.scaling.theory_check import check

FAMILIES = {"read": (4.0, -0.6), "exists": (55.0, 0.0), "<b>&": (30.0, -0.1)}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report on three metrics and two kinds of inputs, with single questions."""
    scores = make_scores(kinds=("vqq", "vq_ft"), families=FAMILIES, n_items=80)
    flat = Series("vqq", "flat", np.array([1, 2]), np.array([0.0, 5.0]), 100.0)
    scores = Scores(
        scores.source, (*scores.series, flat), notes=("read lacks M = <3>",)
    )
    analysis = analyse(scores, How(replicates=100))
    upsilon = {n: n**1.2 for n in range(1, 65)}
    checks = [check(scores.series[0], upsilon, "m64-embedded")]
    folder = tmp_path_factory.mktemp("report")
    extras = Extras(psi_delta={"m64": (np.arange(1, 9), np.linspace(0.9, 0.5, 8))})
    page, found = write_report(analysis, folder, checks=checks, extras=extras)
    return folder, page.read_text(encoding="utf-8"), found, analysis


def test_nothing_is_loaded_from_elsewhere(written):
    _, page, _, _ = written
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert page.count("data:image/svg+xml;base64,") >= 6


def test_names_are_text_never_markup(written):
    _, page, _, _ = written
    assert "<b>&" not in page and "&lt;b&gt;&amp;" in page
    assert "M = &lt;3&gt;" in page


def test_every_sentence_and_table_is_there(written):
    _, page, found, analysis = written
    text = page.replace("&#39;", "'").replace("&lt;", "<").replace("&gt;", ">")
    for one in found:
        assert one.text in text.replace("&amp;", "&")
    for name in ("power-vqq", "power-vq_ft", "laws", "extrapolation", "gain-vq_ft"):
        assert f'<details id="{name}"' in page
    assert '<details id="theory"' in page and "m64-embedded" in page
    assert '<details id="excluded"' in page and "no logarithm" in page
    # The number beside each law is that of last value, and each law not fitted is said.
    assert "last value" in page and "1 usable scores, 2 needed" in page
    assert any(one.failed for one in analysis.fits)


def test_what_is_not_identified_is_marked_in_the_table(written):
    _, page, _, analysis = written
    problems = analysis.of("exists", "vqq").fits["power"].problems
    assert problems == ("α cannot be told from 0",)
    row = re.search(r'data-value="exists">exists</th>.*?</tr>', page, re.DOTALL)
    assert 'class="bad">α cannot be told from 0' in row.group()


def test_files_stand_beside_the_page(written):
    folder, _, _, analysis = written
    content = json.loads((folder / "fits.json").read_text(encoding="utf-8"))
    assert len(content["fits"]) == sum(len(one.fits) for one in analysis.fits)
    names = {path.stem for path in (folder / "figures").glob("*.svg")}
    assert names == {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"fig09_fits_vqq", "fig12_gain_over_vq_ft", "v1_fig10"} <= names


def test_the_same_scores_give_the_same_page(written, tmp_path):
    _, page, _, _ = written
    scores = make_scores(kinds=("vqq",), families={"read": FAMILIES["read"]})
    once, again = (
        write_report(analyse(scores, How(replicates=100, seed=seed)), tmp_path / name)[
            0
        ]
        for name, seed in (("a", 1), ("b", 1))
    )
    assert once.read_bytes() == again.read_bytes()
    assert once.read_text(encoding="utf-8") != page
