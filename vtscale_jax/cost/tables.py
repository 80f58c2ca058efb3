"""The paper's Tables 6 and 7 for this machine, as rows of CSV and as text.

A rejected row keeps its place, its verdict and its number of repetitions, but no times:
they are in `latency.json`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vtscale_jax.cost.audit import PUBLISHED_TFLOP
from vtscale_jax.cost.latency import PARTS
from vtscale_jax.cost.rows import TIMED, Row
from vtscale_jax.cost.verdicts import aligned

TABLE_6 = (
    *("n_l", "ttft_s", "ttft_p95_s"),
    *(f"{name}_s" for name in PARTS),
    *("between_share", "decode_tokens_per_s"),
    *(f"{name}_peak_share" for name in (*TIMED, "decode")),
    *("peak_memory_gib", "prompt_tokens", "repetitions", "verdict", "paper_ttft_s"),
)
COUNTED = ("views", "vision", "merge", "fusion", "projector", "prefill", "head")
TABLE_7 = (
    *("n_l", "prompt_tokens"),
    *(f"{name}_gflop" for name in COUNTED),
    *("total_gflop", "fusion_causal_gflop", "prefill_causal_gflop"),
    *("total_causal_gflop", "paper_gflop"),
)
GIB = 2**30


def table_6(rows: Sequence[Row], published: Mapping[int, float]) -> list[list[Any]]:
    """Times by M, as TABLE_6 names the columns; None for what is not there."""
    return [_times(row, published.get(row.num_queries)) for row in rows]


def table_7(rows: Sequence[Row]) -> list[list[Any]]:
    """Operations by M without padding, as TABLE_7 names the columns; the total is of
    what a device computes (views are made on the host)."""
    return [_operations(row) for row in rows]


def told(rows: Sequence[Row], published: Mapping[int, float]) -> list[str]:
    """Table 6 as lines for a terminal, in milliseconds."""
    heads = ["M", "TTFT ms", "p95", *PARTS, "tokens/s", "GiB", "paper ms", "verdict"]
    lines = [heads]
    for row in rows:
        theirs = published.get(row.num_queries)
        cells = ["–"] * (3 + len(PARTS))
        if not row.rejected:
            times = [row.first_token.median, row.first_token.p95]
            times += [row.parts[name].median for name in PARTS]
            cells = [*map(_ms, times), f"{row.decode_tokens_per_s:.1f}"]
        lines.append(
            [
                *(str(row.num_queries), *cells, f"{row.memory / GIB:.2f}"),
                *("–" if theirs is None else _ms(theirs), row.verdict),
            ]
        )
    return aligned(lines)


def _times(row: Row, published: float | None) -> list[Any]:
    kept: list[Any] = [None] * (TABLE_6.index("peak_memory_gib") - 1)
    if not row.rejected:
        shares = [
            max(row.rates[name].flops_share, row.rates[name].bytes_share)
            for name in (*TIMED, "decode")
        ]
        seconds = [row.first_token.median, row.first_token.p95]
        seconds += [row.parts[name].median for name in PARTS]
        kept = [*(f"{each:.6f}" for each in seconds), f"{row.between:.4f}"]
        kept += [f"{row.decode_tokens_per_s:.2f}", *(f"{each:.4f}" for each in shares)]
    return [
        *(row.num_queries, *kept, f"{row.memory / GIB:.4f}", row.prompt_tokens),
        *(row.repetitions, row.verdict, published),
    ]


def on_device(row: Row, *, causal: bool = False) -> int:
    """Operations of a question that the device computes, without padding; attention
    whole, or `causal`."""
    return sum(row.flops[name][int(causal)] for name in COUNTED[1:])


def _operations(row: Row) -> list[Any]:
    whole = {name: row.flops[name][0] / 1e9 for name in COUNTED}
    causal = {name: row.flops[name][1] / 1e9 for name in ("fusion", "prefill")}
    paper = PUBLISHED_TFLOP.get(row.num_queries)
    return [
        *(row.num_queries, row.prompt_tokens),
        *(f"{whole[name]:.6g}" for name in COUNTED),
        f"{on_device(row) / 1e9:.6g}",
        *(f"{causal['fusion']:.6g}", f"{causal['prefill']:.6g}"),
        f"{on_device(row, causal=True) / 1e9:.6g}",
        None if paper is None else 1e3 * paper,
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}" if seconds < 0.1 else f"{1e3 * seconds:.1f}"
