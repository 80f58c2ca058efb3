"""Folders of cases that the original systems computed, whichever they are.

    DIR/<TASK>/  DIR/units/   benchmarks that VLMEvalKit prepared and scored
    DIR/cases.json            token selections of VisPruner and VisionZip
    DIR/llava_tiny/           outputs of LLaVA, of transformers

DIR may be one of them, or hold such folders.
"""

from collections.abc import Callable
from pathlib import Path

from vtscale_jax.eval.baselines import goldens as reducer_goldens
from vtscale_jax.eval.benchmarks.tasks import TASKS
from vtscale_jax.eval.goldens import benchmarks
from vtscale_jax.eval.goldens.benchmarks import GoldensError
from vtscale_jax.eval.goldens.checks import Check

CASES, LLAVA = "cases.json", "io.npz"


def check(folder: Path, llava: Callable[[Path], list[Check]]) -> list[Check]:
    """Every case in the folder and below; `llava` checks a folder of LLaVA's outputs.
    GoldensError when there is none."""
    if not folder.is_dir():
        raise GoldensError(f"{folder} is no folder, expected one of goldens")
    checks = []
    for place in (folder, *sorted(one for one in folder.rglob("*") if one.is_dir())):
        if (place / CASES).is_file():
            checks += reducer_goldens.check(place)
        if (place / LLAVA).is_file():
            checks += llava(place)
        benchmark = place.name in TASKS and (place / f"{place.name}.tsv").is_file()
        if benchmark or place.name == "units":
            checks += benchmarks.check(place)
    if not checks:
        raise GoldensError(
            f"{folder}: no cases in it; expected {CASES} of token selections, a folder "
            f"with {LLAVA} of LLaVA's outputs, or folders named as benchmarks, each "
            "with its table"
        )
    return checks
