"""How fast images become views and records become batches, and how fast they must.

    python benchmarks/loader.py
    python benchmarks/loader.py --repeats 5 --records 64

Images: JPEGs made here (smooth colours and photograph-like texture, quality 90, about
2.3 bits a pixel) are decoded and cut into views by one thread: the exact and the fast
path at HD-9 and 336 pixels, ten views each; transformers' LlavaNextImageProcessor with
the one grid of 1008 x 1008, also ten tiles of 336 pixels; its CLIPImageProcessor over
the same ten views, cut from a canvas that Pillow resizes; and over the image once,
which is one view of 336 pixels, a tenth of the pixels. Both are the Pillow versions
that transformers takes where torchvision is not installed, and return numpy arrays. All
methods take turns, and what counts is the best of the repeats.

Samples: records with such images through `loader.Stream`, prepared by two threads of
this process (0 workers) and by one and two worker processes; the first batch is timed
from the making of the stream, with the start of the workers.

Needed: samples that eight A100 train on in a second, by the cost model at the
efficiency that plans assume, for conversations of one short turn (long ones need fewer
samples), and how many cores make the views of so many. The last line is JSON.
"""

import argparse
import io
import json
import os
import runpy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # of numpy and torch, before they are loaded
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
from PIL import Image

from benchmarks import record

SIZES = ((640, 480), (2000, 1500))
SIDE, VIEWS, TEXTURE = 336, 9, 512
NUM_QUERIES = 256
TEN_VIEWS = ("exact", "fast", "LlavaNext", "CLIP, ten views")


def photograph(width: int, height: int, seed: int) -> bytes:
    """A JPEG of smooth colours with 1/f texture of standard deviation 12."""
    rng = np.random.default_rng(seed)
    x, y = np.arange(width) / width, np.arange(height)[:, None] / height
    smooth = [127 + 90 * np.sin(5 * x + 3 * y), 127 + 90 * np.cos(4 * y + 0 * x)]
    frequency = np.fft.fftfreq(TEXTURE)[:, None], np.fft.rfftfreq(TEXTURE)
    radius = np.hypot(*frequency)
    radius[0, 0] = np.inf
    white = np.fft.rfft2(rng.normal(size=(TEXTURE, TEXTURE)))
    tile = np.fft.irfft2(white / radius)
    times = (-(-height // TEXTURE), -(-width // TEXTURE))
    texture = np.tile(tile * (12 / tile.std()), times)[:height, :width, None]
    pixels = np.stack([*smooth, 40 + 180 * x + 0 * y], axis=-1) + texture
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(
        file, "JPEG", quality=90
    )
    return file.getvalue()


def methods() -> dict[str, Callable[[bytes], np.ndarray]]:
    """What makes views of a file's bytes, by name."""
    import torch
    from transformers import CLIPImageProcessor, LlavaNextImageProcessor

    from vtscale_jax.fast_views import make_fast_views
    from vtscale_jax.views import local_layout, make_views

    torch.set_num_threads(1)
    crop = {"height": SIDE, "width": SIDE}
    size = {"shortest_edge": SIDE}
    one = CLIPImageProcessor(size=size, crop_size=crop)
    grid = [[3 * SIDE, 3 * SIDE]]
    tiles = LlavaNextImageProcessor(
        size=size, crop_size=crop, image_grid_pinpoints=grid
    )

    def by(processor: Any) -> Callable[[bytes], np.ndarray]:
        def views(data: bytes) -> np.ndarray:
            picture = Image.open(io.BytesIO(data)).convert("RGB")
            made = processor(picture, return_tensors="np")["pixel_values"]
            return made.reshape(-1, 3, SIDE, SIDE)

        return views

    def ten_views(data: bytes) -> np.ndarray:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        place = local_layout(*picture.size, VIEWS, SIDE)
        canvas = Image.new("RGB", (place.canvas_width, place.canvas_height), "white")
        resized = picture.resize((place.width, place.height), Image.Resampling.BILINEAR)
        canvas.paste(resized, (place.left, place.top))
        corners = [
            (x, y)
            for y in range(0, canvas.height, SIDE)
            for x in range(0, canvas.width, SIDE)
        ]
        cut = [canvas.crop((x, y, x + SIDE, y + SIDE)) for x, y in corners]
        return one([picture, *cut], return_tensors="np")["pixel_values"]

    ours = {"exact": make_views, "fast": make_fast_views}
    theirs = {"LlavaNext": by(tiles), "CLIP, ten views": ten_views}
    return {**ours, **theirs, "CLIP, one view": by(one)}


def images(repeats: int, number: int) -> dict[str, dict[str, float]]:
    """Images a second, by size and method."""
    made, found = methods(), {}
    for width, height in SIZES:
        files = [photograph(width, height, seed) for seed in range(number)]
        for name, views in made.items():  # the first call loads and compiles
            expected = 1 + VIEWS if name in TEN_VIEWS else 1
            if len(views(files[0])) != expected:
                raise SystemExit(f"{name} does not make {expected} views")
        best = dict.fromkeys(made, 0.0)
        for _ in range(repeats):
            for name, views in made.items():
                started = time.perf_counter()
                for data in files:
                    views(data)
                speed = number / (time.perf_counter() - started)
                best[name] = max(best[name], speed)
        found[f"{width}x{height}"] = best
    return found


def write_records(folder: Path, number: int) -> Path:
    """Records of one turn about JPEGs of both sizes."""
    lines = []
    for i in range(number):
        size = SIZES[i % len(SIZES)]
        (folder / f"{i}.jpg").write_bytes(photograph(*size, seed=i % 8))
        asked = {"role": "user", "content": "Is there any 5 in the middle row ?"}
        told = {"role": "assistant", "content": "there is no 5 in the middle row"}
        lines.append(json.dumps({"image": f"{i}.jpg", "messages": [asked, told]}))
    file = folder / "records.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


def samples(number: int) -> dict[str, dict[str, float]]:
    """Samples a second and seconds to the first batch, by path and number of worker
    processes."""
    from vtscale_jax.buckets import fit_buckets
    from vtscale_jax.embedded.vocabulary import build_tokenizer
    from vtscale_jax.encoders import Here, Workers
    from vtscale_jax.encoding import Encoding, encode
    from vtscale_jax.loader import Stream
    from vtscale_jax.parallel.host import keep_freed_memory
    from vtscale_jax.records import JSONLSource
    from vtscale_jax.tokens import QueryLayout

    keep_freed_memory()  # as the command does
    words, layout = build_tokenizer(), QueryLayout(NUM_QUERIES, 8, 1000)
    batch_size, found = 8, {}
    with tempfile.TemporaryDirectory() as name:
        source = JSONLSource(write_records(Path(name), number), image_root=name)
        for path in ("exact", "fast"):
            encoding = Encoding(
                *("adapt", words, SIDE, VIEWS, path),
                llm_tokenizer=words,
                template="plain",
            )
            probe = [encode(source[i], encoding, layout) for i in range(2)]
            spec = fit_buckets(
                probe,
                batch_size=batch_size,
                tokens_per_crop=145,
                most_crops=1 + VIEWS,
            )
            for workers in (0, 1, 2):
                started = time.perf_counter()
                encoder = Here(source, encoding)
                if workers:
                    encoder = Workers(source, encoding, workers)
                batches = iter(
                    Stream(
                        source,
                        encoding,
                        spec,
                        layout=layout,
                        seed=0,
                        epochs=1,
                        encoder=encoder,
                    )
                )
                next(batches)
                first = time.perf_counter() - started
                # By then every worker is there, and what was prepared ahead is fed.
                for _ in range(number // batch_size // 3):
                    next(batches)
                begun, fed = time.perf_counter(), 0
                for _ in batches:
                    fed += batch_size
                found[f"{path}, {workers} workers"] = {
                    "samples_per_s": fed / (time.perf_counter() - begun),
                    "first_batch_s": first,
                }
                batches.close()
                encoder.close()
    return found


def needed() -> dict[str, float]:
    """Samples a second that eight A100-40GB train on, by stage of the paper's preset;
    HD-9 with all ten views, one turn of 16 + 32 tokens."""
    from vtscale_jax import settings
    from vtscale_jax.collate import blank_batch
    from vtscale_jax.devices import GPUS
    from vtscale_jax.dry_run import EFFICIENCY, arithmetic
    from vtscale_jax.parallel.plans.lengths import Lengths, assumed_shapes
    from vtscale_jax.stages import get_stage

    found = {}
    file = Path(__file__).parents[1] / "configs" / f"m{NUM_QUERIES}.py"
    get_config = runpy.run_path(str(file))["get_config"]
    for name in ("align", "finetune"):
        config = get_config(f"paper,stage={name}")
        model = settings.model_config(config, "bfloat16")
        lengths = Lengths(turns=1, question=16, answer=32, system=48)
        spec = assumed_shapes(config, lengths, model.vision.tokens_per_crop)
        batch = blank_batch(spec, name, SIDE)
        accumulation = config.optim.accumulation
        cost = arithmetic(get_stage(name), model, batch, 2, accumulation)
        seconds = cost.work.flops / (8 * EFFICIENCY * GPUS["a100-40gb"].flops)
        found[name] = config.data.batch_size / seconds
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--images", type=int, default=6, help="files of each size")
    parser.add_argument("--records", type=int, default=480)
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/loader.json")
    )
    options = parser.parse_args()
    speeds = images(options.repeats, options.images)
    print(f"{'images/s, one core':<28}" + "".join(f"{size:>12}" for size in speeds))
    for name in next(iter(speeds.values())):
        cells = "".join(f"{speed[name]:>12.1f}" for speed in speeds.values())
        print(f"{name:<28}{cells}")
    ratios = {
        f"{ours}_over_{theirs}": {
            size: round(speed[ours] / speed[theirs], 2)
            for size, speed in speeds.items()
        }
        for ours in ("exact", "fast")
        for theirs in ("LlavaNext", "CLIP, ten views", "CLIP, one view")
    }
    for name, row in ratios.items():
        cells = "".join(f"{ratio:>12.2f}" for ratio in row.values())
        print(f"{name.replace('_', ' '):<28}{cells}")
    fed = samples(options.records)
    print(f"\n{'':<22}{'samples/s':>12}{'first batch':>14}")
    for name, row in fed.items():
        first = f"{row['first_batch_s']:.1f} s"
        print(f"{name:<22}{row['samples_per_s']:>12.1f}{first:>14}")
    demand = needed()
    cores: dict[str, dict[str, float]] = {}
    print("\neight A100-40GB      samples/s   cores: exact     fast (larger images)")
    for stage, rate in demand.items():
        slowest = {p: min(s[p] for s in speeds.values()) for p in ("exact", "fast")}
        cores[stage] = {path: round(rate / speed, 2) for path, speed in slowest.items()}
        cells = f"{cores[stage]['exact']:>15.1f}{cores[stage]['fast']:>9.1f}"
        print(f"{stage:<20}{rate:>10.1f}{cells}")
    result = {
        "images_per_s_per_core": {
            size: {name: round(speed, 2) for name, speed in row.items()}
            for size, row in speeds.items()
        },
        **ratios,
        "samples": {
            name: {field: round(value, 2) for field, value in row.items()}
            for name, row in fed.items()
        },
        "eight_a100_samples_per_s": {s: round(rate, 2) for s, rate in demand.items()},
        "cores_for_eight_a100": cores,
    }
    record.finish("loader", result, options.out, packages=["torch"])


if __name__ == "__main__":
    main()
