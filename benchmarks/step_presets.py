"""Our train step alone at the sizes of a preset: time, utilisation, memory.

A part of `train_step`, which has the command line.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks.step_batches import Conversation, batch_of

EIGHT = 8  # devices that the preset "paper" shares its batch out to
BUDGET_S = 20.0  # of timed steps, at most; at least three are taken


def time_preset(
    *,
    preset: str,
    stage: str,
    num_queries: int,
    batch_size: int | None,
    turns: int,
    question: int,
    answer: int,
    remat: str | None,
    attention: str | None,
    repeats: int,
    mfu: bool,
) -> dict[str, Any]:
    """One row: the step of a stage with random weights, steps waited for one late as
    the training loop does.

    Without `batch_size` it is the preset's; of "paper" an eighth, one device's share.
    Memory is that of the device where it tells its peak, else of this process.
    """
    from vtscale_jax.parallel import host

    host.take_gpu_memory()
    import jax
    import jax.numpy as jnp

    from configs.base import get_config
    from vtscale_jax import settings
    from vtscale_jax.cost import flops, peak
    from vtscale_jax.cost.timing import summary
    from vtscale_jax.optim import OptimConfig
    from vtscale_jax.parallel.mesh import feed, make_mesh
    from vtscale_jax.parallel.plans.plan import measure
    from vtscale_jax.program import Program
    from vtscale_jax.remat import with_least_remat
    from vtscale_jax.stages import get_stage
    from vtscale_jax.types import WHOLE

    if jax.default_backend() == "cpu":
        host.keep_freed_memory()
    config = get_config(f"m={num_queries},{preset},stage={stage}")
    if remat is not None:
        config.model.remat = remat
    if attention is not None:
        config.model.attention = attention
    size = batch_size or config.data.batch_size // (EIGHT if preset == "paper" else 1)
    dtypes = settings.resolve_dtypes(config, jax.default_backend())
    kernel = settings.resolve_attention(config, jax.default_backend(), dtypes.compute)
    accumulation = config.optim.accumulation

    def program_of(config: Any) -> Program:
        return Program.of(
            get_stage(stage),
            settings.model_config(config, dtypes.compute, attention=kernel),
            OptimConfig(1000, 1e-5, accumulation=accumulation),
            make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1]),
            frozen_dtype=dtypes.llm_params,
            frozen_layout="replicated",
        )

    model = settings.model_config(config, dtypes.compute)
    talk = Conversation(1 + config.data.max_local_views, ((question, answer),) * turns)
    host_batch = batch_of([talk] * size, model, stage, num_queries=num_queries)
    if config.model.remat == "auto":
        config, program = with_least_remat(
            *(config, program_of, host_batch),
            frozen_bytes=jnp.dtype(dtypes.llm_params).itemsize,
            say=lambda line: print(line, file=sys.stderr),
        )
    else:
        program = program_of(config)
    batch = feed(host_batch, program.mesh, WHOLE)
    state = program.start(drawn(program.state.params, seed=0))
    frozen = drawn(program.frozen, seed=1)
    started = time.perf_counter()
    compiled = program.compile(batch)
    compiling = time.perf_counter() - started

    def step() -> Any:
        nonlocal state
        state, metrics = compiled(state, frozen, batch)
        return metrics

    pending, loss = step(), 0.0
    for _ in range(2):
        jax.block_until_ready(pending)
        pending = step()
    jax.block_until_ready(pending)
    stamps = [time.perf_counter()]
    pending = step()
    while len(stamps) <= repeats and (
        len(stamps) <= 3 or stamps[-1] - stamps[0] < BUDGET_S
    ):
        following = step()
        jax.block_until_ready(pending)
        stamps.append(time.perf_counter())
        pending = following
    jax.block_until_ready(pending)
    seconds = [b - a for a, b in zip(stamps, stamps[1:], strict=False)]
    took = summary(seconds)
    loss = float(pending["loss"])
    planned = measure(program, compiled)
    sizes = flops.batch_sizes(host_batch)
    trainable = sum(leaf.size for leaf in jax.tree.leaves(program.state.params))
    counted = flops.step_flops(
        *(program.stage, model, sizes),
        trainable=trainable,
        accumulation=accumulation,
        attention="causal",
    )
    held = jax.devices()[0].memory_stats() or {}
    row: dict[str, Any] = {
        "preset": preset,
        "stage": stage,
        "num_queries": num_queries,
        "sizes": sizes._asdict(),
        "dtype": dtypes.compute,
        "remat": config.model.remat,
        "attention": kernel,
        "accumulation": accumulation,
        "loss": loss,
        "compile_s": compiling,
        "steps": len(seconds),
        "median_s": took.median,
        "p95_s": took.p95,
        "samples_per_s": size / took.median,
        "useful_flops": counted.useful,
        "memory": held.get("peak_bytes_in_use", host.peak_memory_bytes()),
        "memory_of": "device" if "peak_bytes_in_use" in held else "process",
        "planned_memory": planned._asdict() | {"peak": planned.peak},
    }
    if mfu:
        del state, frozen, batch, pending
        rate = counted.useful / row["median_s"]
        peaks = [peak.measured(dtypes.compute)]
        stated = peak.of_device(dtypes.compute)
        peaks += [stated] if stated.source != peaks[0].source else []
        row["flops_per_s"] = rate
        row["mfu"] = {p.source: rate / p.flops for p in peaks}
        row["peak"] = {p.source: p._asdict() for p in peaks}
    return row


def drawn(shapes: Any, seed: int) -> Any:
    """Random weights of these shapes, dtypes and shardings, made on the device."""
    import jax

    leaves, tree = jax.tree.flatten(shapes)

    def draw(key: Any) -> Any:
        keys = jax.random.split(key, len(leaves))
        # Small enough that no sum of products overflows; norms scale it up again.
        return [
            (0.02 * jax.random.normal(k, leaf.shape)).astype(leaf.dtype)
            for k, leaf in zip(keys, leaves, strict=True)
        ]

    lie = [leaf.sharding for leaf in leaves]
    return tree.unflatten(jax.jit(draw, out_shardings=lie)(jax.random.key(seed)))


def measure_presets(
    options: argparse.Namespace, child: Callable[[dict[str, Any], str], dict[str, Any]]
) -> list[dict[str, Any]]:
    """A row for each stage and M, each in a process of its own, printed as it comes.

    ValueError when a row would take more than the device's stated peak.
    """
    rows = []
    print(
        f"{'stage':<10}{'M':>5}{'batch':>7}{'crops':>7}{'F':>6}{'S':>6}{'step':>10}"
        f"{'samples/s':>11}{'MFU':>15}{'memory':>11}{'planned':>11}"
    )
    with tempfile.TemporaryDirectory() as cache:
        for stage in options.stage.split(","):
            for num_queries in options.num_queries.split(","):
                job = {
                    "work": "preset",
                    "preset": options.preset,
                    "stage": stage,
                    "num_queries": int(num_queries),
                    "repeats": options.repeats or 30,
                    **{
                        name: getattr(options, name)
                        for name in (
                            *("batch_size", "turns", "question", "answer"),
                            *("remat", "attention", "mfu"),
                        )
                    },
                }
                rows.append(child(job, cache))
                print(_line(rows[-1]), flush=True)
    return rows


def _line(row: dict[str, Any]) -> str:
    sizes, gib = row["sizes"], 2**30
    for source, share in row.get("mfu", {}).items():
        if share > 1:
            raise ValueError(
                f"{row['stage']}, M = {row['num_queries']}: {share:.0%} of the "
                f"{source} peak was reached, which cannot be: expected at most 100 %; "
                "the step was not waited for, or its operations are counted wrongly"
            )
    mfu = " / ".join(f"{share:.1%}" for share in row.get("mfu", {}).values())
    planned = row["planned_memory"]["peak"]
    return (
        f"{row['stage']:<10}{row['num_queries']:>5}{sizes['rows']:>7}"
        f"{sizes['crops']:>7}{sizes['fusion_length']:>6}{sizes['llm_length']:>6}"
        f"{row['median_s'] * 1e3:>8.1f}ms{row['samples_per_s']:>11.1f}{mfu:>15}"
        f"{row['memory'] / gib:>7.1f} GiB{planned / gib:>7.1f} GiB"
    )
