"""`prepare` as a whole: what it writes, how it goes on, and what it refuses."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from data_rows import (
    lines_of,
    llava_folder,
    picture,
    plain_row,
    save,
    write_json,
    write_lines,
)

from vtscale_jax.data import conversion, image_table
from vtscale_jax.data import prepare as preparing
from vtscale_jax.data import report as reporting
from vtscale_jax.data.__main__ import main
from vtscale_jax.data.image_roots import ImageRootError
from vtscale_jax.data.json_rows import InputError
from vtscale_jax.data.prepare import PrepareError, Request, prepare
from vtscale_jax.data.workers import WorkerError, in_order
from vtscale_jax.records import JSONLSource

FILES = ("records.jsonl", "manifest.json", "report.json", "report.html")


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(preparing, "ROWS_OF_PART", 7)
    monkeypatch.setattr(preparing, "IMAGES_AT_ONCE", 3)


def files_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def content(out: Path) -> dict[str, bytes]:
    """What was written; report and page name the folder, which is taken out."""
    return {
        name: (out / name).read_bytes().replace(str(out).encode(), b"OUT")
        for name in FILES
    }


def test_any_number_of_processes_writes_the_same(tmp_path, small_parts):
    path, images = llava_folder(tmp_path)
    written = []
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        prepare(Request("llava", path, str(images), out), workers=workers)
        written.append(content(out))
        assert {p.name for p in out.iterdir()} == {*FILES, ".lock"}
    assert written[0] == written[1]
    assert len(lines_of(tmp_path / "out1/records.jsonl")) == 40


def test_the_manifest_says_of_what_it_was_made(tmp_path):
    path, images = llava_folder(tmp_path, 5)
    out = tmp_path / "out"
    manifest = prepare(Request("llava", path, str(images), out)).manifest
    assert manifest == json.loads((out / "manifest.json").read_text())
    records = (out / "records.jsonl").read_bytes()
    assert manifest["sha256"] == hashlib.sha256(records).hexdigest()
    assert manifest["sha256"] == JSONLSource(out / "records.jsonl").fingerprint
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    size = path.stat().st_size
    assert manifest["input"] == {"path": str(path), "bytes": size, "sha256": sha256}
    assert (manifest["source"], manifest["records"]) == ("llava", 5)
    assert manifest["images"] == str(images)


class Killed(Exception):
    """Stands for a kill: nothing of ours catches it."""


def test_a_kill_before_any_write_changes_nothing(tmp_path, small_parts, monkeypatch):
    """Each step that changes a file is the last one once, while a finished folder is
    made anew; the next call ends with the same bytes."""
    path, images = llava_folder(tmp_path, 10)
    whole = tmp_path / "whole"
    prepare(Request("llava", path, str(images), whole))
    request = Request("llava", path, str(images), tmp_path / "out")
    prepare(request)
    left = [0]

    def counted(function):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return function(*arguments, **options)

        return call

    steps = [(module, "write_whole") for module in (preparing, conversion, reporting)]
    steps += [(image_table.ImageTable, name) for name in ("add", "put")]
    steps += [(shutil, "rmtree")]
    steps += [(Path, name) for name in ("replace", "unlink", "touch", "mkdir")]
    for of, name in steps:
        monkeypatch.setattr(of, name, counted(getattr(of, name)))
    kills = 0
    for moment in range(1000):
        left[0] = moment
        try:
            prepare(request, again=True)
        except Killed:
            kills += 1
        left[0] = 10**9
        prepare(request)
        assert content(request.out) == content(whole), moment
        assert {one.name for one in request.out.iterdir()} == {*FILES, ".lock"}
        if kills == moment:  # this time nothing was left to end
            break
    assert kills > 30


def test_what_is_done_is_not_done_again(tmp_path, small_parts, monkeypatch):
    path, images = llava_folder(tmp_path, 20)
    request = Request("llava", path, str(images), tmp_path / "out")
    seen = []
    check, convert = preparing.check_image, preparing.convert_part

    def watched_check(root, candidates, max_pixels):
        seen.append(candidates)
        if len(seen) == 10:
            raise Killed
        return check(root, candidates, max_pixels)

    def watched_convert(of, number):
        seen.append(number)
        if number == 2:
            raise Killed
        return convert(of, number)

    monkeypatch.setattr(preparing, "check_image", watched_check)
    with pytest.raises(Killed):
        prepare(request)
    monkeypatch.setattr(preparing, "_images_of", lambda *_: pytest.fail("read again"))
    monkeypatch.setattr(preparing, "convert_part", watched_convert)
    with pytest.raises(Killed):
        prepare(request)
    # Three batches of three were kept, and the tenth image is looked at again.
    assert seen[10:] == [(f"{line['image']}",) for line in _rows(path)[9:]] + [0, 1, 2]
    written = conversion.part_file(tmp_path / "out/.work", "converted", 1)
    before = written.stat().st_mtime_ns
    monkeypatch.setattr(preparing, "convert_part", convert)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    prepare(request)
    assert written.stat().st_mtime_ns == before


def _rows(path):
    return json.loads(path.read_text())


def _command(path, images, out, *more):
    module = [sys.executable, "-m", "vtscale_jax.data", "prepare", "llava", str(path)]
    return [*module, "--images", str(images), "--out", str(out), *more]


def _many_rows(tmp_path):
    """2,500 rows, three parts, of 120 pictures."""
    path, images = llava_folder(tmp_path, 120)
    rows = _rows(path)
    more = []
    for number in range(2500):
        row = json.loads(json.dumps(rows[number % 120]))
        row["conversations"][1]["value"] += f" Said the {number}th time."
        more.append(row)
    return write_json(path, more), images


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_killed_processes(tmp_path, seed):
    """SIGKILL some time after each of these files is there; then the command alone."""
    path, images = _many_rows(tmp_path)
    whole, out = tmp_path / "whole", tmp_path / "out"
    subprocess.run(_command(path, images, whole, "--workers", "2"), check=True)
    rng = random.Random(seed)
    seen = ("plan.json", "images.sqlite", "scanned.json", "converted/000000.jsonl")
    kills = 0
    for name in seen:
        child = subprocess.Popen(
            _command(path, images, out, "--workers", "2"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        while not (out / ".work" / name).exists() and child.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.choice([0, 0.01, 0.1]))
        kills += child.poll() is None
        child.send_signal(signal.SIGKILL)
        # Workers have the pipes too: their end is the end of the workers.
        child.communicate(timeout=60)
    subprocess.run(_command(path, images, out, "--workers", "1"), check=True)
    assert kills >= 2
    assert content(out) == content(whole)


def test_other_options_or_another_input_are_refused(tmp_path):
    path, images = llava_folder(tmp_path, 5)
    out = tmp_path / "out"
    prepare(Request("llava", path, str(images), out))
    before = content(out)
    with pytest.raises(PrepareError, match=r"options\.min_chars: 25 there, 30 now"):
        prepare(Request("llava", path, str(images), out, min_chars=30))
    write_json(path, _rows(path)[:3])
    with pytest.raises(PrepareError, match=r"(?s)input\.sha256.*--again") as caught:
        prepare(Request("llava", path, str(images), out))
    assert "--out" in str(caught.value)
    assert content(out) == before
    prepare(Request("llava", path, str(images), out, min_chars=30), again=True)
    assert len(lines_of(out / "records.jsonl")) == 3


def test_a_moved_input_is_the_same(tmp_path):
    path, images = llava_folder(tmp_path, 5)
    request = Request("llava", path, str(images), tmp_path / "out")
    assert prepare(request).made
    moved = path.rename(tmp_path / "moved.json")
    found = prepare(Request("llava", moved, str(images), tmp_path / "out"))
    assert not found.made and found.manifest["input"]["path"] == str(path)


def test_again_sees_mended_images(tmp_path):
    path, images = llava_folder(tmp_path, 5)
    image = images / _rows(path)[2]["image"]
    image.rename(tmp_path / "away.jpg")
    request = Request("llava", path, str(images), tmp_path / "out")
    assert prepare(request).manifest["records"] == 4
    (tmp_path / "away.jpg").rename(image)
    assert prepare(request).manifest["records"] == 4  # finished stays finished
    assert prepare(request, again=True).manifest["records"] == 5


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    path, images = llava_folder(tmp_path, 3)
    out = tmp_path / "out"
    out.mkdir()
    (out / "records.jsonl").write_text("mine")
    for again in (False, True):
        with pytest.raises(PrepareError, match="is not empty"):
            prepare(Request("llava", path, str(images), out), again=again)
    assert (out / "records.jsonl").read_text() == "mine"


@pytest.mark.parametrize("where", ["out/images", "out"])
def test_images_are_not_looked_for_where_again_would_remove_them(tmp_path, where):
    path, images = llava_folder(tmp_path, 3)
    inside = tmp_path / where
    shutil.copytree(images, inside)
    there = files_below(inside)
    for again in (False, True):
        with pytest.raises(PrepareError, match=r"lies in --out.*another --out"):
            prepare(Request("llava", path, str(inside), tmp_path / "out"), again=again)
    assert files_below(inside) == there


def test_again_leaves_images_that_it_did_not_write(tmp_path):
    path, images = llava_folder(tmp_path, 3)
    request = Request("llava", path, str(images), tmp_path / "out")
    prepare(request)
    shutil.copytree(images, tmp_path / "out/images")
    there = files_below(tmp_path / "out")
    with pytest.raises(PrepareError, match="images.*nothing was removed"):
        prepare(request, again=True)
    assert files_below(tmp_path / "out") == there


@pytest.mark.parametrize(
    "change, error, says",
    [
        ({"images": None}, PrepareError, "--images is missing"),
        ({"images": "nowhere"}, ImageRootError, "no such folder"),
        ({"images": "ftp://x/y"}, ImageRootError, "gs://"),
        ({"input": Path("nowhere")}, InputError, "no such file"),
        ({"min_chars": 9, "max_chars": 8}, PrepareError, "min_chars"),
        ({"source": "coco"}, ValueError, "expected one of"),
        ({"out": Path(__file__)}, PrepareError, "is a file"),
    ],
)
def test_what_is_missing_is_named(tmp_path, change, error, says):
    path, images = llava_folder(tmp_path, 3)
    given = {"source": "llava", "input": path, "images": str(images)}
    with pytest.raises(error, match=says):
        prepare(Request(**{"out": tmp_path / "out", **given, **change}))


def test_images_may_be_remote(tmp_path):
    path, images = llava_folder(tmp_path, 6)
    store = fsspec.filesystem("memory")
    for file in images.rglob("*.jpg"):
        name = file.relative_to(images)
        store.pipe(f"/prepared/{name}", file.read_bytes())
    (tmp_path / "x").mkdir()
    request = Request("llava", path, "memory://prepared", tmp_path / "out")
    found = prepare(request)
    assert found.manifest["records"] == 6
    prepare(Request("llava", path, str(images), tmp_path / "local"))
    local = (tmp_path / "local/records.jsonl").read_bytes()
    assert (tmp_path / "out/records.jsonl").read_bytes() == local
    store.rm("/prepared", recursive=True)
    with pytest.raises(ImageRootError, match="no such folder"):
        prepare(request, again=True)


def test_duplicates_have_the_same_pixels_and_words(tmp_path):
    save(tmp_path, "images/a.png", 1)
    shutil.copy(tmp_path / "images/a.png", tmp_path / "images/b.png")
    save(tmp_path, "images/c.png", 2)
    said = "What is it?", "A bus that is long enough."
    rows = [plain_row(f"{name}.png", *said) for name in "abca"]
    rows += [plain_row("a.png", *said, system="Be brief.")]
    path = write_lines(tmp_path / "x.jsonl", rows)
    images = str(tmp_path / "images")
    found = prepare(Request("jsonl", path, images, tmp_path / "out"))
    kept = [line["id"] for line in lines_of(tmp_path / "out/records.jsonl")]
    assert kept == ["jsonl/1", "jsonl/3", "jsonl/5"]
    [left] = found.report["left_out"]
    details = [example["detail"] for example in left["examples"]]
    assert details == ["the same as jsonl/1"] * 2


@pytest.mark.parametrize("seed", range(8))
def test_random_records(tmp_path, seed, small_parts):
    """Against the rules written down once more, for a list in memory."""
    rng = np.random.default_rng(seed)
    names = [f"f{n % 3}/{n}.png" for n in range(6)]
    for number, name in enumerate(names):
        save(tmp_path / "images", name, number)
    words = ["Ja ", "…", "\u2028", "<b>", '"', "\\", "日本", "\n", "x" * 40, "\t", "é"]

    def text():
        return "".join(rng.choice(words, int(rng.integers(0, 9))))

    rows = []
    for number in range(60):
        image = rng.choice([*names, "gone.png", ""])
        said = [text() for _ in range(int(rng.integers(0, 6)))]
        row = plain_row(str(image) or None, *said)
        if rng.random() < 0.3:
            row["id"] = f"id{number}"
        rows.append(row)
        if rng.random() < 0.2:
            rows.append({name: row[name] for name in ("image", "messages")})
    expected, seen = [], set()
    for number, row in enumerate(rows, start=1):
        said = [message["content"] for message in row["messages"]]
        good = said and len(said) % 2 == 0 and all(one.strip() for one in said)
        good = good and 25 <= sum(map(len, said)) <= 5000 and row["image"] != "gone.png"
        key = json.dumps([row["image"], said])
        if good and key not in seen:
            seen.add(key)
            expected.append({"id": f"jsonl/{number}"} | row)
    path = write_lines(tmp_path / "x.jsonl", rows)
    request = Request("jsonl", path, str(tmp_path / "images"), tmp_path / "out")
    report = prepare(request).report
    assert lines_of(tmp_path / "out/records.jsonl") == expected
    assert 0 < len(expected) < len(rows)
    source = JSONLSource(tmp_path / "out/records.jsonl")
    assert len(source) == len(expected) and not source.rejected
    assert report["messages"]["read"] == sum(len(row["messages"]) for row in rows)


def test_limit_takes_the_first_rows(tmp_path):
    path, images = llava_folder(tmp_path, 10)
    found = prepare(Request("llava", path, str(images), tmp_path / "out", limit=4))
    assert found.report["rows"] == 4 and found.report["images"]["distinct"] == 4


def test_the_command(tmp_path, capsys):
    path, images = llava_folder(tmp_path, 6)
    out = str(tmp_path / "out")
    given = ["prepare", "llava", str(path), "--images", str(images), "--out", out]
    given += ["--workers", "1"]
    assert main(given) == 0
    said = capsys.readouterr().out
    assert "6 records of 6 rows" in said
    assert f"mixture --out mixture.json --heldout 3 llava={out}:1.0" in said
    assert main(given) == 0
    assert "was prepared before" in capsys.readouterr().out
    assert main([*given, "--min_chars", "30"]) == 1
    assert "error: --out" in capsys.readouterr().err


def test_help_and_work_need_no_jax(tmp_path):
    path, images = llava_folder(tmp_path, 3)
    given = ["prepare", "llava", str(path), "--images", str(images)]
    given += ["--out", str(tmp_path / "out"), "--workers", "1"]
    code = f"""
import sys
from vtscale_jax.data.__main__ import main, parse
try:
    parse(["prepare", "--help"])
except SystemExit:
    pass
heavy = {{"jax", "numpy", "PIL", "pandas"}} & set(sys.modules)
main({given!r})
print(heavy, sorted({{"jax", "tensorflow", "torch", "grain"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "set() []", done.stderr
    assert "prepare llava llava_v1_5_mix665k.json" in done.stdout


def _fail_at_three(number):
    if number == 3:
        raise InputError("three")
    return number


def _end_at_three(number):
    if number == 3:
        os._exit(1)
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_errors_arrive(workers):
    found = []
    with pytest.raises(InputError, match="three"):
        found.extend(in_order(_fail_at_three, range(100), workers))
    assert list(in_order(abs, range(-50, 0), workers)) == list(range(50, 0, -1))


def test_a_worker_that_is_killed_is_told():
    with pytest.raises(WorkerError, match="--workers"):
        list(in_order(_end_at_three, range(10), 2))


def test_memory_does_not_grow_with_rows(tmp_path):
    """16,000 rows against 1,000: the difference is far below what they hold."""
    save(tmp_path, "images/a.png", 1)
    peaks = []
    for rows in (1000, 16000):
        text = "What is it? " * 150
        made = [plain_row("a.png", f"{n} {text}", "A bus.") for n in range(rows)]
        path = write_lines(tmp_path / f"{rows}.jsonl", made)
        del made
        code = (
            "from vtscale_jax.data.__main__ import main\n"
            f"main(['prepare', 'jsonl', {str(path)!r}, '--images', "
            f"{str(tmp_path / 'images')!r}, '--out', {str(tmp_path / str(rows))!r}, "
            "'--workers', '1'])\n"
            "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    held = (tmp_path / "16000.jsonl").stat().st_size / 2**20
    assert held > 25  # MiB of text, which a list of rows would hold twice over
    assert peaks[1] - peaks[0] < 15, peaks


def test_pictures_of_the_fixtures_differ():
    assert picture(1).tobytes() != picture(2).tobytes()
