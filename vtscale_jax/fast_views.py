"""The views of `views` in less time, and nearly the same pixels (`data.views=fast`).

The layout is the same to the pixel: number and order of views, grid, padding. What
differs is how pixels get there:

    exact                                   fast
    a JPEG is decoded whole                 at 1/2, 1/4 or 1/8 of its size, where that
                                            still fills the local canvas (`COVER`)
    tall: resized vertically first          in Pillow's order
    global view by LANCZOS                  bilinear, antialiased, from the same picture
    float32, normalised on the host         uint8, normalised by the vision tower: a
                                            quarter of the bytes to the device

Difference to the exact views in grey levels of 0 to 255, mean / largest, measured on
smooth colours with photograph-like texture (1/f, standard deviation 12; JPEG of quality
90, 2.3 bits a pixel). tests/test_fast_views.py holds them to the bounds of the last
column.

    file           decoded at   local views   global view   bounds
    640 x 480      1            0 / 0         0.9 / 7       0, 1.2 / 10
    480 x 640      1            0.1 / 1       0.9 / 7       0.2 / 1, 1.2 / 10
    2000 x 1500    1/2          0.9 / 8       0.9 / 7       1.2 / 10
    4000 x 3000    1/4          0.8 / 7       0.9 / 7       1.2 / 10
    3000 x 3000    1/2          0.5 / 4       3.4 / 21      1.2 / 10, 4 / 25
    200 x 120      1            0 / 0         0.2 / 22      0, 0.4 / 25

The global view of a large square is sampled without antialiasing, by the authors' rule,
from the file there and from the half here; that of an image smaller than a view rings
beside its black border, which uint8 cuts off. Anything but a JPEG is decoded whole. On
Digit Pages the shipped model at M = 64 gave the same 768 greedy answers with both, and
held-out losses that differ by less than 1e-7.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vtscale_jax.images import (
    MAX_PIXELS,
    ImageError,
    ImageLike,
    decoded_rgb,
    opened_image,
    said,
)
from vtscale_jax.views import (
    Layout,
    cubic_taps,
    cut,
    local_layout,
    mixed,
    pasted,
    square_layout,
    taken,
)

# A JPEG may be decoded to this share of the local canvas and a little enlarged: a
# photograph of 2,000 x 1,500 at one half is 1,000 wide, for a canvas of 1,008.
COVER = 0.95


class Reduced(NamedTuple):
    """An RGB picture that may be decoded at a fraction of its size.

    `width` and `height` are those of the file; `box` (left, top, right, bottom, in
    pixels of `picture`) is what the whole file takes of it.
    """

    picture: Image.Image
    width: int
    height: int
    box: tuple[float, float, float, float]


def load_reduced(
    image: ImageLike,
    *,
    view_size: int = 336,
    max_local_views: int = 9,
    max_pixels: int = MAX_PIXELS,
    sample_id: str = "",
) -> Reduced:
    """An image as large as its views need it. What `images.load_image` takes and
    raises; ImageError also for an image too thin for its views."""
    where = said(image, sample_id)
    with opened_image(image, max_pixels=max_pixels, sample_id=sample_id) as opened:
        width, height = opened.size
        box = (0.0, 0.0, float(width), float(height))
        local, _ = _layouts(width, height, view_size, max_local_views, where)
        if not isinstance(image, Image.Image):  # the caller's own stays as it is
            least = (_covering(local.width), _covering(local.height))
            drafted = opened.draft(None, least)  # None for all but JPEG
            box = box if drafted is None else drafted[1]
        return Reduced(decoded_rgb(opened, where), width, height, box)


def make_fast_views(
    image: ImageLike | Reduced,
    *,
    view_size: int = 336,
    max_local_views: int = 9,
    sample_id: str = "",
) -> UInt8[np.ndarray, "V view view 3"]:
    """The views of one image, of `views.make_views`' layout, not normalised: view 0 is
    the global view, views 1... are the local views row by row.

    `image` is whatever `load_reduced` takes, or what it made with the same settings.
    Raises ImageError as it does.
    """
    if not isinstance(image, Reduced):
        image = load_reduced(
            image,
            view_size=view_size,
            max_local_views=max_local_views,
            sample_id=sample_id,
        )
    local, square = _layouts(
        image.width, image.height, view_size, max_local_views, said(None, sample_id)
    )
    rows, columns = local.canvas_height // view_size, local.canvas_width // view_size
    views = np.empty((1 + rows * columns, view_size, view_size, 3), np.uint8)
    views[0] = _global_view(image, square, view_size)
    cut(pasted(_resized(image, local), local, fill=255), views[1:])
    return views


def _global_view(
    image: Reduced, layout: Layout, view_size: int
) -> UInt8[np.ndarray, "view view 3"]:
    if layout.canvas_width == view_size:
        return pasted(_resized(image, layout), layout, fill=0)
    # A square image of any size, or one smaller than a view: sampled as exactly as the
    # picture allows, then rounded. Bicubic overshoot beyond 0 and 255 is cut off.
    square = layout
    if image.picture.size != (layout.width, layout.height):
        side = max(image.picture.size)  # a square JPEG, decoded at a fraction
        square = Layout(side, side, *image.picture.size, 0, 0)
    taps = cubic_taps(square.canvas_width, view_size)
    values = mixed(taken(pasted(image.picture, square, fill=0), taps), taps)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _resized(image: Reduced, layout: Layout) -> Image.Image:
    size, bilinear = (layout.width, layout.height), Image.Resampling.BILINEAR
    return image.picture.resize(size, bilinear, box=image.box)


def _covering(size: int) -> int:
    return max(1, int(COVER * size))


def _layouts(
    width: int, height: int, view_size: int, max_local_views: int, where: str
) -> tuple[Layout, Layout]:
    """The layouts of the local canvas and of the global square, as `views` has them."""
    try:
        square = square_layout(width, height, view_size)
        return local_layout(width, height, max_local_views, view_size), square
    except ImageError as error:
        raise ImageError(f"{where}: {error}") from error
