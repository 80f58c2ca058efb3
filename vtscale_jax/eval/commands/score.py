"""`python -m vtscale_jax.eval score`: existing predictions, by VLMEvalKit's rules."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

EXAMPLE = """\
example:
  $ python -m vtscale_jax.eval score --tsv ~/LMUData/POPE.tsv --task POPE \\
        --predictions outputs/mine/mine_POPE.xlsx --scorer paper
  POPE: 5,127 of 5,127 rows, scorer paper: VLMEvalKit 0ff0c3e; 3 answers unreadable
    Overall Overall                86.12  (85.1 to 87.1)
    …
  $ python -m vtscale_jax.eval score --tsv POPE.tsv --task POPE \\
        --predictions said.json --scorer current --json
  {"task": "POPE", "scorer": "current", "scores": [{"split": "Overall", …}, …]}
said.json holds {index: what the model said}, word for word.
"""


def add(commands: Any) -> None:
    """Adds the command to the others."""
    parser = commands.add_parser(
        "score",
        help="predictions that were made already, by VLMEvalKit's rules",
        description="Scores a file of predictions with the benchmark's table. No model "
        "and no judge is asked, and nothing is fetched.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--tsv", type=Path, required=True, metavar="FILE", help="the benchmark's table"
    )
    parser.add_argument("--task", required=True, help="its name, as POPE")
    parser.add_argument(
        "--predictions",
        type=Path,
        required=True,
        metavar="FILE",
        help=".xlsx or .tsv as VLMEvalKit writes it, or .json of what the model said",
    )
    parser.add_argument(
        "--scorer",
        choices=("paper", "current"),
        default="paper",
        help="VLMEvalKit's rules at the commit that the paper used, or at a newer one "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="task, scorer and scores as one JSON object"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="also write items.jsonl, the verdict on each row, and scores.json there",
    )


def run(options: argparse.Namespace, _: Any) -> None:
    """Runs the command: scores on standard output, notes about the files on standard
    error."""
    from vtscale_jax.eval.benchmarks.predictions import read_predictions
    from vtscale_jax.eval.benchmarks.table import read_table
    from vtscale_jax.eval.benchmarks.tasks import get_task
    from vtscale_jax.eval.results import score_lines, without_nan
    from vtscale_jax.eval.scoring.score import score
    from vtscale_jax.run_folder import RunFolder

    task = get_task(options.task)
    table = read_table(options.tsv, task, options.scorer, need_files=False)
    predictions = read_predictions(options.predictions, table, options.scorer)
    for note in (*table.notes, *predictions.notes):
        print(f"note: {note}", file=sys.stderr)
    scored = score(task.name, predictions.rows, predictions.texts, options.scorer)
    shown = without_nan(scored.scores)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        folder = RunFolder(options.out)
        rows = [
            {"index": item.index, "prediction": text, "extracted": item.extracted}
            | {"score": item.score, "detail": item.detail}
            for item, text in zip(scored.items, predictions.texts, strict=True)
        ]
        folder.write_lines("items.jsonl", rows)
        about = {"task": task.name, "scorer": scored.version, "items": len(rows)}
        of = {"scores": shown, "intervals": without_nan(scored.intervals)}
        folder.write("scores.json", {**about, "unreadable": scored.failures, **of})
    if options.json:
        found = {"task": task.name, "scorer": options.scorer, "scores": shown}
        print(json.dumps(found, ensure_ascii=False, allow_nan=False))
        return
    unread = f"; {scored.failures:,} answers unreadable" if scored.failures else ""
    print(
        f"{task.name}: {len(predictions.texts):,} of {len(table):,} rows, scorer "
        f"{scored.version}{unread}"
    )
    print("\n".join(score_lines(shown, without_nan(scored.intervals))))
