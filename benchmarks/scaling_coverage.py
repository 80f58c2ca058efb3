"""Do the 95 % intervals hold the truth, and is the true law chosen?

    python benchmarks/scaling_coverage.py
    python benchmarks/scaling_coverage.py --draws 100 --out /tmp/coverage.json

Scores are drawn from laws that are known, at the paper's ten M: "items" as right
answers to 500 questions each, "log" as errors of log S of 4 %, as trainings may differ.
Each draw is fitted as `python -m vtscale_jax.scaling fit` does it. Coverage is counted
over the draws in which the fit calls the law identified; beside the intervals that are
used stand plain percentiles over budgets, which are too narrow. `chosen` is how often
AICc takes the true law out of all six. The last line is JSON.

Laws called "weak" are such that ten scores of this kind hardly tell them from others:
their intervals are as good, but what is chosen is no finding.
"""

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from benchmarks import record
from vtscale_jax.scaling import laws
from vtscale_jax.scaling.comparison import aicc
from vtscale_jax.scaling.intervals import budget_scores, percentiles, refit
from vtscale_jax.scaling.law_fits import Points, explained_by_items, fit_law, points
from vtscale_jax.scaling.noise import noise_of
from vtscale_jax.scaling.scores import Series

M = np.array([1, 8, 16, 32, 64, 128, 256, 384, 512, 768])
ITEMS = 500
SIGMA = 0.04
SHOWN = {
    "constant": ("c",),
    "power": ("c", "alpha"),
    "logarithmic": ("a", "b"),
    "saturating": ("s_inf", "a", "b"),
    "shifted": ("alpha",),
    "theory": ("c", "beta"),
}


class Truth(NamedTuple):
    """A law with its coordinates (`vtscale_jax.scaling.laws`)."""

    name: str
    law: laws.Law
    u: tuple[float, ...]


TRUTHS = (
    Truth("constant", laws.CONSTANT, (np.log(0.62),)),
    Truth("power", laws.POWER, (np.log(0.12), -0.28)),
    Truth("logarithmic", laws.LOGARITHMIC, (0.15, 0.09)),
    Truth("saturating", laws.SATURATING, (np.log(0.1), np.log(0.8), np.log(0.4))),
    Truth("shifted", laws.SHIFTED, (np.log(0.06), -0.6, np.log(20))),
    Truth("theory", laws.THEORY, (np.log(0.02), 0.9, np.log(150))),
    Truth("power, weak", laws.POWER, (np.log(0.4), -0.1)),
    Truth("shifted, weak", laws.SHIFTED, (np.log(0.1), -0.15, -3.5)),
    Truth("theory, weak", laws.THEORY, (np.log(0.02), 0.65, np.log(30))),
)


def draw(truth: Truth, kind: str, rng: np.random.Generator) -> Series:
    """One table of scores."""
    exact = truth.law.curve(np.array([truth.u]), M.astype(float))[0]
    if kind == "items":
        n = np.full(len(M), ITEMS)
        return Series("", truth.name, M, rng.binomial(n, exact) / n, 1.0, n)
    noisy = exact * np.exp(SIGMA * rng.standard_normal(len(M)))
    return Series("", truth.name, M, noisy)


def study(truth: Truth, kind: str, draws: int, replicates: int, seed: int) -> dict:
    """Coverage and choice over so many draws."""
    rng = np.random.default_rng(seed)
    u = np.array([truth.u])
    true = {k: float(v[0]) for k, v in truth.law.estimates(u).items()}
    shown = SHOWN[truth.law.name]
    hits = {name: [] for name in shown}
    plain = {name: [] for name in shown}
    chosen: Counter[str] = Counter()
    mains: Counter[str] = Counter()
    unsure: Counter[str] = Counter()
    for _ in tqdm(
        range(draws), desc=f"{truth.name} ({kind})", leave=False, disable=None
    ):
        series = draw(truth, kind, rng)
        given = points(series, noise_of(series), series.score >= 0)
        best = {}
        for law in laws.LAWS.values():
            law = laws.on_scale(law, given.upper)
            best[law.name] = law, given.best(law)
        values = {
            name: aicc(given.noise, float(fit.loss[0]), len(M), law.num_parameters)
            for name, (law, fit) in best.items()
        }
        chosen[min(values, key=values.__getitem__)] += 1
        law, fit = best[truth.law.name]
        found, _ = fit_law(
            law,
            given,
            fit,
            M.astype(float),
            fits_items=explained_by_items(law, given, fit),
            dispersion=1.0,
            cut=None,
            replicates=replicates,
            rng=rng,
        )
        if not found.identified:
            unsure[found.problems[0].split(" in ")[0]] += 1
            continue
        mains[str(found.main)] += 1
        over_budgets = plain_percentiles(law, given, fit, replicates, rng)
        for name in shown:
            low, high = found.intervals[found.main][name]
            hits[name].append(low <= true[name] <= high)
            low, high = over_budgets[name]
            plain[name].append(low <= true[name] <= high)
    return {
        "law": truth.name,
        "errors": kind,
        "draws": draws,
        "identified": sum(mains.values()) / draws,
        "why_not": dict(unsure),
        "interval_over": dict(mains),
        "truth": true,
        "coverage": {name: mean(ok) for name, ok in hits.items()},
        "coverage_of_percentiles_over_budgets": {
            name: mean(ok) for name, ok in plain.items()
        },
        "chosen": chosen[truth.law.name] / draws,
        "chosen_by_law": dict(chosen.most_common()),
    }


def plain_percentiles(law, given: Points, fit, replicates: int, rng) -> dict:
    """What a plain bootstrap over budgets would say."""
    sets = budget_scores(
        law, given.m, given.series.score, given.noise, fit.u[0], replicates, rng
    )
    again = refit(law, given.m, given.series.score, sets, given.noise, fit)
    names = tuple(law.estimates(fit.u))
    low, high = percentiles(
        lambda u: np.stack(list(law.estimates(u).values()), 1), again
    )
    return {name: (low[i], high[i]) for i, name in enumerate(names)}


def mean(values: list[bool]) -> float | None:
    """A share, or None of nothing."""
    return float(np.mean(values)) if values else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--replicates", type=int, default=999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one law of the list")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/scaling/coverage.json")
    )
    options = parser.parse_args()
    rows, started = [], time.monotonic()
    print(
        f"{'law':<15}{'errors':<8}{'identified':>11}{'chosen':>9}   coverage of 95 % "
        "(plain percentiles over budgets)"
    )
    for kind in ("items", "log"):
        for number, truth in enumerate(TRUTHS):
            if options.only not in (None, truth.name):
                continue
            if kind == "log" and truth.name.endswith("weak"):
                continue
            seed = options.seed + number
            row = study(truth, kind, options.draws, options.replicates, seed)
            rows.append(row)
            narrow = row["coverage_of_percentiles_over_budgets"]
            told = ", ".join(
                f"{name} {share:.1%} ({narrow[name]:.1%})"
                for name, share in row["coverage"].items()
                if share is not None
            )
            print(
                f"{row['law']:<15}{kind:<8}{row['identified']:>11.1%}"
                f"{row['chosen']:>9.1%}   {told}",
                flush=True,
            )
    result = {
        "m": M.tolist(),
        "items": ITEMS,
        "sigma": SIGMA,
        "replicates": options.replicates,
        "seed": options.seed,
        "seconds": round(time.monotonic() - started),
        "rows": rows,
    }
    record.finish("scaling_coverage", result, options.out)


if __name__ == "__main__":
    main()
