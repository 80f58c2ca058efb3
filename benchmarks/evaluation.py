"""How fast items are answered in batches, and what a large table costs in memory.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --run runs/m64-embedded --items 256

Throughput: the shipped model answers the same held-out questions one by one, as
VLMEvalKit asks (each is answered, and its line on the disk, before the next is read),
and as `eval run` does in batches of several sizes, with every program compiled before.
Four families of Digit Pages have a page for each question; tables in POPE's form have
one, two (as MME) or six questions about a page (as each of POPE's three sets), whose
image a batch looks at once. `conversation` is `ask`'s way of one question, of the
families. Ratios are beside one by one.
Memory: a table of 5,000 rows with base64 images is written, then read and decoded row
by row in a process of its own, and by pandas as a whole in another; what counts is the
growth of each one's largest resident size. The last line is JSON.
"""

import argparse
import base64
import csv
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from benchmarks import record

ROWS, SIDE = 5000, 160
BATCHES = (1, 3, 8, 32)
SHARED = (1, 2, 6)  # questions about an image
FAMILIES = ("read", "locate", "exists", "describe")
ROUNDS = 5

Asker = Callable[[Any, Any], list[str]]  # a task and its ledger to answers


def small_run(folder: Path) -> Path:
    """A run of one step at no rate from the shipped base, M = 16."""
    rate = ["--config.optim.learning_rate=1e-9", "--config.optim.steps=1"]
    asked = ["--config.eval.questions=0", "--config.eval.every=1"]
    command = [sys.executable, "-m", "vtscale_jax.train", "--config", "configs/m16.py"]
    command += ["--workdir", str(folder / "m16"), *rate, *asked]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "m16"


def as_cell(pixels: np.ndarray) -> str:
    """A PNG of the pixels in base64, as a table has it."""
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG", compress_level=1)
    return base64.b64encode(png.getvalue()).decode()


def write_table(file: Path, rows: Iterable[tuple[Any, str, str]]) -> None:
    """A table in POPE's form, of images, questions and answers."""
    with file.open("w", newline="") as out:
        writer = csv.writer(out, delimiter="\t")
        writer.writerow(["index", "image", "question", "answer", "category"])
        writer.writerows([i, *row, "random"] for i, row in enumerate(rows))


def question_table(file: Path, config: ConfigDict, number: int, shared: int) -> None:
    """A table of POPE's form with `number` questions, `shared` of them about each page;
    where an image stands already its row is named, as in VLMEvalKit's tables."""
    from vtscale_jax.embedded.digit_pages import DigitPages, PageConfig

    pages = DigitPages(
        "heldout",
        num_pages=-(-number // shared),
        seed=0,
        config=PageConfig(**config.data.page),
        families=("exists",),
        questions_per_page=shared,
    )
    asked = [(page, turn) for page in pages for turn in page.turns][:number]
    rows = []
    for i, (page, turn) in enumerate(asked):
        first = i - i % shared
        cell = as_cell(np.asarray(page.image)) if i == first else first
        rows.append((cell, turn.question, turn.answer.capitalize()))
    write_table(file, rows)


def workloads(folder: Path, config: ConfigDict, number: int) -> dict[str, list[Any]]:
    """What is asked: the families, and tables by their questions about an image."""
    from vtscale_jax.eval.benchmarks.items import BenchmarkItems
    from vtscale_jax.eval.benchmarks.tasks import get_task
    from vtscale_jax.eval.tasks_by_name import items_of

    limit = number // len(FAMILIES)
    found = {
        "families": items_of(FAMILIES, config, data=None, scorer="paper", limit=limit)
    }
    for shared in SHARED:
        file = folder / f"{shared}.tsv"
        question_table(file, config, number, shared)
        table = BenchmarkItems.read(get_task("POPE"), file, "paper")
        found[f"table, {shared} an image"] = [table]
    return found


def in_batches(model: Any) -> Asker:
    """The way of `eval run`: batches are prepared ahead and several under way."""
    from vtscale_jax.eval.ask_items import ask_items

    def ask(task: Any, ledger: Any) -> list[str]:
        return [entry.prediction for entry in ask_items(model, task, ledger, [])]

    return ask


def one_by_one(model: Any) -> Asker:
    """VLMEvalKit's way: a question is answered and written before the next is read."""
    from vtscale_jax.eval.ask_items import entry_of

    def ask(task: Any, ledger: Any) -> list[str]:
        texts = []
        for i, index in enumerate(task.indices):
            question = task.question(i)
            (said,) = model.answer([question])
            ledger.append([entry_of(index, question, said)])
            texts.append(said.text)
        return texts

    return ask


def conversations(run: Path, config: ConfigDict) -> Asker:
    """The way of `ask` with one question."""
    from vtscale_jax.conversation import Answering, ImageConversation
    from vtscale_jax.tokens import end_ids
    from vtscale_jax.trained import open_trained

    trained = open_trained(run)
    answering = Answering(
        most=config.eval.max_new_tokens, eos_ids=end_ids(trained.tokenizer)
    )

    def ask(task: Any, _: Any) -> list[str]:
        texts = []
        for question in map(task.question, range(len(task.indices))):
            conversation = ImageConversation(
                trained.params,
                trained.model,
                trained.encoding,
                trained.layout,
                question.images[0],
                answering,
            )
            texts.append(
                "".join(p.text for p in conversation.ask(question.text)).strip()
            )
        return texts

    return ask


def throughput(askers: dict[str, Asker], tasks: list[Any]) -> dict[str, float]:
    """Items a second of each way of asking, the median of the rounds."""
    from vtscale_jax.eval.ledger import Ledger

    total = sum(len(task.indices) for task in tasks)
    said: dict[str, list[str]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in askers}
    # Round by round, so that whatever else the machine does is met by all alike.
    for _ in range(1 + ROUNDS):
        for name, ask in askers.items():
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                said[name] = []
                for task in tasks:
                    ledger = Ledger(Path(folder) / f"{task.name}.jsonl")
                    with ledger.writing():
                        said[name] += ask(task, ledger)
                seconds[name].append(time.perf_counter() - started)
    first, *others = said
    for name in others:
        if said[name] != said[first]:
            sys.exit(f"{first} and {name} give different answers: nothing to compare")
    # The first round compiles.
    return {name: total / statistics.median(took[1:]) for name, took in seconds.items()}


def speeds_of(run: Path, folder: Path, number: int) -> dict[str, dict[str, float]]:
    """Items a second of every workload and way of asking."""
    from vtscale_jax.eval.run_model import open_run_model
    from vtscale_jax.parallel.host import keep_freed_memory
    from vtscale_jax.trained import run_config

    keep_freed_memory()  # as the command does
    config = run_config(run)
    models = {size: open_run_model(run, config, size) for size in BATCHES}
    askers = {"one by one": one_by_one(models[1])}
    askers |= {f"batch {size}": in_batches(model) for size, model in models.items()}
    found = {}
    for name, tasks in workloads(folder, config, number).items():
        ways = dict(askers)
        if name == "families":
            ways["conversation"] = conversations(run, config)
        found[name] = throughput(ways, tasks)
    return found


def noise_rows() -> Iterator[tuple[str, str, str]]:
    """Yes/no questions with an image of its own in each row."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    for i in range(ROWS):
        noise[i % SIDE] = rng.integers(0, 256, (SIDE, 3), np.uint8)
        yield as_cell(noise), f"Is this noise {i}?", "Yes"


def read_streamed(file: str) -> int:
    """Reads the table as `eval run` does and decodes every image."""
    from vtscale_jax.eval.benchmarks.items import BenchmarkItems
    from vtscale_jax.eval.benchmarks.tasks import get_task

    items = BenchmarkItems.read(get_task("POPE"), Path(file), "paper")
    return sum(items.question(i).images[0].size[0] for i in range(items.number))


def read_whole(file: str) -> int:
    """Reads the table with pandas, images and all."""
    import pandas as pd

    table = pd.read_csv(file, sep="\t")
    images = (Image.open(io.BytesIO(base64.b64decode(c))) for c in table["image"])
    return sum(image.size[0] for image in images)


READERS = {"streamed": read_streamed, "pandas": read_whole}


def growth(reader: str, file: Path, warm_up: Path) -> tuple[float, float]:
    """MiB by which a process of its own grows when it reads the file, after a small
    table has loaded whatever code there is; and the seconds that it took."""
    made = subprocess.run(
        [sys.executable, __file__, "--reader", reader, str(warm_up), str(file)],
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(made.stdout)
    return found["mib"], found["seconds"]


def read_in_child(reader: str, warm_up: str, file: str) -> None:
    """The child's part of `growth`."""
    READERS[reader](warm_up)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    READERS[reader](file)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"mib": (after - before) / 1024, "seconds": seconds}))


def memory(folder: Path) -> dict[str, float]:
    """The growth of both readers on the large table."""
    file, warm_up = folder / "POPE.tsv", folder / "small.tsv"
    write_table(file, noise_rows())
    with file.open() as table, warm_up.open("w") as small:
        small.writelines(next(table) for _ in range(50))
    found = {"table_mib": file.stat().st_size / 2**20}
    for reader in READERS:
        found[f"{reader}_mib"], found[f"{reader}_s"] = growth(reader, file, warm_up)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="default: the shipped model, M = 16")
    parser.add_argument("--items", type=int, default=128)
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/evaluation.json")
    )
    parser.add_argument("--reader", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reader:
        read_in_child(*options.reader)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = options.run or small_run(folder)
        speeds = speeds_of(run, folder, options.items)
        room = memory(folder)
    print(f"{'':<20}{'':<14}{'items/s':>9}{'ratio':>8}")
    for workload, found in speeds.items():
        for label, speed in found.items():
            ratio = speed / found["one by one"]
            print(f"{workload:<20}{label:<14}{speed:>9.1f}{ratio:>8.2f}")
    print(f"\ntable of {ROWS:,} rows, {room['table_mib']:.0f} MiB")
    for reader in READERS:
        grown, seconds = room[f"{reader}_mib"], room[f"{reader}_s"]
        print(f"{reader:<14}{grown:>9.1f} MiB more, {seconds:.1f} s")
    families = speeds["families"]
    result = {
        "items_per_s": {
            workload: {name: round(speed, 2) for name, speed in found.items()}
            for workload, found in speeds.items()
        },
        "batch_8_over_one_by_one": {
            workload: round(found["batch 8"] / found["one by one"], 3)
            for workload, found in speeds.items()
        },
        "batch_8_over_batch_1": {
            workload: round(found["batch 8"] / found["batch 1"], 3)
            for workload, found in speeds.items()
        },
        "batch_8_over_conversation": round(
            families["batch 8"] / families["conversation"], 3
        ),
        "items": options.items,
        "table": {name: round(value, 2) for name, value in room.items()},
    }
    record.finish("evaluation", result, options.out)


if __name__ == "__main__":
    main()
