"""All processes of a run meet before JAX starts: who did not come, and who differs.

Process 0 listens at the coordinator's port, which `jax.distributed` uses afterwards.
The others connect, trying again until it is there, and say their id, host and what they
are about to do (`about`: versions, commit, hash of the config). Once all have come and
agree, each gets the names of all, and the connections stay open for `watch`. Otherwise
every process that came ends with the same message.
"""

import errno
import selectors
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from io import TextIOBase
from typing import Any, NamedTuple, TextIO

from vtscale_jax.parallel.hosts.cluster import Cluster, split_address
from vtscale_jax.parallel.hosts.countdown import Countdown
from vtscale_jax.parallel.hosts.lines import LineError, Lines

PROTOCOL = 1
MAX_HELLO = 1 << 16
HELLO_S = 10.0  # in which who connects must say hello
TELL_S = 1.0  # between two signs of life of process 0
SILENT_S = 30.0  # after which process 0 is taken for gone
LINGER_S = 5.0  # for others to come and hear what is wrong
NAMED = 12  # hosts that a message names


class PreflightError(ValueError):
    """Processes that did not come, came twice, or are not about to do the same."""


class Meeting(NamedTuple):
    """Names of all hosts by process id, and this process's connections by peer's id.

    Process 0 is connected with all others, each other one with process 0 only.
    """

    names: tuple[str, ...]
    links: dict[int, Lines]


def meet(
    cluster: Cluster,
    about: Mapping[str, str],
    *,
    timeout_s: float = 300.0,
    host: str | None = None,
    out: TextIO | TextIOBase | None = None,
) -> Meeting:
    """Waits until all processes of `cluster` are here, at most `timeout_s` seconds.

    `about` must be the same on all of them; `host` is this host's name (default: what
    the cluster or the system calls it). A countdown is written to `out` (stderr).
    PreflightError says on all processes alike which hosts did not come, differ, or
    claim one id.
    """
    index = cluster.process_id
    host = host or (cluster.hosts[index] if cluster.hosts else socket.gethostname())
    if cluster.num_processes == 1 or cluster.coordinator is None:
        return Meeting((host,), {})
    hello = {
        "vtscale": PROTOCOL,
        "process": index,
        "count": cluster.num_processes,
        "host": host,
        "about": dict(about),
    }
    countdown = Countdown(timeout_s, out or sys.stderr)
    try:
        if index == 0:
            return _Reception(cluster, hello).receive(countdown)
        return _join(cluster, hello, countdown)
    finally:
        countdown.end()


def who(names: Iterable[str | None], index: int) -> str:
    """`node07 (process 3)`; `process 3` when its host is not known."""
    name = list(names)[index]
    return f"{name} (process {index})" if name else f"process {index}"


class _Reception:
    """Process 0's side."""

    def __init__(self, cluster: Cluster, hello: dict[str, Any]):
        self.cluster, self.count = cluster, cluster.num_processes
        self.hellos = {0: hello}
        self.links: dict[int, Lines] = {}
        self.turned_away: list[Lines] = []  # who hears what is wrong all the same
        self.unknown: dict[Lines, tuple[str, float]] = {}  # address, until when
        self.wrong: list[str] = []
        self.selector = selectors.DefaultSelector()

    def receive(self, countdown: Countdown) -> Meeting:
        """Until all came, or something is wrong."""
        listener = self._listen()
        told = 0.0
        try:
            with listener, self.selector:
                self.selector.register(listener, selectors.EVENT_READ)
                while True:
                    for key, _ in self.selector.select(0.2):
                        if key.fileobj is listener:
                            self._accept(listener)
                        else:
                            self._hear(key.data)
                    now = time.monotonic()
                    self._forget_silent(now)
                    if self.wrong or self._differences():
                        countdown.shorten(LINGER_S)
                    came = len(self.links) + len(self.turned_away)
                    if came >= self.count - 1 or countdown.left() <= 0:
                        break
                    countdown.show(self._waiting_for())
                    if now - told >= TELL_S:
                        told = now
                        self._tell({"wait": True})
            verdict = self._verdict(countdown)
        except BaseException as error:
            self._tell({"stop": f"process 0 ended while waiting ({error!r})"})
            self._close((*self.links.values(), *self.turned_away))
            raise
        finally:
            self._close(tuple(self.unknown))
        if verdict:
            self._tell({"stop": verdict})
            self._close((*self.links.values(), *self.turned_away))
            raise PreflightError(verdict)
        names = tuple(self.hellos[i]["host"] for i in range(self.count))
        # The listener is closed: the port is free for jax's own service.
        self._tell({"go": names})
        return Meeting(names, self.links)

    def _listen(self) -> socket.socket:
        host, port = split_address(str(self.cluster.coordinator))
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        try:
            return socket.create_server(
                ("", port), family=family, backlog=self.count, dualstack_ipv6=dual
            )
        except OSError as error:
            used = error.errno == errno.EADDRINUSE
            what = "another program uses it" if used else str(error)
            raise PreflightError(
                f"{self.hellos[0]['host']} (process 0) cannot listen on port {port} of "
                f"the coordinator {host}:{port}: {what}. End what runs there (an "
                "earlier run, or a second process 0), or set VTSCALE_COORDINATOR to "
                "another port on all hosts."
            ) from error

    def _accept(self, listener: socket.socket) -> None:
        connection, address = listener.accept()
        link = Lines(connection, max_line=MAX_HELLO)
        self.unknown[link] = (address[0], time.monotonic() + HELLO_S)
        self.selector.register(connection, selectors.EVENT_READ, link)

    def _hear(self, link: Lines) -> None:
        """What an open connection says: a hello, or its end."""
        try:
            messages = link.receive()
        except (OSError, LineError):
            messages = None
        if messages is None:
            self._drop(link)
            self.links = {i: known for i, known in self.links.items() if known != link}
            self.hellos = {i: self.hellos[i] for i in (0, *self.links)}
        elif messages and link in self.unknown:
            if _is_hello(messages[0]):
                self._greet(link, messages[0])
            else:
                self._drop(link)

    def _greet(self, link: Lines, hello: dict[str, Any]) -> None:
        del self.unknown[link]
        index, host = hello["process"], hello["host"]
        mine = self.hellos[0]
        if hello["vtscale"] != PROTOCOL:
            self.wrong.append(
                f"{host} (process {index}) runs another version of vtscale_jax than "
                f"{mine['host']} (process 0): install the same on all hosts."
            )
        elif hello["count"] != self.count:
            self.wrong.append(
                f"{host} (process {index}) counts {hello['count']} processes, "
                f"{mine['host']} (process 0) counts {self.count}: give all the same "
                "VTSCALE_NUM_PROCESSES, or start them by one srun."
            )
        elif index in self.hellos:
            self.wrong.append(
                f"{self.hellos[index]['host']} and {host} both say that they are "
                f"process {index}: give each its own VTSCALE_PROCESS_ID, 0 to "
                f"{self.count - 1}."
            )
        else:
            self.links[index], self.hellos[index] = link, hello
            return
        self.turned_away.append(link)

    def _forget_silent(self, now: float) -> None:
        for link, (_, until) in list(self.unknown.items()):
            if now > until:
                self._drop(link)

    def _drop(self, link: Lines) -> None:
        self.selector.unregister(link.socket)
        link.close()
        self.unknown.pop(link, None)
        if link in self.turned_away:
            self.turned_away.remove(link)

    def _close(self, links: tuple[Lines, ...]) -> None:
        for link in links:
            link.close()

    def _tell(self, message: dict[str, Any]) -> None:
        for link in (*self.links.values(), *self.turned_away):
            try:
                link.send(message)
            except OSError:
                continue  # gone: its end is seen by who waits for it

    def _missing(self) -> list[str]:
        known = self.cluster.hosts or (None,) * self.count
        return [who(known, i) for i in range(self.count) if i not in self.hellos]

    def _waiting_for(self) -> str:
        missing = self._missing()
        names = [name.split(" (process")[0] for name in missing]
        return f"waiting for {len(names)} of {self.count} hosts ({_listed(names)})"

    def _differences(self) -> list[str]:
        """One line for every field of `about` in which hosts differ."""
        fields = sorted({field for h in self.hellos.values() for field in h["about"]})
        lines = []
        for field in fields:
            values = defaultdict(list)
            for index, hello in sorted(self.hellos.items()):
                value = hello["about"].get(field, "nothing")
                values[value].append(f"{hello['host']} (process {index})")
            if len(values) > 1:
                by_size = sorted(values.items(), key=lambda item: -len(item[1]))
                said = [f"{v} on {_listed(hosts)}" for v, hosts in by_size]
                lines.append(f"{field}: {'; '.join(said)}")
        return lines

    def _verdict(self, countdown: Countdown) -> str:
        """What is wrong; empty when all came and agree."""
        parts = list(dict.fromkeys(self.wrong))
        if differences := self._differences():
            lines = "".join(f"\n  {line}" for line in differences)
            parts.append(
                f"the hosts are not about to do the same:{lines}\nInstall the same "
                "packages and start the same command on all hosts."
            )
        missing = self._missing()
        if missing and not parts:
            port = split_address(str(self.cluster.coordinator))[1]
            came = [f"{h['host']} (process {i})" for i, h in self.hellos.items()]
            parts.append(
                f"{len(missing)} of {self.count} hosts did not come within "
                f"{countdown.seconds:.0f} s: {_listed(missing)}. Here: "
                f"{_listed(sorted(came))}.\nLikely causes: the command was not started "
                "there, or ended early (see its output there); "
                f"{self.cluster.coordinator} does not lead to "
                f"{self.hellos[0]['host']} from there; a firewall closes port {port}. "
                "Mend it, or set VTSCALE_COORDINATOR, and start all hosts again."
            )
        return "\n".join(parts)


def _join(cluster: Cluster, hello: dict[str, Any], countdown: Countdown) -> Meeting:
    """The side of every process but the first."""
    address = str(cluster.coordinator)
    reason = "it was not tried"
    while countdown.left() > 0:
        try:
            link = Lines(_connected(*split_address(address), countdown.left()))
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            countdown.show(f"waiting for process 0 at {address} ({reason})")
            time.sleep(min(0.2, max(countdown.left(), 0.0)))
            continue
        try:
            link.send(hello)
            return Meeting(_answer(link), {0: link})
        except (OSError, LineError) as error:
            link.close()
            reason = f"what answers there is no process 0 of this run: {error}"
            time.sleep(min(0.2, max(countdown.left(), 0.0)))
        except BaseException:
            link.close()
            raise
    raise PreflightError(
        f"{hello['host']} (process {hello['process']}) could not reach process 0 at "
        f"{address} within {countdown.seconds:.0f} s: {reason}.\nLikely causes: "
        "process 0 was not started, or ended early (see its output); "
        "VTSCALE_COORDINATOR is not its address; a firewall closes the port. Mend it "
        "and start all hosts again."
    )


def _connected(host: str, port: int, left_s: float) -> socket.socket:
    connection = socket.create_connection((host, port), timeout=min(5.0, left_s))
    # Tried often enough, a port of one's own host may connect to itself.
    if connection.getsockname() == connection.getpeername():
        connection.close()
        raise OSError(errno.ECONNREFUSED, "Connection refused")
    return connection


def _answer(link: Lines) -> tuple[str, ...]:
    """The names of all hosts; PreflightError when process 0 says what is wrong."""
    while True:
        if not link.wait(SILENT_S):
            raise OSError(errno.ETIMEDOUT, f"process 0 was silent for {SILENT_S:.0f} s")
        messages = link.receive()
        if messages is None:
            raise OSError(errno.ECONNRESET, "it closed the connection")
        for message in messages:
            if "stop" in message:
                raise PreflightError(str(message["stop"]))
            if "go" in message:
                return tuple(str(name) for name in message["go"])


def _is_hello(message: dict[str, Any]) -> bool:
    about, numbers = message.get("about"), ("vtscale", "process", "count")
    return (
        all(type(message.get(n)) is int and message[n] >= 0 for n in numbers)
        and isinstance(message.get("host"), str)
        and isinstance(about, dict)
        and all(isinstance(value, str) for value in about.values())
    )


def _listed(names: list[str]) -> str:
    more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
    return ", ".join([*names[:NAMED], *more])
