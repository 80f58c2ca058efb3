"""One image, looked at once: is it there, whole, and fit for training?

Each image is read and decoded completely, as training will, so that a file whose end is
missing is found here. What Pillow changes on the way to RGB (CMYK, palette, 16 bit,
transparency, the first frame of an animation, ignored EXIF orientation) is no fault; it
is noted and counted.
"""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from vtscale_jax.data.image_roots import ImageRoot
from vtscale_jax.data.units import Rejected, shown
from vtscale_jax.images import MAX_PIXELS, ImageError, decoded_rgb, opened_image
from vtscale_jax.views import view_grid

MISSING = "image missing"
EMPTY_FILE = "image file is empty"
NO_IMAGE_FILE = "not an image file"
TEXT_FILE = "text in place of an image"
TRUNCATED = "image truncated"
CORRUPT = "image corrupt"
TOO_MANY_PIXELS = "image has too many pixels"
TOO_THIN = "image too thin"
TWO_FILES = "two different files for one image"

_ANY = 1 << 62  # pixels: this file has a reason of its own for too many
_ORIENTATION = 0x0112  # the EXIF tag
_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")


class ImageFacts(NamedTuple):
    """An image that can be trained on: where it was found below the root, its size in
    pixels, what kind of file it is, and what is worth knowing about it."""

    path: str
    width: int
    height: int
    sha256: str
    bytes: int
    format: str
    mode: str
    notes: tuple[str, ...]


class ImageFault(NamedTuple):
    """Why there is no such image to train on."""

    reason: str
    detail: str


def check_image(
    root: ImageRoot, candidates: Sequence[str], max_pixels: int = MAX_PIXELS
) -> ImageFacts | ImageFault:
    """What lies at the first of the `candidates`, paths below the root, where there is
    a file. Two of them with different content are a fault: which of the two was meant
    cannot be told."""
    try:
        found = [(path, root.read(path)) for path in candidates]
        found = [(path, data) for path, data in found if data is not None]
        if not found:
            raise Rejected(MISSING, " or ".join(map(shown, candidates)))
        path, data = found[0]
        for other, others_data in found[1:]:
            if others_data != data:
                raise Rejected(TWO_FILES, f"{shown(path)} and {shown(other)}")
        return _looked_at(path, data, max_pixels)
    except Rejected as error:
        return ImageFault(error.reason, error.detail)


def _looked_at(path: str, data: bytes, max_pixels: int) -> ImageFacts:
    if not data:
        raise Rejected(EMPTY_FILE, shown(path))
    # Pillow's warnings are about files, and become notes.
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            with opened_image(data, sample_id=path, max_pixels=_ANY) as picture:
                _check_size(picture, path, max_pixels)
                mode = picture.mode
                # First of all: Pillow decodes a PNG when asked for its EXIF, and does
                # not fail a second time.
                decoded_rgb(picture, shown(path))
                notes = _notes(picture, mode, path)
        except ImageError as error:
            raise _rejection(error, path, data) from error
    notes += [f"Pillow warned: {one.category.__name__}" for one in warned]
    return ImageFacts(
        path,
        *picture.size,
        hashlib.sha256(data).hexdigest(),
        len(data),
        picture.format or "?",
        mode,
        tuple(dict.fromkeys(notes)),
    )


def _check_size(picture: Image.Image, path: str, max_pixels: int) -> None:
    """By the header: no pixel is decoded yet."""
    width, height = picture.size
    if width * height > max_pixels:
        got = f"{shown(path)}: {width} x {height} = {width * height:,}"
        raise Rejected(TOO_MANY_PIXELS, f"{got}, expected at most {max_pixels:,}")
    try:
        view_grid(width, height)
    except ImageError as error:
        raise Rejected(TOO_THIN, f"{shown(path)}: {error}") from error


def _rejection(error: ImageError, path: str, data: bytes) -> Rejected:
    """What kind of fault an error of `images` is; its cause is Pillow's own error."""
    cause = error.__cause__
    detail = f"{shown(path)}: {cause or error}"
    if isinstance(cause, Image.DecompressionBombError):
        return Rejected(TOO_MANY_PIXELS, detail)
    if isinstance(cause, UnidentifiedImageError):
        kind = TEXT_FILE if _is_text(data) else NO_IMAGE_FILE
        return Rejected(kind, f"{shown(path)} begins with {shown(data[:40])}")
    cut_off = "truncated" in str(cause).lower()
    return Rejected(TRUNCATED if cut_off else CORRUPT, detail)


def _is_text(data: bytes) -> bool:
    beginning = data[:512]
    return all(byte >= 32 or byte in b"\t\r\n\f" for byte in beginning)


def _notes(picture: Image.Image, mode: str, path: str) -> list[str]:
    notes = []
    if _is_animated(picture):
        notes.append("animated: first frame taken")
    if mode in _SIXTEEN_BIT:
        notes.append("more than 8 bits a channel")
    if mode == "CMYK":
        notes.append("CMYK")
    if mode == "P":
        notes.append("palette")
    if mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        notes.append("transparency: ignored")
    orientation = _orientation(picture)
    if orientation is None:
        notes.append("EXIF cannot be read: ignored")
    elif orientation != 1:
        notes.append("EXIF orientation: ignored")
    ending = PurePosixPath(path).suffix.lower()
    meant = Image.registered_extensions().get(ending)
    if meant != picture.format and (meant, picture.format) != ("JPEG", "MPO"):
        notes.append(f"{picture.format} file named {ending[:8] or 'without ending'}")
    return notes


def _is_animated(picture: Image.Image) -> bool:
    """Rejected for a file that is damaged where its frames are counted."""
    try:
        return bool(getattr(picture, "is_animated", False))
    except Exception as error:  # Pillow's readers let nearly any through
        detail = f"its frames: {type(error).__name__}: {error}"
        raise Rejected(CORRUPT, detail) from error


def _orientation(picture: Image.Image) -> Any:
    """The EXIF orientation, 1 where there is none; None where EXIF is damaged."""
    try:
        return picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # any, on damaged bytes; the pixels may well be whole
        return None
