"""Accuracy on Digit Pages against the vision tokens that the LLM sees.

    python benchmarks/token_reduction.py                 # 512 questions of each family
    python benchmarks/token_reduction.py --questions 64 --out /tmp/reduction

The tiny LLaVA, without and with every reducer, and this package's own model at as many
queries, on the same held-out questions and the same frozen LLM, greedily and with the
same limit of new tokens. LLaVA's pages are one image of 144 patches. Both were trained
for these pages, LLaVA at 144 tokens and never at fewer (no reducer is trained), the
package's model once more for each M: that is what the two kinds of model are.

The package's own scores are those of benchmarks/results/scaling/embedded/scores.csv
(512 questions of each family), which this program reads and does not measure.

What is asked stands in a ledger below --work, so the same command goes on after an
interruption. Into --out go results.json, table.md, accuracy.png and accuracy.svg; the
table is printed, and results.json as the last line.
"""

import argparse
import csv
import runpy
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from vtscale_jax.run_folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = (1, 2, 4, 8, 16, 32, 64)
OWN_SCORES = "benchmarks/results/scaling/embedded/scores.csv"
OWN_INPUTS = ("vqq", "vq_ft")


def settled(num_patches: int) -> tuple[list[tuple[str, int]], list[dict[str, Any]]]:
    """Reducers and sizes to measure, and those that cannot be or need not be."""
    from vtscale_jax.eval.baselines.named import NAMES, named
    from vtscale_jax.eval.baselines.reducers import ReducerError

    to_do, not_possible = [("none", num_patches)], []
    for name in NAMES:
        if name == "none":
            continue
        for n in (*BUDGETS, num_patches):
            try:
                named(name).settle(num_patches, n)
            except ReducerError as error:
                not_possible.append({"method": name, "n": n, "why": str(error)})
                continue
            if n < num_patches or name == "visionzip":
                to_do.append((name, n))
            else:
                why = "every patch is kept as it is: the same as none"
                not_possible.append({"method": name, "n": n, "why": why})
    return to_do, not_possible


def measured(folder: Path, name: str, n: int, extension: str) -> dict[str, Any]:
    """One model's results, from the files that its evaluation wrote."""
    from vtscale_jax.eval.family_items import FAMILIES

    found = {
        family: RunFolder(folder / family).read("scores.json") for family in FAMILIES
    }
    counts = [found[family]["tokens"]["vision"] for family in FAMILIES]
    seen = {count for row in counts for count in (row["least"], row["most"])}
    if seen != {n}:
        raise SystemExit(
            f"{folder}: the LLM saw {sorted(seen)} vision tokens, expected {n} for "
            "every question: the reducer does not do what it says"
        )
    families = {}
    for family, row in found.items():
        accuracy = row["scores"][0]["Overall"]
        low, high = row["intervals"][0]["Overall"]
        families[family] = {
            "n": row["items"],
            "correct": round(accuracy * row["items"]),
            "accuracy": accuracy,
            "low": low,
            "high": high,
            "failures": row["failures"],
        }
    prompt = float(
        np.mean([found[family]["tokens"]["prompt"]["mean"] for family in FAMILIES])
    )
    about = {"method": name, "n": n, "vision_tokens": n, "extension": extension}
    return {**about, "prompt_tokens": prompt, "families": families}


def own_scores(file: Path) -> list[dict[str, Any]]:
    """The package's own model at the budgets, as they were measured before."""
    from vtscale_jax.metrics import wilson_interval

    rows: dict[tuple[str, int], dict[str, Any]] = {}
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            inputs, m = row["inputs"], int(row["n_l"])
            if inputs not in OWN_INPUTS or m not in BUDGETS:
                continue
            n = int(row["n_items"])
            correct = round(float(row["score"]) / float(row["upper"]) * n)
            low, high = wilson_interval(correct, n)
            about = {"method": f"queries {inputs}", "n": m, "vision_tokens": m}
            kept = rows.setdefault((inputs, m), {**about, "families": {}})
            kept["families"][row["metric"]] = {
                **{"n": n, "correct": correct, "accuracy": correct / n},
                **{"low": low, "high": high},
            }
    return list(rows.values())


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Asks what was not asked yet, and gathers everything."""
    from vtscale_jax.baseline import open_baseline
    from vtscale_jax.eval.family_items import FAMILIES
    from vtscale_jax.eval.run_tasks import run_tasks
    from vtscale_jax.eval.tasks_by_name import items_of
    from vtscale_jax.parallel.hosts.processes import start

    get_config = runpy.run_path(str(ROOT / "configs" / "llava.py"))["get_config"]
    base = get_config()
    tasks = items_of(FAMILIES, base, data=None, scorer="paper", limit=args.questions)
    whole = open_baseline(base, args.batch_size)
    patches = whole.plan.num_patches
    to_do, not_possible = settled(patches)
    rows = []
    with start(about={}) as processes:
        for number, (name, n) in enumerate(to_do, 1):
            model = open_baseline(get_config(f"reducer={name},n={n}"), args.batch_size)
            print(f"{number} of {len(to_do)}: {name}, {n} tokens", flush=True)
            title = f"{name}-n{n}"
            run_tasks(model, tasks, args.work, title, processes)
            folder = args.work / title
            rows.append(measured(folder, name, n, model.plan.extension))
    return {
        "questions": args.questions,
        "patches": patches,
        "max_new_tokens": base.eval.max_new_tokens,
        "questions_sha256": {task.name: task.fingerprint for task in tasks},
        "llava": {
            name: whole.identity[name]
            for name in ("weights_sha256", "prompt", "pixels")
        },
        "own_source": OWN_SCORES,
        "rows": rows + own_scores(ROOT / OWN_SCORES),
        "not_measured": not_possible,
    }


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--questions", type=int, default=512, help="of each family")
    parser.add_argument("--batch_size", type=int, default=64)
    results = ROOT / "benchmarks" / "results" / "token_reduction"
    parser.add_argument("--out", type=Path, default=results)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "token_reduction")
    args = parser.parse_args()
    from vtscale_jax.compilation import keep_compiled
    from vtscale_jax.eval.baselines.figure import draw, table
    from vtscale_jax.parallel.host import keep_freed_memory

    keep_compiled()
    keep_freed_memory()
    result = measure(args)
    args.out.mkdir(parents=True, exist_ok=True)
    text = table(result)
    (args.out / "table.md").write_text(text)
    draw(result, args.out)
    print(text)
    record.finish("token_reduction", result, args.out / "results.json")


if __name__ == "__main__":
    main()
