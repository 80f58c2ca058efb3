"""Reading images: colour modes, remote files, links out of the root, and an error that
names the sample for each fault."""

import io
import json
import struct
import sys
import zlib

import fsspec
import numpy as np
import pytest
from PIL import Image

from vtscale_jax.images import (
    FORMATS,
    ImageError,
    ImageStoreError,
    load_image,
    read_remote,
)
from vtscale_jax.records import JSONLSource, RecordError, parse_record
from vtscale_jax.views import make_views


def gradient_image(width, height):
    """RGB pixels without symmetry."""
    y, x = np.mgrid[:height, :width]
    channels = (x * 5 + y * 3, x * 2 + y * 7 + (x * y) % 11, x * y)
    return (np.stack(channels, axis=-1) % 256).astype(np.uint8)


def encoded(picture, file_format, **options):
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_truncated_files(tmp_path, file_format):
    data = encoded(Image.fromarray(gradient_image(60, 40)), file_format)
    path = tmp_path / "page"
    path.write_bytes(data)
    assert load_image(path).size == (60, 40)
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ImageError, match=r"sample 's1', .*page'.*complete image"):
            load_image(path, sample_id="s1")


def test_files_that_are_no_images(tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("not an image")
    with pytest.raises(ImageError, match=r"sample 's2', .*notes\.png.*Unidentified"):
        load_image(str(text), sample_id="s2")
    with pytest.raises(ImageError, match=r"sample 's3', .*gone\.png.*no such file"):
        make_views(tmp_path / "gone.png", sample_id="s3")
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path)


def png_header(width, height):
    """A PNG that claims a size and has no pixels: decoding it would fail otherwise."""

    def chunk(name, body):
        checksum = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", b""), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("width,height", [(40_000, 25_000), (10_000, 10_000)])
def test_refuses_huge_images_by_header(tmp_path, width, height):
    path = tmp_path / "huge.png"
    path.write_bytes(png_header(width, height))
    with pytest.raises(ImageError, match=r"sample 's4', .*huge.*at most 89478485"):
        load_image(path, sample_id="s4")


@pytest.mark.filterwarnings("error")
def test_pillows_warning_becomes_our_error(tmp_path):
    path = tmp_path / "huge.png"
    path.write_bytes(png_header(10_000, 10_000))
    with pytest.raises(ImageError, match="too many pixels"):
        load_image(path)


def test_limit_of_pixels():
    pixels = gradient_image(20, 10)
    assert load_image(pixels, max_pixels=200).size == (20, 10)
    for image in (pixels, Image.fromarray(pixels)):
        with pytest.raises(
            ImageError, match="20 x 10 = 200 pixels; expected at most 199"
        ):
            load_image(image, max_pixels=199)


@pytest.mark.parametrize(
    "pixels,message",
    [
        (np.zeros((0, 5, 3), np.uint8), "5 x 0 pixels"),
        (np.zeros((5, 5, 3), np.float32), r"float32 pixels of shape \(5, 5, 3\)"),
        (np.zeros((5, 5), np.uint8), r"uint8 pixels of shape \(5, 5\)"),
        (np.zeros((3, 5, 5), np.uint8), r"shape \(3, 5, 5\)"),
    ],
)
def test_wrong_pixels(pixels, message):
    with pytest.raises(ImageError, match=f"sample 's5', image: .*{message}"):
        load_image(pixels, sample_id="s5")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_modes_become_rgb_as_pillow_does(tmp_path, mode):
    grey = Image.fromarray(gradient_image(40, 30))
    picture = (
        grey.convert("I").convert("I;16") if mode == "I;16" else grey.convert(mode)
    )
    path = tmp_path / "page.tiff"
    picture.save(path)
    result = load_image(path)
    assert result.mode == "RGB"
    np.testing.assert_array_equal(result, picture.convert("RGB"))


@pytest.mark.filterwarnings("error")
def test_transparency_is_dropped_not_composited(tmp_path):
    pixels = gradient_image(40, 30)
    seen = np.dstack([pixels, np.full((30, 40), 7, np.uint8)])
    path = tmp_path / "page.png"
    Image.fromarray(seen).save(path)
    np.testing.assert_array_equal(load_image(path), pixels)
    palette = Image.fromarray(pixels).quantize(32)
    palette.save(path, transparency=bytes(range(32)))
    np.testing.assert_array_equal(load_image(path), palette.convert("RGB"))


def test_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "sideways.jpg"
    Image.fromarray(gradient_image(40, 30)).save(path, exif=exif)
    assert load_image(path).size == (40, 30)


def test_sixteen_bits_above_255_become_white(tmp_path):
    """Pillow's rule, as the module says: a 16-bit scan must be scaled beforehand."""
    path = tmp_path / "scan.png"
    Image.fromarray(np.array([[0, 200, 255, 256, 65535]], np.uint16)).save(path)
    seen = np.asarray(load_image(path))[0, :, 0]
    np.testing.assert_array_equal(seen, [0, 200, 255, 255, 255])


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(tmp_path, file_format):
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    path = tmp_path / "film"
    options = {} if file_format != "WEBP" else {"lossless": True}
    frames[0].save(
        path, file_format, save_all=True, append_images=frames[1:], **options
    )
    opened = Image.open(path)
    assert opened.n_frames == 2
    np.testing.assert_array_equal(load_image(path), frames[0])
    opened.seek(1)
    assert not np.array_equal(opened.convert("RGB"), load_image(path))
    opened.close()


# Bytes, formats


@pytest.mark.parametrize("name", FORMATS)
def test_files_and_their_bytes_are_the_same(tmp_path, name):
    """And the picture can be worked on when its file is closed."""
    picture = Image.fromarray(gradient_image(60, 40))
    data = encoded(picture, name)
    path = tmp_path / "page.wrong"
    path.write_bytes(data)
    from_file = load_image(path)
    np.testing.assert_array_equal(from_file, load_image(data))
    assert from_file.resize((30, 20)).size == (30, 20)
    if name in ("PNG", "BMP", "TIFF", "PPM"):
        np.testing.assert_array_equal(from_file, picture)
    with pytest.raises(ImageError, match="sample 's6', image: .*complete image"):
        load_image(data[: len(data) // 2], sample_id="s6")


def test_formats_that_are_not_read(tmp_path):
    picture = Image.fromarray(gradient_image(60, 40))
    for name in ("EPS", "TGA", "SGI", "PDF"):  # Pillow runs Ghostscript on the first
        path = tmp_path / "page.png"
        path.write_bytes(encoded(picture, name))
        with pytest.raises(ImageError, match="Unidentified"):
            load_image(path)


def test_empty_files_and_strange_paths(tmp_path):
    empty = tmp_path / "empty.jpg"
    empty.touch()
    for image in (empty, b""):
        with pytest.raises(ImageError, match="sample 's7'.*0 bytes"):
            load_image(image, sample_id="s7")
    for path in ("a" * 5000, "page\0.jpg"):
        with pytest.raises(ImageError, match="not the path of a file|no such file"):
            load_image(path)


# Remote files, and the image root


@pytest.fixture
def bucket():
    """A remote folder in memory, with one page."""
    store = fsspec.filesystem("memory")
    data = encoded(Image.fromarray(gradient_image(60, 40)), "PNG")
    store.pipe_file("/bucket/images/page.png", data)
    store.pipe_file("/bucket/images/empty.png", b"")
    yield "memory://bucket/images"
    store.rm("/bucket", recursive=True)


def conversation(image):
    said = [("user", "What is on this page?"), ("assistant", "A gradient of colours.")]
    turns = [{"role": role, "content": text} for role, text in said]
    return {"image": image, "messages": turns}


def test_remote_root(bucket):
    for root in (bucket, f"{bucket}/"):
        raw = conversation("page.png")
        record = parse_record(raw, record_id="r1", image_root=root)
        assert record.image == f"{bucket}/page.png"
        np.testing.assert_array_equal(load_image(record.image), gradient_image(60, 40))
    with pytest.raises(ImageError, match="sample 'r2'.*gone.png'.*no such file"):
        load_image(f"{bucket}/gone.png", sample_id="r2")
    with pytest.raises(ImageError, match="0 bytes"):
        load_image(f"{bucket}/empty.png")
    with pytest.raises(RecordError, match="below image_root 'memory://bucket/images'"):
        parse_record(conversation("../x.png"), record_id="r3", image_root=bucket)


def test_records_name_no_server(bucket, tmp_path):
    for address in ("http://host/page.png", f"{bucket}/page.png"):
        for root in (None, tmp_path, bucket):
            with pytest.raises(RecordError, match="bucket and folder as image_root"):
                parse_record(conversation(address), record_id="r4", image_root=root)
    with pytest.raises(ImageError, match="http://; expected one of gs://"):
        load_image("http://host/page.png")


def test_a_path_is_no_chain_of_file_systems(bucket):
    """fsspec.open would take what follows :: for a file of another system."""
    data = encoded(Image.fromarray(gradient_image(60, 40)), "PNG")
    fsspec.filesystem("memory").pipe_file("bucket/images/x::page.png", data)
    assert load_image(f"{bucket}/x::page.png").size == (60, 40)


@pytest.mark.parametrize("scheme,package", [("gs", "gcsfs"), ("s3", "s3fs")])
def test_a_missing_package_is_named(monkeypatch, scheme, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImageStoreError, match=f"pip install {package}"):
        read_remote(f"{scheme}://bucket/page.png")
    # It is no fault of an image: whoever passes over bad images must not over this.
    assert not issubclass(ImageStoreError, ImageError)


def test_links_may_not_leave_the_root(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "images"
    for folder in (outside, root / "own"):
        folder.mkdir(parents=True)
        Image.fromarray(gradient_image(60, 40)).save(folder / "page.png")
    (root / "leak.png").symlink_to(outside / "page.png")
    (root / "leaks").symlink_to(outside)
    (root / "inner.png").symlink_to(root / "own" / "page.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    rows = tmp_path / "records.jsonl"
    names = ["own/page.png", "inner.png", "gone.png", "loop.png"]
    leaks = ["leak.png", "leaks/page.png"]
    lines = [json.dumps(conversation(name)) for name in names + leaks]
    rows.write_text("\n".join(lines))
    by_link = tmp_path / "by_link"  # the root itself may be one
    by_link.symlink_to(root)
    for base in (root, by_link, f"{root}/."):
        source = JSONLSource(rows, image_root=base)
        for index in range(2):
            assert load_image(source[index].image).size == (60, 40)
        for index in (2, 3):
            with pytest.raises(ImageError, match="no such file|not the path"):
                load_image(source[index].image)
        for index in (4, 5):
            with pytest.raises(RecordError, match="a link to .*outside.*Copy or mount"):
                source[index]


def test_damaged_bytes_raise_only_our_error(tmp_path):
    """Mutations of every format: a picture, or an ImageError that says what to do."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(gradient_image(40, 30))
    whole = [encoded(picture, name) for name in FORMATS]
    failed = 0
    for number in range(2000):
        data = bytearray(whole[number % len(whole)])
        for _ in range(rng.integers(1, 8)):
            data[rng.integers(len(data) if number % 2 else 64)] = rng.integers(256)
        if number % 5 == 0:
            data = data[: rng.integers(1, len(data))]
        try:
            assert load_image(bytes(data), max_pixels=10**6).mode == "RGB"
        except ImageError as error:
            failed += 1
            assert "sample" not in str(error) and str(error).endswith(".")
    assert 400 < failed < 2000
