"""One measurement from start to end: chunks shared out, parts kept, one result file.

    path = run_measurement(source, Job(...), out, processes)

What is done is kept: a measurement that was interrupted goes on, one that is finished
is not made again.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from vtscale_jax.divergence import null
from vtscale_jax.divergence.histograms import EDGES
from vtscale_jax.divergence.measure import (
    How,
    Source,
    Step,
    Whole,
    combine,
    measure_chunk,
    num_chunks,
)
from vtscale_jax.divergence.pairs.rows import BadRow, check_share
from vtscale_jax.divergence.parts import Parts
from vtscale_jax.divergence.result import Result, plain, read_result, write_result
from vtscale_jax.divergence.summary import summarize
from vtscale_jax.metrics import MetricsLog, NoLog, Throughput
from vtscale_jax.run_folder import code_version, differences, versions

BAD_ROWS = "bad_rows.jsonl"


class OtherMeasurement(ValueError):
    """A result that belongs to another measurement."""


@runtime_checkable
class Processes(Protocol):
    """Those that share the work (`parallel.hosts.processes`)."""

    index: int
    count: int
    is_first: bool

    def barrier(self, phase: str, timeout_s: float = 600.0) -> None:
        """Waits until all are at `phase`."""
        ...

    def reached(self, phase: str) -> None:
        """Says where this one is."""
        ...


class Job(NamedTuple):
    """What is measured, and what the result says of it.

    name:     of the model; the result is `<out>/<name>.json`
    kind:     "text" or "vision"
    layer:    "final" or the number of a block
    num_positions: N
    how:      reduction, kernel, swaps
    replicates, seed: of the bootstrap
    inputs:   hashes of data and weights, dtypes, lengths: all that would change the
              numbers; a measurement goes on only where they are the same
    about:    what else the manifest should say, as the path of the model
    pairs:    where the pairs came from, in words; `word` is what a row is called
    max_bad_share: of the rows
    """

    name: str
    kind: str
    layer: str
    num_positions: int
    how: How
    replicates: int
    seed: int
    inputs: dict[str, Any]
    about: dict[str, Any]
    pairs: str
    max_bad_share: float
    word: str = "line"


def finished(path: Path, job: Job) -> bool:
    """Whether this very measurement is in `path` already.

    OtherMeasurement when another one is: it is not written over.
    """
    if not path.exists():
        return False
    there = read_result(path)
    wanted = plain(_identity(job))
    found = {
        "kind": there.kind,
        "layer": there.layer,
        "reduction": there.reduction,
        "num_positions": there.num_positions,
        **{key: there.manifest.get(key) for key in wanted if key in there.manifest},
    }
    differ = differences(found, wanted, "there")
    if differ:
        raise OtherMeasurement(
            f"{path} is the result of another measurement:{differ}\nIt is not written "
            "over: choose another --name or --out, or delete it"
        )
    return True


def _identity(job: Job) -> dict[str, Any]:
    """What makes two measurements the same, as the result tells it."""
    return {
        "kind": job.kind,
        "layer": job.layer,
        "reduction": job.how.reduction,
        "num_positions": job.num_positions,
        "swaps": job.how.swaps,
        "swaps_seed": job.how.seed if job.how.swaps else None,
        "kernel": job.how.kernel,
        "seed": job.seed,
        "replicates": job.replicates,
        **job.inputs,
    }


def run_measurement(
    source: Source,
    job: Job,
    out: Path,
    processes: Processes,
    say: Callable[[str], None],
) -> Path:
    """Measures what is missing, puts the parts together and writes the result; its
    path. All of several processes call this, each with a source on devices of its own,
    and share `out`.

    Raises PairsError when too many rows turn out to be no pairs; what was measured
    stays in the folder of parts.
    """
    path = out / f"{job.name}.json"
    parts = Parts(out / f"{job.name}.parts")
    settings = {**_identity(job), "chunk_rows": source.chunk_rows}
    for made_later in ("seed", "replicates"):  # of the bootstrap: no chunk knows them
        settings.pop(made_later)
    with parts.claimed(settings, writes=processes.is_first):
        processes.barrier("the folder of parts")
        parts.check_shared()
        total = num_chunks(source)
        missing = parts.missing(total)
        if len(missing) < total:
            say(f"going on: {total - len(missing)} of {total} chunks are measured")
        # By number, not by place in the list: the others may already be at work.
        own = [chunk for chunk in missing if chunk % processes.count == processes.index]
        with _log(out / "logs" / job.name, source, own, processes) as log:
            _measure(source, own, parts, job.how, processes, log)
        # The others may have much more to do than this one.
        while parts.missing(total) and processes.count > 1:
            processes.reached("waiting for the others' chunks")
            time.sleep(0.2)
        processes.barrier("all chunks")
        if processes.is_first:
            whole = combine(
                parts.all(total),
                job.num_positions,
                replicates=job.replicates,
                seed=job.seed,
            )
            result = _result(whole, job, source)
            _write_bad_rows(out / f"{job.name}.{BAD_ROWS}", whole)
            write_result(path, result)
            parts.remove()
        processes.barrier("the result")
    return path


def _log(
    folder: Path, source: Source, own: list[int], processes: Processes
) -> MetricsLog | NoLog:
    if not own or not processes.is_first:
        return NoLog()
    return MetricsLog(
        folder, total_steps=min(source.num_rows, len(own) * source.chunk_rows)
    )


def _measure(
    source: Source,
    own: list[int],
    parts: Parts,
    how: How,
    processes: Processes,
    log: MetricsLog | NoLog,
) -> None:
    """Measures this process's chunks; each is written as soon as it is done."""
    step, done, speed = Step(how, source.mesh), 0, Throughput()

    def of_batch(pairs: int) -> None:
        nonlocal done
        done += pairs
        processes.reached(f"pair {done:,} of its own")
        log.write(done, samples_per_s=speed.update(pairs))

    for index, chunk in source.chunks(own):
        part = measure_chunk(source, chunk, how, step, of_batch)
        parts.write(index, part)


def _result(whole: Whole, job: Job, source: Source) -> Result:
    """The result file's content; the same whoever measured."""
    bad = [BadRow(**row) for row in whole.bad]
    summary = check_share(
        bad, source.num_rows, job.max_bad_share, where=job.pairs, word=job.word
    )
    bands, counts = whole.estimate.bands(), whole.estimate.counts()
    replicates = whole.estimate.replicates()
    fits = summarize(
        {name: band.mean for name, band in bands.items()},
        counts,
        whole.largest_norm,
        replicates=replicates,
    )
    excess = None
    if job.how.reduction != "max":  # see `null.check`
        excess = null.sup_test(
            bands["psi_excess"].mean, replicates["psi_excess"], counts
        )
    fits["excess"] = null.describe(excess)
    device = source.mesh.devices.flat[0]
    return Result(
        name=job.name,
        kind=job.kind,
        reduction=job.how.reduction,
        layer=job.layer,
        counts=counts,
        curves=bands,
        edges=EDGES,
        histograms=whole.histograms._asdict(),
        largest_norm=whole.largest_norm,
        fits=fits,
        null=_null(whole, job.how.swaps),
        pairs={"source": job.pairs, **summary, "notes": whole.notes},
        manifest={
            **code_version(),
            "versions": versions(),
            "device": {"platform": device.platform, "kind": device.device_kind},
            **job.about,
            **_identity(job),
        },
    )


def _null(whole: Whole, swaps: int) -> dict[str, Any] | None:
    """The null measurement as a band, and whether it differs from 0."""
    if whole.null is None:
        return None
    (band,) = whole.null.bands().values()
    (replicates,) = whole.null.replicates().values()
    test = null.sup_test(band.mean, replicates, whole.null.counts())
    return {
        "swaps": swaps,
        "mean": band.mean,
        "low": band.low,
        "high": band.high,
        "test": null.describe(test),
    }


def _write_bad_rows(path: Path, whole: Whole) -> None:
    """All rows that were left out, one a line; no file when there is none."""
    if not whole.bad:
        path.unlink(missing_ok=True)
        return
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in whole.bad]
    path.write_text("".join(lines), encoding="utf-8")
