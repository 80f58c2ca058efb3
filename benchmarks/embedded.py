"""The bare command for several M: held-out accuracy by family, minutes, memory.

    python benchmarks/embedded.py                  # M = 1, 8, 16, 64, 256; 14 minutes
    python benchmarks/embedded.py --queries 16 64 --out results.json

Each M is one run of `python -m vtscale_jax.train --config configs/mM.py` in its own
folder below `runs/`; one that is finished is not run again. Prints a table, then the
numbers as one line of JSON.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import record
from vtscale_jax.run_folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent


def measured(num_queries: int) -> dict[str, Any]:
    """What the run of M = `num_queries` has written, after running it if need be."""
    command = ["-m", "vtscale_jax.train", "--config", f"configs/m{num_queries}.py"]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    folder = RunFolder(ROOT / "runs" / f"m{num_queries}-embedded")
    made = folder.read("manifest.json")
    families = folder.read("evaluation.json")["families"]
    return {
        "num_queries": num_queries,
        "seconds": round(made["duration_s"], 1),
        "peak_memory_gb": round(made["peak_memory_bytes"] / 1e9, 2),
        "families": {
            name: {
                key: round(value, 4) if isinstance(value, float) else value
                for key, value in row.items()
            }
            for name, row in families.items()
        },
        "device": made["device"],
        "code": made["code"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Accuracy in per cent, a blank page's in brackets."""
    names = list(rows[0]["families"])
    lines = ["M".rjust(5) + "".join(name.rjust(16) for name in names) + "  min    GB"]
    for row in rows:
        cells = [
            f"{100 * f['accuracy']:.1f} ({100 * f['blank_accuracy']:.1f})".rjust(16)
            for f in (row["families"][name] for name in names)
        ]
        end = f"{row['seconds'] / 60:5.1f} {row['peak_memory_gb']:5.2f}"
        lines.append(f"{row['num_queries']:5d}{''.join(cells)}{end}")
    return "\n".join(lines)


def main() -> None:
    """Runs, prints, and writes `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 8, 16, 64, 256])
    default = ROOT / "benchmarks" / "results" / "embedded.json"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    from vtscale_jax.weights.starting import shipped

    rows = [measured(num_queries) for num_queries in args.queries]
    files = json.loads(shipped("manifest.json").read_text())["files"]
    result = {"shipped": {name: row["sha256"] for name, row in files.items()}}
    result |= {"runs": rows}
    print(table(rows))
    record.finish("embedded", result, args.out)


if __name__ == "__main__":
    main()
