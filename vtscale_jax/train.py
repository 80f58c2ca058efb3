"""Trains one stage: `python -m vtscale_jax.train --config configs/m256.py`.

    python -m vtscale_jax.train --config configs/m256.py                  # adapt
    python -m vtscale_jax.train --config configs/m256.py:stage=align      # stage 1
    python -m vtscale_jax.train --config configs/m256.py:stage=finetune   # stage 2
    python -m vtscale_jax.train --config configs/m16.py --workdir DIR \\
        --config.data.batch_size=8 --config.optim.epochs=0.5

The same command continues a run that was interrupted. Results are files in the run
folder (default `runs/<config.name>`); the last lines say where.
"""

import dataclasses
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags, logging
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from vtscale_jax import paths, settings
from vtscale_jax.assemble import Parts, assemble, open_source, probed
from vtscale_jax.evaluate import Evaluator
from vtscale_jax.loader import Source, Stream, StreamIterator, kept_records
from vtscale_jax.metrics import MetricsLog, Throughput, check_loss
from vtscale_jax.optim import learning_rate, make_optimizer
from vtscale_jax.parallel.host import keep_freed_memory, peak_memory_bytes
from vtscale_jax.parallel.mesh import make_mesh, replicate, replicated, split_batch
from vtscale_jax.report.page import write_report
from vtscale_jax.run_folder import RunFolder, code_version, versions
from vtscale_jax.stages import get_stage
from vtscale_jax.step import TrainState, initial_state, make_steps
from vtscale_jax.types import Batch
from vtscale_jax.weights import checkpoints, starting
from vtscale_jax.weights.sizes import fill_sizes

HELDOUT_BATCHES = 4

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file and presets, e.g. configs/m256.py:stage=align"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Run folder; default runs/<name>")
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show the traceback of an error")


def train(config: ConfigDict, workdir: Path) -> Path:
    """Trains the config's stage in `workdir` and returns the report's path.

    Continues when the folder holds an interrupted run of the same config; returns at
    once when that run is finished.
    """
    # Sizes of pretrained models, which know them.
    started = time.monotonic()
    config = config.copy_and_resolve_references()
    for line in fill_sizes(config):
        print(f"from the weights: {line}")

    # Folder: ours, or an error that leaves it as it was.
    folder = RunFolder(workdir)
    folder.check(config.to_dict())
    if folder.finished():
        print(f"This run is finished. Report: {workdir / 'report.html'}")
        return workdir / "report.html"

    # Config: everything derived from it, before anything is written.
    settings.check(config)
    dtypes = settings.resolve_dtypes(config, jax.default_backend())
    stage = get_stage(config.stage)
    model_config = settings.model_config(config, dtypes.compute)
    parts = assemble(config, model_config.vision)
    source, heldout = open_source(config, "train"), open_source(config, "heldout")
    used = len(kept_records(len(source), (config.seed, config.data.subset)))
    optim = settings.optim_config(config, used)
    schedule = settings.query_schedule(config, optim)
    total_steps = optim.steps * optim.accumulation
    mesh = make_mesh(config.data.batch_size)

    # Weights: each group from the source its stage names.
    params, provenance = starting.starting_params(
        stage,
        model_config,
        config.weights.to_dict(),
        config.seed,
        llm_dtype=dtypes.llm_params,
        llm_sharding=replicated(mesh),
    )
    trainable, frozen = paths.partition(params, stage.trains)
    frozen = jax.tree.map(lambda leaf: leaf.astype(dtypes.llm_params), frozen)
    optimizer = make_optimizer(optim, trainable)
    frozen = replicate(frozen, mesh)
    state = replicate(initial_state(trainable, optimizer), mesh)

    # Data: the shapes of every phase, and that its records can be encoded.
    phases = _phases(parts, source, heldout, schedule, total_steps)

    inputs = {
        "weights": {name: found.sha256 for name, found in provenance.items()},
        "data": {"train": source.fingerprint, "heldout": heldout.fingerprint},
        "dtypes": dataclasses.asdict(dtypes),
    }
    folder.check_inputs(inputs)
    manifest = {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "code": code_version(),
        "versions": versions(),
        "device": _device(),
        "inputs": inputs,
        "weights": {name: found._asdict() for name, found in provenance.items()},
        "parameters": {"trainable": _count(trainable), "frozen": _count(frozen)},
        "finished": False,
    }

    # Compile: both steps, once for each of the few batch shapes.
    train_step, eval_step = make_steps(stage, model_config, optimizer)
    train_step = jax.jit(train_step, donate_argnums=0)
    eval_step = jax.jit(eval_step)
    rate = learning_rate(optim)

    with (
        folder.claimed(config.to_dict()),
        checkpoints.Checkpoints(
            workdir / "checkpoints", keep=config.checkpoint.keep
        ) as saved,
    ):
        folder.write("manifest.json", manifest)
        print(
            f"{config.name}: stage {stage.name}, M = {config.num_queries}, "
            f"{_count(trainable):,} trainable and {_count(frozen):,} frozen "
            f"parameters, {total_steps:,} steps in {workdir}"
        )
        restored = saved.restore_latest(state)
        elapsed, start = 0.0, 0
        if restored is not None:
            state, start = restored.state, restored.step
            elapsed = restored.data["elapsed_s"]
            saved.discard_after(start)
            print(f"Continuing from step {start:,} of {total_steps:,}.")
        evaluator = Evaluator(config, parts, model_config, mesh)
        with MetricsLog(
            workdir,
            total_steps=total_steps,
            restored_step=None if restored is None else start,
        ) as log:
            # Loop. Metrics are fetched one step late: the device never waits for them.
            pending = None
            clock, timed, compiled = Throughput(), 0, set()
            batches = _batches(phases, restored)
            for step, phase, batch, place in batches:
                shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
                first = shapes not in compiled
                # A step that compiles runs alone, and counts for no speed.
                if first:
                    jax.block_until_ready(state)
                with clock.paused() if first else nullcontext():
                    state, metrics = train_step(state, frozen, split_batch(batch, mesh))
                    if first:
                        jax.block_until_ready(metrics)
                timed += 0 if first else config.data.batch_size
                compiled.add(shapes)
                if pending is not None:
                    _log_step(log, *pending, clock)
                    pending = None
                if step % config.log.every == 0 or step == total_steps:
                    update = (step - 1) // optim.accumulation
                    metrics["learning_rate"] = rate(update)
                    metrics["num_queries"] = np.asarray(phase.num_queries)
                    pending, timed = (step, metrics, timed), 0
                last = step == total_steps
                evaluate_now = step % config.eval.every == 0 or last
                save_now = step % config.checkpoint.every == 0 or last
                if not (evaluate_now or save_now):
                    continue
                if pending is not None:
                    _log_step(log, *pending, clock)
                    pending = None
                with clock.paused():
                    scores = _heldout_scores(
                        eval_step, state, frozen, phase.heldout, mesh
                    )
                    # Of the parameters that would be saved, not of those before them.
                    check_loss(step, scores["loss"])
                    if evaluate_now and not last:
                        scores |= evaluator.quick(
                            paths.merge(state.params, frozen), phase.num_queries
                        )
                    log.write(step, split="heldout", **scores)
                    if save_now:
                        seconds = elapsed + time.monotonic() - started
                        saved.save(
                            state,
                            {"stream": place, "elapsed_s": seconds},
                            heldout_loss=scores["loss"],
                        )
        saved.wait()

        # Results: weights, scores, samples, report.
        paths.save(jax.device_get(state.params), workdir / starting.RUN_WEIGHTS)
        evaluator.final(paths.merge(state.params, frozen), total_steps, folder)
        manifest |= {
            "duration_s": elapsed + time.monotonic() - started,
            "peak_memory_bytes": peak_memory_bytes(),
            "params_sha256": paths.content_hash(jax.device_get(state.params)),
        }
        # The report shows the manifest; a run is finished once both stand.
        folder.write("manifest.json", manifest)
        report = write_report(workdir)
        folder.write("manifest.json", manifest | {"finished": True})
        return report


class _Phase(NamedTuple):
    """Batches up to step `end` with M = `num_queries`, and held-out ones like them."""

    num_queries: int
    end: int
    stream: Stream
    heldout: list[Batch]


def _phases(
    parts: Parts,
    train: Source,
    heldout: Source,
    schedule: tuple[tuple[int, int], ...],
    total_steps: int,
) -> list[_Phase]:
    """The phases of the curriculum; what is wrong with the data shows here."""
    ends = [first for first, _ in schedule[1:]] + [total_steps]
    phases, probe = [], [*probed(train), *probed(heldout)]
    for (first, num_queries), end in zip(schedule, ends, strict=True):
        spec = parts.training_shapes(probe, num_queries)
        stream = parts.stream(train, spec, num_queries, first)
        batches = parts.heldout_batches(heldout, spec, num_queries, HELDOUT_BATCHES)
        phases.append(_Phase(num_queries, end, stream, batches))
    return phases


def _batches(
    phases: list[_Phase], restored: checkpoints.Restored | None
) -> Iterator[tuple[int, _Phase, Batch, dict[str, Any]]]:
    """(step after this batch, its phase, batch, the data's place after it)."""
    for phase in phases:
        if restored is not None and restored.step >= phase.end:
            continue
        batches: StreamIterator = iter(phase.stream)
        if restored is not None:
            batches.restore(restored.data["stream"])
            restored = None
        print(
            f"M = {phase.num_queries} until step {phase.end:,}: "
            f"{phase.stream.describe()}"
        )
        while batches.step < phase.end:
            batch = next(batches)
            yield batches.step, phase, batch, batches.state()
        batches.close()


def _heldout_scores(
    eval_step, state: TrainState, frozen: dict, batches: list[Batch], mesh: Mesh
) -> dict[str, float]:
    """Mean loss (and what goes with it) over the held-out batches."""
    rows = [eval_step(state.params, frozen, split_batch(b, mesh)) for b in batches]
    rows = jax.device_get(rows)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _log_step(
    log: MetricsLog, step: int, metrics: dict, samples: int, clock: Throughput
) -> None:
    metrics = {name: np.asarray(v) for name, v in jax.device_get(metrics).items()}
    speed = clock.update(samples)
    if samples:
        metrics["samples_per_s"] = np.asarray(speed)
    log.write(step, **metrics)


def _device() -> dict[str, Any]:
    return {
        "kind": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "count": jax.device_count(),
    }


def _count(tree: dict) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parsing, with a line in place of a traceback for an unknown field."""
    try:
        return app.parse_flags_with_usage(argv)
    except AttributeError as error:
        sys.exit(f"error: --config has no such field: {error}")


def main(argv: list[str]) -> None:
    """Command line; errors in config, data or folders end it with their message."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; see --help")
    logging.set_verbosity(logging.WARNING)  # orbax reports every file it writes
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    config = _CONFIG.value
    workdir = Path(_WORKDIR.value or f"runs/{config.name}")
    try:
        report = train(config, workdir)
    except ValueError as error:
        if _TRACEBACK.value:
            raise
        sys.exit(f"error: {error}\n(--traceback shows where)")
    print(f"\nReport:  {report}\nWeights: {workdir / starting.RUN_WEIGHTS}")
    for line in _ask_it(config, workdir):
        print(line)
    print(_next_step(config, workdir))


def _ask_it(config: ConfigDict, workdir: Path) -> list[str]:
    """The command that asks the model about one of its sample pages."""
    pages = sorted((workdir / "samples").glob("*.png"))
    if config.stage == "align" or not pages:
        return []
    command = f"python -m vtscale_jax.ask --run {workdir} --image {pages[0]}"
    return [f"Ask:     {command}"]


def _next_step(config: ConfigDict, workdir: Path) -> str:
    """The command that most would run next, in a run folder of its own."""

    def command(num_queries: int, stage: str, init_from: str, name: str = "") -> str:
        words = [config.preset]
        words += [f"stage={stage}"] if stage != "adapt" else []
        words += [f"inputs={config.inputs}"] if config.inputs != "vqq" else []
        file = f"configs/m{num_queries}.py:{','.join(words)}"
        line = f"Next:    python -m vtscale_jax.train --config {file}"
        if init_from != "embedded":
            line += f" --config.weights.init_from={init_from}"
        return line + (f" --config.name={name}" if name else "")

    if config.stage == "align":
        return command(config.num_queries, "finetune", str(workdir))
    if config.stage == "finetune":
        return command(16, "adapt", str(workdir), f"m16-of-{workdir.name}")
    other = 16 if config.num_queries != 16 else 64
    own = config.name.replace(f"m{config.num_queries}-", f"m{other}-", 1)
    return command(other, "adapt", config.weights.init_from, own)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=_parse_flags)
