"""Damaged rows and images: whatever is in them, they are counted, and only the
documented errors come out."""

import copy
import io
import json

import numpy as np
import pandas as pd
import pytest
from data_rows import doc_row, llava_turns, picture, plain_row, save, svit_entry
from PIL import Image
from test_data_sources import encoded

from vtscale_jax.data.image_check import ImageFacts, ImageFault, check_image
from vtscale_jax.data.image_roots import ImageRoot
from vtscale_jax.data.json_rows import InputError, array_rows, line_rows
from vtscale_jax.data.prepare import Request, prepare
from vtscale_jax.images import load_image
from vtscale_jax.records import JSONLSource
from vtscale_jax.views import make_views

LONG = "An answer that is long enough to be kept."
ROWS = {
    "llava": [
        {"id": "1", "image": "a/1.jpg"}
        | {"conversations": llava_turns("<image>\nAt [0.1, 0.2, 0.3, 0.4]?", LONG)},
        {"id": "2", "model": "", "conversations": llava_turns("Hi?", LONG)},
    ],
    "svit": [
        {"image_id": 42}
        | {"conversations": [svit_entry("Where [0.1, 0.2, 0.3, 0.4]?", LONG)] * 12},
    ],
    "docdownstream": [
        doc_row(["./imgs/a.png"], "<|image|>What year?", LONG, "And?", LONG),
    ],
    "jsonl": [
        plain_row("a/1.jpg", "What?", LONG, id="one", system="Be brief."),
        plain_row(None, "What?", LONG),
    ],
}
STRANGE = (
    *(None, True, 0, -1, 10**30, 1.5, float("nan"), "", " ", "\0", "\ud800", "../x"),
    *([], {}, [[]], {"": None}, "x" * 6000, "<image>", "[1, 2, 3, 4.5.6]", "none"),
    *("/etc/passwd", "a/1.jpg", ["a/1.jpg"], "gpt", "user", "assistant", "\u202e"),
    [[[["deep"] * 3] * 3] * 3] * 3,
)


def places(value, path=()):
    """Every place of a row, by the keys that lead to it."""
    yield path
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield from places(value[key], (*path, key))


def mutated(row, rng):
    """A row with one to three places of it taken out, doubled or replaced."""
    row = [copy.deepcopy(row)]
    for _ in range(int(rng.integers(1, 4))):
        *above, last = list(places(row))[1:][
            int(rng.integers(len(list(places(row))) - 1))
        ]
        of = row
        for key in above:
            of = of[key]
        kind = rng.integers(4)
        if kind == 0 and above:
            del of[last]
            if not row or not of:
                break
        elif kind == 1 and isinstance(of, list):
            of.append(copy.deepcopy(of[last]))
        else:
            of[last] = copy.deepcopy(STRANGE[int(rng.integers(len(STRANGE)))])
    return row[0] if row else None


def images(tmp_path):
    root = tmp_path / "images"
    for number, name in enumerate(("a/1.jpg", "vg/VG_100K/42.jpg", "imgs/a.png")):
        save(root, name, number)
    return root


def rows_are_counted(tmp_path, source, number, seed):
    rng = np.random.default_rng(seed)
    kinds = ROWS[source]
    rows = [mutated(kinds[n % len(kinds)], rng) for n in range(number)]
    rows += kinds
    if source in ("llava", "svit"):
        text = json.dumps(rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    path = tmp_path / f"{source}.json"
    path.write_text(text)
    kind = "referring_qa" if source == "svit" else None
    root = images(tmp_path)
    request = Request(
        source, path, str(root), tmp_path / source, kind=kind, text_rows="keep"
    )
    report = prepare(request).report
    assert report["rows"] == len(rows)
    assert 0 < report["records"] and len(report["reasons"]) >= 5
    source = JSONLSource(tmp_path / source / "records.jsonl", image_root=root)
    assert len(source) == report["records"]
    for index in range(len(source)):
        record = source[index]
        if record.image is not None:
            load_image(str(record.image))


@pytest.mark.parametrize("source", ROWS)
def test_mutated_rows(tmp_path, source):
    rows_are_counted(tmp_path, source, 500, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10, 20))
@pytest.mark.parametrize("source", ROWS)
def test_many_mutated_rows(tmp_path, source, seed):
    rows_are_counted(tmp_path, source, 3000, seed)


def files():
    exif = Image.Exif()
    exif[0x0112] = 3
    yield "jpg", encoded_as(picture(1), "JPEG", exif=exif)
    yield "jpg", encoded_as(picture(1).convert("CMYK"), "JPEG", progressive=True)
    yield "png", encoded_as(picture(1).convert("RGBA"), "PNG")
    yield "png", encoded_as(picture(1).quantize(9), "PNG", transparency=1)
    frames = [picture(2), picture(3)]
    yield "gif", encoded_as(picture(1), "GIF", save_all=True, append_images=frames)
    yield "webp", encoded_as(picture(1), "WEBP")
    yield "tif", encoded_as(picture(1), "TIFF", compression="tiff_lzw")
    yield "bmp", encoded_as(picture(1), "BMP")


def encoded_as(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def images_are_judged(tmp_path, number, seed):
    """Mutated image files: facts or a fault, and facts only if training can read it."""
    rng = np.random.default_rng(seed)
    kinds = list(files())
    root = ImageRoot(str(tmp_path))
    good = bad = 0
    for n in range(number):
        ending, data = kinds[n % len(kinds)]
        damaged = bytearray(data)
        for _ in range(int(rng.integers(1, 9))):
            # Half of the changes are in the head, where the structure is.
            end = len(damaged) if rng.random() < 0.5 else min(len(damaged), 80)
            damaged[int(rng.integers(end))] = int(rng.integers(256))
        if rng.random() < 0.2:
            del damaged[int(rng.integers(len(damaged))) :]
        name = f"x.{ending}"
        (tmp_path / name).write_bytes(damaged)
        found = check_image(root, [name], max_pixels=1 << 22)
        if isinstance(found, ImageFacts):
            good += 1
            load_image(str(tmp_path / name))
            if n % 20 == 0:
                make_views(str(tmp_path / name))
        else:
            assert isinstance(found, ImageFault)
            bad += 1
    assert good > number / 20 and bad > number / 20


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged files
def test_mutated_images(tmp_path):
    images_are_judged(tmp_path, 2000, seed=2)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seed", range(20, 30))
def test_many_mutated_images(tmp_path, seed):
    images_are_judged(tmp_path, 10_000, seed)


@pytest.mark.parametrize("seed", range(3))
def test_mutated_bytes_of_input(seed):
    """A file whose bytes are damaged: rows and faults, or InputError."""
    rng = np.random.default_rng(seed)
    for source, rows in ROWS.items():
        lines = source in ("docdownstream", "jsonl")
        text = "\n".join(map(json.dumps, rows * 3)) if lines else json.dumps(rows * 3)
        refused = 0
        for _ in range(200):
            damaged = bytearray(text.encode())
            for _ in range(int(rng.integers(1, 4))):
                damaged[int(rng.integers(len(damaged)))] = int(rng.integers(256))
            if lines:
                found = list(line_rows(io.BytesIO(damaged)))
                refused += any(row.fault is not None for row in found)
                continue
            try:
                expected = json.loads(damaged.decode("utf-8-sig"))
            except ValueError:
                with pytest.raises(InputError):
                    list(array_rows(io.BytesIO(damaged), "x.json"))
                refused += 1
            else:
                found = list(array_rows(io.BytesIO(damaged), "x.json"))
                assert [row.raw for row in found] == expected
        assert 0 < refused < 200


def test_chunks_of_any_size_are_read_alike(monkeypatch):
    """Elements are cut out whole wherever the file's chunks end."""
    rows = [12, 345, -6.25, 1e5, "é", {"a": 78}]  # a number shows no end of its own
    rows += [{"a": "é\U0001f600\\u00e9" * n, "b": [1.5, -2, None]} for n in range(9)]
    rows += [12, "x", [], {}, True, 0]
    data = json.dumps(rows, ensure_ascii=False).encode()
    for size in (1, 2, 3, 7, 50, 10_000):
        monkeypatch.setattr("vtscale_jax.data.json_rows.CHUNK", size)
        found = [row.raw for row in array_rows(io.BytesIO(data), "x")]
        assert found == rows, size


@pytest.mark.parametrize("seed", range(2))
def test_mutated_tables(tmp_path, seed):
    rng = np.random.default_rng(seed)
    rows = [
        {"index": n, "image": encoded(n), "question": "Which?", "A": "a", "B": "b"}
        | {"answer": "A", "image_path": f"{n}.png"}
        for n in range(4)
    ]
    good = pd.DataFrame(rows).to_csv(sep="\t", index=False).encode()
    made = refused = 0
    for number in range(60):
        damaged = bytearray(good)
        for _ in range(int(rng.integers(1, 6))):
            damaged[int(rng.integers(len(damaged)))] = int(rng.integers(256))
        path = tmp_path / f"{number}.tsv"
        path.write_bytes(damaged)
        out = tmp_path / str(number)
        try:
            prepare(Request("vlmeval-tsv", path, None, out, min_chars=1))
            made += 1
        except InputError:
            refused += 1
    assert made > 5 and refused > 5
