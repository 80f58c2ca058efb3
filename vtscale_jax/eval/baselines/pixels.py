"""Images as LLaVA's tower reads them: brought to a square, then normalised (spec A.4).

    crop   CLIP's processor: the short side to `side` pixels, the middle cut out; the
           ends of a long image are not seen
    pad    the original evaluation: first onto a square of the mean colour, then that

Both are exact for Pillow's bicubic filter, which is what transformers' PIL processors
use; its torchvision ones differ by up to one grey level.
"""

import numpy as np
from jaxtyping import Float
from PIL import Image

from vtscale_jax.views import CLIP_MEAN, CLIP_STD

VARIANTS = ("crop", "pad")
MEAN_COLOUR = (122, 116, 104)  # int(255 · mean)


class PixelsError(ValueError):
    """A way to prepare images that is not known, or an image that it cannot do."""


def check_variant(variant: str) -> str:
    """The variant itself; PixelsError if it is not one of `VARIANTS`."""
    if variant not in VARIANTS:
        raise PixelsError(f"pixels: got {variant!r}, expected one of {VARIANTS}")
    return variant


def prepare(
    image: Image.Image, side: int, variant: str
) -> Float[np.ndarray, "side side 3"]:
    """Normalised float32 pixels of an RGB image, `side` a side.

    Raises PixelsError for an unknown variant and for an image without pixels.
    """
    check_variant(variant)
    if 0 in image.size:
        raise PixelsError(
            f"image: got {image.width} × {image.height} pixels, expected at least one "
            "in each direction"
        )
    rgb = image.convert("RGB")
    square = _middle(_on_square(rgb) if variant == "pad" else rgb, side)
    scaled = np.asarray(square, np.float32) * np.float32(1 / 255)
    return (scaled - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)


def _on_square(image: Image.Image) -> Image.Image:
    """The image in the middle of a square; half pixels go to the upper left."""
    width, height = image.size
    long = max(width, height)
    square = Image.new("RGB", (long, long), MEAN_COLOUR)
    square.paste(image, ((long - width) // 2, (long - height) // 2))
    return square


def _middle(image: Image.Image, side: int) -> Image.Image:
    """The short side brought to `side`, and the middle of the long one."""
    width, height = image.size
    short, long = min(image.size), max(image.size)
    length = int(side * long / short)
    size = (side, length) if width <= height else (length, side)
    resized = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return resized.crop((left, top, left + side, top + side))
