"""The main figures of each benchmark's result, beside what was aimed at.

They are read from the JSON that a benchmark recorded, so the table of README.md and
that of `python -m benchmarks all` say what stands in the files and nothing else.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).resolve().parent / "results"
# Where results have lain since before they named their benchmark.
FILES = {
    "generate": "generate.json",
    "divergence": "divergence.json",
    "loader": "loader.json",
    "evaluation": "evaluation.json",
    "int8": "int8.json",
    "allocator": "allocator.json",
    "import_7b": "import_7b.json",
    "embedded": "embedded.json",
    "scaling_coverage": "scaling/coverage.json",
    "token_reduction": "token_reduction/results.json",
}
NOT_NOTED = "not noted"


class FigureError(ValueError):
    """A result whose main figures are not known."""


class Figure(NamedTuple):
    """One number of a result; `shape` is a format with its unit ("{:.2f} ×"). `target`
    is what was asked for, and with `at_most` not to be exceeded; None asks nothing. A
    `share` of what a device can do is rejected above 1: one of the two was timed while
    the machine did something else. `doubt` is why the benchmark itself rejects it."""

    what: str
    value: float
    shape: str
    target: float | None = None
    at_most: bool = False
    share: bool = False
    doubt: str = ""

    @property
    def rejected(self) -> str:
        """Why it is not to be believed; "" when nothing speaks against it."""
        return "more than can be" if self.share and self.value > 1 else self.doubt

    @property
    def text(self) -> str:
        """The value with its unit, and that it is rejected if it is."""
        said = self.shape.format(self.value)
        return f"rejected: {said}, {self.rejected}" if self.rejected else said

    @property
    def asked(self) -> str:
        """The target with its unit; "" when there is none."""
        if self.target is None:
            return ""
        return ("≤ " if self.at_most else "≥ ") + self.shape.format(self.target)

    @property
    def met(self) -> str:
        """Whether the target was met, unrounded; "" when there is none to meet."""
        if self.target is None or self.rejected:
            return ""
        kept = self.value <= self.target if self.at_most else self.value >= self.target
        return "yes" if kept else "no"


MFU = 0.5  # of the measured peak: finetune at the paper's shapes, M = 256, on an H200
TAKEN = 1.15  # of the planned memory: what allocators and pages round up
PAPER_TTFT = 3.0  # the paper's time to the first token over ours, on an H200
TIMES, PERCENT = "{:.3g} ×", "{:.1%}"


def train_step(result: Mapping[str, Any]) -> Iterator[Figure]:
    """Beside PyTorch as published, and what the gain is due to."""
    for name, found in result["ratios"].items():
        target = result["target"] if name == "padded / ours" else None
        yield Figure(f"PyTorch {name}", found["ratio"], TIMES, target)
    for cause, found in result["split"].items():
        yield Figure(f"of the gain: {cause}", found["ratio"], TIMES)


def train_step_presets(result: Mapping[str, Any]) -> Iterator[Figure]:
    """Steps at a preset's sizes: utilisation, time, and memory beside the plan."""
    for row in result["rows"]:
        about = f"{row['preset']}, {row['stage']}, M = {row['num_queries']}"
        main = (row["preset"], row["stage"], row["num_queries"])
        target = MFU if main == ("paper", "finetune", 256) else None
        for source, share in row.get("mfu", {}).items():
            what = f"{about}: MFU of the peak ({source})"
            asked = target if source == "measured" else None
            yield Figure(what, share, PERCENT, asked, share=True)
        yield Figure(f"{about}: a step", 1e3 * row["median_s"], "{:.0f} ms")
        memory = row["memory"] / row["planned_memory"]["peak"]
        yield Figure(f"{about}: memory beside the plan", memory, TIMES)


def latency(result: Mapping[str, Any]) -> Iterator[Figure]:
    """Times to the first token by M, and at the paper's shapes beside the paper's."""
    for row in result["rows"]:
        about, doubt = f"M = {row['num_queries']}", row["rejected"]
        first = 1e3 * row["first_token"]["median"]
        what = f"{about}: time to the first token"
        yield Figure(what, first, "{:.1f} ms", doubt=doubt)
        ratio, words = row["paper_over_ours"], result["config"].partition(":")[2]
        if ratio is not None and "paper" in words.split(","):
            yield Figure(f"{about}: the paper's over it", ratio, TIMES, PAPER_TTFT)
    last = result["rows"][-1]
    what = f"M = {last['num_queries']}: tokens a second"
    speed = last["decode_tokens_per_s"]
    yield Figure(what, speed, "{:.0f}", doubt=last["rejected"])
    pairs = len(result["impossible_pairs"])
    yield Figure("impossible pairs of rows", pairs, "{}", 0, at_most=True)


def generate(result: Mapping[str, Any]) -> Iterator[Figure]:
    """Speed beside transformers, or by itself where torch was not there."""
    for name, row in result["rows"].items():
        part, batch = name.split()
        about = f"{part}, batch {batch}"
        if "ratio" in row:
            yield Figure(f"{about}, beside torch", row["ratio"], TIMES, row["target"])
        else:
            speed = row["ours_tokens_per_s"]
            yield Figure(f"{about}, tokens per second", speed, "{:,.0f}")


def divergence(result: Mapping[str, Any]) -> Iterator[Figure]:
    """Beside two PyTorch forms and beside the machine's own matrix product."""
    for form, ratio in result["ratio"].items():
        target = result["targets"][form]
        yield Figure(f"kernel beside PyTorch, {form}", ratio, TIMES, target)
    aim = result["aims"]["peak_share"]
    share = result["peak_share"]
    what = "share of a matrix product's speed (aim)"
    yield Figure(what, share, "{:.0%}", aim, share=True)
    half = result.get("bfloat16") or {}
    if "share" in half:
        what, share = "the same in bfloat16 (aim)", half["share"]
        yield Figure(what, share, "{:.0%}", aim, share=True)


def loader(result: Mapping[str, Any]) -> Iterator[Figure]:
    """Images a second and core, and the cores that eight A100 ask for."""
    for size, row in result["images_per_s_per_core"].items():
        yield Figure(f"fast views a second, {size}", row["fast"], "{:.0f} images")
    for path in ("exact", "fast"):
        least = min(result[f"{path}_over_CLIP, ten views"].values())
        what = f"{path} views beside CLIPImageProcessor, at least"
        yield Figure(what, least, TIMES)
    for stage, cores in result["cores_for_eight_a100"].items():
        what = f"cores that feed eight A100, {stage}, fast"
        yield Figure(what, cores["fast"], "{:.2f}")


def evaluation(result: Mapping[str, Any]) -> Iterator[Figure]:
    """What batches are worth, and what a large table takes."""
    table = result["table"]
    for workload, ratio in result["batch_8_over_one_by_one"].items():
        yield Figure(f"{workload}: batch 8 beside one by one", ratio, TIMES)
    what = f"more memory for a table of {table['table_mib']:.0f} MiB"
    yield Figure(what, table["streamed_mib"], "{:.0f} MiB")


def int8(result: Mapping[str, Any]) -> Iterator[Figure]:
    """What int8 weights cost."""
    rows = result["rows"]
    size = rows["int8"]["blocks_megabytes"] / rows["float32"]["blocks_megabytes"]
    yield Figure("size of the blocks beside float32", size, PERCENT)
    yield Figure("same most likely token", result["same_most_likely_token"], PERCENT)
    yield Figure("decoding speed beside float32", result["decode_ratio"], TIMES)


def allocator(result: Mapping[str, Any]) -> Iterator[Figure]:
    """What keeping freed memory is worth."""
    what = f"training step, M = {result['num_queries']}, memory kept"
    yield Figure(what, result["speedup"], TIMES)


def import_7b(result: Mapping[str, Any]) -> Iterator[Figure]:
    """Memory beyond the weights themselves."""
    rows = [row for row in result["rows"] if row["way"] == "streamed"]
    row = max(rows, key=lambda row: row["layers"])
    what = f"peak above the weights, {row['layers']} layers"
    limit = result["limit_gb"]
    yield Figure(what, row["above_gb"], "{:.2f} GB", limit, at_most=True)


def embedded(result: Mapping[str, Any]) -> Iterator[Figure]:
    """Accuracy of the bare command, and the minutes of the longest run."""
    for row in sorted(result["runs"], key=lambda row: row["num_queries"]):
        families = row["families"].values()
        mean = sum(one["accuracy"] for one in families) / len(families)
        yield Figure(f"M = {row['num_queries']}, mean accuracy", mean, PERCENT)
    longest = max(result["runs"], key=lambda row: row["seconds"])
    what = f"M = {longest['num_queries']}, the whole command"
    yield Figure(what, longest["seconds"] / 60, "{:.1f} minutes")


def scaling_coverage(result: Mapping[str, Any]) -> Iterator[Figure]:
    """How often 95 % intervals hold the truth, over laws that can be identified."""
    rows = [row for row in result["rows"] if not row["law"].endswith("weak")]
    shares = [share for row in rows for share in row["coverage"].values()]
    held = [share for share in shares if share is not None]  # None: no draw counted
    yield Figure("95 % intervals that hold the truth, least", min(held), PERCENT)
    yield Figure("the same, most", max(held), PERCENT)
    chosen = min(row["chosen"] for row in rows)
    yield Figure("true law chosen, least", chosen, PERCENT)


def token_reduction(result: Mapping[str, Any]) -> Iterator[Figure]:
    """Queries and the best reducer at 16 tokens."""
    mean = {
        row["method"]: sum(one["accuracy"] for one in row["families"].values())
        / len(row["families"])
        for row in result["rows"]
        if row["n"] == 16
    }
    own = {name for name in mean if name.startswith("queries")}
    best = max(mean.keys() - own, key=mean.__getitem__)
    yield Figure("mean accuracy, 16 queries", mean["queries vqq"], PERCENT)
    yield Figure(f"the same, best reducer ({best})", mean[best], PERCENT)


def short_run(result: Mapping[str, Any]) -> Iterator[Figure]:
    """A short training as the command runs it."""
    yield Figure("loss at the first log", result["first_loss"], "{:.3f}")
    yield Figure("loss at the last log", result["last_loss"], "{:.3f}")
    yield Figure("samples a second", result["samples_per_s"], "{:.1f}")
    yield Figure("MFU", result["mfu"], PERCENT, share=True)
    waited = result["loader_wait"]
    yield Figure(
        "time that the step waited for data", waited, "{:.2%}", 0.02, at_most=True
    )
    late, shapes = result["compiled_late"], result["batch_shapes"]
    what = "programs compiled after the first log"
    yield Figure(what, late, "{}", shapes - 1, at_most=True)


def run_memory(result: Mapping[str, Any]) -> Iterator[Figure]:
    """Memory of the runs' steps beside their plans."""
    for row in result["rows"]:
        if "not_measured" in row:
            continue
        what = f"{row['config']}: memory beside the plan"
        yield Figure(what, row["taken"] / row["planned"], TIMES, TAKEN, at_most=True)


READERS: dict[str, Callable[[Mapping[str, Any]], Iterator[Figure]]] = {
    reader.__name__: reader
    for reader in (
        *(train_step, train_step_presets, latency, generate, divergence, loader),
        *(evaluation, int8, allocator, import_7b, embedded, scaling_coverage),
        *(token_reduction, short_run, run_memory),
    )
}


def of(name: str, result: Mapping[str, Any]) -> list[Figure]:
    """The main figures of benchmark `name`; FigureError where the result is not one of
    its own, naming the field that is missing."""
    if name not in READERS:
        raise FigureError(
            f"no main figures are known of {name!r}, expected one of "
            f"{', '.join(READERS)}; add a reader to benchmarks/figures.py"
        )
    try:
        return list(READERS[name](result))
    except KeyError as error:
        raise FigureError(f"the result of {name} has no field {error}") from error
    except (AttributeError, TypeError) as error:
        raise FigureError(
            f"the result of {name} has a field of another form ({error}): it was "
            "written by another version; measure it again"
        ) from error


def machine(result: Mapping[str, Any]) -> str:
    """Where a result was measured, as far as it says."""
    found = result.get("device")
    if isinstance(found, Mapping) and "processor" in found:
        kind = found["processor"] if found["platform"] == "cpu" else found["kind"]
        return f"{kind}, {found['cores']} cores"
    return str(result.get("machine", NOT_NOTED))


def platform(result: Mapping[str, Any]) -> str:
    """Platform of a result ("cpu", "gpu" or "tpu"), as far as it says."""
    found = result.get("device")
    return found["platform"] if isinstance(found, Mapping) else NOT_NOTED


def code(result: Mapping[str, Any]) -> str:
    """The commit that a result is of, as far as it says."""
    one = next(iter(result.get("runs", ())), {})  # each of `embedded` says its own
    found = result.get("code") or one.get("code") or {}
    return found.get("commit") or found.get("vtscale_jax") or NOT_NOTED


def recorded(folder: Path = RESULTS) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each result below `folder`: its benchmark, its file, and what it holds; then
    those of whole machines, job by job."""
    for name, file in FILES.items():
        if (folder / file).exists():
            yield name, file, _read(folder / file)
    for file in sorted(folder.glob("*.json")):
        found = _read(file)
        if isinstance(found, dict) and found.get("benchmark") == "all":
            for job, row in found["rows"].items():
                yield job, file.name, row


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
