"""The images of a benchmark as a model inside VLMEvalKit sees them.

VLMEvalKit writes each image to a file before a model opens it. At the paper's commit
that is a JPEG file of PIL's default quality 75, also for images that were PNG: pixels
change, small text and thin lines most. The newest commit writes PNG, which changes
nothing.
"""

import io

from PIL import Image

from vtscale_jax.eval.benchmarks.image_cells import ImageError, open_image
from vtscale_jax.eval.benchmarks.table import Table
from vtscale_jax.eval.benchmarks.tasks import Version

# What VLMEvalKit turns to RGB before it writes, and what JPEG holds as it is. PIL
# cannot write further modes (grey with alpha, 16 bit) as JPEG: VLMEvalKit stops there,
# here they become RGB too.
_JPEG_MODES = ("L", "RGB", "CMYK", "1", "YCbCr")


def as_seen(data: bytes, version: Version) -> Image.Image:
    """The RGB image that a model sees, from the bytes of an image file.

    Transparency is dropped, not blended; the orientation in EXIF data is not applied;
    of an animation the first frame is taken. ImageError when the data cannot be
    decoded.
    """
    image = open_image(data)
    try:
        image.load()
    except (OSError, ValueError, SyntaxError) as error:  # PNG raises SyntaxError
        raise ImageError(
            f"an image of {len(data)} bytes cannot be decoded ({error}); it may be cut "
            "off: fetch the table again"
        ) from error
    if version == "current":
        return _rgb(image)
    file = io.BytesIO()
    kept = image if image.mode in _JPEG_MODES else _rgb(image)
    kept.save(file, format="JPEG")
    return Image.open(file).convert("RGB")


def images_seen(table: Table, row: int, version: Version) -> tuple[Image.Image, ...]:
    """The images of a row (from 0) in order, as `as_seen`. ImageError names the row."""
    seen = []
    for place, data in enumerate(table.images(row), start=1):
        try:
            seen.append(as_seen(data, version))
        except ImageError as error:
            raise ImageError(f"{table.where(row)}, image {place}: {error}") from error
    return tuple(seen)


def _rgb(image: Image.Image) -> Image.Image:
    # The colours are the same without the step over RGBA, but PIL warns of it.
    if isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    return image.convert("RGB")
