"""The processes of a run: start together, agree, notice who died, end together.

    with start(about=versions) as processes:
        processes.agree("data", fingerprint)
        for step in ...:
            processes.reached(f"step {step}")

`start` reads the launcher's variables (`cluster`), waits for all hosts (`preflight`),
starts `jax.distributed` and a thread that watches over the others (`watch`). With one
process all of it costs nothing.
"""

import atexit
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped

from vtscale_jax.parallel.hosts.cluster import Cluster, find_cluster, split_address
from vtscale_jax.parallel.hosts.meetings import CLOSE, Meetings
from vtscale_jax.parallel.hosts.preflight import Meeting, meet, who
from vtscale_jax.parallel.hosts.relay import Relay
from vtscale_jax.parallel.hosts.watch import FAILED_CODE, Watch

SHUTDOWN_S = 30  # of jax.distributed, once all processes are at the end
VERDICT_S = 10.0  # in which a death shows after a collective failed
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # that gRPC looks for
# What gloo, NCCL and JAX's own services say when another process went away.
_STATUS = re.compile(
    "UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION"
)
_BROKEN = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|socket closed|broken pipe"
    r"|coordination ?service|heartbeat|UNAVAILABLE|DEADLINE_EXCEEDED",
    re.IGNORECASE,
)


class Disagreement(ValueError):
    """Processes that must hold the same value do not."""


class PeerLost(ValueError):
    """A computation failed because another process went away."""


def start(
    *,
    about: Mapping[str, str],
    timeout_s: float = 300.0,
    peer_timeout_s: float = 60.0,
    cluster: Cluster | None = None,
) -> "Processes":
    """Joins the run that the launcher describes; call it before JAX has any device.

    Waits `timeout_s` seconds for all hosts, which must be `about` the same (versions,
    commit, hash of the config). Afterwards a process that is silent for
    `peer_timeout_s` seconds counts as dead. Raises ClusterError or PreflightError.
    """
    cluster = find_cluster() if cluster is None else cluster
    meeting = meet(cluster, about, timeout_s=timeout_s)
    return Processes(cluster, meeting, peer_timeout_s=peer_timeout_s)


class Processes:
    """This process and the others of its run; use it as a context manager.

    index:    id of this process, from 0
    count:    number of processes
    names:    host of each, by id
    is_first: whether this one writes what is written once
    """

    def __init__(self, cluster: Cluster, meeting: Meeting, *, peer_timeout_s: float):
        self.index, self.count = cluster.process_id, cluster.num_processes
        self.names, self.is_first = meeting.names, cluster.process_id == 0
        self.launcher = cluster.launcher
        self.watch: Watch | None = None
        self._told = False
        if self.count == 1:
            return
        self.watch = Watch(
            self.index, self.names, meeting.links, peer_timeout_s=peer_timeout_s
        )
        self._meetings = Meetings(self.watch)
        host, port = split_address(str(cluster.coordinator))
        self._relay = None if self.is_first else Relay(host, port)
        try:
            _start_jax(self, port, timeout_s=300, peer_timeout_s=peer_timeout_s)
        except BaseException as error:
            self.failed(error)
            raise

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        if self.watch is None:
            return
        if self.watch.leaving and _exit_code(error) == 0:  # all were told to end
            atexit.register(_exit_without_jax, 0)
            return
        lost = None if self._told else self.explain(error)
        self.failed(lost or error)
        if lost is not None:
            raise lost from error

    def reached(self, phase: str) -> None:
        """Says where this process is, for messages of the others. It costs nothing: a
        thread passes it on once a second."""
        if self.watch is not None:
            self.watch.reached(phase)

    def barrier(self, phase: str, timeout_s: float = 600.0) -> None:
        """Waits until all processes are at `phase`.

        Behind, after `timeout_s` seconds, names those that are not, where each was last
        seen and how long ago.
        """
        self.share(phase, None, timeout_s)

    def agree(self, name: str, value: str, timeout_s: float = 600.0) -> None:
        """Disagreement, on all processes alike, when `value` is not the same on all.

        For what each host finds out by itself: the fingerprint of its data, the step of
        its newest checkpoint. `value` is shown, so let it be short.
        """
        values = self.share(name, value, timeout_s)
        if len(set(values)) == 1:
            return
        lines = []
        for one in sorted(set(values), key=lambda v: (-values.count(v), v)):
            hosts = [who(self.names, i) for i, v in enumerate(values) if v == one]
            lines.append(f"  {one} on {', '.join(hosts)}")
        raise Disagreement(
            f"hosts differ in {name}:\n" + "\n".join(lines) + "\nAll must have the "
            "same: look at the files and settings of the hosts that differ."
        )

    def share(self, name: str, value: Any, timeout_s: float = 600.0) -> list[Any]:
        """The `value` (small JSON) of every process by id, on all processes.

        A meeting point as `barrier`; every process must call it with the same `name`.
        """
        if name == CLOSE:
            raise ValueError(f"{CLOSE!r} is the name of the last meeting: take another")
        if self.watch is None:
            return [value]
        return self._meetings.share(name, value, timeout_s)

    def gather(self, value: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """The host values of all processes, stacked by id: [count, *value.shape].

        By JAX, so all processes must call it with the same shape and type.
        """
        if self.count == 1:
            return np.asarray(value)[None]
        return np.asarray(multihost_utils.process_allgather(np.asarray(value)))

    def explain(self, error: BaseException) -> PeerLost | None:
        """What to raise in place of an error of a collective; None for any other error.

        When a process died, the watch ends this one with a message that names it; this
        waits for it. It returns when all others still answer, some seconds later.
        """
        if self.watch is None or not _is_broken_connection(error):
            return None
        time.sleep(VERDICT_S)
        return PeerLost(
            f"a computation over all hosts failed on {who(self.names, self.index)}, "
            "though every process still answers: the network between the accelerators "
            f"broke, or one of them did. JAX said: {str(error)[:500]}\nStart the same "
            "command again on all hosts: it continues from the last checkpoint."
        )

    def failed(self, error: BaseException) -> None:
        """Tells the others at once that this process ends because of `error`.

        They end too and show it. Leaving the context by an exception does this; call it
        where there is much to do on the way out. JAX's own shutdown, which would wait
        for the others, is left out when the program ends.
        """
        if self.watch is None or self._told:
            return
        self._told = True
        code = _exit_code(error)
        self.watch.failed(_described(error), code)
        atexit.register(_exit_without_jax, code)

    def close(self) -> None:
        """Waits for all processes, then leaves; Behind names who did not come."""
        if self.watch is None or self._told:
            return
        try:
            self._meetings.share(CLOSE, None, 600.0)
        except BaseException as error:
            self.failed(error)
            raise
        ended = _shut_down_jax(self.watch)
        self.watch.close()
        if not ended:
            # All work is done, but JAX waits for a process that died since. It must not
            # see the service end either, which would abort this process.
            atexit.register(_exit_without_jax, 0)
        elif self._relay is not None:
            self._relay.close()
        self.watch = None


def _start_jax(
    processes: Processes, port: int, *, timeout_s: int, peer_timeout_s: float
) -> None:
    relay = processes._relay
    address = f"127.0.0.1:{port}" if relay is None else relay.address
    if any(os.environ.get(name) for name in PROXIES):
        # gRPC would ask the proxy for the way to this very host, and never arrive.
        known = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy", "")
        os.environ["no_grpc_proxy"] = ",".join(filter(None, [known, "127.0.0.1"]))
        jax.config.update("jax_check_proxy_envs", False)  # it need not warn of this
    # Its handler of SIGTERM would fight with `stopping`'s.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        address,
        processes.count,
        processes.index,
        # Each process has all devices that its launcher lets it see.
        cluster_detection_method="deactivate",
        initialization_timeout=timeout_s,
        # The watch is quicker, and says who.
        heartbeat_timeout_seconds=int(3 * peer_timeout_s) + 60,
        shutdown_timeout_seconds=SHUTDOWN_S,
    )


def _shut_down_jax(watch: Watch) -> bool:
    """Whether jax.distributed ended; not when a process died just then."""
    errors: list[BaseException] = []

    def end() -> None:
        try:
            jax.distributed.shutdown()
        except BaseException as error:
            errors.append(error)

    # A daemon: the program's end does not wait for it.
    ending = threading.Thread(target=end, name="shutdown", daemon=True)
    ending.start()
    while ending.is_alive() and not watch.gone.is_set():
        ending.join(0.05)
    ending.join(1.0)
    if errors and not watch.gone.is_set():
        raise errors[0]
    return not ending.is_alive() and not errors


def _is_broken_connection(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is that of a lost connection."""
    while error is not None:
        # XLA's errors begin with their status; gloo's come as ValueError.
        text = str(error)
        if isinstance(error, RuntimeError | ValueError) and _STATUS.match(text):
            return bool(_BROKEN.search(text))
        error = error.__cause__ or error.__context__
    return False


def _described(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "it was interrupted (SIGINT)"
    if isinstance(error, SystemExit):
        return f"it exited: {error.code}"
    name = type(error).__name__
    return str(error) if isinstance(error, ValueError) else f"{name}: {error}"


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, SystemExit):
        code = error.code
        return code if isinstance(code, int) else 0 if code is None else FAILED_CODE
    return FAILED_CODE


def _exit_without_jax(code: int) -> None:
    """Ends the program here: JAX's own end would wait for processes that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
