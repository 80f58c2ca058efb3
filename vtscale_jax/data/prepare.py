"""One downloaded file and its images -> a folder of verified records.

    OUT/records.jsonl   what training reads (`vtscale_jax.records`)
    OUT/manifest.json   of what and how it was made, its SHA-256
    OUT/report.json     report.html: counts by origin and reason, with examples

In three steps: the input is read once and split into parts; every distinct image is
looked at once; the parts are converted and joined. Each step goes on where it was
ended, at whatever moment, and the files are the same bytes for any number of processes.
"""

import dataclasses
import itertools
import json
import os
import platform
import shutil
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from vtscale_jax.data.conversion import (
    Conversion,
    convert_part,
    converted_rows,
    part_file,
    write_rows,
)
from vtscale_jax.data.image_check import check_image
from vtscale_jax.data.image_roots import ImageRoot
from vtscale_jax.data.image_table import Found, ImageTable
from vtscale_jax.data.join import Duplicates, join
from vtscale_jax.data.json_rows import InputError
from vtscale_jax.data.prepared_folder import MANIFEST, RECORDS, file_facts
from vtscale_jax.data.report import write_report
from vtscale_jax.data.sources.by_name import source_by_name
from vtscale_jax.data.sources.source import Source, TextRows
from vtscale_jax.data.tally import ImageTally
from vtscale_jax.data.units import Rejected, Row
from vtscale_jax.data.workers import in_order
from vtscale_jax.images import MAX_PIXELS
from vtscale_jax.records import is_address
from vtscale_jax.run_folder import LOCK, differences, held, write_whole

WORK = ".work"
IMAGES = "images"  # below --out: those that came inside the input
MADE = (RECORDS, MANIFEST, "report.json", "report.html", "arrayrecord")
ROWS_OF_PART = 1000
IMAGES_AT_ONCE = 32


class PrepareError(ValueError):
    """A folder that cannot take what is to be written, or an option that is missing."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be prepared. `images` is the root of the images' paths, a folder or a
    URL; None where they come inside the input. `kind` is for SVIT; `text_rows` None is
    what the source does. `limit` takes the first rows only."""

    source: str
    input: Path
    images: str | None
    out: Path
    kind: str | None = None
    text_rows: TextRows | None = None
    duplicates: Duplicates = "drop"
    min_chars: int = 25
    max_chars: int = 5000
    max_pixels: int = MAX_PIXELS
    limit: int | None = None


class Prepared(NamedTuple):
    """A prepared folder: its manifest and report, and whether this call made it."""

    manifest: dict[str, Any]
    report: dict[str, Any]
    made: bool


def prepare(request: Request, *, workers: int = 1, again: bool = False) -> Prepared:
    """Makes the folder, or goes on with it; one that is finished stays as it is.

    `again` starts from nothing in a folder that was prepared before. Raises
    PrepareError for a folder of something else or of other options, InputError for an
    input that cannot be read to its end, ImageRootError and WorkerError as their names
    say. Bad rows and images raise nothing: they are counted.
    """
    if not request.input.is_file():
        raise InputError(f"INPUT {request.input}: no such file.")
    if request.out.exists() and not request.out.is_dir():
        raise PrepareError(f"--out {request.out} is a file, expected a folder.")
    source = source_by_name(request.source, request.input, request.kind)
    root = _image_root(request, source)
    in_use = PrepareError(f"--out {request.out} is in use by another process.")
    with held(request.out, in_use):
        plan = _plan(request, source, root)
        if again or (request.out / WORK / "clearing").exists():
            _clear(request.out)
        if _is_finished(request.out, plan):
            shutil.rmtree(request.out / WORK, ignore_errors=True)
            report = _read(request.out / "report.json")
            return Prepared(_read(request.out / MANIFEST), report, made=False)
        return _make(request, source, plan, workers)


def _make(
    request: Request, source: Source, plan: dict[str, Any], workers: int
) -> Prepared:
    out, work = request.out, request.out / WORK
    parts, rows = _scan(request, source, work)
    _look_at_images(work, plan["images"], request.max_pixels, workers)
    of = Conversion(
        request.source,
        request.input,
        request.kind,
        work,
        plan["options"]["text_rows"],
        request.min_chars,
        request.max_chars,
    )
    with tqdm(total=rows, desc="convert", unit="row", disable=None) as bar:
        for done in in_order(partial(convert_part, of), range(parts), workers):
            bar.update(done)
    with tqdm(total=rows, desc="write", unit="row", disable=None) as bar:
        converted = converted_rows(work, parts)
        tally, sha256 = join(converted, out / RECORDS, request.duplicates, bar.update)
    images = ImageTally()
    with ImageTable(work / "images.sqlite") as table:
        for _, found in table.all():
            images.add(found)
    counts = tally.as_dict() | {"images": images.as_dict()}
    manifest = {
        **{name: plan[name] for name in ("source", "input", "images")},
        "records": counts["records"],
        "sha256": sha256,
        "options": plan["options"],
        "versions": _versions(),
    }
    report = write_report(out, manifest, counts)
    # The manifest comes last: a folder that has it is finished.
    _write(out / MANIFEST, manifest)
    shutil.rmtree(work)
    return Prepared(manifest, report, made=True)


def _scan(request: Request, source: Source, work: Path) -> tuple[int, int]:
    """Splits the input into parts and lists its images; how many parts and rows."""
    marker = work / "scanned.json"
    if not marker.exists():
        (work / "rows").mkdir(exist_ok=True)
        (work / "converted").mkdir(exist_ok=True)
        before, rows, parts = _state(request.input), 0, 0
        inside = request.out / IMAGES
        if source.images_inside:
            inside.mkdir(exist_ok=True)
        found = itertools.islice(source.rows(request.input, inside), request.limit)
        bar = tqdm(desc="read", unit="row", disable=None)
        with bar, ImageTable(work / "images.sqlite", writes=True) as table:
            while chunk := list(itertools.islice(found, ROWS_OF_PART)):
                table.add(_images_of(chunk, source))
                file = part_file(work, "rows", parts)
                if not file.exists():
                    write_rows(file, chunk)
                rows, parts = rows + len(chunk), parts + 1
                bar.update(len(chunk))
        if _state(request.input) != before:
            raise InputError(f"{request.input} was changed while it was read.")
        _write(marker, {"parts": parts, "rows": rows})
    counted = _read(marker)
    return counted["parts"], counted["rows"]


def _images_of(rows: list[Row], source: Source) -> Iterator[tuple[str, ...]]:
    for row in rows:
        try:
            found = () if row.fault is not None else source.candidates(row.raw)
        except Rejected:
            continue  # the conversion says so, with its reason
        if found:
            yield found


def _look_at_images(work: Path, images: str, max_pixels: int, workers: int) -> None:
    look = partial(_look, ImageRoot(images), max_pixels)
    bar = tqdm(desc="images", unit="image", disable=None)
    with bar, ImageTable(work / "images.sqlite", writes=True) as table:
        bar.total, bar.n = table.counts()
        for found in in_order(look, table.unseen(IMAGES_AT_ONCE), workers):
            table.put(found)
            bar.update(len(found))


def _look(
    root: ImageRoot, max_pixels: int, images: list[tuple[str, ...]]
) -> list[tuple[tuple[str, ...], Found]]:
    return [(paths, check_image(root, paths, max_pixels)) for paths in images]


def _image_root(request: Request, source: Source) -> str:
    if source.images_inside:
        if request.images is not None:
            raise PrepareError(
                f"--images {request.images}: the images of {request.input.name} come "
                "inside it and are written below --out; leave --images out."
            )
        return os.path.abspath(request.out / IMAGES)
    if request.images is None:
        raise PrepareError("--images is missing: the folder that images lie below.")
    ImageRoot(request.images)  # is it there?
    if not is_address(request.images) and _lies_in(Path(request.images), request.out):
        raise PrepareError(
            f"--images {request.images} lies in --out {request.out}, whose content "
            "--again removes: choose another --out."
        )
    if is_address(request.images):
        return request.images
    # Found from wherever training is started.
    return os.path.abspath(request.images)


def _plan(request: Request, source: Source, root: str) -> dict[str, Any]:
    """What a prepared folder is a function of."""
    if not 0 <= request.min_chars <= request.max_chars:
        raise PrepareError(
            f"--min_chars {request.min_chars} --max_chars {request.max_chars}: "
            "expected 0 <= min_chars <= max_chars."
        )
    options = {
        "label": source.label,
        "text_rows": request.text_rows or source.text_rows,
        "duplicates": request.duplicates,
        "min_chars": request.min_chars,
        "max_chars": request.max_chars,
        "max_pixels": request.max_pixels,
        "limit": request.limit,
    }
    return {
        "source": request.source,
        "input": file_facts(request.input),
        "images": root,
        "options": options,
    }


def _is_finished(out: Path, plan: dict[str, Any]) -> bool:
    """Whether this is all done; else the folder is ready to begin or go on with it.

    Raises PrepareError when the folder has something else.
    """
    file = out / MANIFEST
    begun = out / WORK / "plan.json"
    theirs = file if file.exists() else begun
    if theirs.exists():
        before = _read(theirs)
        # The input may have been moved; its bytes count.
        ours = plan | {"input": plan["input"] | {"path": before["input"]["path"]}}
        differ = differences({name: before[name] for name in plan}, ours, "there")
        if differ:
            raise PrepareError(
                f"--out {out} was prepared from something else:{differ}\nChoose "
                "another --out, or start anew in it with --again; nothing was written "
                "over."
            )
        return file.exists()
    others = {path.name for path in out.iterdir()} - {LOCK, WORK}
    if others:
        raise PrepareError(
            f"--out {out} is not empty (it has {min(others)}) and was not prepared: "
            "choose a new or empty folder; nothing was written."
        )
    (out / WORK).mkdir(exist_ok=True)
    _write(begun, plan)
    return False


def _clear(out: Path) -> None:
    """Removes what was prepared, and nothing where nothing was. A marker, which goes
    last, lets the next call end what a kill has left half done: it names what goes."""
    marker = out / WORK / "clearing"
    signs = (marker, out / MANIFEST, out / WORK / "plan.json")
    there = next((sign for sign in signs if sign.exists()), None)
    if there is None:
        return
    if there != marker:
        made = [*MADE, *([IMAGES] if _wrote_images(out, there) else [])]
        if IMAGES not in made and (out / IMAGES).exists():
            raise PrepareError(
                f"--out {out} has a folder {IMAGES} that did not come with what was "
                "prepared there: move it away, or choose another --out; nothing was "
                "removed."
            )
        marker.parent.mkdir(exist_ok=True)
        _write(marker, {"made": made})
    made = [out / name for name in _read(marker)["made"]]
    for path in (*made, *(one for one in marker.parent.iterdir() if one != marker)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    marker.unlink()


def _wrote_images(out: Path, plan: Path) -> bool:
    """Whether the images below `out` were written there by what made `plan`. Those of a
    user are never removed, so not when a damaged file does not tell."""
    try:
        root = _read(plan)["images"]
    except PrepareError:
        return False
    return not is_address(root) and Path(root).resolve() == (out / IMAGES).resolve()


def _lies_in(folder: Path, other: Path) -> bool:
    return folder.resolve().is_relative_to(other.resolve())


def _state(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PrepareError(
            f"{file} cannot be read ({error}): start anew with --again."
        ) from error


def _write(file: Path, content: dict[str, Any]) -> None:
    write_whole(file, f"{json.dumps(content, indent=2)}\n".encode())


def _versions() -> dict[str, str]:
    names = ("vtscale_jax", "pillow")
    found = {name: metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}
