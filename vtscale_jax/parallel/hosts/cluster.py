"""Which processes make up this run, and which of them this one is.

Read from what the launcher left behind, in this order:

    environment   VTSCALE_COORDINATOR, VTSCALE_NUM_PROCESSES, VTSCALE_PROCESS_ID
    kubernetes    the first two of these, and JOB_COMPLETION_INDEX of an Indexed Job
    slurm         srun with more than one task (not a batch script or a login shell)
    gke-tpu       TPU_WORKER_ID, TPU_WORKER_HOSTNAMES
    tpu-vm        the metadata server of a Cloud TPU VM
    single        none of them: one process

Several TPU slices (MEGASCALE_*) are one run. VTSCALE_COORDINATOR alone replaces the
address that SLURM or a TPU gives, for a network where its port is closed.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from vtscale_jax.parallel.hosts import node_lists, tpu_metadata

# The port of jax's own start-up on TPUs; 8476, near it, belongs to the TPU runtime.
TPU_PORT = 8482
# Job ids share the ports above those that Linux hands out by itself (32768 to 60999).
FIRST_JOB_PORT, JOB_PORTS = 61440, 4096

COORDINATOR, NUM_PROCESSES = "VTSCALE_COORDINATOR", "VTSCALE_NUM_PROCESSES"
PROCESS_ID, HOSTS = "VTSCALE_PROCESS_ID", "VTSCALE_HOSTS"
OURS = (COORDINATOR, NUM_PROCESSES, PROCESS_ID, HOSTS)


class ClusterError(ValueError):
    """Variables of a launcher that are missing, malformed or contradict each other."""


class Cluster(NamedTuple):
    """The processes of a run: `coordinator` is "host:port" of process 0.

    With one process `coordinator` is None. `hosts` are names in order of process id, or
    empty when the launcher does not tell them.
    """

    launcher: str
    coordinator: str | None
    num_processes: int
    process_id: int
    hosts: tuple[str, ...] = ()


def find_cluster(
    environ: Mapping[str, str] = os.environ, *, pci: Path = tpu_metadata.PCI
) -> Cluster:
    """The cluster that the launcher describes.

    `pci` is where Linux lists its devices; the metadata server is asked only when a TPU
    is among them. ClusterError names the variable that is wrong and the remedy.
    """
    _check_spelling(environ)
    found = (
        _from_environment(environ)
        or _from_slurm(environ)
        or _from_gke(environ)
        or _from_tpu_vm(environ, pci)
    )
    if found is None:
        left = [name for name in OURS if environ.get(name)]
        if left:
            raise ClusterError(
                f"{left[0]} is set, but not {_missing(environ)}, and no launcher "
                "(SLURM, Kubernetes, TPU) says it instead: set it too, or unset "
                f"{' and '.join(left)} to run as one process."
            )
        return Cluster("single", None, 1, 0)
    if found.launcher != "environment" and environ.get(COORDINATOR):
        found = found._replace(coordinator=_coordinator(environ))
    if found.num_processes == 1:
        return Cluster(found.launcher, None, 1, 0)
    return found


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port"; an IPv6 address stands in brackets."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.%a-z]+\]|[^:\s/]+):([0-9]{1,5})", address)
    if found is None or not 0 < int(found[2]) < 65536:
        raise ClusterError(
            f"the address {address!r} is not host:port with a port from 1 to 65535, "
            "such as node07:61500 or [fd00::7]:61500."
        )
    return found[1].strip("[]"), int(found[2])


def _from_environment(environ: Mapping[str, str]) -> Cluster | None:
    """VTSCALE_*; an Indexed Job of Kubernetes may give the process id."""
    if not environ.get(NUM_PROCESSES):
        if environ.get(PROCESS_ID):
            raise ClusterError(
                f"{PROCESS_ID} is {environ[PROCESS_ID]!r}, but {NUM_PROCESSES} is not "
                f"set: set it and {COORDINATOR} too, or unset {PROCESS_ID} to run as "
                "one process."
            )
        return None
    count = _whole(environ, NUM_PROCESSES, least=1)
    launcher, name = "environment", PROCESS_ID
    if not environ.get(PROCESS_ID) and environ.get("JOB_COMPLETION_INDEX"):
        launcher, name = "kubernetes", "JOB_COMPLETION_INDEX"
    if not environ.get(name) and count > 1:
        raise ClusterError(
            f"{NUM_PROCESSES} is {count}, but {PROCESS_ID} is not set: give each "
            f"process its own, from 0 to {count - 1}."
        )
    index = _whole(environ, name) if environ.get(name) else 0
    if index >= count:
        raise ClusterError(
            f"{name} is {index}, expected 0 to {count - 1} since {NUM_PROCESSES} is "
            f"{count}: ids count from 0."
        )
    if count > 1 and not environ.get(COORDINATOR):
        raise ClusterError(
            f"{NUM_PROCESSES} is {count}, but {COORDINATOR} is not set: set it on all "
            "processes to host:port, the host of process 0 and a port that is free "
            "there."
        )
    hosts = tuple(h.strip() for h in environ.get(HOSTS, "").split(",") if h.strip())
    if hosts and len(hosts) != count:
        raise ClusterError(
            f"{HOSTS} names {len(hosts)} hosts, but {NUM_PROCESSES} is {count}: name "
            "one for each process, in order of their ids, or unset it."
        )
    coordinator = _coordinator(environ) if count > 1 else None
    return Cluster(launcher, coordinator, count, index, hosts)


def _from_slurm(environ: Mapping[str, str]) -> Cluster | None:
    """A task that srun started with others.

    A batch script and a shell of salloc hold SLURM_PROCID and SLURM_NTASKS as well, but
    are alone: the variables SLURM_STEP_* say that srun started this process.
    """
    if not environ.get("SLURM_STEP_NUM_TASKS"):
        return None
    count = _whole(environ, "SLURM_STEP_NUM_TASKS", least=1)
    if count == 1:
        return None
    if environ.get("SLURM_HET_SIZE", "1") not in ("", "0", "1"):
        raise ClusterError(
            "SLURM_HET_SIZE says that this is a heterogeneous job; ids of its parts "
            f"are not read here: set {COORDINATOR}, {NUM_PROCESSES} and {PROCESS_ID}."
        )
    for name in ("SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID"):
        if not environ.get(name):
            raise ClusterError(
                f"SLURM_STEP_NUM_TASKS is {count}, but {name} is not set: srun sets "
                "both; start the processes with srun, and do not clear its variables."
            )
    index = _whole(environ, "SLURM_PROCID")
    if index >= count:
        raise ClusterError(
            f"SLURM_PROCID is {index}, expected 0 to {count - 1} since "
            f"SLURM_STEP_NUM_TASKS is {count}: variables of two steps are mixed; start "
            "with srun from a clean shell."
        )
    try:
        nodes = node_lists.expand(environ["SLURM_STEP_NODELIST"])
        hosts = _hosts_of_tasks(environ, nodes, count)
    except node_lists.NodeListError as error:
        raise ClusterError(
            f"SLURM_STEP_NODELIST or SLURM_STEP_TASKS_PER_NODE: {error}; set "
            f"{COORDINATOR}, {NUM_PROCESSES} and {PROCESS_ID} instead."
        ) from error
    # Steps of one job that run side by side (a sweep) need ports of their own.
    step = _whole(environ, "SLURM_STEP_ID") if environ.get("SLURM_STEP_ID") else 0
    port = (_whole(environ, "SLURM_JOB_ID") + 61 * step) % JOB_PORTS + FIRST_JOB_PORT
    return Cluster("slurm", f"{nodes[0]}:{port}", count, index, hosts)


def _hosts_of_tasks(
    environ: Mapping[str, str], nodes: tuple[str, ...], count: int
) -> tuple[str, ...]:
    """The node of each task; empty when tasks are not dealt out node by node."""
    if count == len(nodes):
        return nodes
    per_node = environ.get("SLURM_STEP_TASKS_PER_NODE")
    dealt = environ.get("SLURM_DISTRIBUTION", "block").split(":")[0].split(",")[0]
    if not per_node or dealt != "block":
        return ()
    tasks = node_lists.expand_counts(per_node)
    if len(tasks) != len(nodes) or sum(tasks) != count:
        raise ClusterError(
            f"SLURM_STEP_TASKS_PER_NODE is {per_node!r}: {sum(tasks)} tasks on "
            f"{len(tasks)} nodes, but SLURM_STEP_NUM_TASKS is {count} and "
            f"SLURM_STEP_NODELIST names {len(nodes)} nodes: variables of two steps are "
            "mixed; start with srun from a clean shell."
        )
    return tuple(n for n, k in zip(nodes, tasks, strict=True) for _ in range(k))


def _from_gke(environ: Mapping[str, str]) -> Cluster | None:
    """TPU pods of GKE: every worker has the names of all workers of its slice."""
    name = "TPU_PROCESS_ADDRESSES"
    if not environ.get(name):
        name = "TPU_WORKER_HOSTNAMES"
    workers = [w.strip() for w in environ.get(name, "").split(",") if w.strip()]
    slices = environ.get("MEGASCALE_NUM_SLICES") or "1"
    if not workers or (len(workers) == 1 and slices == "1"):
        return None
    workers = [_without_port(worker) for worker in workers]
    if not environ.get("TPU_WORKER_ID"):
        raise ClusterError(
            f"{name} names {len(workers)} workers, but TPU_WORKER_ID is not set: GKE "
            "sets both in pods that ask for google.com/tpu; ask for it in the "
            f"container's resources, or unset {name} to run as one process."
        )
    index = _whole(environ, "TPU_WORKER_ID")
    if index >= len(workers):
        raise ClusterError(
            f"TPU_WORKER_ID is {index}, expected 0 to {len(workers) - 1} since {name} "
            f"names {len(workers)} workers: the job's parallelism and completions must "
            "both be the number of the slice's hosts."
        )
    return _of_slices("gke-tpu", workers, index, environ)


def _from_tpu_vm(environ: Mapping[str, str], pci: Path) -> Cluster | None:
    """Workers of a Cloud TPU VM, from its metadata server."""
    if environ.get("TPU_SKIP_MDS_QUERY") or not tpu_metadata.has_tpu(pci):
        return None
    try:
        found = tpu_metadata.read_workers(environ)
    except tpu_metadata.MetadataError as error:
        raise ClusterError(
            f"This machine has TPU chips, but {error} Set {COORDINATOR}, "
            f"{NUM_PROCESSES} and {PROCESS_ID}, or TPU_SKIP_MDS_QUERY=1 to run as one "
            "process."
        ) from error
    if found is None:
        return None
    if not found.index < len(found.workers):
        raise ClusterError(
            f"the metadata server says worker {found.index} of {len(found.workers)}; "
            f"set {COORDINATOR}, {NUM_PROCESSES} and {PROCESS_ID} instead."
        )
    return _of_slices(
        "tpu-vm", list(found.workers), found.index, {**found.slices, **environ}
    )


def _of_slices(
    launcher: str, workers: list[str], index: int, environ: Mapping[str, str]
) -> Cluster:
    """The run of one slice or, with MEGASCALE_* variables, of several.

    Ids count through the first slice, then the second, as jax counts them.
    """
    names = ("MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID")
    if not any(environ.get(name) for name in names):
        hosts = tuple(workers)
        address = f"{_bracketed(workers[0])}:{TPU_PORT}"
        return Cluster(launcher, address, len(workers), index, hosts)
    for name in (*names, "MEGASCALE_COORDINATOR_ADDRESS"):
        if not environ.get(name):
            raise ClusterError(
                f"{name} is not set, but other MEGASCALE_ variables are: a run over "
                f"several slices needs {', '.join(names)} and "
                "MEGASCALE_COORDINATOR_ADDRESS; set them, or unset all of them."
            )
    slices = _whole(environ, names[0], least=1)
    number = _whole(environ, names[1])
    if number >= slices:
        raise ClusterError(
            f"{names[1]} is {number}, expected 0 to {slices - 1} since {names[0]} is "
            f"{slices}: ids count from 0."
        )
    host = _without_port(environ["MEGASCALE_COORDINATOR_ADDRESS"])
    return Cluster(
        launcher,
        f"{_bracketed(host)}:{TPU_PORT}",
        slices * len(workers),
        number * len(workers) + index,
        tuple(workers) if slices == 1 else (),
    )


def _whole(environ: Mapping[str, str], name: str, *, least: int = 0) -> int:
    text = environ[name].strip()
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < least:
        raise ClusterError(
            f"{name} is {environ[name]!r}, expected a whole number from {least}."
        )
    return int(text)


def _coordinator(environ: Mapping[str, str]) -> str:
    try:
        split_address(environ[COORDINATOR].strip())
    except ClusterError as error:
        raise ClusterError(f"{COORDINATOR}: {error}") from error
    return environ[COORDINATOR].strip()


def _without_port(address: str) -> str:
    """The host of "host", "host:port", "[v6]:port" or a bare IPv6 address."""
    if address.startswith("["):
        return address[1:].split("]")[0]
    return address.split(":")[0] if address.count(":") == 1 else address


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _missing(environ: Mapping[str, str]) -> str:
    names = [n for n in (COORDINATOR, NUM_PROCESSES, PROCESS_ID) if not environ.get(n)]
    return " or ".join(names)


def _check_spelling(environ: Mapping[str, str]) -> None:
    """ClusterError for a variable that is nearly one of ours: it would do nothing."""
    for name in environ:
        if not name.startswith("VTSCALE_") or name in OURS:
            continue
        near = difflib.get_close_matches(name, OURS, n=1, cutoff=0.85)
        if near:
            raise ClusterError(
                f"{name} is set, which nothing reads; did you mean {near[0]}?"
            )
