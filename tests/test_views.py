"""Views against the authors' preprocessing, and their geometry.

Measured on the complete goldens: largest difference 0 wherever the padded square has
the size of a view (and in every local view), 1.0e-5 at the global view of 200x120,
3.6e-6 at 50x50, 1.9e-6 at 700x700. The tolerance is 2e-4; one grey level is 1.4e-2.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vtscale_jax import views
from vtscale_jax.images import ImageError, load_image
from vtscale_jax.views import (
    local_layout,
    make_views,
    num_views,
    remap_boxes,
    square_layout,
    view_grid,
)

TOLERANCE = 2e-4
TRIMMED = Path(__file__).parent / "golden" / "G1_image"
FOLDERS = [TRIMMED]
if "VTSCALE_GOLDENS" in os.environ:
    FOLDERS.append(Path(os.environ["VTSCALE_GOLDENS"]) / "G1_image")


@cache
def summary(folder):
    return json.loads((folder / "summary.json").read_text())


IMAGES = [
    pytest.param(folder, name, id=f"{'trimmed' if folder is TRIMMED else 'all'}-{name}")
    for folder in FOLDERS
    for name in summary(folder)["images"]
    if (folder / f"{name}.png").exists()
]
every_image = pytest.mark.parametrize("folder,name", IMAGES)
every_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.parent.name)


def golden_views(folder, name, max_local_views=9):
    return make_views(folder / f"{name}.png", max_local_views=max_local_views)


def sample_error(folder, name, pixels, max_local_views=9):
    """Largest difference per view at the sampled pixels."""
    rows, columns = np.array(summary(folder)["sample_row_col"]).T
    expected = summary(folder)["images"][name]["hd"][str(max_local_views)]["samples"]
    assert len(pixels) == len(expected)
    return np.abs(pixels[:, rows, columns] - np.array(expected)).max((1, 2))


def global_error(folder, name, pixels):
    golden = np.load(folder / f"{name}_global_rows.npz")
    expected = golden["pixel_values_rows"].transpose(1, 2, 0)
    return np.abs(pixels[0, golden["rows"]] - expected).max()


def gradient_image(width, height):
    """RGB pixels without symmetry; every view of them is different."""
    y, x = np.mgrid[:height, :width]
    channels = (x * 5 + y * 3, x * 2 + y * 7 + (x * y) % 11, x * y)
    return (np.stack(channels, axis=-1) % 256).astype(np.uint8)


# Parity with the authors' code


@pytest.mark.goldens
@every_image
@pytest.mark.parametrize("max_local_views", [1, 9])
def test_views_match_samples_and_statistics(folder, name, max_local_views):
    golden = summary(folder)["images"][name]["hd"][str(max_local_views)]
    pixels = golden_views(folder, name, max_local_views)
    assert pixels.dtype == np.float32
    assert pixels.shape == (golden["num_crops_incl_global"], 336, 336, 3)
    assert sample_error(folder, name, pixels, max_local_views).max() < TOLERANCE
    exact = pixels.astype(np.float64)
    mean, std = exact.mean((1, 2)), exact.std((1, 2))
    np.testing.assert_allclose(mean, golden["crop_mean"], atol=1e-5)
    np.testing.assert_allclose(std, golden["crop_std_population"], atol=1e-5)


@pytest.mark.goldens
@pytest.mark.parametrize(
    "path",
    [
        p
        for f in FOLDERS
        for p in sorted(f.glob("*_full.npz")) + sorted(f.glob("*_part.npz"))
    ],
    ids=lambda p: f"{p.parent.parent.name}-{p.stem}",
)
def test_views_match_whole_arrays(path):
    stem, hd, _ = path.stem.rsplit("_", 2)
    pixels = golden_views(path.parent, stem, int(hd.removeprefix("hd")))
    golden = np.load(path)
    if "rows" in golden:
        pixels = pixels[:, golden["rows"]][:, :, golden["columns"]]
    expected = golden["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.goldens
@pytest.mark.parametrize(
    "path",
    [p for f in FOLDERS for p in sorted(f.glob("*_global_rows.npz"))],
    ids=lambda p: f"{p.parent.parent.name}-{p.stem}",
)
def test_global_view_matches_rows(path):
    name = path.stem.removesuffix("_global_rows")
    assert global_error(path.parent, name, golden_views(path.parent, name)) < 1e-5


@pytest.mark.goldens
@pytest.mark.parametrize(
    "path",
    [p for f in FOLDERS for p in sorted(f.glob("*_padimg.png"))],
    ids=lambda p: f"{p.parent.parent.name}-{p.stem}",
)
def test_square_matches_exactly(path):
    picture = load_image(path.with_name(path.name.replace("_padimg", "")))
    square = views._squared(picture, square_layout(*picture.size))
    np.testing.assert_array_equal(square, np.asarray(Image.open(path)))
    # Control: another filter is seen, where there was something to resize.
    if max(picture.size) > 336:
        small = picture.resize((336, 336), Image.Resampling.BICUBIC)
        assert not np.array_equal(square, np.asarray(small))


@pytest.mark.goldens
@pytest.mark.parametrize(
    "path",
    [p for f in FOLDERS for p in sorted(f.glob("*_hd9_canvas*.png"))],
    ids=lambda p: f"{p.parent.parent.name}-{p.stem}",
)
def test_local_canvas_matches_exactly(path):
    name, _, kind = path.stem.partition("_hd9_canvas")
    picture = load_image(path.parent / f"{name}.png")
    canvas = views._local_canvas(picture, local_layout(*picture.size, 9))
    every = 7 if kind == "_part" else 1
    expected = np.asarray(Image.open(path))
    np.testing.assert_array_equal(canvas[::every, ::every], expected)
    assert not np.array_equal(canvas[::-1][::every, ::every], expected)


# Controls: a wrong step must be seen at the tolerance used above


def test_control_pillow_cubic_coefficient(monkeypatch):
    right = golden_views(TRIMMED, "img_50x50")
    monkeypatch.setattr(views, "CUBIC_A", -0.5)
    monkeypatch.setattr(views, "cubic_taps", views.cubic_taps.__wrapped__)
    wrong = golden_views(TRIMMED, "img_50x50")
    assert global_error(TRIMMED, "img_50x50", right) < TOLERANCE
    assert global_error(TRIMMED, "img_50x50", wrong) > 10 * TOLERANCE
    wrong = golden_views(TRIMMED, "img_700x700")
    assert global_error(TRIMMED, "img_700x700", wrong) > 10 * TOLERANCE


def test_control_antialiased_global_view():
    picture = Image.open(TRIMMED / "img_700x700.png")
    small = picture.resize((336, 336), Image.Resampling.BICUBIC)
    assert global_error(TRIMMED, "img_700x700", make_views(small)) > 10 * TOLERANCE


@pytest.mark.parametrize("right,wrong,view", [(255, 0, 1), (0, 255, 0)])
def test_control_padding_colour(monkeypatch, right, wrong, view):
    name, paste = "img_97x613", views.pasted

    def recoloured(picture, layout, *, fill):
        return paste(picture, layout, fill=wrong if fill == right else fill)

    monkeypatch.setattr(views, "pasted", recoloured)
    error = sample_error(TRIMMED, name, golden_views(TRIMMED, name))
    assert error[view] > 1
    unchanged = error[:1] if view else error[1:]
    assert unchanged.max() < TOLERANCE


def test_control_order_of_local_views():
    pixels = golden_views(TRIMMED, "img_200x120")
    by_column = pixels[[0, 1, 4, 2, 5, 3, 6]]
    assert sample_error(TRIMMED, "img_200x120", by_column)[1:].max() > 1


def test_tall_image_is_resized_as_if_transposed():
    picture = load_image(TRIMMED / "img_97x613.png")
    layout = local_layout(*picture.size, 9)
    right = views._local_canvas(picture, layout)
    inside = right[:, layout.left : layout.left + layout.width]
    bilinear, flip = Image.Resampling.BILINEAR, Image.Transpose.TRANSPOSE
    size = (layout.width, layout.height)
    there = picture.transpose(flip).resize(size[::-1], bilinear).transpose(flip)
    np.testing.assert_array_equal(inside, np.asarray(there))
    # Control: Pillow's own order of the axes gives other pixels.
    direct = np.asarray(picture.resize(size, bilinear))
    assert inside.shape == direct.shape and not np.array_equal(inside, direct)


# Geometry


@pytest.mark.goldens
@every_folder
def test_grids(folder):
    table = summary(folder)["grid_table"]
    assert len(table) == 1284
    for width, height, hd, padded_width, padded_height in table:
        grid = padded_height // 336, padded_width // 336
        assert view_grid(width, height, hd) == grid, (width, height, hd)
        assert num_views(width, height, hd) == grid[0] * grid[1] + 1 <= hd + 1
    # Control: the table tells apart a neighbouring number of views.
    assert any(
        view_grid(width, height, hd + 1) != (b // 336, a // 336)
        for width, height, hd, a, b in table
    )


@pytest.mark.goldens
@every_folder
def test_layouts_of_golden_images(folder):
    for golden in summary(folder)["images"].values():
        size = tuple(golden["size_wh"])
        for hd, expected in golden["hd"].items():
            layout = local_layout(*size, int(hd))
            assert layout[:2] == tuple(expected["padded_size_wh"])
            assert view_grid(*size, int(hd)) == tuple(expected["grid_rows_cols"])
            assert num_views(*size, int(hd)) == expected["num_crops_incl_global"]
        square, shape = square_layout(*size), golden["shape_info"]
        assert square[:2] == tuple(golden["global_pre_interp_size_wh"])
        names = ("pad_width", "pad_height", "width", "height", "pad_left", "pad_top")
        assert square == tuple(shape[name] for name in names)


@pytest.mark.goldens
@every_folder
def test_extreme_aspects(folder):
    for size, golden in summary(folder)["extreme_aspect"].items():
        width, height = map(int, size.split("x"))
        with pytest.raises(ImageError, match="too thin"):
            square_layout(width, height)
        assert "ValueError" in golden["image_expand2square"]
        if isinstance(golden["HD_transform_9"], list):
            layout = local_layout(width, height, 9)
            assert list(layout[:2]) == golden["HD_transform_9"]
        else:
            with pytest.raises(ImageError, match="too thin"):
                local_layout(width, height, 9)
        for fails in (view_grid, num_views):
            with pytest.raises(
                ImageError, match=f"{width} x {height} pixels, too thin"
            ):
                fails(width, height)
        with pytest.raises(ImageError, match=r"sample 'strip'.*too thin.*drop"):
            make_views(np.zeros((height, width, 3), np.uint8), sample_id="strip")


@pytest.mark.goldens
@every_folder
def test_batch_example(folder):
    batch = summary(folder)["batch_example"]
    crop_index, sizes = [], []
    for row, name in enumerate(batch["images"]):
        if name is None:
            sizes.append([0, 0])
            continue
        size = map(int, name.removeprefix("img_").removesuffix(".png").split("x"))
        rows, columns = view_grid(*size, batch["hd_num"])
        crop_index += [row] * (rows * columns + 1)
        sizes.append([rows * 336, columns * 336])
    assert crop_index == batch["crop_index"]
    assert sizes == batch["image_sizes"]
    assert len(crop_index) == batch["pixel_values_shape"][0]


@pytest.mark.parametrize("size", [(96, 96), (96, 64), (33, 150), (20, 11), (32, 32)])
def test_other_view_sizes(size):
    pixels = gradient_image(*size)
    result = make_views(pixels, view_size=32, max_local_views=9)
    rows, columns = view_grid(*size, 9, 32)
    assert result.shape == (num_views(*size, 9, 32), 32, 32, 3) and len(result) <= 10
    # The local views put together again are the padded, resized image.
    layout = local_layout(*size, 9, 32)
    tiles = result[1:].reshape(rows, columns, 32, 32, 3).transpose(0, 2, 1, 3, 4)
    canvas = tiles.reshape(rows * 32, columns * 32, 3) * views.CLIP_STD
    canvas = (canvas + views.CLIP_MEAN) * 255
    inside = np.zeros(canvas.shape[:2], bool)
    down = slice(layout.top, layout.top + layout.height)
    inside[down, layout.left : layout.left + layout.width] = True
    np.testing.assert_allclose(canvas[~inside], 255, atol=1e-3)
    if size == (96, 96):
        np.testing.assert_allclose(canvas, pixels, atol=1e-3)
        assert np.abs(canvas - pixels[:, ::-1]).max() > 1


def test_view_of_its_own_size_is_not_resampled():
    pixels = gradient_image(32, 32)
    result = make_views(pixels, view_size=32, max_local_views=1)
    np.testing.assert_array_equal(result[0], result[1])
    expected = (pixels / 255 - views.CLIP_MEAN) / views.CLIP_STD
    np.testing.assert_allclose(result[0], expected, atol=1e-5)
    other = make_views(pixels, view_size=32, max_local_views=1, mean=(0.5, 0.4, 0.4))
    assert np.abs(other - result).max() > 1e-2


def test_constant_image_stays_constant():
    """Taps sum to one, also at the clamped edges."""
    flat = np.full((77, 77, 3), 200, np.uint8)
    result = make_views(flat, view_size=32, mean=(0.0,) * 3, std=(1.0,) * 3)
    np.testing.assert_allclose(result, 200 / 255, atol=1e-6)


# Boxes


@pytest.mark.goldens
@every_folder
def test_boxes_of_golden_images(folder):
    for golden in summary(folder)["images"].values():
        text = "<bbox>0,100,500,999</bbox>"
        moved = remap_boxes(text, *golden["size_wh"])
        assert moved == golden["bbox_remap_of_0,100,500,999"]
        if golden["shape_info"]["height"] != golden["shape_info"]["width"]:
            assert moved != text


def test_boxes_in_text():
    box = "<bbox>0,100,500,999</bbox>"
    text = f"Is {box} left of {box}? [1, 2, 3, 4] <bbox>1, 2,3,4</bbox>"
    moved = remap_boxes(text, 640, 480)
    assert moved == text.replace(box, "<bbox>0,199,500,874</bbox>")
    big = remap_boxes("<bbox>0,1500,5,1500</bbox>", 640, 480)
    assert big == remap_boxes("<bbox>0,999,5,999</bbox>", 640, 480)


# Settings and imports


@pytest.mark.parametrize("bad", [{"view_size": 0}, {"max_local_views": 0}])
def test_wrong_settings(bad):
    with pytest.raises(ImageError, match=f"{next(iter(bad))}: got 0"):
        make_views(gradient_image(8, 8), **bad)
    with pytest.raises(ImageError, match="mean, std"):
        make_views(gradient_image(8, 8), view_size=8, std=(1.0, 0.0, 1.0))


def test_views_module_stays_on_the_host():
    code = "import sys, vtscale_jax.views; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
