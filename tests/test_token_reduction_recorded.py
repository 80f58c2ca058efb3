"""The recorded comparison of token reducers, and that the README says the same."""

import json
from pathlib import Path

import numpy as np
import pytest

from vtscale_jax.eval.baselines.figure import table
from vtscale_jax.weights.starting import shipped

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "results" / "token_reduction"
NAMES = {
    "M queries, question fused": "queries vqq",
    "tiny LLaVA, average pooling": "pool",
    "tiny LLaVA, random patches": "random",
    "tiny LLaVA, VisionZip": "visionzip",
    "tiny LLaVA, VisPruner": "vispruner",
    "tiny LLaVA, all patches": "none",
}


@pytest.fixture(scope="module")
def found():
    return json.loads((FOLDER / "results.json").read_text("utf-8"))


def mean(found, method, n):
    (row,) = [r for r in found["rows"] if (r["method"], r["n"]) == (method, n)]
    return 100 * np.mean([family["accuracy"] for family in row["families"].values()])


def test_the_llm_saw_exactly_as_many_tokens_as_are_said(found):
    assert found["patches"] == 144 and found["questions"] == 512
    for row in found["rows"]:
        assert row["vision_tokens"] == row["n"] and len(row["families"]) == 6
        assert all(family["n"] == 512 for family in row["families"].values())
    measured = {(row["method"], row["n"]) for row in found["rows"]}
    left_out = {(row["method"], row["n"]) for row in found["not_measured"]}
    for method in ("downsample", "pool", "random", "vispruner", "visionzip"):
        for n in (1, 2, 4, 8, 16, 32, 64, 144):
            # Every budget is measured, or it is said why not.
            assert ((method, n) in measured) != ((method, n) in left_out)


def test_the_shipped_model_was_measured(found):
    entry = json.loads(shipped("manifest.json").read_text())["llava"]
    (row,) = [row for row in found["rows"] if row["method"] == "none"]
    for family, accuracy in entry["accuracy"].items():
        assert row["families"][family]["accuracy"] == pytest.approx(accuracy, abs=0.01)


def test_the_readme_and_the_table_have_these_numbers(found):
    assert (FOLDER / "table.md").read_text("utf-8").strip() == table(found).strip()
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    for start, method in NAMES.items():
        (line,) = [line for line in lines if line.startswith(f"| {start} |")]
        cells = [cell.strip() for cell in line.split("|")[2:-1]]
        for n, cell in zip((1, 4, 16, 64, 144), cells, strict=True):
            if cell:
                assert cell == f"{mean(found, method, n):.1f}", (start, n)
