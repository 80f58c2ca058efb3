"""Image -> global view and local views, the pixels that the vision tower reads.

The HD transform resizes an image to a whole number of `view_size` squares (at most
`max_local_views`), pads the shorter axis with white, and cuts it into local views; the
global view is the whole image on a black square, brought to `view_size` by bicubic
interpolation (paper appendix B; spec: model, section 2). At `view_size` 336 and 9 local
views the pixels agree with the authors' PyTorch code; other sizes generalise every 336.

    480 wide, 640 high, 9 views, 336 -> local canvas 1008 x 1008, grid 3 x 3, 10 views

Quirks 6 and 7 of the specification are kept for parity: see `square_layout` and
`make_views`. How a file becomes RGB is said in `images`. `fast_views` makes nearly the
same pixels in less time.
"""

import math
import re
from collections.abc import Sequence
from functools import lru_cache, partial, reduce
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped, UInt8
from PIL import Image

from vtscale_jax.images import ImageError, ImageLike, check_size, load_image, said
from vtscale_jax.types import CLIP_MEAN, CLIP_STD

# Keys' cubic with a = -0.75 as in torch; Pillow and jax.image use -0.5.
CUBIC_A = -0.75

BOX_SCALE = 999
BOX = re.compile(r"<bbox>([0-9]+),([0-9]+),([0-9]+),([0-9]+)</bbox>")


class Layout(NamedTuple):
    """Where an image goes, in pixels: it is resized to `width` x `height` and pasted at
    (`left`, `top`) on a canvas of one colour."""

    canvas_width: int
    canvas_height: int
    width: int
    height: int
    left: int
    top: int


def local_layout(
    width: int, height: int, max_local_views: int = 9, view_size: int = 336
) -> Layout:
    """The HD transform as numbers (spec: model, section 2.1); no pixels are touched.

    Raises ImageError when the short side of the resized image would be 0 pixels.
    """
    _check_settings(max_local_views, view_size)
    check_size(width, height)
    tall = width < height
    long_side, short_side = (height, width) if tall else (width, height)
    ratio = long_side / short_side
    along = 1
    while (along + 1) * math.ceil((along + 1) / ratio) <= max_local_views:
        along += 1
    new_long = view_size * along
    new_short = int(new_long / ratio)
    if new_short == 0:
        raise _too_thin(width, height, "resized for local views", new_long)
    padded = math.ceil(new_short / view_size) * view_size
    before = (padded - new_short) // 2
    if tall:
        return Layout(padded, new_long, new_short, new_long, before, 0)
    return Layout(new_long, padded, new_long, new_short, 0, before)


def square_layout(width: int, height: int, view_size: int = 336) -> Layout:
    """The square of the global view as numbers (spec: model, section 2.2).

    Quirk 6 of the specification, kept for parity: a square image is never resized here,
    at any size, and an image smaller than `view_size` is not enlarged before it is
    padded. The bicubic step that follows does not antialias, so a large square image is
    sampled coarsely where a large image of any other shape is shrunk with LANCZOS.

    Raises ImageError as `local_layout` does.
    """
    _check_settings(1, view_size)
    check_size(width, height)
    longest = max(width, height)
    if width == height or longest <= view_size:
        side, new_width, new_height = longest, width, height
    else:
        side, scale = view_size, view_size / longest
        new_width = view_size if width == longest else int(width * scale)
        new_height = view_size if height == longest else int(height * scale)
    if min(new_width, new_height) == 0:
        raise _too_thin(width, height, "shrunk for the global view", side)
    left, top = (side - new_width) // 2, (side - new_height) // 2
    return Layout(side, side, new_width, new_height, left, top)


def view_grid(
    width: int, height: int, max_local_views: int = 9, view_size: int = 336
) -> tuple[int, int]:
    """(rows, columns) of the local views of an image of `width` x `height` pixels.

    For planning without pixels: raises ImageError exactly for the sizes for which
    `make_views` does.
    """
    square_layout(width, height, view_size)
    layout = local_layout(width, height, max_local_views, view_size)
    return layout.canvas_height // view_size, layout.canvas_width // view_size


def num_views(
    width: int, height: int, max_local_views: int = 9, view_size: int = 336
) -> int:
    """How many views `make_views` gives: the local ones and the global one."""
    rows, columns = view_grid(width, height, max_local_views, view_size)
    return rows * columns + 1


def make_views(
    image: ImageLike,
    *,
    view_size: int = 336,
    max_local_views: int = 9,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    sample_id: str = "",
) -> Float[np.ndarray, "V view view 3"]:
    """The normalised views of one image, float32: view 0 is the global view, views
    1... are the local views row by row (spec: model, section 2).

    `image` is whatever `load_image` takes; V is `num_views(width, height, ...)`. Pixels
    are (u8 / 255 - mean) / std in float32.

    Quirk 7 of the specification, kept for parity: the local views are padded with white
    and the global view with black.
    Raises ImageError as `load_image` does, and for an image too thin to be resized.
    """
    picture = load_image(image, sample_id=sample_id)
    try:
        square = square_layout(*picture.size, view_size)
        local = local_layout(*picture.size, max_local_views, view_size)
    except ImageError as error:
        raise ImageError(f"{said(image, sample_id)}: {error}") from error
    rows, columns = local.canvas_height // view_size, local.canvas_width // view_size
    views = np.empty((1 + rows * columns, view_size, view_size, 3), np.float32)
    views[0] = _global_view(picture, square, view_size, mean, std)
    cut(_local_canvas(picture, local), views[1:])
    _normalise(views[1:], mean, std)
    return views


def remap_boxes(text: str, width: int, height: int, *, view_size: int = 336) -> str:
    """Moves the boxes in `text` from the image's coordinates to those of the padded
    square of the global view; for training only (spec: model, section 2.3).

    Boxes read `<bbox>x0,y0,x1,y1</bbox>`, integers on a scale of 0 to 999 of the
    image's `width` and `height` (pixels); larger values count as 999. All other text
    stays as it is.

        remap_boxes("<bbox>0,100,500,999</bbox>", 640, 480)
        -> "<bbox>0,199,500,874</bbox>"
    """
    square = square_layout(width, height, view_size)
    return BOX.sub(partial(_remapped_box, square), text)


def _remapped_box(square: Layout, box: re.Match[str]) -> str:
    spans = [(square.width, square.left), (square.height, square.top)] * 2
    moved = []
    for value, (size, before) in zip(box.groups(), spans, strict=True):
        place = min(float(value) / BOX_SCALE, 1.0) * size + before
        moved.append(int(BOX_SCALE * (place / square.canvas_width)))
    return f"<bbox>{moved[0]},{moved[1]},{moved[2]},{moved[3]}</bbox>"


def _local_canvas(
    picture: Image.Image, layout: Layout
) -> UInt8[np.ndarray, "height width 3"]:
    bilinear = Image.Resampling.BILINEAR
    if picture.width < picture.height:
        # Pillow resizes horizontally, rounds to 8 bits, then resizes vertically. The
        # authors' code transposes a tall image before and after; resized vertically
        # first, by itself, it has the same pixels in less time.
        picture = picture.resize((picture.width, layout.height), bilinear)
    picture = picture.resize((layout.width, layout.height), bilinear)
    return pasted(picture, layout, fill=255)


def _squared(picture: Image.Image, layout: Layout) -> UInt8[np.ndarray, "side side 3"]:
    size = (layout.width, layout.height)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return pasted(picture, layout, fill=0)


def pasted(
    picture: Image.Image, layout: Layout, *, fill: int
) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a picture that has its size already, on the canvas of `layout`,
    whose every channel is `fill`."""
    pixels = np.asarray(picture)
    if picture.size == (layout.canvas_width, layout.canvas_height):
        return pixels
    canvas = np.full((layout.canvas_height, layout.canvas_width, 3), fill, np.uint8)
    down = slice(layout.top, layout.top + picture.height)
    canvas[down, layout.left : layout.left + picture.width] = pixels
    return canvas


def cut(
    canvas: UInt8[np.ndarray, "height width 3"], tiles: Shaped[np.ndarray, "V v v 3"]
) -> None:
    """Cuts a canvas into the square `tiles` row by row, cast to their dtype."""
    side = tiles.shape[1]
    rows, columns = canvas.shape[0] // side, canvas.shape[1] // side
    grid = canvas.reshape(rows, side, columns, side, 3)
    tiles.reshape(rows, columns, side, side, 3)[...] = grid.transpose(0, 2, 1, 3, 4)


def _global_view(
    picture: Image.Image,
    layout: Layout,
    view_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Float32[np.ndarray, "view view 3"]:
    pixels = _squared(picture, layout)
    if layout.canvas_width == view_size:
        return _normalise(pixels.astype(np.float32), mean, std)
    taps = cubic_taps(layout.canvas_width, view_size)
    # Only the pixels that some tap reads are normalised.
    return mixed(_normalise(taken(pixels, taps), mean, std), taps)


class Taps(NamedTuple):
    """Four taps for each output position of an axis: source pixel `used[place]` and
    weight."""

    used: Int[np.ndarray, " used"]
    place: Int[np.ndarray, "size 4"]
    weight: Float32[np.ndarray, "size 4"]


@lru_cache(maxsize=64)
def cubic_taps(source: int, size: int) -> Taps:
    """torch's bicubic interpolation from `source` to `size` pixels along one axis:
    half-pixel centres, no antialiasing, taps clamped at the edges.

    Coordinates are float32 as in torch: exact ones differ by 1e-4 on a large image.
    """
    scale = np.float32(source) / np.float32(size)
    centre = scale * (np.arange(size, dtype=np.float32) + 0.5) - 0.5
    first = np.floor(centre)
    near, a = centre - first, np.float32(CUBIC_A)

    def inner(x: np.ndarray) -> np.ndarray:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def outer(x: np.ndarray) -> np.ndarray:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    weights = (outer(near + 1), inner(near), inner(1 - near), outer(2 - near))
    index = np.clip(first[:, None].astype(np.int64) + np.arange(-1, 3), 0, source - 1)
    used, place = np.unique(index, return_inverse=True)
    taps = Taps(used, place.reshape(index.shape), np.stack(weights, axis=1))
    for array in taps:
        array.flags.writeable = False
    return taps


def taken(
    pixels: UInt8[np.ndarray, "side side 3"], taps: Taps
) -> Float32[np.ndarray, "used used 3"]:
    """The pixels of a square that some tap reads."""
    return pixels.take(taps.used, axis=0).take(taps.used, axis=1).astype(np.float32)


def mixed(
    used: Float32[np.ndarray, "used used 3"], taps: Taps
) -> Float32[np.ndarray, "size size 3"]:
    """The square that the taps make of `taken` pixels, along both axes.

    Rows are mixed before columns (torch: columns first) because whole rows are quick to
    gather; it moves the result by float32 rounding only.
    """
    mix = list(zip(taps.place.T, taps.weight.T[..., None], strict=True))
    rows = reduce(np.add, (used[place] * weight[..., None] for place, weight in mix))
    return reduce(np.add, (rows.take(place, axis=1) * weight for place, weight in mix))


def _normalise(
    pixels: Float32[np.ndarray, "*n width 3"],
    mean: Sequence[float],
    std: Sequence[float],
) -> Float32[np.ndarray, "*n width 3"]:
    """(pixels / 255 - mean) / std in place; `pixels` must be contiguous. Statistics are
    repeated along a row because broadcasting over an axis of 3 is slow in numpy."""
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ImageError(
            f"mean, std: got {tuple(mean)} and {tuple(std)}; expected three numbers"
            " each (red, green, blue; on a scale of 0 to 1), std positive."
        )
    width = pixels.shape[-2]
    rows = pixels.reshape(*pixels.shape[:-2], width * 3, copy=False)
    rows /= np.float32(255)
    rows -= np.tile(np.asarray(mean, np.float32), width)
    rows /= np.tile(np.asarray(std, np.float32), width)
    return pixels


def _too_thin(width: int, height: int, step: str, long_side: int) -> ImageError:
    return ImageError(
        f"got an image of {width} x {height} pixels, too thin: {step} (long side"
        f" {long_side}), its short side becomes 0 pixels; expected at least 1. Crop or"
        " pad it, or drop the record."
    )


def _check_settings(max_local_views: int, view_size: int) -> None:
    if view_size < 1:
        raise ImageError(f"view_size: got {view_size}; expected 1 pixel or more.")
    if max_local_views < 1:
        raise ImageError(f"max_local_views: got {max_local_views}; expected 1 or more.")
