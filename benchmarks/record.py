"""The form in which every benchmark ends: what was found, and where it was found.

    from benchmarks import record

    record.finish("train_step", {"rows": rows}, options.out)

A benchmark prints its table for people, then calls `finish` once: the last line of its
output is one line of JSON with the same numbers, the device, the versions and the code.
Figures without the machine that they are of cannot be compared, so none is written
without it.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from vtscale_jax.machine import memory_bytes, num_cores, processor
from vtscale_jax.run_folder import code_version, versions, write_whole

HEADER = ("benchmark", "device", "versions", "code", "date")


class RecordError(ValueError):
    """A result that cannot be recorded as it is."""


def finish(
    name: str,
    result: Mapping[str, Any],
    out: Path | None,
    *,
    packages: Sequence[str] = (),
    machine: Mapping[str, Any] | None = None,
) -> None:
    """Prints the result as the last line and writes it to `out`, with the machine,
    versions and code added.

    `packages` are those that were compared with, such as torch: their versions are
    added to those of `run_folder.versions`. `machine` is what `device` said in another
    process; without it JAX is started here, which takes memory of a GPU: call this when
    every child has ended. Raises RecordError, and writes nothing, for a field of HEADER
    in `result` or for a number that JSON does not have.
    """
    whole = headed(name, result, packages=packages, machine=machine)
    line = as_json(name, whole)
    if out is not None:
        write(out, whole)
        print(f"written to {out}")
    print(line, flush=True)


def headed(
    name: str,
    result: Mapping[str, Any],
    *,
    packages: Sequence[str] = (),
    machine: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The result with HEADER's fields, as `finish` records it."""
    taken = sorted(set(HEADER) & set(result))
    if taken:
        raise RecordError(
            f"the result of {name} has {', '.join(taken)}, which record.finish adds; "
            "leave out what says the same, and give what does not another name"
        )
    return {
        "benchmark": name,
        **result,
        "device": dict(machine or device()),
        "versions": versions() | {each: metadata.version(each) for each in packages},
        "code": code_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def not_measured(name: str, why: str) -> dict[str, str]:
    """The row of something that this machine cannot measure, in place of its numbers;
    `why` says what it would take."""
    return {"name": name, "not_measured": why}


def device() -> dict[str, Any]:
    """The devices that JAX computes on, and the machine around them.

    platform ("cpu", "gpu", "tpu"), kind and count as JAX says them; processor by name,
    cores that this process may use, memory of the machine in bytes. Starts JAX.
    """
    import jax

    return {
        "platform": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "processor": processor(),
        "cores": num_cores(),
        "memory": memory_bytes(),
    }


def as_json(name: str, result: Any) -> str:
    """One line of JSON; RecordError when a number in it is not finite."""
    try:
        return json.dumps(result, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise RecordError(
            f"the result of {name} has a number that is not finite ({error}), which "
            "JSON cannot hold: say in words what could not be measured "
            "(record.not_measured)"
        ) from error


def write(file: Path, result: Any) -> None:
    """Writes a result as JSON, whole or not at all, and makes the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(file, f"{text}\n".encode())
