"""One self-contained page about a latency measurement."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vtscale_jax.cost import tables
from vtscale_jax.cost.audit import PUBLISHED_TFLOP
from vtscale_jax.cost.latency import PARTS, ROUNDS, Measured
from vtscale_jax.cost.peak import Peak
from vtscale_jax.cost.rows import TIMED, TOO_FEW, Judged, Row
from vtscale_jax.cost.verdicts import (
    ASSUMPTION,
    PAIR_HEADS,
    milli,
    pair_cells,
    pair_words,
    tera,
)
from vtscale_jax.report.pages import data_uri, environment, flatten, sorting

HEADS_6 = (
    *("M", "TTFT, ms", "p95, ms", *(f"{name}, ms" for name in PARTS)),
    *("decoding, tokens/s", "memory, GiB", "paper's TTFT, ms", "verdict"),
)
HEADS_7 = (
    *("M", "prompt, tokens", "vision", "fusion", "prefill", "all, whole attention"),
    *("all, causal attention", "paper's"),
)
HEADS_RATES = (
    *("M", "part", "least, ms", "taken, ms", "TFLOP/s", "of peak", "GB/s", "of peak"),
)


class Cell(NamedTuple):
    """A cell of a sortable table."""

    text: str
    value: str
    bad: bool = False


class Finding(NamedTuple):
    """A sentence, and whether it is "good", "bad" or "plain"."""

    text: str
    tone: str


class Theirs(NamedTuple):
    """The paper's Table 6 by M, what the audit of it says, and the impossible pairs as
    cells; where it was not audited, `verdict` says why."""

    times: dict[int, float]
    verdict: str
    slope: str
    pairs: tuple[tuple[str, ...], ...]


def write_report(
    folder: Path,
    name: str,
    measured: Measured,
    judged: Judged,
    peak: Peak,
    theirs: Theirs,
    drawn: Path,
) -> Path:
    """Writes `folder`/report.html; its path. `drawn` is the figure's file."""
    template = environment(Path(__file__).parent).get_template("report.html.jinja")
    bad = judged.impossible
    most = max(tables.on_device(row) for row in judged.rows)
    unit = "TFLOP" if most >= 0.1e12 else "GFLOP"
    page = template.render(
        title=f"Time to the first token: {name}",
        findings=findings(measured, judged, peak),
        figure={
            "name": "ttft",
            "title": "Time to the first token by M",
            "caption": "Left: medians of the parts. Right: the whole, beside the "
            "paper's (on its own machine). Rejected rows are left out.",
            "source": data_uri(drawn),
            "width": "page",
        },
        heads_6=HEADS_6,
        rows_6=[_times(row, theirs.times.get(row.num_queries)) for row in judged.rows],
        heads_7=HEADS_7,
        unit_7=unit,
        rows_7=[_counted(row, unit) for row in judged.rows],
        heads_rates=HEADS_RATES,
        rows_rates=[cells for row in judged.rows for cells in _rates(row)],
        theirs=theirs,
        pair_heads=PAIR_HEADS,
        their_pairs=[_plain(cells) for cells in theirs.pairs],
        own_pairs=[_plain(cells) for cells in pair_cells(bad)],
        assumption=ASSUMPTION,
        memory_how=measured.memory_how,
        least_rounds=ROUNDS,
        measured_facts=list(flatten({"peak": peak._asdict(), **measured.inputs})),
        **sorting(),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def findings(measured: Measured, judged: Judged, peak: Peak) -> list[Finding]:
    """What is to be known before the numbers, in sentences."""
    found = []
    kept = [row for row in judged.rows if not row.rejected]
    if kept:
        first, last = kept[0], kept[-1]
        found.append(
            Finding(
                f"M = {first.num_queries}: {_words(first)}"
                + (
                    f"; M = {last.num_queries}: {_words(last)}."
                    if last != first
                    else "."
                ),
                "plain",
            )
        )
    for row in judged.rows:
        if row.rejected:
            found.append(Finding(f"M = {row.num_queries} {row.verdict}.", "bad"))
        found += [
            Finding(f"M = {row.num_queries}: {note}.", "plain") for note in row.notes
        ]
    if len(kept) == len(judged.rows):
        found.append(
            Finding(
                f"No row implies more than the device can do ({peak.describe()}).",
                "good",
            )
        )
    bad, number = judged.impossible, len(judged.pairs)
    if bad:
        words = "; ".join(pair_words(pair, peak.flops) for pair in bad)
        told = f"{len(bad)} of {number} pairs of rows impossible: {words}."
        found.append(Finding(told, "bad"))
    elif any(pair.verdict == TOO_FEW for pair in judged.pairs):
        told = f"{number} pairs of rows are not judged: {TOO_FEW}."
        found.append(Finding(told, "plain"))
    elif judged.pairs:
        told = f"No pair of rows is impossible, of {number}."
        found.append(Finding(told, "good"))
    if len(measured.rounds) < ROUNDS:
        found.append(
            Finding(
                f"Only {len(measured.rounds)} repetitions, as asked for: medians and "
                f"95th percentiles want {ROUNDS}.",
                "bad",
            )
        )
    if len(set(measured.launches)) > 1:
        found.append(
            Finding(
                f"Timed in {len(set(measured.launches))} launches; every round has all "
                "M and was timed in one of them.",
                "plain",
            )
        )
    return found


def _words(row: Row) -> str:
    first = row.first_token
    return (
        f"{milli(first.median)} to the first token (95 % within {milli(first.p95)}), "
        f"then {row.decode_tokens_per_s:,.1f} tokens/s"
    )


def _times(row: Row, published: float | None) -> list[Cell]:
    cells = [_number(row.num_queries, "d")]
    if row.rejected:
        cells += [Cell("–", "")] * (3 + len(PARTS))
    else:
        seconds = [row.first_token.median, row.first_token.p95]
        seconds += [row.parts[name].median for name in PARTS]
        cells += [_number(1e3 * each, ".2f") for each in seconds]
        cells.append(_number(row.decode_tokens_per_s, ".1f"))
    cells.append(_number(row.memory / tables.GIB, ".2f"))
    theirs = None if published is None else 1e3 * published
    cells.append(_number(theirs, ".1f"))
    return [*cells, Cell(row.verdict, row.verdict, bool(row.rejected))]


def _counted(row: Row, unit: str) -> list[Cell]:
    """A row of table 7; merge counts with vision, projector and head with their
    neighbours."""
    values: list[float | None] = [
        sum(row.flops[part][0] for part in within) for within in TIMED.values()
    ]
    values += [tables.on_device(row), tables.on_device(row, causal=True)]
    theirs = PUBLISHED_TFLOP.get(row.num_queries)
    values.append(None if theirs is None else 1e12 * theirs)
    size = {"TFLOP": 1e12, "GFLOP": 1e9}[unit]
    return [
        _number(row.num_queries, "d"),
        _number(row.prompt_tokens, "d"),
        *(_number(None if v is None else v / size, ",.4g") for v in values),
    ]


def _rates(row: Row) -> list[list[Cell]]:
    """A row for each part that a device computes, rejected ones too."""
    taken = {name: one.median for name, one in row.parts.items()}
    taken["decode"] = row.decode.median
    return [
        [
            _number(row.num_queries, "d"),
            Cell(name, name),
            _number(1e3 * found.least_s, ".3g"),
            _number(1e3 * taken[name], ".3g", taken[name] < found.least_s),
            Cell(tera(found.flops_per_s), str(found.flops_per_s)),
            _number(found.flops_share, ".1%"),
            _number(found.bytes_per_s / 1e9, ".3g"),
            _number(found.bytes_share, ".1%"),
        ]
        for name, found in row.rates.items()
    ]


def _number(value: float | int | None, form: str, bad: bool = False) -> Cell:
    if value is None:
        return Cell("–", "")
    return Cell(format(value, form), str(value), bad)


def _plain(cells: Sequence[str]) -> list[Cell]:
    """Cells of text; what is no number sorts as a word."""
    return [
        Cell(text, "" if text == "–" else text.replace(",", ""), text == "impossible")
        for text in cells
    ]


def theirs_of(times: Mapping[int, float], why: str = "not audited here") -> Theirs:
    """The paper's times where nothing is said of them but why."""
    return Theirs(dict(times), why, "", ())
