"""Processes that meet before JAX starts: who is missing, who differs, who came twice.

Every process of these tests is a thread with connections of its own.
"""

import io
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from two_processes import free_port

from vtscale_jax.parallel.hosts import preflight
from vtscale_jax.parallel.hosts.cluster import Cluster
from vtscale_jax.parallel.hosts.lines import LineError, Lines
from vtscale_jax.parallel.hosts.preflight import Meeting, PreflightError, meet

ABOUT = {"jax": "0.10.2", "config": "c0ffee"}
HOSTS = ("a", "b", "c")


@pytest.fixture(autouse=True)
def short_linger(monkeypatch):
    monkeypatch.setattr(preflight, "LINGER_S", 0.5)


def cluster(index: int, port: int, count: int = 3, hosts=HOSTS) -> Cluster:
    return Cluster("environment", f"127.0.0.1:{port}", count, index, hosts)


def meet_all(*sides: tuple[Cluster, dict[str, str]], timeout_s: float = 10.0, out=None):
    """What each side gets: a Meeting, or the message of its error."""

    def run(side: tuple[Cluster, dict[str, str]]) -> Meeting | str:
        found, about = side
        host = found.hosts[found.process_id] if found.hosts else f"h{found.process_id}"
        try:
            return meet(
                found,
                about,
                timeout_s=timeout_s,
                host=host,
                out=out or io.StringIO(),
            )
        except PreflightError as error:
            return str(error)

    with ThreadPoolExecutor(len(sides)) as pool:
        waiting: list[Future] = [pool.submit(run, side) for side in sides]
        return [one.result() for one in waiting]


def close(meetings: list[Meeting]) -> None:
    for meeting in meetings:
        for link in meeting.links.values():
            link.close()


def test_all_come():
    port = free_port()
    found = meet_all(*[(cluster(i, port), ABOUT) for i in (2, 0, 1)])
    assert all(meeting.names == HOSTS for meeting in found)
    second, first, third = found
    assert sorted(first.links) == [1, 2]
    assert sorted(second.links) == sorted(third.links) == [0]
    # The connections lead where they say, and the port is free for JAX's service.
    with socket.create_server(("127.0.0.1", port)):
        first.links[2].send({"to": 2})
        assert second.links[0].wait(5.0) and second.links[0].receive() == [{"to": 2}]
        third.links[0].send({"from": 1})
        assert first.links[1].wait(5.0) and first.links[1].receive() == [{"from": 1}]
    close(found)


def test_one_process_needs_no_port():
    alone = Cluster("single", None, 1, 0)
    assert meet(alone, ABOUT, host="a") == Meeting(("a",), {})


def test_names_come_from_the_hosts_when_the_launcher_has_none():
    port = free_port()
    found = meet_all(*[(cluster(i, port, 2, ()), ABOUT) for i in (0, 1)])
    assert found[0].names == found[1].names == ("h0", "h1")
    close(found)


def test_missing_host_is_named_to_all():
    port, out = free_port(), io.StringIO()
    started = time.monotonic()
    found = meet_all(
        *[(cluster(i, port), ABOUT) for i in (0, 2)], timeout_s=2.0, out=out
    )
    assert time.monotonic() - started < 5
    assert found[0] == found[1]
    words = ["1 of 3 hosts did not come within 2 s: b (process 1)", str(port)]
    words += ["Here: a (process 0), c (process 2)", "firewall", "not started"]
    assert all(word in found[0] for word in words), found[0]
    assert "waiting for 1 of 3 hosts (b): " in out.getvalue()
    assert " s left\n" in out.getvalue()


def test_missing_host_without_a_name():
    port = free_port()
    [message] = meet_all((cluster(0, port, 3, ()), ABOUT), timeout_s=0.5)
    assert "2 of 3 hosts did not come within 0 s: process 1, process 2" in message


def test_countdown_in_place_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    meet_all((cluster(0, free_port()), ABOUT), timeout_s=2.0, out=out)
    assert out.getvalue().count("\r") >= 2
    assert out.getvalue().count("\n") == 1 and out.getvalue().endswith("\n")


def test_unreachable_coordinator():
    port = free_port()
    [message] = meet_all((cluster(1, port), ABOUT), timeout_s=1.0)
    words = [f"b (process 1) could not reach process 0 at 127.0.0.1:{port}"]
    words += ["within 1 s", "refused", "VTSCALE_COORDINATOR", "firewall"]
    assert all(word in message for word in words), message


def test_unknown_coordinator():
    lost = Cluster("environment", "nowhere.invalid:6000", 2, 1, ("a", "b"))
    [message] = meet_all((lost, ABOUT), timeout_s=0.5)
    assert "nowhere.invalid:6000" in message and "could not reach" in message


@pytest.mark.parametrize(
    "field, theirs, expected",
    [
        ("jax", "0.10.1", "jax: 0.10.2 on a (process 0), c (process 2); 0.10.1 on b"),
        ("config", "bad", "config: c0ffee on a (process 0), c (process 2); bad on b"),
        ("commit", "1234", "commit: nothing on a (process 0), c (process 2); 1234 on"),
    ],
)
def test_difference_is_named_to_all(field, theirs, expected):
    port = free_port()
    sides = [(cluster(i, port), ABOUT) for i in range(3)]
    sides[1] = (sides[1][0], ABOUT | {field: theirs})
    found = meet_all(*sides)
    assert found[0] == found[1] == found[2]
    assert expected in found[0] and "(process 1)" in found[0]
    # Nothing is said of what is the same.
    assert "jax" not in found[0] or field == "jax"


def test_difference_does_not_wait_for_who_is_missing():
    port = free_port()
    started = time.monotonic()
    found = meet_all(
        (cluster(0, port), ABOUT), (cluster(1, port), {"jax": "0"}), timeout_s=30.0
    )
    assert time.monotonic() - started < 10
    assert found[0] == found[1] and "jax: " in found[0]


def test_two_processes_of_one_id():
    port = free_port()
    sides = [cluster(0, port), cluster(1, port), cluster(1, port, 3, ("a", "z", "c"))]
    found = meet_all(*[(side, ABOUT) for side in sides], timeout_s=30.0)
    assert found[0] == found[1] == found[2]
    assert "both say that they are process 1" in found[0]
    assert "b and z" in found[0] or "z and b" in found[0]
    assert "VTSCALE_PROCESS_ID" in found[0]


def test_other_count():
    port = free_port()
    sides = [(cluster(0, port), ABOUT), (cluster(1, port, 2, ("a", "b")), ABOUT)]
    found = meet_all(*sides, timeout_s=30.0)
    assert found[0] == found[1]
    assert "b (process 1) counts 2 processes, a (process 0) counts 3" in found[0]


def test_port_in_use():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        [message] = meet_all((cluster(0, port), ABOUT), timeout_s=1.0)
    assert f"cannot listen on port {port}" in message
    assert "another program uses it" in message and "VTSCALE_COORDINATOR" in message


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\n\x00",
        b'{"vtscale": 1}\n',
        b'{"vtscale": 1, "process": -1, "count": 3, "host": "x", "about": {}}\n',
        b'{"vtscale": true, "process": 1, "count": 3, "host": "x", "about": {}}\n',
        b"[1]\n",
        b"[" * 100_000 + b"\n",
        b"x" * (1 << 17),
    ],
)
def test_strangers_are_sent_away(said):
    port = free_port()
    done = threading.Event()

    def knock() -> None:
        while not done.is_set():
            try:
                with socket.create_connection(("127.0.0.1", port), 1.0) as stranger:
                    stranger.sendall(said)
            except OSError:
                time.sleep(0.02)

    with ThreadPoolExecutor(1) as pool:
        knocking = pool.submit(knock)
        time.sleep(0.05)
        found = meet_all(*[(cluster(i, port), ABOUT) for i in range(3)])
        done.set()
        knocking.result()
    assert all(meeting.names == HOSTS for meeting in found)
    close(found)


def test_who_comes_again_is_taken():
    # A host that was started anew, with another config, while the others wait.
    port = free_port()
    hello = {"vtscale": 1, "process": 1, "count": 3, "host": "old", "about": {}}
    sides = [(cluster(i, port), ABOUT) for i in range(3)]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(meet_all, sides[0])
        early = _connect(port)
        early.send(hello)
        early.close()
        time.sleep(0.2)
        found = meet_all(*sides[1:]) + waiting.result()
    assert [meeting.names for meeting in found] == [HOSTS] * 3
    close(found)


def test_wrong_service_at_the_port():
    # Say, JAX's service of an earlier run: it closes what it does not understand.
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = threading.Event()

        def refuse() -> None:
            other.settimeout(0.1)
            while not done.is_set():
                try:
                    other.accept()[0].close()
                except TimeoutError:
                    continue

        with ThreadPoolExecutor(1) as pool:
            refusing = pool.submit(refuse)
            [message] = meet_all(
                (cluster(1, other.getsockname()[1]), ABOUT), timeout_s=1.0
            )
            done.set()
            refusing.result()
    assert "no process 0 of this run" in message


def test_lines_arrive_whole():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        lines = Lines(server.accept()[0], max_line=64)
        client.sendall(b'{"a":')
        assert lines.wait(5.0) and lines.receive() == []
        client.sendall(b'1}\n{"b":2}\n{"c"')
        assert lines.wait(5.0) and lines.receive() == [{"a": 1}, {"b": 2}]
        client.sendall(b":3}\n")
        assert lines.wait(5.0) and lines.receive() == [{"c": 3}]
        assert not lines.wait(0.01)
        with pytest.raises(LineError, match="over 64"):
            lines.send({"x": "y" * 64})
        client.sendall(b"z" * 65)
        assert lines.wait(5.0)
        with pytest.raises(LineError, match="more than 64"):
            lines.receive()
        client.close()
        assert lines.wait(5.0) and lines.receive() is None
        lines.close()


def _connect(port: int) -> Lines:
    until = time.monotonic() + 5
    while True:
        try:
            return Lines(socket.create_connection(("127.0.0.1", port)))
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.02)
