"""A prepared folder with its images in large files: ArrayRecord, as TFDS reads it.

    OUT/arrayrecord/vtscale-train.array_record-00000-of-00012   about 512 MB each
    OUT/arrayrecord/dataset_info.json, features.json            TFDS's description
    OUT/arrayrecord/pack.json, index.safetensors                hashes, ids, lengths

A disk or a store that is slow with a million small files is fast with a few large ones.
Anyone reads the folder with

    tfds.builder_from_directory("OUT/arrayrecord").as_data_source(split="train")

which needs no TensorFlow, and training with `array_record_source`. Images are the bytes
of the original files.

How it is written: TFDS's features serialise each record, `array_record` writes the
shards, and `tfds.folder_dataset.write_metadata` describes them. TFDS's own writers do
not serve here: a `GeneratorBasedBuilder` collects a whole split in temporary files
before its first shard, and begins anew after a kill; a `SequentialWriter` cuts shards
by number of records, not by size, and writes one at a time. One thing is added to what
TFDS serialises, the order of fields, which protocol buffers leave open: so the same
input gives the same bytes.
"""

import functools
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from vtscale_jax.data.array_record_source import (
    FOLDER,
    FORMAT,
    INDEX,
    PACK,
    ArrayRecordError,
    content_hash,
    read_pack,
)
from vtscale_jax.data.folder_source import FolderSource, record_size
from vtscale_jax.data.image_roots import ImageRoot
from vtscale_jax.data.prepared_folder import RECORDS
from vtscale_jax.data.record_index import RecordIndex, joined, read_index, write_index
from vtscale_jax.data.tfds_records import (
    NAME,
    describe,
    features,
    shard_name,
    stored_record,
)
from vtscale_jax.data.units import Rejected
from vtscale_jax.images import ImageError, load_image
from vtscale_jax.records import is_address
from vtscale_jax.run_folder import held, write_whole

SHARD_BYTES = 512 << 20
# One record a group: a record is read without its neighbours. As TFDS writes it.
WRITER_OPTIONS = "group_size:1"
PLAN, PARTS = "plan.json", "parts"


class Part(NamedTuple):
    """What a shard is to hold: `records` lines of records.jsonl from byte `offset`."""

    number: int
    offset: int
    records: int


def pack(
    folder: Path,
    images: str,
    *,
    workers: int = 1,
    say: Callable[[str], None] = print,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes the records of a prepared folder with their images to OUT/arrayrecord.

    `images` is the image root, a folder or a remote address (gs://bucket/folder);
    `workers` threads write one shard each at a time, of about `shard_bytes` bytes;
    `say` gets a line at the end. The result does not depend on `workers`.

    Stopped at any moment, the same call goes on: shards that are whole stay. Raises
    ArrayRecordError for an image that is gone and for a folder that was packed from
    something else, and PreparedFolderError for records that are not what the manifest
    says; no record is left out.
    """
    if workers < 1 or shard_bytes < 1:
        raise ArrayRecordError(
            f"workers, shard_bytes: got {workers} and {shard_bytes}; expected 1 or more"
        )
    source, out = FolderSource(folder), folder / FOLDER
    if len(source) == 0:
        raise ArrayRecordError(
            f"{folder / RECORDS} has no records, expected at least one to pack."
        )
    asked = {
        "format": FORMAT,
        "records": len(source),
        "records_sha256": source.fingerprint,
        "images": images,
        "shard_bytes": shard_bytes,
    }
    in_use = ArrayRecordError(f"{out} is in use by another process: wait for its end.")
    with held(out, in_use):
        if not _is_packed(out, asked):
            _pack(folder / RECORDS, out, asked, workers)
        done = read_pack(out)
    size = sum(shard["bytes"] for shard in done["shards"]) / 1e6
    say(
        f"{out}: {done['records']:,} records, {size:,.1f} MB in "
        f"{len(done['shards']):,} files; content {done['sha256'][:16]}"
    )


def _pack(records: Path, out: Path, asked: dict[str, Any], workers: int) -> None:
    root = ImageRoot(asked["images"])
    parts = _planned(records, out, asked, workers)
    features()  # imported once, before threads ask for it
    (out / PARTS).mkdir(exist_ok=True)
    with (
        tqdm(total=asked["records"], unit=" records", desc="pack", disable=None) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        shards = _Shards(records, out, root, len(parts), bar)
        waiting = [pool.submit(shards.write, part) for part in parts]
        try:
            # The first error, whichever shard it is of.
            for one in wait(waiting, return_when=FIRST_EXCEPTION).done:
                one.result()
        finally:
            shards.stopped.set()  # after an error the others need not go on
            pool.shutdown(cancel_futures=True, wait=False)
    _finish(out, asked, [one.result() for one in waiting])


def _finish(out: Path, asked: dict[str, Any], shards: Sequence[dict[str, Any]]) -> None:
    found = [_read_part(out, number) for number in range(len(shards))]
    digests = np.concatenate([digests for _, digests, _ in found])
    index = joined([index for index, _, _ in found])
    write_index(out / INDEX, index, {}, digests=digests)
    content = sum(facts["content_bytes"] for _, _, facts in found)
    describe(out, [shard["records"] for shard in shards], content)
    done = {**asked, "shards": list(shards), "sha256": content_hash(digests)}
    _write_json(out / PACK, done)  # last: with it the folder is whole
    _tidy(out)


def _tidy(out: Path) -> None:
    shutil.rmtree(out / PARTS, ignore_errors=True)
    (out / PLAN).unlink(missing_ok=True)


class _Stopped(Exception):
    """Another shard has failed."""


class _Shards:
    """Writes shards, from several threads."""

    def __init__(
        self, records: Path, out: Path, root: ImageRoot, number: int, bar: tqdm
    ):
        self._records = records
        self._out = out
        self._root = root
        self._number = number
        self._bar = bar
        self._one_at_a_time = threading.Lock()
        self.stopped = threading.Event()

    def write(self, part: Part) -> dict[str, Any]:
        """Writes a shard, unless it is there whole; what pack.json says of it.

        Its part of the index is written first, then the shard gets its name: one with
        its name is whole.
        """
        name = shard_name(part.number, self._number)
        file, partial = self._out / name, self._out / PARTS / f"{name}.partial"
        if file.is_file():
            self._progress(part.records)
        else:
            partial.unlink(missing_ok=True)
            self._fill(partial, part)
            os.replace(partial, file)
        size = file.stat().st_size
        return {"name": name, "records": part.records, "bytes": size}

    def _fill(self, file: Path, part: Part) -> None:
        ids, sizes, digests, written = [], [], [], 0
        writer = ArrayRecordWriter(str(file), WRITER_OPTIONS)
        try:
            for raw in self._read(part):
                stored = stored_record(raw, _image(raw, self._root))
                writer.write(stored)
                ids.append(raw["id"])
                sizes.append(record_size(raw))
                digests.append(hashlib.sha256(stored).digest())
                written += len(stored)
                self._progress(1)
        finally:
            writer.close()
        write_index(
            _part_file(self._out, part.number),
            RecordIndex.of(ids, sizes),
            {"content_bytes": str(written)},
            digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32),
        )

    def _read(self, part: Part) -> Iterator[dict[str, Any]]:
        with self._records.open("rb") as opened:
            opened.seek(part.offset)
            for _ in range(part.records):
                if self.stopped.is_set():
                    raise _Stopped
                yield json.loads(opened.readline())

    def _progress(self, records: int) -> None:
        with self._one_at_a_time:
            self._bar.update(records)


def _image(raw: Mapping[str, Any], root: ImageRoot) -> bytes | None:
    if not _has_image(raw):
        return None
    try:
        found = root.read(raw["image"])
    except Rejected as error:
        raise _no_image(raw, root.root, str(error)) from error
    if not found:
        why = "no such file" if found is None else "an empty file"
        raise _no_image(raw, root.root, why)
    try:  # it was whole when it was prepared, and may have broken since
        load_image(found)
    except ImageError as error:
        raise _no_image(raw, root.root, str(error)) from error
    return found


def _no_image(raw: Mapping[str, Any], root: str, why: str) -> ArrayRecordError:
    return ArrayRecordError(
        f"record {raw['id']!r}, image {raw['image']!r} below {root}: {why}. Bring it "
        "back as it was when the folder was prepared, or prepare the folder again; "
        "then the same command goes on."
    )


def _has_image(raw: Mapping[str, Any]) -> bool:
    # Both are ways to say "none"; see records.parse_record.
    return raw["image"] is not None and raw["image"].lower() != "none"


def _planned(
    records: Path, out: Path, asked: dict[str, Any], workers: int
) -> list[Part]:
    """Which records go into which shard. The plan is kept until all are written, so
    that images need not be measured again, and shards stay cut as they were."""
    file = out / PLAN
    if file.is_file():
        plan = json.loads(file.read_text())
        if plan["asked"] != asked:
            raise _belongs_elsewhere(out, plan["asked"], asked)
        return [Part(*part) for part in plan["parts"]]
    if any(out.glob(f"{NAME}-*")):
        raise ArrayRecordError(
            f"{out} holds shards but neither {PACK} nor {PLAN}: delete that folder, "
            "and run the command again."
        )
    size_of = _image_sizes(asked["images"])
    parts = _cut(records, size_of, asked["shard_bytes"], workers)
    _write_json(file, {"asked": asked, "parts": parts})
    return parts


def _cut(
    records: Path,
    size_of: Callable[[dict[str, Any]], int],
    shard_bytes: int,
    workers: int,
) -> list[Part]:
    """Parts in the order of the records, each closed by the record that fills it."""
    parts, start, number, filled, offset = [], 0, 0, 0, 0
    # A store answers slowly, and many questions at once.
    with ThreadPoolExecutor(4 * workers) as pool, records.open("rb") as file:
        for lines in iter(lambda: file.readlines(1 << 20), []):
            sizes = pool.map(size_of, map(json.loads, lines))
            for line, size in zip(lines, sizes, strict=True):
                offset += len(line)
                number += 1
                filled += len(line) + size
                if filled >= shard_bytes:
                    parts.append(Part(len(parts), start, number))
                    start, number, filled = offset, 0, 0
    if number:
        parts.append(Part(len(parts), start, number))
    return parts


def _image_sizes(root: str) -> Callable[[dict[str, Any]], int]:
    """How many bytes the image file of a record has."""
    if is_address(root):
        import fsspec

        scheme, _, base = root.partition("://")
        store = fsspec.filesystem(scheme)
        measure = functools.partial(_remote_size, store, base.rstrip("/"))
    else:
        measure = functools.partial(_local_size, root)

    def size_of(raw: dict[str, Any]) -> int:
        if not _has_image(raw):
            return 0
        try:
            return measure(raw["image"])
        except Exception as error:  # each store has errors of its own
            why = f"it cannot be measured ({type(error).__name__}: {error})"
            raise _no_image(raw, root, why) from error

    return size_of


def _local_size(root: str, path: str) -> int:
    return os.stat(os.path.join(root, path)).st_size


def _remote_size(store: Any, base: str, path: str) -> int:
    # Some stores do not tell; shards are then cut by the texts alone.
    return store.size(f"{base}/{path}") or 0


def _is_packed(out: Path, asked: dict[str, Any]) -> bool:
    if not (out / PACK).is_file():
        return False
    pack = read_pack(out)
    theirs = {name: pack.get(name) for name in asked}
    if theirs != asked:
        raise _belongs_elsewhere(out, theirs, asked)
    _tidy(out)  # what a kill after the last file has left
    return True


def _belongs_elsewhere(
    out: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> ArrayRecordError:
    differ = ", ".join(
        f"{name} was {theirs.get(name)!r} and is {value!r} now"
        for name, value in ours.items()
        if theirs.get(name) != value
    )
    return ArrayRecordError(
        f"{out} was packed from something else: {differ}. Prepare into another folder, "
        "or delete that one and run the command again; nothing was written over."
    )


def _part_file(out: Path, number: int) -> Path:
    return out / PARTS / f"{number:05d}.safetensors"


def _read_part(
    out: Path, number: int
) -> tuple[RecordIndex, np.ndarray, dict[str, int]]:
    found = read_index(_part_file(out, number))
    if found is None:
        raise ArrayRecordError(
            f"{_part_file(out, number)} is missing or damaged: delete {out}, and run "
            "the command again."
        )
    index, more, about = found
    return index, more["digests"], {name: int(value) for name, value in about.items()}


def _write_json(file: Path, content: Any) -> None:
    write_whole(file, f"{json.dumps(content, indent=2)}\n".encode())
