"""Image files, bytes and pixels -> an RGB picture, or an error that says what is wrong.

What comes from a downloaded data set is not trusted:

    too many pixels         refused by the header, before any is decoded (MAX_PIXELS)
    formats                 those of FORMATS by content, whatever the file's name says;
                            others are refused (some make Pillow start other programs)
    truncated, empty, text  refused
    missing, a folder       refused
    outside the image root  refused by `records.parse_record`, links included
    remote files            of `gs://`, `s3://` and `memory://`, in `read_remote`

Decisions that change no pixel of what the authors' code sees:

    CMYK, palette, grey     `convert("RGB")` of Pillow; alpha and the transparency of a
                            palette are dropped and not composited
    16-bit grey             by Pillow's rule too: values above 255 become white, so a
                            16-bit scan is to be scaled to 8 bits beforehand
    animated                the first frame
    EXIF orientation        ignored: a photograph stored sideways is seen sideways
    damaged JPEG data       decoded as far as the decoder goes on by itself; a file that
                            ends early is refused
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from vtscale_jax.records import is_address

# A quarter of a gigabyte of RGB; Pillow warns from here and refuses twice this itself.
MAX_PIXELS = 89_478_485
# The formats of photographs, scans and screenshots. Pillow reads thirty more, and for
# one of them (EPS) it runs Ghostscript on the file.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "AVIF")
# fsspec's package for each kind of remote file; None: part of fsspec (for tests).
REMOTE_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "memory": None}

ImageLike = Image.Image | np.ndarray | bytes | str | Path


class ImageError(ValueError):
    """An image that cannot be read or cannot be cut into views."""


class ImageStoreError(ValueError):
    """A place of images that cannot be reached: no fault of any one image."""


def load_image(
    image: ImageLike, *, max_pixels: int = MAX_PIXELS, sample_id: str = ""
) -> Image.Image:
    """An image file, its bytes, RGB pixels `[height, width, 3]` uint8 or a PIL image ->
    RGB image (the given one itself, if it is one).

    A file is decoded completely, so that a truncated one is found here, but only after
    its header has shown at most `max_pixels`. Raises ImageError, naming `sample_id` and
    the path, for a file that is missing, empty, unreadable, truncated or too large, an
    image without pixels, and pixels of another shape or dtype; ImageStoreError when a
    remote place cannot be reached.
    """
    with opened_image(image, max_pixels=max_pixels, sample_id=sample_id) as opened:
        return decoded_rgb(opened, said(image, sample_id))


@contextmanager
def opened_image(
    image: ImageLike, *, max_pixels: int = MAX_PIXELS, sample_id: str = ""
) -> Iterator[Image.Image]:
    """The image with its size known and checked, its pixels not yet decoded. Errors as
    of `load_image`."""
    where = said(image, sample_id)
    if isinstance(image, Image.Image):
        check_size(*image.size, where=where, max_pixels=max_pixels)
        yield image
        return
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
            raise ImageError(
                f"{where}: got {image.dtype} pixels of shape {image.shape}; expected"
                " uint8 RGB, [height, width, 3]. Scale to 0..255 and convert."
            )
        height, width = image.shape[:2]
        check_size(width, height, where=where, max_pixels=max_pixels)
        yield Image.fromarray(np.ascontiguousarray(image))
        return
    with _opened_file(_file_of(image, where), where, max_pixels) as opened:
        check_size(*opened.size, where=where, max_pixels=max_pixels)
        yield opened


def decoded_rgb(image: Image.Image, where: str) -> Image.Image:
    """The decoded pixels as RGB. ImageError, beginning with `where`, for a file that
    cannot be decoded to its end."""
    try:
        image.load()
        if image.mode == "RGB":
            return image
        if "transparency" in image.info:
            # Same pixels; without this Pillow warns that transparency is lost.
            image = image.copy()
            del image.info["transparency"]
        return image.convert("RGB")
    # Pillow's readers let nearly any exception through on corrupt bytes.
    except Exception as error:
        raise _unreadable(where, error) from error


def read_remote(address: str, where: str = "image") -> bytes:
    """The bytes of a remote file, whole. ImageError where there is no such file,
    ImageStoreError where its place cannot be reached or needs a package."""
    import fsspec  # a local data set does without

    scheme, _, path = address.partition("://")
    if scheme not in REMOTE_PACKAGES:
        known = ", ".join(f"{name}://" for name in REMOTE_PACKAGES)
        raise ImageError(
            f"{where}: got the scheme {scheme}://; expected one of {known}, or a local"
            " path. Fetch the images first."
        )
    try:
        # By scheme and path: fsspec.open would follow "::" into other file systems.
        return fsspec.filesystem(scheme).cat_file(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ImageError(
            f"{where}: no such file. Check the path and the image root before it."
        ) from error
    except ImportError as error:
        package = REMOTE_PACKAGES[scheme]
        raise ImageStoreError(
            f"{where}: files of {scheme}:// are read by the package {package}, which"
            f" cannot be imported ({error}). Install it: pip install {package}"
        ) from error
    except Exception as error:
        raise ImageStoreError(
            f"{where}: {scheme}:// cannot be read ({type(error).__name__}: {error})."
            " Check the network, the credentials and the image root."
        ) from error


def check_size(
    width: int, height: int, *, where: str = "image", max_pixels: int | None = None
) -> None:
    """ImageError, beginning with `where`, for no pixels or more than `max_pixels`."""
    if width < 1 or height < 1:
        raise ImageError(
            f"{where}: got {width} x {height} pixels; expected at least 1 x 1. Drop it."
        )
    if max_pixels is not None and width * height > max_pixels:
        raise ImageError(
            f"{where}: got {width} x {height} = {width * height} pixels; expected at"
            f" most {max_pixels}. Shrink the image."
        )


def said(image: object, sample_id: str) -> str:
    """How an error names an image: by its sample, and its path where it has one."""
    path = f"image {str(image)!r}" if isinstance(image, str | Path) else "image"
    return f"sample {sample_id!r}, {path}" if sample_id else path


def _file_of(image: ImageLike, where: str) -> str | Path | io.BytesIO:
    """What Pillow opens: a local path, or the bytes of a file."""
    if isinstance(image, str) and is_address(image):
        image = read_remote(image, where)
    if isinstance(image, bytes):
        if not image:
            raise _empty(where)
        return io.BytesIO(image)
    if not isinstance(image, str | Path):
        raise ImageError(
            f"{where}: got {type(image).__name__}; expected a path, the bytes of an"
            " image file, an array or an image."
        )
    try:
        file = Path(image)
        is_file = file.is_file()
    except (OSError, ValueError) as error:  # too long a name, no permission, NUL
        raise ImageError(
            f"{where}: not the path of a file ({error}). Check the path and the image"
            " root before it."
        ) from error
    if not is_file:
        raise ImageError(
            f"{where}: no such file. Check the path and the image root before it."
        )
    if file.stat().st_size == 0:
        raise _empty(where)
    return file


def _opened_file(
    file: str | Path | io.BytesIO, where: str, max_pixels: int
) -> Image.Image:
    try:
        return Image.open(file, formats=_formats())
    # A warning where warnings are errors; otherwise our own check, which follows, is
    # stricter than the warning.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{where}: got too many pixels ({error}); expected at most {max_pixels}."
            " Shrink the image."
        ) from error
    except Exception as error:
        raise _unreadable(where, error) from error


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _empty(where: str) -> ImageError:
    return ImageError(
        f"{where}: got a file of 0 bytes; expected a complete image file. Fetch it"
        " again, or drop the record."
    )


def _unreadable(where: str, error: Exception) -> ImageError:
    return ImageError(
        f"{where}: cannot be decoded ({type(error).__name__}: {error}); expected a"
        " complete image file. Fetch it again, or drop the record."
    )
