"""What was recorded of plans for the paper's recipe, and that it is still so."""

import importlib.util
import json

import pytest

from vtscale_jax import settings
from vtscale_jax.devices import GIB
from vtscale_jax.parallel import __main__ as command
from vtscale_jax.parallel.plans import topologies

QUERIES = (1, 8, 16, 32, 64, 128, 256, 384, 512, 768)
# ml_collections loads a config file in a way that Python 3.12 no longer has.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
absent = importlib.util.find_spec("nvidia") is None


def recorded(repo_dir, name: str) -> list[dict]:
    text = (repo_dir / "benchmarks" / "results" / f"{name}.json").read_text()
    return json.loads(text)["plans"]


def test_all_ten_fit_on_eight_a100_of_40_gb(repo_dir):
    plans = recorded(repo_dir, "plan_a100")
    names = [f"m{queries}-paper-finetune" for queries in QUERIES]
    assert [plan["config"] for plan in plans] == names
    for plan in plans:
        assert plan["topology"] == "a100-40gb:8" and plan["rows_per_device"] == 5
        assert plan["fits"] and plan["peak_bytes"] < 36 * GIB
        assert plan["compile_seconds"] < 300
    # More queries need more of everything, or are computed again more.
    order = settings.LEAST_REMAT_FIRST.index
    assert plans == sorted(
        plans, key=lambda plan: (order(plan["remat"]), plan["peak_bytes"])
    )
    for field in ("flops", "useful_flops"):
        values = [plan[field] for plan in plans]
        assert values == sorted(values) and values[0] < values[-1]


def test_the_paper_fits_on_every_machine(repo_dir):
    plans = recorded(repo_dir, "plan_all")
    assert tuple(plan["topology"] for plan in plans) == topologies.ALL
    for plan in plans:
        assert plan["config"] == "m256-paper-finetune" and plan["rows_per_device"] == 5
        assert plan["fits"] and plan["compile_seconds"] < 300
    peaks = {plan["topology"]: plan["peak_bytes"] for plan in plans}
    assert peaks["a100-40gb:8"] < 36 * GIB and peaks["v5e-16"] < 16 * GIB


def test_the_readme_shows_what_was_recorded(repo_dir):
    shown = (repo_dir / "README.md").read_text().splitlines()
    for plan in recorded(repo_dir, "plan_all"):
        (row,) = [line for line in shown if line.startswith(f"{plan['topology']}  ")]
        cells = row.split()
        peak, days = plan["peak_bytes"] / GIB, plan["days"]
        for cell in (f"{peak:.2f}", f"{days:.1f}", f"{plan['compile_seconds']:.0f}"):
            assert cell in cells, (cell, row)


@pytest.mark.slow
@pytest.mark.skipif(absent, reason="the compiler for GPUs is an extra (plan-gpu)")
def test_what_was_recorded_is_still_so(repo_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(repo_dir)
    config = ["--config", "configs/m256.py:paper,stage=finetune"]
    file = tmp_path / "plan.json"
    words = ["plan", *config, "--topology", "a100-40gb:8", "--json", str(file)]
    assert command.main(words) == 0
    (now,) = json.loads(file.read_text())["plans"]
    (then,) = [p for p in recorded(repo_dir, "plan_a100") if "m256-" in p["config"]]
    assert now["peak_bytes"] == pytest.approx(then["peak_bytes"], rel=0.05)
    assert now["flops"] == then["flops"]
