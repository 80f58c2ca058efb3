"""Trains one stage: `python -m vtscale_jax.train --config configs/m256.py`.

    python -m vtscale_jax.train --config configs/m256.py                  # adapt
    python -m vtscale_jax.train --config configs/m256.py:stage=align      # stage 1
    python -m vtscale_jax.train --config configs/m256.py:stage=finetune   # stage 2
    python -m vtscale_jax.train --config configs/m16.py --workdir DIR \\
        --config.data.batch_size=8 --config.optim.epochs=0.5
    python -m vtscale_jax.train --config configs/m256.py:paper --dry_run  # does it fit?

The same command continues a run that was interrupted, on whatever devices there are
then, and is the same on every host of several (`launch/` starts them). SIGTERM saves
and ends it. Results are files in the run folder (default `runs/<config.name>`); the
last lines say where.
"""

import contextlib
import functools
import itertools
import shlex
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from vtscale_jax import paths, settings
from vtscale_jax.compilation import keep_compiled
from vtscale_jax.dry_run import dry_run
from vtscale_jax.evaluate import Evaluator, heldout_scores
from vtscale_jax.loss_watch import LossWatch, TrainingStopped, check_loss
from vtscale_jax.machine import device_peak
from vtscale_jax.metrics import MetricsLog, NoLog
from vtscale_jax.next_commands import ask_it, next_stage
from vtscale_jax.optim import learning_rate
from vtscale_jax.pace import CompiledSteps, Pace, limit
from vtscale_jax.parallel import host
from vtscale_jax.parallel.hosts.cluster import Cluster
from vtscale_jax.parallel.hosts.processes import Processes, start
from vtscale_jax.parallel.hosts.stopping import StopRequests
from vtscale_jax.parallel.mesh import described, feed, own_shards, to_host
from vtscale_jax.phases import Feeding, Step, total_hash
from vtscale_jax.prepare import first_notes, identity, lay_out, load
from vtscale_jax.report.page import write_report
from vtscale_jax.run_folder import RunFolder, code_version, versions
from vtscale_jax.skips import SkipLog, skipped_places
from vtscale_jax.weights import checkpoints, starting
from vtscale_jax.weights.sizes import fill_sizes

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file and presets, e.g. configs/m256.py:stage=align"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Run folder; default runs/<name>")
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Compile the step, print what it needs, and train nothing"
)
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show the traceback of an error")


ALONE = Cluster("single", None, 1, 0)


class Interrupted(Exception):
    """A signal ended the run after `step`, which is saved."""

    def __init__(self, step: int):
        super().__init__(step)
        self.step = step


def train(
    config: ConfigDict,
    workdir: Path,
    processes: Processes | None = None,
    stops: StopRequests | None = None,
) -> Path:
    """Trains the config's stage in `workdir` and returns the report's path.

    Continues when the folder holds an interrupted run of the same config; returns at
    once when that run is finished. Every one of several `processes` calls it. Raises
    Interrupted when `stops` asked for it, once the state is saved.
    """
    processes = processes or start(about={}, cluster=ALONE)
    say = print if processes.is_first else lambda *_: None
    started = time.monotonic()

    # Sizes of pretrained models, which know them.
    config = config.copy_and_resolve_references()
    for line in fill_sizes(config):
        say(f"from the weights: {line}")

    # Folder: ours, or an error that leaves it as it was.
    folder = RunFolder(workdir, writes=processes.is_first)
    folder.check(config.to_dict())
    if folder.finished():
        say(f"This run is finished. Report: {workdir / 'report.html'}")
        return workdir / "report.html"

    # Data, mesh, shapes and shardings; then the starting weights.
    share = functools.partial(processes.share, timeout_s=config.hosts.wait_s)
    processes.reached("its data and batch shapes")
    run = lay_out(config, say, share)
    program, shards, total_steps = run.program, run.shards, run.total_steps
    watch = LossWatch(spike=config.stop.spike, window=config.stop.window)
    processes.reached("its starting weights")
    weights = load(run)
    inputs = identity(run, weights)
    folder.check_inputs(inputs)
    processes.agree("starting weights, data and dtypes", str(inputs))
    frozen, at_most = weights.frozen, limit(run.dtypes.compute)
    manifest = {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "code": code_version(),
        "versions": versions(),
        "device": described(program.mesh) | {"processes": processes.count},
        "peak": at_most._asdict(),
        **first_notes(run, weights, inputs),
    }
    counts = manifest["parameters"]

    with contextlib.ExitStack() as stack:
        stack.enter_context(folder.claimed(config.to_dict()))
        processes.barrier("the run folder", config.hosts.wait_s)
        folder.check_shared()
        saved = stack.enter_context(
            checkpoints.Checkpoints(
                workdir / "checkpoints", keep=config.checkpoint.keep
            )
        )
        folder.write("manifest.json", manifest)
        say(
            f"{config.name}: stage {config.stage}, M = {config.num_queries}, "
            f"{counts['trainable']:,} trainable and {counts['frozen']:,} frozen "
            f"parameters, {total_steps:,} steps in {workdir}"
        )
        stack.callback(run.encoder.close)
        feeding = Feeding(run.phases, shards, say)
        attempts = itertools.count(1)
        restored = saved.restore_latest(
            program.state,
            lambda read: all(
                processes.share(f"restoring, attempt {next(attempts)}", read)
            ),
        )
        elapsed, begun, place_in_data = 0.0, 0, None
        if restored is None:
            state = program.start(weights.trainable)
        else:
            state, begun = restored.state, restored.step
            elapsed = restored.data["elapsed_s"]
            place_in_data = restored.data["stream"]
            manifest["samples_fed"] = restored.data["fed"]
            # What was fed before counts once: for those that feed the first part.
            if shards.own[0] == own_shards(program.mesh, 0).own[0]:
                feeding.fed = int(restored.data["fed"], 16)
            saved.discard_after(begun)
            say(f"Continuing from step {begun:,} of {total_steps:,}.")
        del weights
        at = (program.model, program.mesh, processes)
        evaluator = Evaluator(config, run.parts, *at)
        skips = SkipLog(
            *(workdir, processes.index, shards.rows(config.data.batch_size)),
            most=config.data.max_unreadable,
            begun=begun,
        )
        restored_step = None if restored is None else begun
        log = stack.enter_context(
            MetricsLog(workdir, total_steps=total_steps, restored_step=restored_step)
            if processes.is_first
            else NoLog()
        )
        rate = learning_rate(run.optim)
        pace = stack.enter_context(Pace(at_most))
        steps = CompiledSteps(program, run.optim.accumulation, say)
        pending: list[tuple[Step, dict]] = []

        def due(step: Step) -> bool:
            return step.number % config.log.every == 0 or step.number == total_steps

        def flush() -> None:
            """Looks at the steps that are done, and logs the last if it is due."""
            rows = jax.device_get([metrics for _, metrics in pending])
            for (step, _), row in zip(pending, rows, strict=True):
                watch.see(step.number, float(row["loss"]), float(row["grad_norm"]))
            if pending and due(pending[-1][0]):
                step, row = pending[-1][0], rows[-1]
                row["learning_rate"] = rate((step.number - 1) // run.optim.accumulation)
                row["num_queries"] = step.phase.num_queries
                log.write(step.number, **row, **pace.row())
            pending.clear()

        def save(step: Step, heldout_loss: float) -> None:
            """A checkpoint after `step`, by all processes together."""
            halves = [shards.own[0], feeding.fed >> 32, feeding.fed & 0xFFFFFFFF]
            fed = total_hash(processes.gather(np.array(halves, np.uint32)))
            seconds = elapsed + time.monotonic() - started
            data = {"stream": step.place, "elapsed_s": seconds, "fed": f"{fed:016x}"}
            at = f"the checkpoint of step {step.number}"
            processes.barrier(at, config.hosts.timeout_s)
            saved.save(state, data, heldout_loss=heldout_loss)
            manifest["samples_fed"] = data["fed"]

        # Whatever ends this process, the others hear of it before anything is closed.
        stack.push(functools.partial(_tell, processes))

        # Loop. Metrics are fetched one step late: the device never waits for them.
        patience = config.hosts.wait_s  # hosts compile at different speeds
        try:
            for step in pace.waiting(feeding.steps(begun, place_in_data, skips)):
                number = step.number
                # Who is late with its data, or hangs in it, is named after a while.
                with pace.held_up():
                    processes.barrier(f"the data of step {number}", patience)
                patience = config.hosts.timeout_s
                batch = feed(step.batch, program.mesh, shards)
                compiled = steps.of(batch)
                if compiled is None:
                    jax.block_until_ready(state)
                    patience = config.hosts.wait_s
                    with pace.paused():
                        compiled = steps.compile(batch)
                state, metrics = compiled.run(state, frozen, batch)
                if pending and due(pending[-1][0]):
                    flush()
                # The device computes this step while the next batch comes to it; more
                # of them under way would fill its memory with batches.
                if pending:
                    jax.block_until_ready(pending[-1][1])
                pending.append((step, metrics))
                pace.did(config.data.batch_size, compiled)
                last = number == total_steps
                stop = stops is not None and stops.requested(number)
                evaluate_now = number % config.eval.every == 0 or last
                save_now = number % config.checkpoint.every == 0 or last or stop
                if not (evaluate_now or save_now):
                    continue
                flush()
                with pace.paused():
                    scores = heldout_scores(
                        program, state.params, frozen, step.phase.heldout, shards
                    )
                    # Of the parameters that would be saved, not of those before them.
                    check_loss(number, scores["loss"])
                    if evaluate_now and not last:
                        scores |= evaluator.quick(
                            paths.merge(state.params, frozen), step.phase.num_queries
                        )
                    if not stop:
                        log.write(number, split="heldout", **scores)
                    if save_now:
                        save(step, scores["loss"])
                if stop:
                    saved.wait()
                    raise Interrupted(number)
        except TrainingStopped as stop:
            raise _explained(stop, folder, feeding, pending, saved) from stop
        saved.wait()
        if stops is not None:
            stops.leave_at_once(f"step {total_steps} is saved")

        # Results: weights, scores, samples, report.
        trained = to_host(state.params)
        if processes.is_first:
            paths.save(trained, workdir / starting.RUN_WEIGHTS)
        evaluator.final(paths.merge(state.params, frozen), total_steps, folder)
        manifest |= {
            "duration_s": elapsed + time.monotonic() - started,
            "peak_memory_bytes": host.peak_memory_bytes(),
            "params_sha256": paths.content_hash(trained),
            "step_memory_bytes": steps.memory,
            "device_peak_bytes": device_peak(jax.local_devices()[0]),
            "speed": pace.summary(),
            "samples_skipped": len(skipped_places(workdir)),
        }
        # The report shows the manifest; a run is finished once both stand.
        folder.write("manifest.json", manifest)
        report = workdir / "report.html"
        if processes.is_first:
            write_report(workdir)
        folder.write("manifest.json", manifest | {"finished": True})
        processes.barrier("the end")
        return report


def _tell(
    processes: Processes, kind: type | None, error: BaseException | None, _: object
) -> None:
    """Tells the other processes why this one ends; raises PeerLost in place of what a
    collective made of the end of another."""
    if error is None or isinstance(error, Interrupted):
        return
    lost = processes.explain(error)
    processes.failed(lost or error)
    if lost is not None:
        raise lost from error


def _explained(
    stop: TrainingStopped,
    folder: RunFolder,
    feeding: Feeding,
    pending: list[tuple[Step, dict]],
    saved: checkpoints.Checkpoints,
) -> TrainingStopped:
    """The error with what it takes to find the cause, which is written to a file."""
    ids = feeding.sample_ids(stop.step)
    rows = jax.device_get([(step.number, metrics) for step, metrics in pending])
    recent = [
        {"step": int(number)} | {name: str(value) for name, value in row.items()}
        for number, row in rows
    ]
    found = {"step": stop.step, "reason": stop.reason, "sample_ids": ids}
    folder.write("stopped.json", found | {"recent": recent})
    steps = saved.steps()
    whole = f"the one of step {steps[0]} is whole" if steps else "there is none yet"
    return TrainingStopped(
        f"{stop}. The ids of that batch's {len(ids)} samples are in "
        f"{folder.path / 'stopped.json'}: look at them, and at grad_norm in "
        f"metrics.jsonl. The same command goes on from the last checkpoint ({whole}) "
        "and meets the same batch; if the data are right, start anew in another "
        "--workdir with a lower --config.optim.learning_rate or a longer "
        "--config.optim.warmup, or let spikes pass with --config.stop.spike=0.",
        stop.step,
        stop.reason,
    )


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
    # orbax reports every file it writes, and every error that it also raises.
    logging.set_verbosity(logging.FATAL)
    host.take_gpu_memory()
    keep_compiled()
    config = _CONFIG.value
    workdir = Path(_WORKDIR.value or f"runs/{config.name}")
    about = {
        "config": settings.fingerprint(config),
        "workdir": str(workdir),
        **{name: str(value) for name, value in (code_version() | versions()).items()},
    }
    try:
        with (
            StopRequests() as stops,
            start(
                about=about,
                timeout_s=config.hosts.wait_s,
                peer_timeout_s=config.hosts.timeout_s,
            ) as processes,
        ):
            stops.attach(processes)
            # Large blocks come and go: temporaries on CPU, samples from workers.
            if jax.default_backend() == "cpu" or config.data.num_workers:
                host.keep_freed_memory()
            with checkpoints.room_in(workdir):
                if _DRY_RUN.value:
                    lines = dry_run(config)
                    print("\n".join(lines if processes.is_first else []))
                else:
                    _run(config, workdir, processes, stops)
    except ValueError as error:
        if _TRACEBACK.value:
            raise
        sys.exit(f"error: {error}\n(--traceback shows where)")


def _run(
    config: ConfigDict, workdir: Path, processes: Processes, stops: StopRequests
) -> None:
    """Trains, and says where the results are and what to run next."""
    try:
        report = train(config, workdir, processes, stops)
    except Interrupted as stop:
        if processes.is_first:
            print(
                f"Stopped after step {stop.step:,}, which is saved in "
                f"{workdir / 'checkpoints'}. The same command continues."
            )
        return
    if not processes.is_first:
        return
    print(f"\nReport:  {report}\nWeights: {workdir / starting.RUN_WEIGHTS}")
    for line in [*ask_it(config, workdir), next_stage(config, workdir)]:
        print(line)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=_parse_flags)
