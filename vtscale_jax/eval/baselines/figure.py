"""Accuracy against the tokens that the LLM sees: one figure, one table.

Both are of the results that `benchmarks/token_reduction.py` writes: `rows` with
`method`, `n`, `extension` (what was added to a published rule, or nothing) and, under
`families`, `accuracy`, `low` and `high` of each; `not_measured` with `method`, `n` and
`why`; `patches` of the whole image and `questions` of each family.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from vtscale_jax.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAGE,
    PURPLE,
    RED,
    SKY,
    SMALL,
    Look,
    finish,
    new_figure,
    save,
    shared_legend,
)

Results = Mapping[str, Any]
# Every method in the order of tables and legends: its look, marker, and name in words.
METHODS: dict[str, tuple[Look, str, str]] = {
    "queries vqq": (Look(BLUE, "-", 1.6), "o", "M queries, question fused"),
    "queries vq_ft": (Look(SKY, "--", 1.6), "v", "M queries, no question"),
    "none": (Look(INK, (0, (1, 2))), "*", "LLaVA, all patches"),
    "vispruner": (Look(RED, "-"), "s", "VisPruner"),
    "visionzip": (Look(ORANGE, "--"), "D", "VisionZip"),
    "pool": (Look(GREEN, "-."), "^", "average pooling"),
    "downsample": (Look(PURPLE, (0, (5, 1, 1, 1))), "P", "smaller image"),
    "random": (Look(GREY, ":"), "x", "random patches"),
}
COLUMNS = 3


def draw(results: Results, folder: Path) -> Path:
    """Writes accuracy.png and accuracy.svg: a panel for each family, with 95 % Wilson
    intervals. Open markers: a published rule with something added. Returns the SVG."""
    families = _families(results)
    num_rows = -(-len(families) // COLUMNS)
    figure = new_figure(PAGE, 0.7 + 1.75 * num_rows)
    panels = figure.subplots(num_rows, COLUMNS, squeeze=False).ravel()
    for i, (ax, family) in enumerate(zip(panels, families, strict=False)):
        _panel(ax, results, family)
        finish(
            ax,
            x="vision tokens the LLM sees" if i + COLUMNS >= len(families) else "",
            y="accuracy in %" if i % COLUMNS == 0 else "",
            title=family,
        )
    for ax in panels[len(families) :]:
        ax.set_visible(False)
    figure.suptitle(
        "LLaVA was trained with all patches: reducers act on it untrained. "
        "Open markers: a published rule with something added",
        fontsize=SMALL,
        color=INK,
    )
    shared_legend(figure, list(panels[: len(families)]), math=False)
    return save(figure, folder, "accuracy")


def _panel(ax: Axes, results: Results, family: str) -> None:
    for method, (look, marker, words) in METHODS.items():
        rows = _of(results, method)
        if not rows:
            continue
        n = np.array([row["n"] for row in rows])
        shown = [row["families"][family] for row in rows]
        accuracy = 100 * np.array([one["accuracy"] for one in shown])
        low = 100 * np.array([one["low"] for one in shown])
        high = 100 * np.array([one["high"] for one in shown])
        if method == "none":
            ax.axhline(accuracy[0], color=look.color, ls=look.dashes, lw=0.8)
        ax.errorbar(
            n,
            accuracy,
            yerr=[accuracy - low, high - accuracy],
            color=look.color,
            ls=look.dashes,
            lw=look.width,
            elinewidth=0.6,
            label=words,
        )
        for row, x, y in zip(rows, n, accuracy, strict=True):
            face = "white" if row.get("extension") else look.color
            ax.plot(x, y, marker, ms=3.5, mfc=face, mec=look.color, mew=0.8)
    ax.set_xscale("log", base=2)
    ticks = [1, 2, 4, 8, 16, 32, 64, results["patches"]]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.set_ylim(-3, 103)


def table(results: Results) -> str:
    """The same as a Markdown table, in per cent, with the mean over families; below it
    what was added to published rules and what was not measured, with the reason."""
    families = _families(results)
    half = 100 * max(
        (one["high"] - one["low"]) / 2
        for row in results["rows"]
        for one in row["families"].values()
    )
    head = ["method", "tokens", *families, "mean"]
    lines = [
        f"Accuracy in % on {results['questions']} held-out questions of each family "
        f"(95 % intervals: at most ± {half:.1f}). † the published rule with something "
        "added.",
        "",
        f"| {' | '.join(head)} |",
        f"|---|{'--:|' * (len(head) - 1)}",
    ]
    for method, (_, _, words) in METHODS.items():
        for row in _of(results, method):
            scores = [100 * row["families"][name]["accuracy"] for name in families]
            cells = [f"{score:.1f}" for score in [*scores, np.mean(scores)]]
            mark = " †" if row.get("extension") else ""
            lines.append(f"| {words} | {row['n']}{mark} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_remarks(results)]) + "\n"


def _remarks(results: Results) -> Iterator[str]:
    for method in METHODS:
        asked = {
            one["n"]
            for row in _of(results, method)
            for one in row["families"].values()
            if one["n"] != results["questions"]
        }
        if asked:
            words = METHODS[method][2]
            yield f"- {words}: on {_listed(sorted(asked))} questions of each family"
    added: dict[str, list[int]] = {}
    for row in results["rows"]:
        if row.get("extension"):
            added.setdefault(row["extension"], []).append(row["n"])
    for extension, sizes in added.items():
        yield f"- † n = {_listed(sorted(sizes))}: {extension}"
    missing: dict[tuple[str, str], list[int]] = {}
    for row in results["not_measured"]:
        # One reason, whatever the number in it.
        why = row["why"].replace(f"n = {row['n']} tokens were", "n tokens were")
        missing.setdefault((row["method"], why), []).append(row["n"])
    for (method, why), sizes in missing.items():
        yield f"- not measured: {METHODS[method][2]}, n = {_listed(sizes)}: {why}"


def _listed(sizes: list[int]) -> str:
    return ", ".join(str(n) for n in sizes)


def _of(results: Results, method: str) -> list[Mapping[str, Any]]:
    """The rows of a method, least tokens first."""
    rows = [row for row in results["rows"] if row["method"] == method]
    return sorted(rows, key=lambda row: row["n"])


def _families(results: Results) -> list[str]:
    return list(results["rows"][0]["families"])
