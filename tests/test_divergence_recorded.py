"""What was recorded of real measurements, and that the README says the same."""

import json

import numpy as np
import pytest
from PIL import Image

from vtscale_jax.divergence.findings import interval_words, number, percent
from vtscale_jax.divergence.result import Result, read_result
from vtscale_jax.divergence.summary import summarize

TEXT = ("smollm2-135m", "embedded")
VISION = tuple(f"m{m}-embedded" for m in (1, 8, 16, 64, 256))


@pytest.fixture(scope="module")
def results(repo_dir) -> dict[str, Result]:
    folder = repo_dir / "benchmarks" / "results" / "divergence"
    return {name: read_result(folder / f"{name}.json") for name in TEXT + VISION}


def row(result: Result) -> str:
    """A line of the README's table."""
    fits = result.fits["symmetric"]
    cells = [
        result.name,
        number(fits["power_exponent"]),
        interval_words(fits, "n_balance", none="–"),
        *(
            percent(fits[f"relative_rmse{form}"])
            for form in ("", "_power", "_n", "_sqrt_n")
        ),
        number(fits["largest_over_bound"]),
        number(result.null["test"]["p_value"]),
    ]
    return "| " + " | ".join(cells).replace("\N{NO-BREAK SPACE}", " ") + " |"


def test_the_readme_says_what_was_measured(results, repo_dir):
    text = (repo_dir / "README.md").read_text()
    for name in (*TEXT, *VISION[1:]):  # a single token has nothing to fit
        assert row(results[name]) in text, row(results[name])
    picture = "benchmarks/results/divergence/figures/fig05_divergence.png"
    assert f"]({picture})" in text
    with Image.open(repo_dir / picture) as image:
        assert min(image.size) > 400


def test_what_was_measured_is_whole(results):
    """All 512 pairs, none left out; the null tests find nothing; the fits recorded are
    those of the curves recorded."""
    for name, result in results.items():
        assert result.pairs["used"] == 512 and not result.pairs["bad"], name
        assert result.kind == ("text" if name in TEXT else "vision")
        assert result.manifest["commit"] and "+" not in result.manifest["commit"]
        assert "/" not in result.manifest.get("run", "").removeprefix("runs/")
        if name == "m1-embedded":
            assert result.num_positions == 1
            continue
        assert result.null["test"]["differs"] is False, name
        assert result.fits["excess"]["differs"] is True, name
        again = summarize(
            {key: band.mean for key, band in result.curves.items()},
            result.counts,
            result.largest_norm,
        )
        for key in ("lambda", "A", "B", "relative_rmse"):
            assert again["symmetric"][key] == pytest.approx(
                result.fits["symmetric"][key], rel=1e-6
            )
        known = np.isfinite(result.curve("D").mean)
        assert (result.counts > 0).tolist() == known.tolist()


def test_the_benchmark_reached_its_targets(repo_dir):
    text = (repo_dir / "benchmarks" / "results" / "divergence.json").read_text()
    found = json.loads(text)
    for name, least in found["targets"].items():
        assert found["ratio"][name] >= least, name
    assert found["ratio"]["vectorised"] >= found["aims"]["vectorised"]
    assert found["peak_share"] > 0.5  # the aim is 0.7
    assert found["agrees_within"] < 1e-5
    # Memory grows like n, not like n².
    by_n = {one["n"]: one["temporaries"] for one in found["scaling"]}
    assert by_n[8192] < 5 * by_n[2048] and by_n[8192] < 3 * 2 * 8192 * 4096 * 4
