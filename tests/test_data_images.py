"""Images: which can be trained on, what is noted of them, and a folder with broken
ones taken through `prepare` to what training reads."""

import io
import os
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from data_rows import lines_of, llava_turns, picture, write_json
from PIL import Image

from vtscale_jax.data.image_check import ImageFacts, ImageFault, check_image
from vtscale_jax.data.image_roots import ImageRoot, check_path
from vtscale_jax.data.image_table import ImageTable
from vtscale_jax.data.prepare import Request, prepare
from vtscale_jax.data.units import Rejected
from vtscale_jax.images import load_image
from vtscale_jax.records import JSONLSource


def encoded(image: Image.Image, form: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """The head of a PNG that claims a size; no pixel follows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    nothing = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + nothing + chunk(b"IEND", b"")


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(1), exif=exif)


def animation() -> bytes:
    frames = [picture(2)]
    return encoded(picture(1), "GIF", save_all=True, append_images=frames)


def sixteen_bit() -> bytes:
    pixels = np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 20
    return encoded(Image.fromarray(pixels), "PNG")


PALETTE = picture(1).quantize(16)
GOOD = {
    "a.jpg": (encoded(picture(1)), "JPEG RGB", []),
    "b.png": (encoded(picture(1), "PNG"), "PNG RGB", []),
    "grey.jpg": (encoded(picture(1).convert("L")), "JPEG L", []),
    "cmyk.jpg": (encoded(picture(1).convert("CMYK")), "JPEG CMYK", ["CMYK"]),
    "p.png": (encoded(PALETTE, "PNG"), "PNG P", ["palette"]),
    "pt.png": (
        encoded(PALETTE, "PNG", transparency=0),
        "PNG P",
        ["palette", "transparency: ignored"],
    ),
    "rgba.png": (
        encoded(picture(1).convert("RGBA"), "PNG"),
        "PNG RGBA",
        ["transparency: ignored"],
    ),
    "16.png": (sixteen_bit(), "PNG I;16", ["more than 8 bits a channel"]),
    "turned.jpg": (rotated(), "JPEG RGB", ["EXIF orientation: ignored"]),
    "moving.gif": (animation(), "GIF P", ["animated: first frame taken", "palette"]),
    "wrong.jpg": (encoded(picture(1), "PNG"), "PNG RGB", ["PNG file named .jpg"]),
    "bare": (encoded(picture(1)), "JPEG RGB", ["JPEG file named without ending"]),
    "exif.jpg": (
        encoded(picture(1), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        "JPEG RGB",
        None,
    ),
}
JPEG = encoded(picture(1, 640, 480))
CORRUPT = encoded(picture(1, 640, 480), "PNG")
CORRUPT = CORRUPT[:200] + b"\xff" * 100 + CORRUPT[300:]
BAD = {
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "image truncated"),
    "truncated.png": (encoded(picture(1), "PNG")[:-40], "image truncated"),
    "empty.jpg": (b"", "image file is empty"),
    "page.jpg": (b"<html>404 Not Found</html>", "text in place of an image"),
    "zip.jpg": (b"PK\x03\x04\0\0\0\0" * 9, "not an image file"),
    "drawing.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "text in place of an image"),
    "bomb.png": (png_of_size(10_000, 10_000), "image has too many pixels"),
    "great bomb.png": (png_of_size(60_000, 60_000), "image has too many pixels"),
    "thin.png": (encoded(Image.new("RGB", (2000, 1)), "PNG"), "image too thin"),
    "headless.png": (b"\x89PNG\r\n\x1a\n" + b"\xff" * 40, "not an image file"),
    "corrupt.png": (CORRUPT, "image corrupt"),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("name", GOOD)
def test_good_images(tmp_path, name):
    data, kind, notes = GOOD[name]
    (tmp_path / name).write_bytes(data)
    found = check_image(ImageRoot(str(tmp_path)), [name])
    assert isinstance(found, ImageFacts), found
    assert f"{found.format} {found.mode}" == kind
    assert (found.path, found.width, found.height) == (name, 64, 48)
    assert found.bytes == len(data)
    if notes is None:
        assert len(found.notes) >= 1
    else:
        assert list(found.notes) == notes
    assert load_image(tmp_path / name).size == (64, 48)


@pytest.mark.parametrize("name", BAD)
def test_bad_images(tmp_path, name):
    data, reason = BAD[name]
    (tmp_path / name).write_bytes(data)
    found = check_image(ImageRoot(str(tmp_path)), [name])
    assert isinstance(found, ImageFault)
    assert found.reason == reason and name in found.detail


def test_a_bomb_is_never_decoded(tmp_path, monkeypatch):
    (tmp_path / "bomb.png").write_bytes(BAD["bomb.png"][0])

    def decode(*_):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(Image.Image, "load", decode)
    found = check_image(ImageRoot(str(tmp_path)), ["bomb.png"])
    assert isinstance(found, ImageFault)
    assert "100,000,000" in found.detail


def test_the_first_of_several_places(tmp_path):
    (tmp_path / "2").mkdir()
    (tmp_path / "2/a.jpg").write_bytes(JPEG)
    root, places = ImageRoot(str(tmp_path)), ["1/a.jpg", "2/a.jpg"]
    found = check_image(root, places)
    assert isinstance(found, ImageFacts) and found.path == "2/a.jpg"
    (tmp_path / "1").mkdir()
    (tmp_path / "1/a.jpg").write_bytes(JPEG)
    found = check_image(root, places)
    assert isinstance(found, ImageFacts) and found.path == "1/a.jpg"
    (tmp_path / "1/a.jpg").write_bytes(JPEG + b"\0")
    found = check_image(root, places)
    assert isinstance(found, ImageFault)
    assert found.reason == "two different files for one image"


@pytest.mark.parametrize(
    "path, reason",
    [
        ("/etc/hostname", "image path leaves the root"),
        ("../x.jpg", "image path leaves the root"),
        ("a/../../x.jpg", "image path leaves the root"),
        ("a\0b.jpg", "malformed row"),
        ("", "malformed row"),
        ("\ud800.jpg", "malformed row"),
        (7, "malformed row"),
    ],
)
def test_paths_that_are_refused(path, reason):
    with pytest.raises(Rejected) as caught:
        check_path(path)
    assert caught.value.reason == reason


@pytest.mark.parametrize("path", ["a.jpg", "./a/b.jpg", "a..b/c..jpg", "日本/é.png"])
def test_paths_that_are_allowed(path):
    assert check_path(path) == path


def test_links_must_stay_below_the_root(tmp_path):
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (tmp_path / "out.jpg").write_bytes(JPEG)
    (root / "in/a.jpg").write_bytes(JPEG)
    (root / "good.jpg").symlink_to(root / "in/a.jpg")
    (root / "bad.jpg").symlink_to(tmp_path / "out.jpg")
    (root / "folder").symlink_to(tmp_path)
    (root / "round.jpg").symlink_to("round.jpg")
    (tmp_path / "rooted").mkdir()
    (tmp_path / "rooted/a.jpg").write_bytes(JPEG)
    images = ImageRoot(str(root))
    assert isinstance(check_image(images, ["good.jpg"]), ImageFacts)
    for name in ("bad.jpg", "folder/out.jpg", "folder/rooted/a.jpg"):
        found = check_image(images, [name])
        assert isinstance(found, ImageFault)
        assert found.reason == "image path leaves the root", name
    found = check_image(images, ["round.jpg"])
    assert isinstance(found, ImageFault) and found.reason == "image missing"
    # A root that is a link itself is as good as its target.
    (tmp_path / "link").symlink_to(root)
    linked = ImageRoot(str(tmp_path / "link"))
    assert isinstance(check_image(linked, ["in/a.jpg"]), ImageFacts)


def test_what_is_no_file(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")  # reading it would never end
    (tmp_path / "a.jpg").write_bytes(JPEG)
    root = ImageRoot(str(tmp_path))
    reasons = {
        "folder.jpg": "image file cannot be read",
        "pipe.jpg": "image file cannot be read",
        "a.jpg/b.jpg": "image missing",
        "x" * 300: "image missing",
    }
    for name, reason in reasons.items():
        found = check_image(root, [name])
        assert isinstance(found, ImageFault) and found.reason == reason, name


def test_the_table_keeps_what_was_found(tmp_path):
    facts = ImageFacts("a", 1, 2, "f" * 64, 3, "PNG", "RGB", ("x", "y"))
    names = [("a",), ("b", "c"), ("é\ud800",), ("a",)]
    with ImageTable(tmp_path / "t", writes=True) as table:
        table.add(names)
        assert list(table.unseen(2)) == [[("a",), ("b", "c")], [("é\ud800",)]]
        table.put([(("a",), facts), (("é\ud800",), ImageFault("why", "how"))])
        table.add(names)
        assert list(table.unseen(2)) == [[("b", "c")]] and table.counts() == (3, 2)
    with ImageTable(tmp_path / "t") as table:
        assert table.get(("a",)) == facts
        assert table.get(("é\ud800",)) == ImageFault("why", "how")
        assert [name for name, _ in table.all()] == [("a",), ("é\ud800",)]
        with pytest.raises(KeyError):
            table.get(("b", "c"))


def test_a_folder_with_broken_images(tmp_path):
    """One image in twenty is broken, each in another way; the others, and they alone,
    come through as they are, and can be read as training reads them."""
    broken = {**{name: BAD[name] for name in list(BAD)[:8]}}
    broken |= {"gone.jpg": (None, "image missing")}
    broken["wrong.jpg"] = (GOOD["wrong.jpg"][0], None)  # whole: its content decides
    names = [f"{number}.jpg" for number in range(len(broken) * 19)]
    rng = np.random.default_rng(5)
    images = tmp_path / "images/coco"
    images.mkdir(parents=True)
    for number, name in enumerate(names):
        (images / name).write_bytes(encoded(picture(number)))
    for name, (data, _) in broken.items():
        if data is not None:
            (images / name).write_bytes(data)
    order = rng.permutation([*names, *broken]).tolist()
    rows = [
        {"id": name, "image": f"coco/{name}"}
        | {"conversations": llava_turns("<image>\nWhat is it?", f"It is in {name}.")}
        for name in order
    ]
    path = write_json(tmp_path / "llava.json", rows)
    out = tmp_path / "out"
    report = prepare(Request("llava", path, str(tmp_path / "images"), out)).report
    good = [name for name in order if broken.get(name, (b"", None))[1] is None]
    assert len(good) == len(order) - len(broken) + 1
    kept = lines_of(out / "records.jsonl")
    assert [line["image"] for line in kept] == [f"coco/{name}" for name in good]
    reasons = Counter(why for _, why in broken.values() if why is not None)
    assert report["reasons"] == dict(reasons) == report["images"]["faults"]
    assert report["images"]["notes"] == {"PNG file named .jpg": 1}
    named = {e["id"] for one in report["left_out"] for e in one["examples"]}
    assert named == set(broken) - {"wrong.jpg"}
    source = JSONLSource(out / "records.jsonl", image_root=tmp_path / "images")
    for index in range(len(source)):
        record = source[index]
        name = os.path.basename(str(record.image))
        assert record.turns[0].answer == f"It is in {name}."
        assert load_image(str(record.image)).size == (64, 48)
