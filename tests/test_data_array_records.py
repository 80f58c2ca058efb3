"""Prepared records and their images in ArrayRecord files, as TFDS and training read
them."""

import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from prepared_folders import picture, prepared, records, rewrite

from vtscale_jax.data import array_records, tf_example
from vtscale_jax.data.array_record_source import ArrayRecordError, ArrayRecordSource
from vtscale_jax.data.array_records import pack
from vtscale_jax.data.folder_source import FolderSource
from vtscale_jax.data.prepared_folder import PreparedFolderError
from vtscale_jax.data.record_index import RecordIndex, joined, read_index, write_index
from vtscale_jax.images import load_image
from vtscale_jax.loader import Source
from vtscale_jax.records import JSONLSource, RecordError

SHARD = 60_000  # bytes: two pictures of `prepared`


def silent(line: str) -> None:
    """Says nothing."""


def packed(folder: Path, **more) -> Path:
    pack(folder, str(folder / "images"), say=silent, shard_bytes=SHARD, **more)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (folder / "arrayrecord").rglob("*")
    return {str(f.relative_to(folder)): f.read_bytes() for f in files if f.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return packed(prepared(tmp_path_factory.mktemp("packed") / "doc"))


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """A packed folder that a test may damage."""
    return shutil.copytree(folder, tmp_path / "copy")


# Finds no TensorFlow, installed or not. `sys.modules["tensorflow"] = None` does not do:
# TFDS takes a name that is there for a module that is loaded.
WITHOUT_TENSORFLOW = """
import sys
class Without:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tensorflow": return None
        return self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
try:
    import tensorflow
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("tensorflow is there")
"""


def in_child(code: str, *arguments: str) -> str:
    child = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


def test_tfds_reads_it_without_tensorflow(folder):
    code = f"""{WITHOUT_TENSORFLOW}
import hashlib, json
import tensorflow_datasets as tfds
source = tfds.builder_from_directory(sys.argv[1]).as_data_source(split="train")
text = lambda value: None if value is None else value.decode()
for example in source:
    messages = {{name: [text(one) for one in column]
                for name, column in example["messages"].items()}}
    image = example["image"]
    print(json.dumps({{
        "id": text(example["id"]), "path": text(example["path"]),
        "system": text(example["system"]), "messages": messages,
        "image": None if image is None else image.hex()}}))
"""
    lines = in_child(code, str(folder / "arrayrecord")).splitlines()
    assert len(lines) == 12
    for line, raw in zip(lines, records(12), strict=True):
        found = json.loads(line)
        assert found["id"] == raw["id"]
        assert found["path"] == raw["image"]
        assert found["system"] == raw.get("system")
        for name in ("role", "content", "family"):
            expected = [message.get(name, "") for message in raw["messages"]]
            assert found["messages"][name] == expected
        file = raw["image"] and (folder / "images" / raw["image"]).read_bytes().hex()
        assert found["image"] == file


def test_packing_needs_no_tensorflow(tmp_path, folder):
    prepared(tmp_path / "doc")
    code = f"""{WITHOUT_TENSORFLOW}
from pathlib import Path
from vtscale_jax.data.array_records import pack
out = Path(sys.argv[1])
pack(out, str(out / "images"), shard_bytes={SHARD})
assert "jax" not in sys.modules
"""
    said = in_child(code, str(tmp_path / "doc"))
    assert re.search(r"12 records, [\d.]+ MB in \d+ files; content [0-9a-f]{16}", said)
    theirs = ArrayRecordSource(folder).fingerprint
    assert ArrayRecordSource(tmp_path / "doc").fingerprint == theirs


def test_records_come_back_as_they_were(folder):
    source = ArrayRecordSource(folder)
    in_place = JSONLSource(folder / "records.jsonl", min_chars=0, max_chars=10**6)
    assert isinstance(source, Source)
    assert len(source) == len(in_place) == 12
    for index, expected in enumerate(in_place):
        found = source[index]
        assert found._replace(image=None) == expected._replace(image=None)
        if expected.image is None:
            assert found.image is None
        else:
            assert found.image == (folder / "images" / expected.image).read_bytes()
            assert load_image(found.image).size == (96, 96)
    assert source[-1] == source[11]
    with pytest.raises(IndexError):
        source[12]
    assert source.longest(3) == in_place.longest(3)
    assert set(source.longest(1)) < set(source.longest(3))  # and not simply all
    assert ArrayRecordSource(folder / "arrayrecord").fingerprint == source.fingerprint


def test_a_pickled_source_reads_the_same_and_loads_no_framework(folder, tmp_path):
    source = ArrayRecordSource(folder)
    assert source[3].id == "page-3"  # files are open now
    again = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert [again[i] for i in range(12)] == [source[i] for i in range(12)]
    (tmp_path / "source").write_bytes(pickle.dumps(source))
    code = """
import pickle, sys
source = pickle.load(open(sys.argv[1], "rb"))
assert source[7].id == "page-7"
slow = {"jax", "grain", "tensorflow", "tensorflow_datasets", "torch", "transformers"}
print(sorted(slow & set(sys.modules)))
"""
    assert in_child(code, str(tmp_path / "source")).strip() == "[]"


def test_same_bytes_for_any_number_of_threads_and_again(tmp_path, folder):
    other = packed(prepared(tmp_path / "doc"), workers=4)
    # Only pack.json names the image root, which differs.
    ours, theirs = contents(other), contents(folder)
    assert ours.keys() == theirs.keys()
    shards = [name for name in ours if ".array_record-" in name]
    assert len(shards) > 3
    differ = {name for name in ours if ours[name] != theirs[name]}
    assert differ == {"arrayrecord/pack.json"}
    before = {f: f.stat().st_mtime_ns for f in (other / "arrayrecord").iterdir()}
    packed(other)
    assert contents(other) == ours
    assert {
        f: f.stat().st_mtime_ns for f in (other / "arrayrecord").iterdir()
    } == before


def test_the_hash_is_of_the_contents_not_of_the_shards(tmp_path, folder):
    one = prepared(tmp_path / "one")
    pack(one, str(one / "images"), say=silent)
    assert len(list((one / "arrayrecord").glob("*.array_record-*"))) == 1
    reference = ArrayRecordSource(folder).fingerprint
    assert ArrayRecordSource(one).fingerprint == reference
    other = prepared(tmp_path / "other")
    (other / "images/pages/3.png").write_bytes(picture(99))  # the text is the same
    assert ArrayRecordSource(packed(other)).fingerprint != reference


def test_shards_are_cut_by_size(tmp_path):
    """A shard is closed by the record that fills it, by its text and its image."""
    other, rows = prepared(tmp_path / "doc", 30), records(30)
    expected, number, filled = [], 0, 0
    for i, row in enumerate(rows):
        number, filled = number + 1, filled + len(json.dumps(row)) + 1
        if row["image"]:
            file = picture(i, side=20 + 7 * (i % 13))
            (other / "images" / row["image"]).write_bytes(file)
            filled += len(file)
        if filled >= SHARD:
            expected.append(number)
            number, filled = 0, 0
    shards = json.loads((packed(other) / "arrayrecord/pack.json").read_text())["shards"]
    assert [shard["records"] for shard in shards] == [*expected, number]
    assert len(set(expected)) > 1  # not simply so many records each


def test_a_remote_image_root(tmp_path, folder):
    files = fsspec.filesystem("memory")
    other = prepared(tmp_path / "doc")
    for file in (other / "images/pages").iterdir():
        files.pipe(f"/pictures/pages/{file.name}", file.read_bytes())
    shutil.rmtree(other / "images")
    pack(other, "memory://pictures", say=silent, shard_bytes=SHARD)
    reference = ArrayRecordSource(folder).fingerprint
    assert ArrayRecordSource(other).fingerprint == reference


class Killed(BaseException):
    """Stands for a process that ends."""


def test_whole_shards_stay_after_a_stop(tmp_path, monkeypatch, folder):
    other = prepared(tmp_path / "doc")
    stored, seen = array_records.stored_record, []

    def dies(raw, image):
        seen.append(raw["id"])
        if len(seen) == 8:
            raise Killed
        return stored(raw, image)

    monkeypatch.setattr(array_records, "stored_record", dies)
    with pytest.raises(Killed):
        packed(other)
    with pytest.raises(ArrayRecordError, match="has finished"):
        ArrayRecordSource(other)
    there = sorted((other / "arrayrecord").glob("*.array_record-*"))
    times = [file.stat().st_mtime_ns for file in there]
    assert there
    first, seen[:] = len(seen), []
    monkeypatch.setattr(
        array_records,
        "stored_record",
        lambda *a: (seen.append(a[0]["id"]), stored(*a))[1],
    )
    packed(other)
    assert 0 < len(seen) <= 12 - (first - 3)  # only what was not whole
    assert [file.stat().st_mtime_ns for file in there] == times
    names = {"arrayrecord/pack.json"}
    ours, theirs = contents(other), contents(folder)
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in ours.keys() - names)


def test_killed_at_random_moments(tmp_path):
    """Three kills -9, and the files of a run that was left alone."""
    whole = prepared(tmp_path / "whole", 60)
    pack(whole, str(whole / "images"), say=silent, shard_bytes=SHARD)
    killed = prepared(tmp_path / "killed", 60)
    code = f"""
import sys, time
from pathlib import Path
from vtscale_jax.data import array_records
stored = array_records.stored_record
def slowly(*one):
    time.sleep(0.02)
    return stored(*one)
array_records.stored_record = slowly
out = Path(sys.argv[1])
array_records.pack(out, str(out / "images"), workers=2, shard_bytes={SHARD})
"""
    chance, kills = np.random.default_rng(0), 0
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(killed)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[1],
        )
        already = len(list(killed.glob("arrayrecord/*.array_record-*")))
        while child.poll() is None:
            if len(list(killed.glob("arrayrecord/*.array_record-*"))) > already:
                time.sleep(chance.uniform(0, 0.1))
                child.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        kills += child.wait() == -signal.SIGKILL
    assert kills == 3
    assert not (killed / "arrayrecord/pack.json").exists()
    pack(killed, str(killed / "images"), say=silent, shard_bytes=SHARD)
    ours, theirs = contents(killed), contents(whole)
    assert ours.keys() == theirs.keys()
    assert {n for n in ours if ours[n] != theirs[n]} == {"arrayrecord/pack.json"}


def test_another_pack_is_not_written_over(copy):
    before = contents(copy)
    with pytest.raises(ArrayRecordError, match="images was .* is .* now"):
        pack(copy, str(copy / "images"), say=silent, shard_bytes=SHARD)
    rewrite(copy, records(12, seed=5))
    with pytest.raises(ArrayRecordError, match="records_sha256 was"):
        pack(copy, str(copy / "images"), say=silent, shard_bytes=SHARD)
    assert contents(copy) == before


@pytest.mark.parametrize("shard_bytes", [SHARD, 10**9])
def test_an_image_that_is_gone_is_named(tmp_path, shard_bytes):
    other = prepared(tmp_path / "doc")
    image = other / "images/pages/6.png"
    image.unlink()
    with pytest.raises(ArrayRecordError, match="'page-6', image 'pages/6.png' below"):
        pack(other, str(other / "images"), say=silent, shard_bytes=shard_bytes)
    image.write_bytes(b"")
    with pytest.raises(ArrayRecordError, match="'page-6'.*an empty file"):
        pack(other, str(other / "images"), say=silent, shard_bytes=shard_bytes)
    image.unlink()
    image.symlink_to("/etc/passwd")
    with pytest.raises(ArrayRecordError, match="'page-6'.*leaves the root"):
        pack(other, str(other / "images"), say=silent, shard_bytes=shard_bytes)
    image.unlink()
    image.write_bytes(picture(6))
    pack(other, str(other / "images"), say=silent, shard_bytes=shard_bytes)
    assert len(ArrayRecordSource(other)) == 12


def test_records_that_are_not_what_the_manifest_says(tmp_path):
    other = prepared(tmp_path / "doc")
    with (other / "records.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(PreparedFolderError, match="has changed"):
        packed(other)


@pytest.mark.parametrize("options", [{"workers": 0}, {"shard_bytes": 0}])
def test_options_that_make_no_sense(tmp_path, options):
    with pytest.raises(ArrayRecordError, match="expected 1 or more"):
        pack(prepared(tmp_path / "doc"), "images", say=silent, **options)
    empty = tmp_path / "empty"
    (empty / "images").mkdir(parents=True)
    rewrite(empty, [])
    with pytest.raises(ArrayRecordError, match="has no records"):
        packed(empty)


def first_shard(copy: Path) -> Path:
    return sorted((copy / "arrayrecord").glob("*.array_record-*"))[0]


def test_a_shard_of_another_size_is_found_when_opened(copy):
    shard = first_shard(copy)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ArrayRecordError, match="-00000-of-.*bytes, expected"):
        ArrayRecordSource(copy)
    shard.unlink()
    with pytest.raises(ArrayRecordError, match="-00000-of-.*is missing"):
        ArrayRecordSource(copy)


def test_changed_bytes_are_found_when_read(copy):
    """Every byte of a shard flipped in turn (a sample of them): the record is refused,
    or is what it was; none is another."""
    good = ArrayRecordSource(copy)
    expected = [good[i] for i in range(2)]
    shard, refused = first_shard(copy), 0
    content = shard.read_bytes()
    for place in range(0, len(content), len(content) // 60):
        changed = bytearray(content)
        changed[place] ^= 0x55
        shard.write_bytes(bytes(changed))
        source = ArrayRecordSource(copy)  # the size is the same
        for index in range(2):
            try:
                assert source[index] == expected[index]
            except ArrayRecordError as error:
                assert f"page-{index}" in str(error)
                refused += 1
    assert refused > 10  # most of a small shard is padding


def test_two_shards_exchanged(copy):
    """Whole shards with their own checksums, in each other's place."""
    one, other = sorted((copy / "arrayrecord").glob("*.array_record-*"))[:2]
    a, b = one.read_bytes(), other.read_bytes()
    padding = max(len(a), len(b))
    assert len(a) == len(b) == padding  # blocks of 64 KiB: else the size tells
    one.write_bytes(b)
    other.write_bytes(a)
    source = ArrayRecordSource(copy)
    with pytest.raises(ArrayRecordError, match="'page-0': its bytes have another hash"):
        source[0]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("pack.json", b"{"),
        ("pack.json", b"[]"),
        ("pack.json", b'{"format": 2, "sha256": "", "shards": []}'),
        ("pack.json", b'{"format": 1, "sha256": "", "shards": [{"name": "../x"}]}'),
        ("index.safetensors", b""),
        ("index.safetensors", b"\xff" * 40),
    ],
)
def test_damaged_descriptions(copy, file, content):
    (copy / "arrayrecord" / file).write_bytes(content)
    with pytest.raises(ArrayRecordError, match=file):
        ArrayRecordSource(copy)


def test_an_index_of_other_records(copy, tmp_path):
    other = packed(prepared(tmp_path / "other", seed=1))
    shutil.copy(other / "arrayrecord/index.safetensors", copy / "arrayrecord")
    with pytest.raises(ArrayRecordError, match="has the hash"):
        ArrayRecordSource(copy)


def test_no_packed_folder(tmp_path):
    with pytest.raises(ArrayRecordError, match="prepare"):
        ArrayRecordSource(tmp_path)


def test_examples_in_the_order_of_their_fields():
    values = {"b": [b"1", b""], "a": [b"\x00\xff"], "c": []}
    message = tf_example.serialise(values)
    assert tf_example.parse(message) == values
    backwards = tf_example.serialise({"a": [b"\x00\xff"]})
    backwards = tf_example.serialise({"c": []})[2:] + backwards[2:]
    assert message.index(b"a") < message.index(b"b") < message.index(b"c")
    assert tf_example.canonical(message) == message
    with pytest.raises(ValueError, match="no tf.train.Example"):
        tf_example.parse(b"\xff\xff\xff")


def test_index_files(tmp_path):
    ids, sizes = ["a", "中文", "", "b" * 300], [(2, 10), (4, 9), (2, 11), (2, 5)]
    index = RecordIndex.of(ids, sizes)
    assert index.all_ids() == ids == [index.id(i) for i in range(4)]
    assert index.longest(1) == [1, 2]
    assert index.longest(1, np.array([0, 3])) == [
        0,
        3,
    ]  # the last of equals, 2 messages
    assert index.longest(9) == [0, 1, 2, 3]
    twice = joined([index, RecordIndex.of([], []), index])
    assert twice.all_ids() == ids * 2
    assert twice.characters.tolist() == [10, 9, 11, 5] * 2
    write_index(tmp_path / "i", twice, {"x": "y"}, more=np.arange(3))
    read = read_index(tmp_path / "i")
    assert read is not None
    assert read[0].all_ids() == ids * 2 and read[2] == {"x": "y"}
    assert read[1]["more"].tolist() == [0, 1, 2]
    assert read_index(tmp_path / "none") is None


def test_a_folder_in_place(tmp_path):
    other = prepared(tmp_path / "doc")
    source = FolderSource(other)
    in_place = JSONLSource(
        other / "records.jsonl",
        image_root=str(other / "images"),
        min_chars=0,
        max_chars=10**6,
    )
    assert [source[i] for i in range(12)] == [in_place[i] for i in range(12)]
    assert source.longest(3) == in_place.longest(3)
    source.write_index(tmp_path / "index")
    again = FolderSource(other, image_root="/else", index=tmp_path / "index")
    assert again[0].image == "/else/pages/0.png"
    assert again[11].turns == source[11].turns
    again = pickle.loads(pickle.dumps(source))  # noqa: S301
    os.utime(other / "records.jsonl", (1, 1))
    with pytest.raises(PreparedFolderError, match="changed since it was opened"):
        again[0]
    known = read_index(tmp_path / "index")
    assert known is not None
    index, more, about = known
    swapped = more["offsets"][::-1].copy()
    write_index(tmp_path / "index", index, about, offsets=swapped)
    with pytest.raises(PreparedFolderError, match="got record 'page-11' where"):
        FolderSource(other, index=tmp_path / "index")[0]
    # An index of other records is not believed.
    rewrite(other, records(11, seed=2))
    assert len(FolderSource(other, index=tmp_path / "index")) == 11


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (
            lambda rows: rows[3].pop("id"),
            PreparedFolderError,
            r"records.jsonl:4, id: got none",
        ),
        (
            lambda rows: rows[3].update(id="page-2"),
            PreparedFolderError,
            "'page-2' again",
        ),
        (lambda rows: rows[3]["messages"].pop(), RecordError, "records.jsonl:4"),
    ],
)
def test_bad_records_of_a_folder(tmp_path, change, error, match):
    other, rows = prepared(tmp_path / "doc"), records(12)
    change(rows)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    rewrite(other, records(12))
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "records.jsonl").write_text(text)
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(error, match=match):
        FolderSource(other)


# Reads records at random and prints how much more memory was held at most after 20,000
# of them than after 500, in KB; with "keep" the records are kept, which must be seen.
# (ru_maxrss would not do: a child begins with its parent's.)
MEMORY = """
import random, re, sys
from pathlib import Path
from vtscale_jax.data.array_record_source import ArrayRecordSource
def most():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])
source, kept, chance = ArrayRecordSource(sys.argv[1]), [], random.Random(0)
for number in range(20_000):
    if number == 500:
        before = most()
    record = source[chance.randrange(len(source))]
    if sys.argv[2] == "keep":
        kept.append(record)
print(most() - before)
"""


def test_memory_stays_flat_over_20_000_records(folder):
    limit = 40_000  # all that is read is 450 MB
    assert int(in_child(MEMORY, str(folder), "drop")) < limit
    assert int(in_child(MEMORY, str(folder), "keep")) > 5 * limit
