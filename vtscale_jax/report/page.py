"""One self-contained HTML page about a run, from its result files only."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vtscale_jax.report.pages import data_uri, environment, flatten
from vtscale_jax.report.plots import write_plots
from vtscale_jax.report.run_files import Evaluation, Family, Run, Sample, read_run

# What a stage does, for a reader who has not read the paper.
_STAGE_MEANING = {
    "align": "the image side learns to match questions on images with their answers, "
    "without a language model",
    "finetune": "the image side learns to answer through a frozen language model",
    "adapt": "a model already trained is adapted to this number of vision tokens",
}


class Card(NamedTuple):
    """A sample page with all questions asked about it; `image` is a data URI."""

    image: str | None
    image_path: str
    samples: tuple[Sample, ...]


class FamilyRow(NamedTuple):
    """A family's scores, and what there is to say about them."""

    family: Family
    difference: float | None  # in percentage points
    intervals_overlap: bool
    remarks: tuple[str, ...]


def write_report(run_dir: str | Path) -> Path:
    """Draws the plots of a run and writes its `report.html`; returns the page's path.

    The page needs nothing beside it: images are embedded and nothing is loaded from
    elsewhere. A section whose file is missing says so. Raises ValueError when the
    folder is no run folder, `MalformedFile` when one of its files is malformed.
    """
    run = read_run(run_dir)
    plots = {name: data_uri(path) for name, path in write_plots(run).items()}
    rows, notes = (), ()
    if run.evaluation is not None:
        rows, notes = family_rows(run.evaluation)
    templates = environment(Path(__file__).parent)
    templates.filters["percent"] = lambda share: f"{100 * share:.1f}"
    samples = run.samples or ()
    page = templates.get_template("run.html.jinja").render(
        name=run.folder.resolve().name,
        description=describe(run),
        missing=run.missing,
        evaluation=run.evaluation,
        rows=rows,
        notes=notes,
        plots=plots,
        cards=tuple(sample_cards(run)),
        loose_samples=tuple(s for s in samples if s.image is None),
        num_samples=len(samples),
        num_right=sum(s.correct for s in samples),
        settings=tuple(flatten(run.config or {}, text=str)),
        manifest=tuple(flatten(run.manifest or {}, text=str)),
    )
    path = run.folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def family_rows(
    evaluation: Evaluation,
) -> tuple[tuple[FamilyRow, ...], tuple[str, ...]]:
    """Rows of the accuracy table, and the notes that belong to no family.

    A note "read: text" is a remark on the family `read`.
    """
    names = {family.name for family in evaluation.families}
    rows = []
    for family in evaluation.families:
        prefix = f"{family.name}:"
        remarks = [
            note.removeprefix(prefix).strip()
            for note in evaluation.notes
            if note.startswith(prefix)
        ]
        score, blank = family.score, family.blank
        rows.append(
            FamilyRow(
                family=family,
                difference=(
                    None if blank is None else 100 * (score.accuracy - blank.accuracy)
                ),
                intervals_overlap=(
                    blank is not None
                    and score.low <= blank.high
                    and blank.low <= score.high
                ),
                remarks=tuple(remarks),
            )
        )
    general = (n for n in evaluation.notes if n.split(":")[0] not in names)
    return tuple(rows), tuple(general)


def sample_cards(run: Run) -> Iterator[Card]:
    """Samples grouped by their page, in the order of `samples.jsonl`.

    A page whose image file is missing keeps its card, with `image` None.
    """
    pages: dict[str, list[Sample]] = {}
    for sample in run.samples or ():
        if sample.image is not None:
            pages.setdefault(sample.image, []).append(sample)
    for image_path, samples in pages.items():
        path = run.folder / image_path
        image = data_uri(path) if path.exists() else None
        yield Card(image, image_path, tuple(samples))


def describe(run: Run) -> str:
    """What was run, in plain sentences; what the files do not say is left out."""
    config, manifest = run.config or {}, run.manifest or {}
    sentences = []
    stage = find(config, "stage")
    if stage is not None:
        meaning = _STAGE_MEANING.get(str(stage))
        sentences.append(f"Stage “{stage}”{f': {meaning}' if meaning else ''}.")
    queries = find(config, "num_queries")
    if queries is None and run.evaluation is not None:
        queries = run.evaluation.num_queries
    if queries is not None:
        tokens = "token" if queries == 1 else "tokens"
        sentences.append(
            f"The language model sees each image as M = {queries} vision {tokens}."
        )
    preset, data = find(config, "preset"), _data_name(config)
    origin = [f"preset “{preset}”"] * (preset is not None)
    origin += [f"data “{data}”"] * (data is not None)
    if origin:
        sentences.append(_capital(f"{', '.join(origin)}."))
    training = []
    if run.metrics:
        training.append(f"up to step {max(row['step'] for row in run.metrics):,}")
    if manifest.get("device") is not None:
        training.append(f"on {_device_name(manifest['device'])}")
    if isinstance(manifest.get("duration_s"), int | float):
        training.append(f"in {duration(manifest['duration_s'])}")
    if training:
        sentences.append(f"It ran {' '.join(training)}.")
    if manifest.get("speed"):
        sentences.append(speed_sentence(manifest))
    if manifest.get("samples_skipped"):
        sentences.append(
            f"{manifest['samples_skipped']:,} samples were skipped, because their "
            "images could not be read (skipped-*.jsonl names them)."
        )
    if run.evaluation is not None and run.evaluation.families:
        asked = sum(family.score.n for family in run.evaluation.families)
        count = len(run.evaluation.families)
        sentences.append(
            f"After step {run.evaluation.step:,} it was asked {asked:,} held-out "
            f"questions of {count} {'families' if count > 1 else 'family'}."
        )
    return " ".join(sentences) or "The files of this run do not say what was run."


def speed_sentence(manifest: dict[str, Any]) -> str:
    """How well the devices were used, by the manifest's `speed` and `peak`."""
    speed, peak = manifest["speed"], manifest["peak"]
    return (
        f"Training computed {speed['samples_per_s']:.3g} samples/s, an MFU of "
        f"{speed['mfu']:.1%} of {peak['source']} (attention counted causally; "
        f"{speed['mfu_whole']:.1%} counted whole), and waited for data "
        f"{speed['loader_wait']:.1%} of the time."
    )


def find(config: dict[str, Any], name: str) -> Any:
    """The value of the field `name` nearest to the top of a nested dict, or None.

    None also where two fields equally near say different things.
    """
    level = [config]
    while level:
        found = [table[name] for table in level if table.get(name) is not None]
        if found:
            return found[0] if all(value == found[0] for value in found) else None
        level = [v for table in level for v in table.values() if isinstance(v, dict)]
    return None


def duration(seconds: float | int) -> str:
    """A time span in its two largest units: "48.3 s", "4 min 12 s", "10 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _data_name(config: dict[str, Any]) -> Any:
    """`data` itself, or its `name`."""
    data = find(config, "data")
    return data.get("name") if isinstance(data, dict) else data


def _device_name(device: Any) -> str:
    if isinstance(device, dict):
        name = device.get("kind") or device.get("name") or device.get("platform")
        if name is not None:
            return f"{device['count']} × {name}" if "count" in device else str(name)
        return ", ".join(f"{name} {value}" for name, value in device.items())
    return str(device)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
