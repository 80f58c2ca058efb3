"""A short training as the command runs it: speed, loss, memory, what was compiled.

    python benchmarks/short_run.py                            # embedded, M = 64
    python -m vtscale_jax.weights fetch smollm2-135m
    python benchmarks/short_run.py --preset smol --steps 40

One run of `python -m vtscale_jax.train` (the preset with its own data, loader and
batch) in a folder of its own, without questions at the end; evaluation and checkpoint
come once, at the last step. Figures are those that the run logged: loss, speed and MFU
of its first and last rows, the share of time that it waited for data, and how many
programs it compiled after the first row: one for each batch shape that had not come by
then, and no other. --config fields after `--` are passed on. Prints the rows and, last,
one line of JSON.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import record
from vtscale_jax.config_files import config_file
from vtscale_jax.weights import fetch

ROOT = Path(__file__).resolve().parent.parent
# What begins from the weights that ship with the package.
STAGES = {"embedded": "adapt", "smol": "finetune"}
# Of the manifest, what says how it went.
KEPT = (
    *("parameters", "step_memory_bytes", "peak_memory_bytes", "duration_s"),
    *("speed", "peak"),
)


def command(folder: Path, options: argparse.Namespace) -> list[str]:
    """The training command: no questions, and one evaluation, at the end."""
    stage = f"stage={options.stage}"
    config = config_file(options.num_queries, options.preset, stage)
    fields = {
        "optim.steps": options.steps,
        "log.every": max(1, options.steps // 8),
        "eval.every": options.steps,
        "eval.questions": 0,
        "checkpoint.every": options.steps,
    }
    words = [f"--config.{name}={value}" for name, value in fields.items()]
    start = [sys.executable, "-m", "vtscale_jax.train", "--config", config]
    return [*start, "--workdir", str(folder), *words, *options.more]


def trained(words: list[str]) -> str:
    """Runs the command, with its lines as progress, and returns them."""
    lines = []
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout or ():
            print(line, end="", file=sys.stderr, flush=True)
            lines.append(line)
    if child.returncode:
        sys.exit(f"the training ended with {child.returncode}; its lines say why")
    return "".join(lines)


def batch_shapes(said: str) -> int:
    """How many shapes batches can have, of the lines that a run begins with."""
    found = re.findall(r"at most (\d+) shapes", said)
    if not found:
        sys.exit("the training did not say how many shapes its batches have")
    return sum(map(int, found))


def found_in(folder: Path) -> dict[str, Any]:
    """What a run wrote of itself."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    train = [row for row in rows if row["split"] == "train"]
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return {
        "run": {name: manifest[name] for name in KEPT},
        "first_loss": train[0]["loss"],
        "last_loss": train[-1]["loss"],
        "samples_per_s": train[-1]["samples_per_s"],
        "mfu": train[-1]["mfu"],
        "loader_wait": manifest["speed"]["loader_wait"],
        "compiled_late": train[-1]["compiled_programs"] - train[0]["compiled_programs"],
        "rows": rows,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows of the training log."""
    lines = [
        f"{'step':>6}{'loss':>9}{'samples/s':>11}{'MFU':>8}{'loader':>8}{'programs':>10}"
    ]
    for row in rows:
        if row["split"] == "train":
            numbers = f"{row['loss']:>9.4f}{row['samples_per_s']:>11.1f}"
            shares = f"{row['mfu']:>8.1%}{row['loader_wait']:>8.2%}"
            programs = f"{row['compiled_programs']:>10}"
            lines.append(f"{row['step']:>6}{numbers}{shares}{programs}")
    return "\n".join(lines)


def main() -> None:
    """Trains, prints, and writes `--out`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=tuple(STAGES), default="embedded")
    parser.add_argument(
        "--stage", help="default: adapt, of smol finetune: where shipped weights lead"
    )
    parser.add_argument("--num_queries", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="keep the run here, a new folder")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("more", nargs="*", metavar="--config.FIELD=VALUE")
    options = parser.parse_args()
    options.stage = options.stage or STAGES[options.preset]
    if options.preset == "smol" and fetch.cached("smollm2-135m") is None:
        get = "python -m vtscale_jax.weights fetch smollm2-135m"
        missing = record.not_measured("short_run", f"no weights of SmolLM2: {get}")
        record.finish("short_run", missing, options.out)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name) / "run"
        words = command(folder, options)
        found = {"batch_shapes": batch_shapes(trained(words)), **found_in(folder)}
    print(table(found["rows"]))
    about = {"preset": options.preset, "stage": options.stage, "steps": options.steps}
    about |= {"num_queries": options.num_queries, "fields": options.more}
    record.finish("short_run", {**about, **found}, options.out)


if __name__ == "__main__":
    main()
