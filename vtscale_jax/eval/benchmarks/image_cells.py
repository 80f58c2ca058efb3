"""The image cell of a benchmark's table: base64, a list of base64, or another row's
index.

VLMEvalKit tells them apart by length: a cell of at most 64 characters is the index of a
row whose images are used again, any longer one is base64 or a Python list of it.
"""

import binascii
import io

from PIL import Image, UnidentifiedImageError

from vtscale_jax.eval.scoring.cells import literal_list

LONGEST_REFERENCE = 64


class ImageError(ValueError):
    """Images that cannot be read."""


def encoded_images(cell: str) -> list[str]:
    """The base64 of each image of a cell that is no reference, in order. ImageError
    when a list cannot be read or has no images."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return [cell]
    listed = literal_list(cell)
    if not listed or not all(isinstance(one, str) for one in listed):
        raise ImageError(
            f"the list of images {_shown(cell)} cannot be read, is empty or holds "
            "other things than texts; expected ['base64', 'base64', …]"
        )
    return listed


def decoded(encoded: str) -> bytes:
    """The bytes of a base64 string; white space between its characters is passed over.
    ImageError for anything else that base64 does not have."""
    try:
        return binascii.a2b_base64("".join(encoded.split()), strict_mode=True)
    except ValueError as error:  # binascii.Error, or characters beyond ASCII
        raise ImageError(
            f"the image {_shown(encoded)} of {len(encoded)} characters is not base64 "
            f"({error}); the cell may be cut off: fetch the table again"
        ) from error


def check_is_image(data: bytes) -> None:
    """ImageError unless these bytes begin as an image does that PIL reads."""
    open_image(data).close()


def open_image(data: bytes) -> Image.Image:
    """The image of an image file's bytes, its pixels not yet decoded. ImageError when
    PIL knows no such format."""
    try:
        return Image.open(io.BytesIO(data))
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ImageError(
            f"{len(data)} bytes that begin with {data[:8]!r} are not an image; "
            "expected a file of PNG, JPEG or another format that PIL reads"
        ) from error


def _shown(text: str) -> str:
    return repr(text if len(text) <= 24 else f"{text[:24]}…")
