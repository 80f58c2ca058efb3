"""Time to the first token by part and M, beside the paper's, each row held to the peak.

    python benchmarks/latency.py                                       # embedded sizes
    python benchmarks/latency.py --config configs/m768.py:paper        # on a GPU

Random weights of a config's sizes: what `python -m vtscale_jax.cost latency --config`
measures and rejects, in the form of the other benchmarks. The paper's times are those
of its Table 6, on its own machine. All repetitions, tables and a page stay in --folder,
where the same command goes on after an interruption.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks import record

CONFIG, QUERIES = "configs/m256.py", "1,8,16,64,256"
QUICK = {"queries": "1,16", "repetitions": 2, "new_tokens": 8}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=CONFIG, metavar="FILE[:WORDS]")
    parser.add_argument("--num_queries", metavar="M,M,…")
    parser.add_argument("--image", default="640x480", metavar="FILE|WxH")
    parser.add_argument("--question_tokens", type=int, metavar="T", default=64)
    parser.add_argument("--repetitions", type=int, metavar="N")
    parser.add_argument("--new_tokens", type=int, metavar="N")
    parser.add_argument(
        "--quick", action="store_true", help="two M, two repetitions, few tokens"
    )
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """The rows that `cost latency` gives, and the audits of ours and of the paper's."""
    from vtscale_jax.cost import tables, verdicts
    from vtscale_jax.cost.__main__ import published, take_device
    from vtscale_jax.cost.commands import latency, values
    from vtscale_jax.cost.rows import as_json
    from vtscale_jax.cost.subject import of_config, picture_of

    take_device()
    quick = QUICK if options.quick else {}
    queries = options.num_queries or quick.get("queries", QUERIES)
    subject = of_config(
        values.read_config(options.config),
        values.query_list(queries),
        picture_of(options.image),
        question_tokens=options.question_tokens,
    )
    measured, judged, peak = latency.timed(
        subject,
        rounds=options.repetitions or quick.get("repetitions"),
        new_tokens=options.new_tokens or quick.get("new_tokens", latency.NEW_TOKENS),
        folder=folder,
    )
    theirs = latency.their_audit(published())
    latency.write_results(folder, subject.name, measured, judged, peak, theirs)
    print("\n".join(tables.told(judged.rows, theirs.times)))
    print(f"{peak.describe()}; memory: {measured.memory_how}")
    print(f"The paper's Table 6: {theirs.verdict}")
    rows = []
    for row in judged.rows:
        paper, ours = theirs.times.get(row.num_queries), row.first_token.median
        beside = None if paper is None or row.rejected else paper / ours
        rows.append({**as_json(row), "paper_ttft_s": paper, "paper_over_ours": beside})
    return {
        "config": options.config,
        "measured": measured.inputs,
        "peak": peak._asdict(),
        "memory_how": measured.memory_how,
        "rows": rows,
        "impossible_pairs": [verdicts.pair_json(pair) for pair in judged.impossible],
        "paper_audit": theirs.verdict,
    }


def main() -> None:
    """Measures, prints a table and records."""
    options = parse()
    if options.folder is not None:
        result = measure(options, options.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(options, Path(folder))
    record.finish("latency", result, options.out)


if __name__ == "__main__":
    main()
