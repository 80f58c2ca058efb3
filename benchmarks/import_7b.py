"""Importing a checkpoint of Llama-2-7B's shapes: peak memory, time, contents.

    python benchmarks/import_7b.py                    # 13.5 GB of disk for a while
    python benchmarks/import_7b.py --layers 2         # 1.3 GB, half a minute

A checkpoint of these shapes is made on disk (bfloat16, sharded, with an index; numbers
that repeat after a prime count, so that a row or layer in a wrong place shows), then a
process of its own imports it onto a mesh of one device. `streamed` is the way of this
package, tensor by tensor; `naive` reads all tensors, stacks them and moves the tree,
and is left out where it would not fit into memory. On a CPU the device's memory is the
host's, so the loaded size is part of the peak: what counts is the peak above it.

Prints a table and, last, one line of JSON.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks import record
from benchmarks.resident import resident

ROOT = Path(__file__).resolve().parent.parent
WIDTH, MLP, WORDS = 4096, 11008, 32000
PERIOD = 1_000_003  # prime: no row length divides it
SHARD_BYTES = 10**9
LIMIT_GB = 3.0
NAIVE_COPIES = 3.2  # tensors, stacked tree, tree on the device, and some room

Shape = tuple[int, ...]


def tensor_shapes(layers: int) -> dict[str, Shape]:
    """Llama-2-7B's tensors by their Hugging Face names."""
    block = {
        "input_layernorm.weight": (WIDTH,),
        **{f"self_attn.{p}_proj.weight": (WIDTH, WIDTH) for p in "qkvo"},
        "post_attention_layernorm.weight": (WIDTH,),
        "mlp.gate_proj.weight": (MLP, WIDTH),
        "mlp.up_proj.weight": (MLP, WIDTH),
        "mlp.down_proj.weight": (WIDTH, MLP),
    }
    return {
        "model.embed_tokens.weight": (WORDS, WIDTH),
        **{
            f"model.layers.{i}.{name}": shape
            for i in range(layers)
            for name, shape in block.items()
        },
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (WORDS, WIDTH),
    }


def parameter_shapes(layers: int) -> dict[str, Shape]:
    """The same model's parameters by our paths."""
    kernels = {f"attn/{p}": (WIDTH, WIDTH) for p in ("query", "key", "value", "out")}
    kernels |= {"gate": (WIDTH, MLP), "up": (WIDTH, MLP), "down": (MLP, WIDTH)}
    norms = {f"blocks/{norm}/scale": (layers, WIDTH) for norm in ("norm1", "norm2")}
    return {
        "embed": (WORDS, WIDTH),
        **{f"blocks/{p}/kernel": (layers, *shape) for p, shape in kernels.items()},
        **norms,
        "norm/scale": (WIDTH,),
        "head": (WIDTH, WORDS),
    }


def content(name: str, shape: Shape) -> np.ndarray:
    """The tensor that the benchmark writes under a name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    numbers = rng.standard_normal(PERIOD, np.float32).astype(ml_dtypes.bfloat16)
    return np.resize(numbers, shape)


def shards(shapes: Mapping[str, Shape]) -> Iterator[list[str]]:
    """Names of the tensors of each file, up to SHARD_BYTES."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        more = 2 * math.prod(shape)
        if names and size + more > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += more
    yield names


def make_checkpoint(folder: Path, layers: int) -> int:
    """Writes shards and index; the number of bytes of the tensors."""
    from safetensors.numpy import save_file

    shapes = tensor_shapes(layers)
    parts = list(shards(shapes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(parts, start=1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file({name: content(name, shapes[name]) for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    total = sum(2 * math.prod(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def available() -> int:
    """Bytes of memory that can be had without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(x.split()[1] for x in lines if x.startswith("MemAvail"))) * 1024


def measure(folder: Path, layers: int, way: str) -> dict[str, Any]:
    """Imports the checkpoint in this process; peak, time and what was checked."""
    import jax

    from vtscale_jax import paths
    from vtscale_jax.weights.files.tensors import ArrayTensors, open_tensors
    from vtscale_jax.weights.naming.layouts import LLM_LAYOUT
    from vtscale_jax.weights.naming.names import import_tree

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("tensor",))
    shapes = parameter_shapes(layers)
    targets = paths.unflatten(
        {
            path: jax.ShapeDtypeStruct(shape, "bfloat16")
            for path, shape in shapes.items()
        }
    )
    spec = jax.sharding.PartitionSpec()
    shardings = dict.fromkeys(shapes, jax.sharding.NamedSharding(mesh, spec))
    start, before = time.perf_counter(), resident()
    source = open_tensors(folder)
    if way == "streamed":
        tree = import_tree(
            LLM_LAYOUT, source, targets, dtype="bfloat16", shardings=shardings
        )
    else:
        held = ArrayTensors({name: source.read(name) for name in source.shapes})
        host = import_tree(LLM_LAYOUT, held, targets, dtype="bfloat16")
        tree = jax.device_put(host, paths.unflatten(shardings))
    jax.block_until_ready(tree)
    seconds, peak = time.perf_counter() - start, resident("VmHWM")
    loaded = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    checked = check(paths.flatten(tree), layers)
    return {
        "way": way,
        "layers": layers,
        "loaded_gb": round(loaded / 1e9, 3),
        "peak_gb": round(peak / 1e9, 3),
        "above_gb": round((peak - loaded) / 1e9, 3),
        "before_gb": round(before / 1e9, 3),
        "seconds": round(seconds, 1),
        "tensors_checked": checked,
        "device": jax.devices()[0].device_kind,
    }


def check(tree: Mapping[str, Any], layers: int) -> int:
    """How many tensors of the first, a middle and the last layer, and outside layers,
    were found to be what was written. Raises ValueError for one that is not."""
    ours = {
        "model.embed_tokens.weight": tree["embed"],
        "model.norm.weight": tree["norm/scale"],
        "lm_head.weight": tree["head"],
    }
    pairs = {
        "input_layernorm": "norm1/scale",
        "self_attn.q_proj": "attn/query/kernel",
        "self_attn.k_proj": "attn/key/kernel",
        "self_attn.v_proj": "attn/value/kernel",
        "self_attn.o_proj": "attn/out/kernel",
        "post_attention_layernorm": "norm2/scale",
        "mlp.gate_proj": "gate/kernel",
        "mlp.up_proj": "up/kernel",
        "mlp.down_proj": "down/kernel",
    }
    for i in sorted({0, layers // 2, layers - 1}):
        for theirs, path in pairs.items():
            ours[f"model.layers.{i}.{theirs}.weight"] = tree[f"blocks/{path}"][i]
    shapes = tensor_shapes(layers)
    for name, leaf in ours.items():
        array = np.asarray(leaf)
        if name.endswith(("proj.weight", "lm_head.weight")):
            array = array.T
        if not np.array_equal(array, content(name, shapes[name])):
            raise ValueError(f"{name}: imported with other values than were written")
    return len(ours)


def in_child(folder: Path, layers: int, way: str) -> dict[str, Any]:
    """`measure` in a process of its own, whose peak is of this import alone."""
    command = [sys.executable, __file__, "--one", way, "--folder", str(folder)]
    command += ["--layers", str(layers)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, env=env)
    if run.returncode:
        sys.exit(f"{way} import of {layers} layers failed:\n{run.stderr[-3000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    """Makes, imports, prints, and writes `--out`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 32])
    parser.add_argument(
        "--folder", type=Path, help="where the checkpoint is made, in a new folder"
    )
    parser.add_argument("--keep", action="store_true", help="do not delete it")
    default = ROOT / "benchmarks" / "results" / "import_7b.json"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--one", choices=("streamed", "naive"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.folder, args.layers[0], args.one)))
        return
    rows: list[dict[str, Any]] = []
    for layers in args.layers:
        folder = Path(tempfile.mkdtemp(prefix=f"llama-{layers}-", dir=args.folder))
        try:
            start = time.perf_counter()
            size = make_checkpoint(folder, layers)
            made = time.perf_counter() - start
            print(f"{folder}: {size / 1e9:.2f} GB written in {made:.0f} s", flush=True)
            rows.append(in_child(folder, layers, "streamed"))
            if NAIVE_COPIES * size < available():
                rows.append(in_child(folder, layers, "naive"))
            else:
                print(f"naive import of {layers} layers left out: memory is too small")
        finally:
            if not args.keep:
                shutil.rmtree(folder)
    print(f"{'layers':>6} {'way':9} {'loaded':>8} {'peak':>8} {'above':>8} {'time':>7}")
    for row in rows:
        sizes = " ".join(
            f"{row[k]:5.2f} GB" for k in ("loaded_gb", "peak_gb", "above_gb")
        )
        print(f"{row['layers']:6d} {row['way']:9} {sizes} {row['seconds']:5.0f} s")
    streamed = max(
        (r for r in rows if r["way"] == "streamed"), key=lambda r: r["layers"]
    )
    result = {
        "rows": rows,
        "limit_gb": LIMIT_GB,
        "kept": streamed["above_gb"] < LIMIT_GB,
    }
    record.finish("import_7b", result, args.out)
    sys.exit(not result["kept"])


if __name__ == "__main__":
    main()
