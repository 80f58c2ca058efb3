"""The train step: ours beside PyTorch's on this CPU, and alone at any preset's sizes.

    pip install -e '.[parity]'
    python -m benchmarks.train_step
    python -m benchmarks.train_step --small
    python -m benchmarks.train_step --preset paper --num_queries 1,256,768 \\
        --stage align,finetune --mfu

Beside PyTorch: one finetune step in float32 on the same cores, with clipping and AdamW,
of a language model with SmolLM2-135M's sizes (frozen, random weights), a CLIP of width
384 (6 layers, 224 pixels, patches of 16) and a fusion decoder of 5 layers, M = 64, four
samples. Theirs is assembled from transformers' modules (`torch_step`, which says how
its three arrangements differ); the faster of two kinds of attention, compiled or not,
counts. Before the rounds both must give the same loss within 1e-5 and the same
gradients within 1e-4 of their size; and another loss when one weight is moved.

What is compared takes turns in processes of its own, each warmed up; the median over
all steps of all rounds counts, and a ratio above 1 means that ours is faster. The gain
is split: padded / packed is due to crops, packed / frugal to logits at loss positions
only, frugal / ours to the rest; their product is padded / ours. How fast both multiply
large matrices is measured too, since the rest depends on it most: PyTorch's wheels
multiply by Intel's MKL, which does not use all of an AMD processor, and JAX's by
YNNPACK.

Memory: every process may use huge pages (GLIBC_TUNABLES=glibc.malloc.hugetlb=1, which
takes Linux with glibc 2.35). Ours takes 6 GiB for a step and gives them back; in small
pages that is 1.6 million page faults a step, 3 to 5 s of the processor. PyTorch is
timed so too, and with malloc keeping freed memory beside, by which it gains a sixth.
Training says so where a step is that large (`pace.CompiledSteps`).

How typical the batch is: images of 640×480, 640×426, 1000×400 and 1500×2000 pixels have
10, 7, 9 and 10 views of at most 10, as `views.num_views` says. Photographs and pages of
4:3 or squarer all have 10, those of 3:2 to 2:1 have 7, so that little is to be gained
from not padding; text alone has none. A run's batch shapes come in few sizes. The one
for these samples has room for 40 views, and for texts a quarter longer than the longest
where it has one size only (loss positions): "ours, bucket of a run" is our step in it.
The conversations are three turns of a chat, one long description, four short answers,
and two questions about a page.

With --preset: our step alone at that preset's sizes, random weights and conversations
of stated length; time, samples/s, memory beside what the compiler planned, and with
--mfu the share of the device's peak that useful operations reach: attention counted
causally, nothing for what remat repeats or the frozen model's weights. The peak is that
of the data sheet where the device is known, and that of a product timed on the spot.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.step_parity import (
    ARRANGEMENTS,
    CLIP,
    IMAGES,
    MOST_VIEWS,
    RATE,
    TURNS,
    check,
    equivalence,
    four_samples,
    model_of,
    program_of,
    random_params,
)

TARGET, AIM = 1.2, 2.0
WAYS = (("sdpa", False), ("eager", False), ("sdpa", True))  # attention, compiled
PATIENCE_S = 1500.0  # with one process; compiling so many layers takes minutes
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
SIDE = 2048  # of the matrices whose product is timed


def stamped(step: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of `repeats` steps."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return times


def time_ours(small: bool, repeats: int, bucket: bool = False) -> dict[str, Any]:
    """Seconds of our steps after two to warm up; in the `bucket` that a run has for the
    batch, or in a batch of its very size.
    """
    import jax

    from vtscale_jax import paths
    from vtscale_jax.cost import flops
    from vtscale_jax.parallel.host import peak_memory_bytes
    from vtscale_jax.parallel.mesh import feed, place
    from vtscale_jax.parallel.plans.plan import measure
    from vtscale_jax.program import shardings
    from vtscale_jax.types import WHOLE

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    model = model_of(small)
    program = program_of(model)
    most_crops = 1 + MOST_VIEWS if bucket else None
    batch = feed(four_samples(model, most_crops), program.mesh, WHOLE)
    trainable, frozen = paths.partition(random_params(model), program.stage.trains)
    number = sum(leaf.size for leaf in jax.tree.leaves(trainable))
    state = program.start(trainable)
    frozen = place(frozen, shardings(program.frozen))
    started = time.perf_counter()
    compiled = program.compile(batch)
    compiling = time.perf_counter() - started
    losses = []

    def step() -> None:
        nonlocal state
        state, metrics = compiled(state, frozen, batch)
        jax.block_until_ready(state)
        losses.append(float(metrics["loss"]))

    stamped(step, 2)
    seconds = stamped(step, repeats)
    sizes = flops.batch_sizes(batch)
    counted = flops.step_flops(program.stage, model, sizes, trainable=number)
    x = jax.random.normal(jax.random.key(0), (SIDE, SIDE))
    products = stamped(lambda: jax.block_until_ready(x @ x), 10)
    return {
        "product_flops_per_s": 2 * SIDE**3 / min(products),
        "seconds": seconds,
        "losses": losses,
        "memory": peak_memory_bytes(),
        "planned_memory": measure(program, compiled).peak,
        "compile_s": compiling,
        "sizes": sizes._asdict(),
        "flops": {part.name: part.total for part in counted.parts},
        "trainable": number,
    }


def time_theirs(
    small: bool, repeats: int, arrangement: Any, attention: str, compiled: bool
) -> dict[str, Any]:
    """The same of PyTorch."""
    import torch

    from benchmarks.torch_step import TorchVLM, inputs, make_step
    from vtscale_jax.parallel.host import keep_freed_memory, peak_memory_bytes

    keep_freed_memory(in_huge_pages=True)  # it is faster so by a sixth
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = model_of(small)
    theirs = TorchVLM(model, attention)
    theirs.load(random_params(model))
    theirs.train()  # no dropout in any of them; as one trains
    given = inputs(four_samples(model), model.vision.tokens_per_crop)
    step = make_step(theirs, arrangement, rate=RATE, clip=CLIP, compiled=compiled)
    losses = []
    started = time.perf_counter()
    stamped(lambda: losses.append(step(given)), 2 if compiled else 1)
    warming = time.perf_counter() - started
    seconds = stamped(lambda: losses.append(step(given)), repeats)
    x = torch.randn(SIDE, SIDE)
    products = stamped(lambda: x @ x, 10)
    return {
        "product_flops_per_s": 2 * SIDE**3 / min(products),
        "seconds": seconds,
        "losses": losses,
        "memory": peak_memory_bytes(),
        "warm_up_s": warming,
    }


def child(job: Mapping[str, Any], cache: str) -> dict[str, Any]:
    """What one process finds: its last line, which is JSON. RuntimeError, with the end
    of what it said, when it fails, and without when it takes too long."""
    environment = {**os.environ, **HUGE_PAGES, "JAX_COMPILATION_CACHE_DIR": cache}
    command = [sys.executable, "-m", "benchmarks.train_step", "--child"]
    try:
        done = subprocess.run(
            [*command, json.dumps(job)],
            env=environment,
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{job} took more than {PATIENCE_S:.0f} s") from error
    if done.returncode:
        said = "\n".join(done.stderr.splitlines()[-15:])
        raise RuntimeError(f"{job} ended with {done.returncode}:\n{said}")
    return json.loads(done.stdout.splitlines()[-1])


def run_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """A child's work."""
    from benchmarks.step_presets import time_preset

    work: dict[str, Callable[..., Any]] = {
        "ours": time_ours,
        "theirs": time_theirs,
        "preset": time_preset,
        "check": _checked,
    }
    options = dict(job)
    return work[options.pop("work")](**options)


def _checked(small: bool, attention: str) -> dict[str, Any]:
    model = model_of(small)
    found = equivalence(model, random_params(model), four_samples(model), attention)
    check(found)
    return found


def compare(small: bool, rounds: int, repeats: int) -> dict[str, Any]:
    """Both checked, PyTorch's fastest way chosen, and all timed in turn."""
    with tempfile.TemporaryDirectory() as cache:
        ways, best = _tried(small, cache)
        job = {"work": "check", "small": small, "attention": best["attention"]}
        same = child(job, cache)
        worst = {part: max(r[part] for r in same.values()) for part in same["padded"]}
        print(
            "the same function: the largest difference from PyTorch is "
            f"{worst['loss']:.1e} in the loss and {worst['gradient']:.1e} in gradients;"
            f" one weight moved: {min(r['moved'] for r in same.values()):.1e}"
        )
        jobs: dict[str, dict[str, Any]] = {
            "ours": {"work": "ours"},
            **{
                name: {"work": "theirs", "arrangement": name, **best}
                for name in ARRANGEMENTS
            },
            "ours, bucket of a run": {"work": "ours", "bucket": True},
        }
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
        for number in range(rounds):
            # Every other round backwards: what drifts does so for all alike.
            for name in list(jobs)[:: -1 if number % 2 else 1]:
                print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
                job = {**jobs[name], "small": small, "repeats": repeats}
                rows[name].append(child(job, cache))
    return _summary(rows) | {"check": same, "torch_ways": ways, "torch_way": best}


def _tried(small: bool, cache: str) -> tuple[list[dict], dict[str, Any]]:
    """Seconds of each way to run PyTorch's padded step, and the fastest."""
    tried = []
    for attention, compiled in WAYS:
        way = {"attention": attention, "compiled": compiled}
        job = {"work": "theirs", "arrangement": "padded", "small": small, "repeats": 1}
        try:
            found = child({**job, **way}, cache)
        except RuntimeError as error:
            if not compiled:
                raise
            # No compiler at hand is a property of the machine, which the row tells.
            tried.append({**way, "failed": str(error).splitlines()[-1]})
        else:
            tried.append({**way, "seconds": min(found["seconds"])})
        print("PyTorch,", ", ".join(f"{k} {v}" for k, v in tried[-1].items()))
    best = min((way for way in tried if "seconds" in way), key=lambda w: w["seconds"])
    return tried, {name: best[name] for name in ("attention", "compiled")}


def _summary(rows: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians, their ratios, and the spread of these over the rounds."""

    def median(name: str) -> float:
        return statistics.median(s for row in rows[name] for s in row["seconds"])

    def ratio(one: str, two: str) -> dict[str, Any]:
        each = [
            statistics.median(a["seconds"]) / statistics.median(b["seconds"])
            for a, b in zip(rows[one], rows[two], strict=True)
        ]
        return {"ratio": median(one) / median(two), "rounds": each}

    steps = {
        name: {
            "median_s": median(name),
            "seconds": [row["seconds"] for row in found],
            "memory": max(row["memory"] for row in found),
        }
        for name, found in rows.items()
    }
    mine = rows["ours"][0]
    ratios = {
        "padded / ours": ratio("padded", "ours"),
        "packed / ours": ratio("packed", "ours"),
        "frugal / ours": ratio("frugal", "ours"),
        **{
            f"padded / {name}": ratio("padded", name)
            for name in rows
            if name.startswith("ours, ")
        },
    }
    split = {
        "packed crops": ratio("padded", "packed"),
        "logits at loss positions": ratio("packed", "frugal"),
        "the rest": ratio("frugal", "ours"),
    }
    total = sum(mine["flops"].values())
    products = {
        who: max(row["product_flops_per_s"] for name in names for row in rows[name])
        for who, names in (("ours", ["ours"]), ("PyTorch", ARRANGEMENTS))
    }
    return {
        "steps": steps,
        "ratios": ratios,
        "split": split,
        "sizes": mine["sizes"],
        "trainable": mine["trainable"],
        "flops": mine["flops"],
        "flops_per_s": total / steps["ours"]["median_s"],
        "product_flops_per_s": products,
        "planned_memory": mine["planned_memory"],
        "compile_s": [row["compile_s"] for row in rows["ours"]],
        "target": TARGET,
        "aim": AIM,
        "ok": ratios["padded / ours"]["ratio"] >= TARGET,
    }


def show(result: Mapping[str, Any]) -> None:
    """The comparison as a table."""
    print(f"\n{'':<26}{'step':>9}{'memory':>10}{'all / ours':>12}")
    mine = result["steps"]["ours"]["median_s"]
    for name, row in result["steps"].items():
        times = f"{row['median_s']:>8.2f}s{row['memory'] / 2**30:>7.1f} GiB"
        print(f"{name:<26}{times}{row['median_s'] / mine:>12.2f}")
    print(f"\n{'the gain of ours over padded':<36}{'factor':>8}   rounds")
    for name, found in {**result["split"], **result["ratios"]}.items():
        rounds = ", ".join(f"{each:.2f}" for each in found["rounds"])
        print(f"{name:<36}{found['ratio']:>8.2f}   {rounds}")
    products = result["product_flops_per_s"]
    print(
        f"ours computes {result['flops_per_s'] / 1e9:.0f} GFLOP/s (attention counted "
        f"whole); products of matrices of side {SIDE}: "
        + ", ".join(f"{who} {rate / 1e9:.0f} GFLOP/s" for who, rate in products.items())
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="tiny sizes, a quick try")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, help="timed steps of each process")
    parser.add_argument("--preset", help="ours alone at a preset's sizes")
    parser.add_argument("--stage", default="finetune", help="stages, by commas")
    parser.add_argument("--num_queries", default="256", help="values of M, by commas")
    parser.add_argument("--batch_size", type=int, help="samples on this device")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--question", type=int, default=32, help="tokens of each")
    parser.add_argument("--answer", type=int, default=96, help="tokens of each")
    for field in ("remat", "attention"):
        parser.add_argument(
            f"--{field}", help=f"model.{field} of a config (default: the preset's)"
        )
    parser.add_argument("--mfu", action="store_true", help="share of the peak")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run_job(json.loads(options.child))))
    elif options.preset:
        from benchmarks.step_presets import measure_presets

        rows = measure_presets(options, child)
        record.finish("train_step_presets", {"rows": rows}, options.out)
    else:
        result = compare(options.small, options.rounds, options.repeats or 2)
        show(result)
        model = dataclasses.asdict(model_of(options.small))
        result = {"model": model, "images": IMAGES, "turns": TURNS, **result}
        record.finish(
            "train_step", result, options.out, packages=["torch", "transformers"]
        )


if __name__ == "__main__":
    main()
