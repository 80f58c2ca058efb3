"""What a process of a test does, as a script; and how tests start several of them.

    python tests/two_processes.py SCENARIO

takes the VTSCALE_* variables of its environment. `loop` and `wait` run without JAX, so
that many of them cost little.
"""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 60.0


class Ended(NamedTuple):
    """How a process ended."""

    code: int
    out: str
    err: str


def free_port() -> int:
    """A port that nothing uses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def launch(
    scenario: str, *, count: int = 2, missing: int = 0, **variables: str
) -> list[subprocess.Popen]:
    """Starts the processes of a run of `count` on hosts "a", "b", …, but the last ones
    that are `missing`."""
    names = "abcdefgh"[:count]
    clean = {
        name: value
        for name, value in os.environ.items()
        if name != "XLA_FLAGS" and not name.startswith(("VTSCALE_", "SLURM_"))
    }
    clean |= {
        "JAX_PLATFORMS": "cpu",
        "VTSCALE_COORDINATOR": f"127.0.0.1:{free_port()}",
        "VTSCALE_NUM_PROCESSES": str(count),
        "VTSCALE_HOSTS": ",".join(names),
        "PYTHONUNBUFFERED": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, __file__, scenario],
            env=clean | {"VTSCALE_PROCESS_ID": str(i)} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for i in range(count - missing)
    ]


def wait_for(process: subprocess.Popen, line: str) -> None:
    """Until the process has printed a line that begins so."""
    assert process.stdout is not None
    for printed in process.stdout:
        if printed.startswith(line):
            return
    raise AssertionError(f"ended without {line!r}: {finish([process])}")


def finish(processes: list[subprocess.Popen]) -> list[Ended]:
    """Waits for the ends of all; none of them is left behind."""
    until, ended = time.monotonic() + TIMEOUT_S, []
    try:
        for process in processes:
            out, err = process.communicate(timeout=max(until - time.monotonic(), 0.1))
            ended.append(Ended(process.returncode, out, err))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return ended


def _train() -> None:
    """Steps of a collective on all devices, as `train` makes them."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from vtscale_jax.parallel.hosts import processes as module
    from vtscale_jax.parallel.hosts.stopping import StopRequests

    steps, fail = int(os.environ.get("STEPS", "400")), os.environ.get("FAIL", "")
    peer_timeout_s = float(os.environ.get("PEER_TIMEOUT_S", "20"))
    with (
        StopRequests() as stop,
        module.start(
            about={"jax": jax.__version__}, timeout_s=40, peer_timeout_s=peer_timeout_s
        ) as processes,
    ):
        stop.attach(processes)
        if fail == f"end {processes.index}":
            # Killed when all work is done and JAX is about to end.
            jax.distributed.shutdown = lambda: os.kill(os.getpid(), signal.SIGKILL)
        mesh = jax.make_mesh((jax.device_count(),), ("data",))
        sharding = NamedSharding(mesh, PartitionSpec("data"))
        local = np.full(jax.local_device_count(), processes.index + 1, np.float32)
        x = jax.make_array_from_process_local_data(sharding, local)
        step_fn = jax.jit(lambda x: x + x.sum() / 1024)
        processes.agree("data", "the same")
        print("gathered", processes.gather(np.array([processes.index])).tolist())
        for step in range(1, steps + 1):
            processes.reached(f"step {step}")
            if fail == f"raise {processes.index}" and step == 8:
                raise ValueError("record 7 of data.jsonl has no image")
            x = step_fn(x)
            x.block_until_ready()
            print("step", step)
            time.sleep(0.02 if steps == 400 else 0)
            if stop.requested(step):
                print("stopped after", step)
                break
        print("values", [float(shard.data[0]) for shard in x.addressable_shards])
    print("end")


def _loop() -> None:
    """A loop whose steps wait for each other by messages: no JAX is imported."""
    from vtscale_jax.parallel.hosts import stopping
    from vtscale_jax.parallel.hosts.cluster import find_cluster
    from vtscale_jax.parallel.hosts.meetings import CLOSE, Meetings
    from vtscale_jax.parallel.hosts.preflight import meet
    from vtscale_jax.parallel.hosts.watch import Watch

    class Run(NamedTuple):
        watch: Watch | None

    steps, step_s = int(os.environ["STEPS"]), float(os.environ.get("STEP_S", "0.01"))
    with stopping.StopRequests() as stop:
        print("begun")
        cluster = find_cluster()
        found = meet(cluster, {"code": "1"}, timeout_s=20)
        meetings = watch = None
        if cluster.num_processes > 1:
            watch = Watch(
                cluster.process_id, found.names, found.links, peer_timeout_s=20.0
            )
            meetings = Meetings(watch)
        stop.attach(Run(watch))
        print("started")
        time.sleep(float(os.environ.get("START_S", "0")))
        if "HANG" in os.environ:  # where no handler of Python runs, as inside XLA
            stopping.LEAVE_S = 0.5
            hashlib.pbkdf2_hmac("sha512", b"", b"", 1_000_000_000)
        for step in range(1, steps + 1):
            if meetings is not None:
                meetings.share("step", step, 20.0)
            time.sleep(step_s)
            print("step", step)
            if stop.requested(step):
                time.sleep(float(os.environ.get("SAVE_S", "0")))
                print("stopped after", step)
                break
        else:
            stop.leave_at_once("the last checkpoint stands")
            print("results")
            time.sleep(float(os.environ.get("RESULTS_S", "0")))
        if meetings is not None and watch is not None:
            meetings.share(CLOSE, None, 20.0)
            watch.close()
    print("jax" if "jax" in sys.modules else "no jax")


if __name__ == "__main__":
    {"train": _train, "loop": _loop}[sys.argv[1]]()
