"""Reading images: colour modes, and an error that names the sample for each fault."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vtscale_jax.views import ImageError, load_image, make_views


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
