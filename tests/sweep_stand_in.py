"""Stands in for train and eval as a part of a sweep: writes their files, and behaves as
its environment asks.

    FAILS="m2-vqq"     these parts end with status 7
    WAITS="m2-vqq"     these begin, and wait until they are told to stop
    ENDS="m2-vqq"      these end with status 0 though they are not finished
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def write(folder: Path, name: str, **content) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def main() -> None:
    given = sys.argv[1:]
    evaluates = given[0] == "heldout"
    folder = Path(given[given.index("--out" if evaluates else "--workdir") + 1])
    record = "evaluated.json" if evaluates else "manifest.json"
    begun = (folder / record).exists()
    print(f"{'goes on' if begun else 'begins'}: {folder.name}")
    print("cores", len(os.sched_getaffinity(0)))
    print("apart from the terminal:", os.getsid(0) == os.getpid())
    write(folder, record, finished=False)

    def told(number, _):
        write(folder, "saved.json", by=signal.Signals(number).name)
        print("saved")
        sys.exit(0)

    signal.signal(signal.SIGTERM, told)
    with (folder.parent / "order").open("a") as order:
        order.write(f"{folder.name}\n")
    if folder.name in os.environ.get("FAILS", "").split():
        print("error: no such luck")
        sys.exit(7)
    if folder.name in os.environ.get("ENDS", "").split():
        sys.exit(0)
    if folder.name in os.environ.get("WAITS", "").split():
        write(folder, "waiting.json")
        time.sleep(60)
    row = {"n": 2, "correct": 1, "accuracy": 0.5, "low": 0.1, "high": 0.9}
    write(folder, "evaluation.json", families={"read": row})
    of = "x" + folder.name.partition("-")[0]
    write(folder, record, finished=True, params_sha256=of, duration_s=30.0)


if __name__ == "__main__":
    main()
