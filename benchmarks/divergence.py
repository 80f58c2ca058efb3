"""Divergence kernels: ours beside PyTorch, beside the machine, and over n.

    pip install -e '.[parity]'
    python benchmarks/divergence.py

Three tables. (1) n = 1,024, d = 4,096, a batch of 8: our kernel beside two PyTorch
forms of the same numbers, one that enumerates n as the paper describes it (measured at
smaller n and carried on: its time is fitted as c·n³ + b·n² on the largest of them) and
one that builds the three Gram matrices at once and takes cumulative sums. Each is run
in turn, several times; the fastest run of each counts. (2) The FLOP/s of the products
that are needed beside what this machine reaches in a matrix product under JAX. (3)
Time, memory and FLOP/s for n = 128 … 8,192.

The curves compared are D, ψ_equal and ψ_cross AA, BB and AB, for every n at once; ours
computes ψ_Δ besides. A measurement also counts histograms of the cosines, which are not
timed here. On a GPU torch computes there too where it sees one, and the script measures
bfloat16 inputs and the fused (Pallas) kernel besides.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import record

SIZE = (8, 1024, 4096)
SCALING = (128, 256, 512, 1024, 2048, 4096, 8192)
ENUMERATED = (64, 96, 128, 192)
ROUNDS = 3
TARGETS = {"enumerating": 50.0, "vectorised": 1.2}
AIMS = {"vectorised": 2.0, "peak_share": 0.7}


def useful_flops(B: int, n: int, d: int) -> float:
    """Of the products that the cross sums need: a_i·a_j and b_i·b_j for j < i, a_i·b_j
    for j ≠ i: 2n(n − 1) products of vectors a pair."""
    return 2.0 * d * 2 * n * (n - 1) * B


def best(work, rounds: int = ROUNDS) -> float:
    """The shortest of several times, in seconds."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def states(B: int, n: int, d: int):
    """Two branches with a common direction, the same for all forms."""
    import numpy as np

    rng = np.random.default_rng(n)
    common = 0.5 * rng.standard_normal(d, np.float32)
    return [rng.standard_normal((B, n, d), np.float32) + common for _ in range(2)]


def enumerating(a, b):
    """PyTorch, every n by itself: the cosines of the first n positions, their means."""
    import torch
    from torch.nn.functional import normalize

    n = a.shape[1]
    found = []
    for m in range(1, n + 1):
        x, y = a[:, :m], b[:, :m]
        u, v = normalize(x, dim=2), normalize(y, dim=2)
        D = (x - y).sum(dim=1).norm(dim=1)
        ab = (u @ v.transpose(1, 2)).clamp(min=0)
        aa = (u @ u.transpose(1, 2)).clamp(min=0)
        bb = (v @ v.transpose(1, 2)).clamp(min=0)
        diagonal = [g.diagonal(dim1=1, dim2=2).sum(dim=1) for g in (ab, aa, bb)]
        pairs = max(1, m * (m - 1))
        cross = [
            (g.sum(dim=(1, 2)) - own) / pairs
            for g, own in zip((ab, aa, bb), diagonal, strict=True)
        ]
        found.append(torch.stack([D, diagonal[0] / m, *cross]))
    return torch.stack(found, dim=2)


def vectorised(a, b):
    """PyTorch, all n at once: three Gram matrices of each pair, and running sums."""
    import torch
    from torch.nn.functional import normalize

    n = a.shape[1]
    u, v = normalize(a, dim=2), normalize(b, dim=2)
    D = (a - b).cumsum(dim=1).norm(dim=2)
    m = torch.arange(1, n + 1, device=a.device)
    pairs = (m * (m - 1)).clamp(min=1)

    def cross(x, y):
        gram = (x @ y.transpose(1, 2)).clamp(min=0)
        gram.diagonal(dim1=1, dim2=2).zero_()
        rows = gram.tril().sum(dim=2) + gram.triu().sum(dim=1)
        return rows.cumsum(dim=1) / pairs

    equal = (u * v).sum(dim=2).clamp(min=0).cumsum(dim=1) / m
    return torch.stack([D, equal, cross(u, v), cross(u, u), cross(v, v)])


def theirs(form: str, B: int, n: int, d: int, rounds: int) -> dict:
    """Seconds of a PyTorch form, and its numbers at the last n of the first pair."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    where = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.from_numpy(x).to(where) for x in states(B, n, d))
    work = {"enumerating": enumerating, "vectorised": vectorised}[form]

    def run():
        found = work(a, b)
        if where == "cuda":  # what was asked of it may still be under way
            torch.cuda.synchronize()
        return found

    with torch.no_grad():
        found = run()
        seconds = best(run, rounds)
    memory = torch.cuda.max_memory_allocated() if where == "cuda" else peak_memory()
    last = found[:, 0, -1].tolist()
    platform = "gpu" if where == "cuda" else "cpu"
    return {"seconds": seconds, "last": last, "memory": memory, "platform": platform}


def ours(B: int, n: int, d: int, rounds: int, dtype: str, kernel: str) -> dict:
    """Seconds of our kernel, its numbers, and its memory as compiled."""
    import jax
    import jax.numpy as jnp

    from vtscale_jax.divergence.curves import jitted_curves
    from vtscale_jax.parallel.host import keep_freed_memory

    platform = jax.default_backend()
    if platform == "cpu":
        keep_freed_memory()
    a, b = (jnp.asarray(x, dtype) for x in states(B, n, d))
    options = {"reduction": "mean", "kernel": kernel, "platform": platform}
    program = jitted_curves.lower(a, b, jnp.full(B, n), **options).compile()
    lengths = jnp.full(B, n)
    found = jax.block_until_ready(program(a, b, lengths))
    seconds = best(lambda: jax.block_until_ready(program(a, b, lengths)), rounds)
    memory = program.memory_analysis()
    names = ("D", "psi_equal", "psi_cross_ab", "psi_cross_aa", "psi_cross_bb")
    return {
        "seconds": seconds,
        "last": [float(getattr(found, name)[0, -1]) for name in names],
        "inputs": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "memory": peak_memory(),
        "device": jax.devices()[0].device_kind,
        "platform": platform,
    }


def matmul_peak(dtype: str, size: int, rounds: int) -> float:
    """FLOP/s of x·yᵀ under JAX, [size, size] each, in full float32 or in bfloat16."""
    import jax
    import jax.numpy as jnp

    x, y = (
        jax.random.normal(key, (size, size), dtype)
        for key in jax.random.split(jax.random.key(0))
    )
    product = jax.jit(
        lambda x, y: jnp.einsum("id,jd->ij", x, y, precision=jax.lax.Precision.HIGHEST)
    )
    jax.block_until_ready(product(x, y))
    seconds = best(lambda: jax.block_until_ready(product(x, y)), 3 * rounds)
    return 2 * size**3 / seconds


def peak_memory() -> int:
    """The most bytes that this process has had in memory."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(*arguments) -> dict:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--only", *map(str, arguments)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def attempt(name: str, *arguments) -> dict:
    """A measurement that this machine may not be able to make, or why it could not."""
    try:
        return child(*arguments)
    except subprocess.CalledProcessError as error:
        why = f"its process ended with {error.returncode}; the log says why"
        return record.not_measured(name, why)


def only(arguments: list[str]) -> dict:
    """What a child measures."""
    what, *rest = arguments
    if what == "ours":
        B, n, d, rounds, dtype, kernel = rest
        return ours(int(B), int(n), int(d), int(rounds), dtype, kernel)
    if what == "peak":
        return {"flops": matmul_peak(rest[0], int(rest[1]), int(rest[2]))}
    B, n, d, rounds = map(int, rest)
    return theirs(what, B, n, d, rounds)


def extrapolated(points: dict[int, float], n: int) -> float:
    """Seconds at n from those at smaller ones, as c·n³ + b·n² with c, b ≥ 0."""
    import numpy as np
    from scipy.optimize import nnls

    sizes = np.array(sorted(points), float)
    times = np.array([points[int(size)] for size in sizes])
    # Relative errors: the smallest size counts as much as the largest.
    terms = np.stack([sizes**3, sizes**2], axis=1)
    (cubic, square), _ = nnls(terms / times[:, None], np.ones(len(times)))
    return float(cubic * n**3 + square * n**2)


def compare(rounds: int, kernel: str, turns: int, enumerated: bool) -> dict:
    """The first two tables, ours and theirs in turn."""
    B, n, d = SIZE
    found: dict = {"shape": SIZE, "ours": [], "vectorised": [], "peak": []}
    for _ in range(turns):  # in turn: another load on the machine hits all
        found["peak"].append(child("peak", "float32", 4096, rounds)["flops"])
        found["ours"].append(child("ours", B, n, d, rounds, "float32", kernel))
        found["vectorised"].append(child("vectorised", B, n, d, rounds))
    for key in ("ours", "vectorised"):
        found[key] = min(found[key], key=lambda one: one["seconds"])
    found["peak"] = max(found["peak"])
    if enumerated:
        points = {m: child("enumerating", B, m, d, 1)["seconds"] for m in ENUMERATED}
        seconds = extrapolated(points, n)
        found["enumerated"] = points
        found["enumerating"] = {"seconds": seconds, "extrapolated": True}
    return found


def accelerated(platform: str, rounds: int, kernel: str) -> dict:
    """What is measured on an accelerator only: bfloat16 inputs with the kernel that
    was asked for and, on a GPU, the fused kernel with both kinds of inputs."""
    if platform == "cpu":
        return {"bfloat16": None}
    B, n, d = SIZE
    flops = useful_flops(B, n, d)
    peak = child("peak", "bfloat16", 8192, rounds)["flops"]
    asked = {"bfloat16": ("bfloat16", kernel)}
    if platform == "gpu":
        asked["fused_float32"] = ("float32", "pallas")
        asked["fused_bfloat16"] = ("bfloat16", "pallas")
    found = {}
    for name, (dtype, which) in asked.items():
        one = attempt(name, "ours", B, n, d, rounds, dtype, which)
        if "seconds" in one and dtype == "bfloat16":
            one |= {"peak": peak, "share": flops / one["seconds"] / peak}
        found[name] = one
        said = one.get("not_measured") or f"{one['seconds']:.4f} s"
        share = f", {one['share']:.0%} of the peak" if "share" in one else ""
        print(f"{name}: {said}{share}")
    return found


def main() -> None:
    """Prints the tables; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--kernel", default="auto")
    parser.add_argument("--longest", type=int, default=max(SCALING))
    parser.add_argument("--turns", type=int, default=2, help="of ours and theirs")
    parser.add_argument("--no_enumerating", action="store_true", help="the slow form")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(only(options.only)))
        return
    enumerated = not options.no_enumerating
    found = compare(options.rounds, options.kernel, options.turns, enumerated)
    B, n, d = SIZE
    mine, flops = found["ours"], useful_flops(B, n, d)
    print(f"n = {n}, d = {d}, batch {B}, float32, on {mine['device']}")
    print(f"{'form':>22} {'s':>9} {'ours is × as fast':>18} {'GFLOP/s':>9} {'GiB':>6}")
    forms = [name for name in ("vectorised", "enumerating") if name in found]
    if found["vectorised"]["platform"] != mine["platform"]:
        print("torch sees no such device: its times are of the CPU, and not compared")
        forms = []
    for name in ("ours", *forms):
        one = found[name]
        ratio, rate = one["seconds"] / mine["seconds"], flops / one["seconds"] / 1e9
        memory = f"{one['memory'] / 2**30:.2f}" if "memory" in one else ""
        label = f"{name} (carried on)" if one.get("extrapolated") else name
        print(
            f"{label:>22} {one['seconds']:9.3f} {ratio:18.2f} {rate:9.1f} {memory:>6}"
        )
    agree = max(
        abs(x - y) / abs(y)
        for x, y in zip(mine["last"], found["vectorised"]["last"], strict=True)
    )
    share = flops / mine["seconds"] / found["peak"]
    print(f"largest relative difference to PyTorch at n = {n}: {agree:.1e}")
    print(
        f"matrix product under JAX: {found['peak'] / 1e9:.1f} GFLOP/s; ours reaches "
        f"{share:.0%} of it, counting the products needed only"
    )
    rows = []
    print(
        f"\n{'n':>6} {'s':>9} {'GFLOP/s':>9} {'inputs MiB':>11} {'temporaries MiB':>16}"
    )
    for m in SCALING:
        if m > options.longest:
            continue
        one = child("ours", 1, m, d, options.rounds, "float32", options.kernel)
        rate = useful_flops(1, m, d) / one["seconds"]
        rows.append({"n": m, "flops": rate, **one})
        print(
            f"{m:6} {one['seconds']:9.4f} {rate / 1e9:9.1f} "
            f"{one['inputs'] / 2**20:11.1f} {one['temporaries'] / 2**20:16.1f}"
        )
    more = accelerated(mine["platform"], options.rounds, options.kernel)
    result = {
        "shape": SIZE,
        "ratio": {form: found[form]["seconds"] / mine["seconds"] for form in forms},
        "peak_share": share,
        "agrees_within": agree,
        "targets": TARGETS,
        "aims": AIMS,
        "compare": found,
        "scaling": rows,
        **more,
    }
    record.finish("divergence", result, options.out, packages=["torch"])


if __name__ == "__main__":
    main()
