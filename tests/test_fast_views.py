"""Fast views: the layout of the exact ones, pixels within the bounds that the module
states, and a model that is hardly told apart from one with exact views."""

import io
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from small_runs import rows, small_config
from test_loader import ADAPT, LAYOUT, SPEC, Samples, stream

from vtscale_jax import fast_views, settings
from vtscale_jax.assemble import assemble, open_source, prompts_encoding
from vtscale_jax.collate import blank_batch, collate
from vtscale_jax.encoding import SampleError, empty_sample, encode, see
from vtscale_jax.fast_views import load_reduced, make_fast_views
from vtscale_jax.images import ImageError, load_image
from vtscale_jax.train import train
from vtscale_jax.types import CLIP_MEAN, CLIP_STD, Record, Turn
from vtscale_jax.views import local_layout, make_views, view_grid
from vtscale_jax.vision import VisionTower, normalised


def photograph(width, height, seed=0, noise=12.0):
    """Smooth colours with texture that is stronger the coarser it is (1/f)."""
    x, y = np.arange(width) / width, np.arange(height)[:, None] / height
    smooth = [127 + 90 * np.sin(5 * x + 3 * y), 127 + 90 * np.cos(4 * y + 0 * x)]
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512))
    frequency[0, 0] = np.inf
    white = np.random.default_rng(seed).normal(size=(512, 512))
    tile = np.fft.irfft2(np.fft.rfft2(white) / frequency)  # periodic
    times = (-(-height // 512), -(-width // 512))
    texture = np.tile(tile * (noise / tile.std()), times)[:height, :width, None]
    pixels = np.stack([*smooth, 40 + 180 * x + 0 * y], axis=-1) + texture
    return np.clip(pixels, 0, 255).astype(np.uint8)


def jpeg(pixels, quality=90, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def grey_levels(views):
    """Exact views on the scale of pixels."""
    return (views * np.float32(CLIP_STD) + np.float32(CLIP_MEAN)) * 255


def difference(ours, exact):
    """Mean and largest difference of local and of global views, in grey levels."""
    assert ours.dtype == np.uint8 and ours.shape == exact.shape
    off = np.abs(ours.astype(np.float32) - grey_levels(exact))
    return (off[1:].mean(), off[1:].max()), (off[0].mean(), off[0].max())


# Pixels

USUAL, ALIASED, OVERSHOT, SAMPLED = (1.2, 10), (4.0, 25), (0.4, 25), (0.3, 4)
NONE, ROUNDED = (1e-4, 1e-2), (0.2, 1.01)


@pytest.mark.parametrize(
    "size,is_jpeg,scale,local,whole",
    [
        ((640, 480), True, 1, NONE, USUAL),
        ((640, 480), False, 1, NONE, USUAL),
        ((480, 640), True, 1, ROUNDED, USUAL),
        ((2000, 1500), True, 2, USUAL, USUAL),
        ((2000, 1500), False, 1, NONE, USUAL),
        ((1500, 2000), True, 2, USUAL, USUAL),
        ((3000, 1000), True, 2, USUAL, USUAL),
        ((4000, 3000), True, 4, USUAL, USUAL),
        ((1024, 300), True, 1, NONE, USUAL),
        ((700, 700), True, 1, NONE, SAMPLED),
        ((2200, 2200), True, 2, USUAL, ALIASED),
        ((200, 120), True, 1, NONE, OVERSHOT),
        ((50, 50), True, 1, NONE, SAMPLED),
    ],
)
def test_pixels_are_near_the_exact_ones(size, is_jpeg, scale, local, whole):
    pixels = photograph(*size)
    image = jpeg(pixels) if is_jpeg else pixels
    reduced = load_reduced(image)
    assert (reduced.width, reduced.height) == size
    assert reduced.picture.size == (-(-size[0] // scale), -(-size[1] // scale))
    exact = make_views(image)
    found = difference(make_fast_views(image), exact)
    for (mean, most), (mean_bound, bound) in zip(found, (local, whole), strict=True):
        assert mean <= mean_bound and most <= bound, found
    # Control: the bounds would not pass a picture that lies a few pixels aside.
    moved = np.roll(np.asarray(load_image(image)), 1 + max(size) // 60, axis=1)
    aside = difference(make_fast_views(moved), exact)
    assert aside[0][1] > local[1] or aside[0][0] > local[0]
    assert aside[1][1] > whole[1] or aside[1][0] > whole[0]


def test_layout_is_that_of_the_exact_views():
    """Random sizes, thin ones among them: the grid, the padding and the refusals."""
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(300):
        width, height = np.exp(rng.uniform(0, 6.2, 2)).astype(int).tolist()
        views, size = int(rng.integers(1, 13)), int(rng.integers(8, 25))
        settings = {"view_size": size, "max_local_views": views}
        flat = np.full((height, width, 3), 128, np.uint8)
        image = jpeg(flat) if number % 3 == 0 else flat
        try:
            exact = make_views(image, **settings)
        except ImageError as error:
            with pytest.raises(ImageError) as ours:
                make_fast_views(image, **settings)
            assert str(ours.value) == str(error)
            refused += 1
            continue
        ours = make_fast_views(image, **settings)
        grid = view_grid(width, height, views, size)
        assert len(ours) == len(exact) == 1 + grid[0] * grid[1]
        # Grey, white and black are where they are in the exact views. (On the edge of
        # the black, bicubic interpolation is in between.)
        assert np.abs(ours[1:] - grey_levels(exact)[1:]).max() < 1.01
        assert np.abs(ours[0] - grey_levels(exact)[0].clip(0, 255)).max() < 1.01
    assert 5 < refused < 150


def test_draft_decoding_never_falls_short_of_the_canvas():
    for size in ((2014, 1510), (1920, 1080), (1900, 1000), (1000, 4100), (5000, 90)):
        reduced = load_reduced(jpeg(np.zeros((size[1], size[0], 3), np.uint8)))
        layout = local_layout(*size)
        assert reduced.box[2] >= fast_views.COVER * min(layout.width, size[0]) - 1
        assert reduced.box[3] >= fast_views.COVER * min(layout.height, size[1]) - 1


def test_a_picture_of_the_caller_is_left_as_it_is():
    data = jpeg(photograph(2000, 1500))
    opened = Image.open(io.BytesIO(data))
    views = make_fast_views(opened)
    assert opened.size == (2000, 1500)
    np.testing.assert_array_equal(views, make_fast_views(load_image(data)))
    assert not np.array_equal(views, make_fast_views(data))  # decoded at one half


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_colour_modes(mode):
    buffer = io.BytesIO()
    Image.fromarray(photograph(1000, 700)).convert(mode).save(buffer, "JPEG")
    (mean, most), _ = difference(
        make_fast_views(buffer.getvalue(), max_local_views=2),
        make_views(buffer.getvalue(), max_local_views=2),
    )
    assert mean < 1 and most < 8


def test_errors_name_the_sample(tmp_path):
    path = tmp_path / "page.jpg"
    data = jpeg(photograph(2000, 1500))
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"'s1', .*page\.jpg.*truncated"):
        make_fast_views(path, sample_id="s1")
    path.write_bytes(jpeg(np.zeros((1, 3000, 3), np.uint8)))
    with pytest.raises(ImageError, match=r"'s2', .*page\.jpg.*too thin"):
        make_fast_views(path, sample_id="s2")
    with pytest.raises(ImageError, match="3000000 pixels; expected at most 10"):
        load_reduced(data, max_pixels=10)


# Samples and batches

FAST = replace(ADAPT, views="fast")


def test_boxes_move_as_with_exact_views():
    """By the size of the file, not of the picture that was decoded."""
    image = jpeg(photograph(400, 150))
    turn = Turn("<bbox>0,100,500,999</bbox>", "a")
    record = Record("r", image, (turn,))
    exact, fast = (encode(record, encoding, LAYOUT) for encoding in (ADAPT, FAST))
    assert load_reduced(image, view_size=ADAPT.view_size).picture.size != (400, 150)
    assert np.array_equal(fast.fusion.ids, exact.fusion.ids)
    assert (exact.crops.dtype, fast.crops.dtype) == (np.float32, np.uint8)
    assert see(image, FAST)[1:] == see(image, ADAPT)[1:] == (400, 150)
    with pytest.raises(SampleError, match="'r'.*complete image"):
        encode(record._replace(image=image[:900]), FAST, LAYOUT)


def test_batches_are_uint8():
    fast, exact = (stream(encoding=e).batch(0) for e in (FAST, ADAPT))
    blank = blank_batch(SPEC, "adapt", ADAPT.view_size, crop_dtype=FAST.crop_dtype)
    assert fast.fusion.crops.dtype == blank.fusion.crops.dtype == np.uint8
    assert exact.fusion.crops.dtype == np.float32 == ADAPT.crop_dtype
    without = [
        one._replace(fusion=one.fusion._replace(crops=None)) for one in (fast, exact)
    ]
    assert jax.tree.all(jax.tree.map(np.array_equal, *without))
    assert empty_sample("gone", FAST).crops.dtype == np.uint8
    text = Record("text", None, (Turn("What is it?", "a"),))
    samples = [encode(Samples(3)[0], FAST, LAYOUT), encode(text, FAST, LAYOUT)]
    assert collate(samples, replace(SPEC, batch_size=2)).fusion.crops.dtype == np.uint8
    mixed = [samples[0], encode(text, ADAPT, LAYOUT)]
    with pytest.raises(
        ValueError, match="'text' has crops of float32, but .* of uint8"
    ):
        collate(mixed, replace(SPEC, batch_size=2))


def test_blank_batches_are_those_of_the_run():
    """What a dry run compiles has the dtypes of what the run feeds."""
    config = small_config(data__views="fast", data__num_records=8)
    vision = settings.model_config(config, "float32").vision
    parts, source = assemble(config, vision), open_source(config, "train")
    spec = parts.training_shapes([source[i] for i in range(8)], 4).largest()
    real = parts.stream(source, spec, 4, 0).batch(0)
    made = parts.encoding.crop_dtype
    blank = blank_batch(spec, "adapt", vision.image_size, crop_dtype=made)

    def kinds(batch):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch)

    assert kinds(real) == kinds(blank)
    assert kinds(real) != kinds(blank_batch(spec, "adapt", vision.image_size))


def test_an_unknown_way_of_making_views():
    with pytest.raises(
        ValueError, match="data.views is 'quick', expected one of .*'fast"
    ):
        replace(ADAPT, views="quick")


# On the device


def test_the_device_normalises_as_the_host_does():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    exact = make_views(pixels[0], view_size=16, max_local_views=1)
    found = jax.jit(normalised)(jnp.asarray(pixels))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[0], exact[1], rtol=0, atol=1e-6)
    assert np.abs(np.asarray(found[0])[..., ::-1] - exact[1]).max() > 0.1  # BGR


def test_the_vision_tower_takes_both_kinds_of_crops():
    config = tiny.model_config().vision
    pixels = photograph(16, 16)[None]
    exact = make_views(pixels[0], view_size=16, max_local_views=1)[1:]
    tower = VisionTower(config)
    params = tower.init(jax.random.key(0), jnp.asarray(exact))
    tokens = [tower.apply(params, jnp.asarray(c)).tokens for c in (exact, pixels)]
    np.testing.assert_allclose(*tokens, rtol=0, atol=1e-5)
    raw = tower.apply(params, jnp.asarray(pixels, jnp.float32)).tokens
    assert np.abs(raw - tokens[0]).max() > 0.1


def test_digit_pages_differ_by_rounding_only():
    """Their local views are the page itself, the global view is sampled the same way;
    bicubic overshoot is cut off."""
    config = small_config()
    vision = settings.model_config(config, "float32").vision
    exact = prompts_encoding(assemble(config, vision))
    fast = replace(exact, views="fast")
    for index in range(4):
        page = open_source(config, "train")[index].image
        ours, theirs = see(page, fast).crops, see(page, exact).crops
        assert difference(ours, theirs)[0][1] < 1e-2
        inside = grey_levels(theirs)[0].clip(0, 255)
        assert np.abs(ours[0] - inside).max() < 0.51


@pytest.mark.long  # one batch is compared above
@pytest.mark.slow
def test_training_with_fast_views_is_training(tmp_path):
    losses = {}
    for views in ("exact", "fast"):
        config = small_config(data__views=views, eval__questions=0, optim__steps=4)
        train(config, tmp_path / views)
        found = rows(tmp_path / views)
        losses[views] = np.array([row["loss"] for row in found])
    assert len(losses["fast"]) > 4
    np.testing.assert_allclose(losses["fast"], losses["exact"], rtol=0, atol=5e-3)
    assert not np.array_equal(losses["fast"], losses["exact"])
