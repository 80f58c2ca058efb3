"""Could these times have been? Tables of times to the first token against arithmetic.

    rows = read_table(Path("table6.csv"), "table6.csv").rows
    audit(rows, model, stated(GPUS["a100-40gb"]), Setting((480, 640), (3, 3), 64))

Two tests. Both compare with the *least* time of the work: the roofline, that is for
each part all its operations at the device's peak or all its bytes at the full bandwidth
of its memory, whichever takes longer.

**A row** is impossible when its time is less than the roofline of its work. This
supposes only that the device had to do the work: pixels are on the device already, the
prompt is no longer than was said, attention takes a token with those before it only.

**A pair** a < b of rows is impossible when b's time is longer than a's by less than the
roofline of what b does more. Write each time as t = r + w, with r the roofline and w
the rest: launches, waiting, and all by which the device stays below its peak. Then
t_b − t_a < r_b − r_a says that w_b < w_a: the device has lost *less* time with more
tokens. So the test supposes that w does not shrink as tokens are added, everything else
being equal: the same image, the same words, the same program, the same machine. It
does not suppose that w is small, nor that it is the same share of the time. Where
reading the weights takes longer than computing (few tokens) r hardly grows, and nothing
is claimed. A pair can fail it honestly in two ways: when both rows are padded to one
length (then compare the padded lengths), and when a better kernel is chosen for the
longer one.

Times are printed with few digits and vary. A pair is *within noise* when it falls short
by no more than `noise` of the longer time, or than both times may be rounded.
"""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from vtscale_jax.cost.answer import (
    PartCost,
    Question,
    first_token,
    least_seconds,
    linear_flops,
)
from vtscale_jax.cost.peak import Peak
from vtscale_jax.vlm import ModelConfig

COLUMNS = ("n_l", "ttft_s")
DTYPE = "bfloat16"  # in which a device is at its peak
# The parts that a pair differs in, and those that the device must do for a row.
OF_TOKENS = ("fusion", "projector", "prefill", "head")
OF_DEVICE = ("vision", "merge", *OF_TOKENS)
IMPOSSIBLE, NOISE, POSSIBLE = "impossible", "within noise", "possible"
# Of the paper's Table 7: what `thop` counted for the whole of a question, TFLOP.
PUBLISHED_TFLOP: Mapping[int, float] = {1: 2.380, 768: 4.151}


class AuditError(ValueError):
    """A table that cannot be audited; the message names its line and column."""


class TimedRow(NamedTuple):
    """A time to the first token with `n_l` vision tokens, in seconds; `rounding` is the
    most by which printing may have changed it."""

    n_l: int
    ttft_s: float
    rounding: float = 0.0


class Table(NamedTuple):
    """The rows of a file by rising M; columns that are not read, and lines left out
    with their reasons."""

    rows: tuple[TimedRow, ...]
    ignored: tuple[str, ...]
    left_out: tuple[str, ...]


class Setting(NamedTuple):
    """What all rows have alike: the image's (height, width), the grid of its local
    views, and the tokens of the prompt beside the vision tokens."""

    image: tuple[int, int]
    grid: tuple[int, int]
    question_tokens: int

    def question(self, num_queries: int) -> Question:
        """The question's sizes with M = `num_queries`."""
        return Question(
            *(self.image, self.grid, self.question_tokens, num_queries),
            prompt_tokens=num_queries + self.question_tokens,
        )


class RowVerdict(NamedTuple):
    """A row against the roofline of its work; `flops` are causal operations."""

    n_l: int
    ttft_s: float
    least_s: float
    flops: int
    verdict: str

    @property
    def flops_per_s(self) -> float:
        """What the device must have computed in each second at least."""
        return self.flops / self.ttft_s


class PairVerdict(NamedTuple):
    """Two rows of one table.

    `extra_s` is the longer prompt's time less the shorter's, `least_extra_s` the
    roofline of its additional work, `extra_flops` the causal operations of that, and
    `weight_flops` those of them that multiply a weight of the language model's blocks.
    """

    n_a: int
    n_b: int
    extra_s: float
    least_extra_s: float
    extra_flops: int
    weight_flops: int
    verdict: str

    @property
    def flops_per_s(self) -> float | None:
        """Implied by the language model's weights alone, the least that anyone would
        count; None where the longer prompt took no longer."""
        return self.weight_flops / self.extra_s if self.extra_s > 0 else None


class Audit(NamedTuple):
    """All rows and all pairs of a table, against one device."""

    peak: Peak
    rows: tuple[RowVerdict, ...]
    pairs: tuple[PairVerdict, ...]

    @property
    def impossible(self) -> tuple[PairVerdict, ...]:
        """The pairs that cannot both be right."""
        return tuple(pair for pair in self.pairs if pair.verdict == IMPOSSIBLE)


def read_table(text: str, name: str) -> Table:
    """Rows of a CSV with columns n_l and ttft_s, in any order; `name` is what messages
    call it. A row without a time is left out. AuditError for anything else."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    fields = [field.strip() for field in reader.fieldnames or ()]
    reader.fieldnames = fields
    for column in COLUMNS:
        if fields.count(column) != 1:
            raise AuditError(
                f"{name}, line 1: expected one column {column}, got "
                f"{', '.join(fields) or 'nothing'}; the others are not read"
            )
    lines: dict[int, int] = {}
    rows, left_out = [], []
    try:
        for given in reader:
            line = reader.line_num
            where = f"{name}, line {line}"
            n_l = _whole(given["n_l"], f"{where}, column n_l")
            if n_l in lines:
                raise AuditError(
                    f"{where}, column n_l: {n_l} stands in line {lines[n_l]} already; "
                    "leave one of the rows, or audit them as two tables"
                )
            lines[n_l] = line
            if not (given["ttft_s"] or "").strip():
                left_out.append(f"line {line} (n_l = {n_l}): no time")
                continue
            seconds, rounding = _seconds(given["ttft_s"], f"{where}, column ttft_s")
            rows.append(TimedRow(n_l, seconds, rounding))
    except csv.Error as error:
        raise AuditError(f"{name}, line {reader.line_num}: {error}") from error
    if len(rows) < 2:
        raise AuditError(
            f"{name} has {len(rows)} rows with a time, expected at least two: pairs "
            "are compared"
        )
    ignored = tuple(field for field in fields if field not in COLUMNS)
    return Table(tuple(sorted(rows)), ignored, tuple(left_out))


def audit(
    rows: Sequence[TimedRow],
    model: ModelConfig,
    peak: Peak,
    setting: Setting,
    *,
    noise: float = 0.01,
) -> Audit:
    """Every row and every pair of rows, against the peak of a device; weights and
    activations are taken to have two bytes each."""
    if not 0 <= noise < 1:
        raise AuditError(f"--noise is {noise}, expected a share from 0 to below 1")
    rows = sorted(rows)
    bytes_each = jnp.dtype(DTYPE).itemsize
    costs = {
        row.n_l: first_token(model, setting.question(row.n_l), bytes_each=bytes_each)
        for row in rows
    }
    verdicts = tuple(row_verdict(row, costs[row.n_l], peak) for row in rows)
    weights = linear_flops(model.llm.blocks)
    pairs = tuple(
        pair_verdict(a, b, costs[a.n_l], costs[b.n_l], weights, peak, noise)
        for number, a in enumerate(rows)
        for b in rows[number + 1 :]
    )
    return Audit(peak, verdicts, pairs)


def row_verdict(row: TimedRow, parts: Sequence[PartCost], peak: Peak) -> RowVerdict:
    """One row against what the device must do for it at least."""
    own = [part for part in parts if part.name in OF_DEVICE]
    least = sum(least_seconds(part, peak) for part in own)
    flops = sum(part.causal_flops for part in own)
    possible = row.ttft_s + row.rounding >= least
    verdict = POSSIBLE if possible else IMPOSSIBLE
    return RowVerdict(row.n_l, row.ttft_s, least, flops, verdict)


def pair_verdict(
    a: TimedRow,
    b: TimedRow,
    parts_a: Sequence[PartCost],
    parts_b: Sequence[PartCost],
    weights: int,
    peak: Peak,
    noise: float,
) -> PairVerdict:
    """Two rows, `b` with more tokens; `weights` are operations of the language model's
    weights for each token."""
    (least_a, flops_a), (least_b, flops_b) = (
        (
            sum(least_seconds(part, peak) for part in own),
            sum(part.causal_flops for part in own),
        )
        for own in (
            [part for part in parts if part.name in OF_TOKENS]
            for parts in (parts_a, parts_b)
        )
    )
    extra, least = b.ttft_s - a.ttft_s, least_b - least_a
    allowed = max(noise * max(a.ttft_s, b.ttft_s), a.rounding + b.rounding)
    # A hair for the arithmetic itself: rounding errors of sums are no finding.
    short = least - extra
    verdict = POSSIBLE if short <= 1e-12 else NOISE if short <= allowed else IMPOSSIBLE
    return PairVerdict(
        *(a.n_l, b.n_l, extra, least, flops_b - flops_a),
        weights * (b.n_l - a.n_l),
        verdict,
    )


def published_slope(model: ModelConfig) -> dict[str, float]:
    """The paper's Table 7 against arithmetic, in GFLOP for each vision token: what its
    two counts differ by, and what the language model's weights alone take."""
    (low, first), (high, last) = sorted(PUBLISHED_TFLOP.items())
    return {
        "published": 1e3 * (last - first) / (high - low),
        "weights": linear_flops(model.llm.blocks) / 1e9,
    }


def _whole(text: Any, where: str) -> int:
    if not re.fullmatch(r"[0-9]+", str(text or "").strip()) or int(text) < 1:
        raise AuditError(f"{where}: got {text!r}, expected a whole number from 1 on")
    return int(text)


def _seconds(text: Any, where: str) -> tuple[float, float]:
    """The number, and half a unit of its last printed digit."""
    shown = str(text).strip()
    plain = re.fullmatch(r"[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?", shown)
    value = float(shown) if plain else math.nan
    if not (value > 0 and math.isfinite(value)):
        raise AuditError(
            f"{where}: got {text!r}, expected seconds as a number above 0, like 0.2137"
        )
    last = Decimal(shown).as_tuple().exponent
    assert isinstance(last, int)  # it is finite
    return value, 0.5 * 10.0**last


def read_file(path: Path) -> Table:
    """`read_table` of a file; AuditError for one that cannot be read."""
    try:
        return read_table(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError(f"{path} cannot be read as a table: {error}") from error
