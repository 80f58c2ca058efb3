"""Audits in words, as tables of text and CSV, and as JSON."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from vtscale_jax.cost.audit import IMPOSSIBLE, Audit, PairVerdict, RowVerdict

ASSUMPTION = (
    "One device, one question at a time, this model. A pair supposes that the time "
    "which the device spends above its limit does not shrink as tokens are added, all "
    "else being equal (same image, same words, same program); a row supposes only that "
    "the work was done."
)
PAIR_HEADS = (
    *("from n_l", "to n_l", "extra ms", "at least ms", "extra TFLOP"),
    *("implied TFLOP/s", "verdict"),
)
ROW_HEADS = ("n_l", "ttft ms", "at least ms", "TFLOP", "implied TFLOP/s", "verdict")


def sentence(found: Audit) -> str:
    """The finding about the rows and about the pairs, the worst first."""
    peak = found.peak
    bad = sorted(found.impossible, key=lambda pair: pair.extra_s - pair.least_extra_s)
    rows = [row for row in found.rows if row.verdict == IMPOSSIBLE]
    told = []
    if rows:
        listed = "; ".join(_row_words(row) for row in rows)
        told.append(
            f"{_of(len(rows), len(found.rows), 'rows')} impossible on {peak.name}: "
            f"{listed}."
        )
    listed = "; ".join(pair_words(pair, peak.flops) for pair in bad)
    told.append(
        f"{_of(len(bad), len(found.pairs), 'pairs')} impossible on {peak.name}"
        f"{': ' + listed if bad else ''}."
    )
    hidden = [
        pair
        for pair in found.pairs
        if pair.verdict != IMPOSSIBLE and (pair.flops_per_s or 0) > peak.flops
    ]
    if hidden:
        listed = ", ".join(f"{pair.n_a} → {pair.n_b}" for pair in hidden)
        told.append(
            f"More than the peak is implied, but nothing claimed, of {listed}: with so "
            "few tokens, reading the weights hides the work, or noise does."
        )
    return " ".join(told)


def pair_words(pair: PairVerdict, flops: float) -> str:
    """One pair: what it says, and what that would take; `flops` is the device's peak.

    "256 → 768: 512 tokens more in 2.5 ms, which take 23.1 ms at least (the language
    model's weights alone: 2,653 of 312 TFLOP/s)"
    """
    extra = pair.n_b - pair.n_a
    tokens = f"{extra} token{'s' if extra > 1 else ''} more"
    implied = pair.flops_per_s
    if implied is None:
        came = f"in {milli(-pair.extra_s)} less"
        rate = ""
    else:
        came = f"in {milli(pair.extra_s)}"
        rate = (
            f" (the language model's weights alone: {tera(implied)} of {tera(flops)} "
            "TFLOP/s)"
        )
    least = f"{milli(pair.least_extra_s)} at least"
    return f"{pair.n_a} → {pair.n_b}: {tokens} {came}, which take {least}{rate}"


def slope_sentence(slope: Mapping[str, float]) -> str:
    """What the paper's Table 7 counts for a vision token, beside arithmetic."""
    published, weights = slope["published"], slope["weights"]
    return (
        f"Table 7 of the paper (counted by thop) grows by {published:.2f} GFLOP for "
        f"each vision token; the products with the language model's weights alone are "
        f"{weights:.2f} GFLOP, {weights / published:.1f} times as many."
    )


def pair_cells(pairs: Sequence[PairVerdict]) -> list[tuple[str, ...]]:
    """A row of text for each pair, as PAIR_HEADS names its columns."""
    return [
        (
            *(str(pair.n_a), str(pair.n_b), f"{1e3 * pair.extra_s:.2f}"),
            *(f"{1e3 * pair.least_extra_s:.2f}", f"{pair.extra_flops / 1e12:.4g}"),
            "–" if pair.flops_per_s is None else tera(pair.flops_per_s),
            pair.verdict,
        )
        for pair in pairs
    ]


def row_cells(rows: Sequence[RowVerdict]) -> list[tuple[str, ...]]:
    """A row of text for each time, as ROW_HEADS names its columns."""
    return [
        (
            *(str(row.n_l), f"{1e3 * row.ttft_s:.1f}", f"{1e3 * row.least_s:.1f}"),
            *(f"{row.flops / 1e12:.4g}", tera(row.flops_per_s), row.verdict),
        )
        for row in rows
    ]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: numbers to the right, the last column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for *cells, last in rows:
        padded = [c.rjust(width) for c, width in zip(cells, widths, strict=False)]
        lines.append("  ".join([*padded, last]))
    return lines


def as_csv(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as CSV; None is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return text.getvalue()


def as_json(found: Audit) -> dict[str, Any]:
    """The audit with all its numbers; seconds and operations."""
    return {
        "peak": found.peak._asdict(),
        "assumption": ASSUMPTION,
        "verdict": sentence(found),
        "rows": [
            {**row._asdict(), "flops_per_s": row.flops_per_s} for row in found.rows
        ],
        "pairs": [pair_json(pair) for pair in found.pairs],
        "impossible": [[pair.n_a, pair.n_b] for pair in found.impossible],
    }


def pair_json(pair: PairVerdict) -> dict[str, Any]:
    """A pair with what it implies."""
    return {**pair._asdict(), "flops_per_s": pair.flops_per_s}


def milli(seconds: float) -> str:
    """Milliseconds with three digits, whole from 100 on.

    >>> milli(0.0025), milli(4.6286)
    ('2.5 ms', '4,629 ms')
    """
    value = 1e3 * seconds
    return f"{value:,.0f} ms" if value >= 99.95 else f"{value:.3g} ms"


def tera(number: float) -> str:
    """In units of 10¹²: whole from 10 on, else three digits."""
    value = number / 1e12
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _of(number: int, all_of_them: int, what: str) -> str:
    number_of = f"{number}" if number else "None"
    return f"{number_of} of {all_of_them} {what} {'is' if number < 2 else 'are'}"


def _row_words(row: RowVerdict) -> str:
    return (
        f"n_l = {row.n_l} in {milli(row.ttft_s)}, which takes {milli(row.least_s)} at "
        "least"
    )
