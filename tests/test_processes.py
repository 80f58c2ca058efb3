"""Two real processes: equal results, and an end with a reason when one of them dies."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from two_processes import Ended, finish, free_port, launch, wait_for

from vtscale_jax.parallel.hosts import processes as processes_module
from vtscale_jax.parallel.hosts.cluster import Cluster
from vtscale_jax.parallel.hosts.lines import Lines
from vtscale_jax.parallel.hosts.meetings import Behind, Meetings
from vtscale_jax.parallel.hosts.preflight import Meeting
from vtscale_jax.parallel.hosts.processes import (
    Disagreement,
    PeerLost,
    Processes,
    start,
)
from vtscale_jax.parallel.hosts.watch import LOST_CODE, Watch

AGAIN = "Start the same command again on all hosts"


def last_line(ended: Ended, start: str) -> str:
    return [x for x in ended.out.splitlines() if x.startswith(start)][-1]


def test_two_processes_make_one_run():
    # Behind a proxy that does not exist, as on many clusters.
    proxy = {"http_proxy": "http://127.0.0.1:9", "STEPS": "5"}
    ended = finish(launch("train", **proxy))
    assert [one.code for one in ended] == [0, 0], ended
    x = np.array([1, 2], np.float32)
    for _ in range(5):
        x = x + x.sum() / 1024
    for i, one in enumerate(ended):
        assert last_line(one, "values") == f"values {[float(x[i])]}"
        assert "gathered [[0], [1]]" in one.out
        assert one.out.splitlines()[-1] == "end"
        assert one.err == ""


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_process_is_named(victim):
    both = launch("train", PEER_TIMEOUT_S="2")
    wait_for(both[1 - victim], "step 40")  # which takes longer than a beat
    started = time.monotonic()
    both[victim].kill()
    other = finish([both[1 - victim]])[0]
    finish([both[victim]])
    assert time.monotonic() - started < 10
    assert other.code == LOST_CODE
    name = f"{'ab'[victim]} (process {victim})"
    # The reason, and neither a trace nor the words of JAX's C++.
    assert other.err.startswith(f"\nerror: {name} is gone: its connection closed")
    assert "last seen at 'step " in other.err and AGAIN in other.err
    assert "Traceback" not in other.err and "absl" not in other.err, other.err


@pytest.mark.parametrize("victim", [0, 1])
def test_process_that_hangs_is_named(victim):
    # The other one hangs too: in a collective, where it runs no line of Python.
    both = launch("train", PEER_TIMEOUT_S="2")
    wait_for(both[1 - victim], "step 5")
    started = time.monotonic()
    both[victim].send_signal(signal.SIGSTOP)
    other = finish([both[1 - victim]])[0]
    took = time.monotonic() - started
    both[victim].kill()
    finish([both[victim]])
    assert other.code == LOST_CODE and 1.0 < took < 10
    name = f"{'ab'[victim]} (process {victim})"
    assert other.err.startswith(
        f"\nerror: {name} stopped responding 2 s ago, last seen"
    )
    assert AGAIN in other.err


def test_error_of_one_process_ends_all():
    ended = finish(launch("train", FAIL="raise 1"))
    assert [one.code for one in ended] == [1, 1]
    assert ended[1].err.endswith("ValueError: record 7 of data.jsonl has no image\n")
    assert (
        "error: b (process 1) ended with an error at 'step 8', so this process ends "
        "too. The error there:\nrecord 7 of data.jsonl has no image" in ended[0].err
    )


@pytest.mark.parametrize("victim", [0, 1])
def test_death_after_the_work_is_done_spoils_nothing(victim):
    ended = finish(launch("train", STEPS="3", FAIL=f"end {victim}"))
    other = ended[1 - victim]
    assert ended[victim].code == -signal.SIGKILL
    assert (other.code, other.err) == (0, "")
    assert other.out.splitlines()[-1] == "end"


def test_one_process_starts_nothing():
    before = threading.active_count()
    with start(about={}, cluster=Cluster("single", None, 1, 0)) as alone:
        assert (alone.index, alone.count, alone.is_first) == (0, 1, True)
        assert len(alone.names) == 1 and threading.active_count() == before
        alone.reached("step 1")
        alone.barrier("data")
        alone.agree("data", "x")
        assert alone.share("place", {"step": 1}) == [{"step": 1}]
        gathered = alone.gather(np.arange(3))
        assert gathered.shape == (1, 3) and gathered.tolist() == [[0, 1, 2]]
        assert alone.explain(ValueError("UNKNOWN: Gloo all-reduce failed")) is None


def test_error_of_one_process_alone_is_its_own():
    error = ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
    with (
        pytest.raises(ValueError) as caught,
        start(about={}, cluster=Cluster("single", None, 1, 0)),
    ):
        raise error
    assert caught.value is error


class Run:
    """Processes that are threads: each with its own watch, but no jax.distributed."""

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch):
        self.ends: list[tuple[int, int, str]] = []
        self.count, self.names = count, tuple("abcd"[:count])
        monkeypatch.setattr(processes_module, "Watch", self._watch)
        monkeypatch.setattr(processes_module, "_start_jax", lambda *_, **__: None)
        # What a process registers for its end must not end this one.
        monkeypatch.setattr(processes_module.atexit, "register", lambda *_: None)
        links = [self._pair() for _ in range(count - 1)]
        port = free_port()
        self.each = []
        for i in range(count):
            mine = {j + 1: pair[0] for j, pair in enumerate(links)}
            if i:
                mine = {0: links[i - 1][1]}
            cluster = Cluster("test", f"127.0.0.1:{port}", count, i)
            meeting = Meeting(self.names, mine)
            self.each.append(Processes(cluster, meeting, peer_timeout_s=1.0))

    def _watch(self, index: int, names: tuple, links: dict, **settings) -> Watch:
        def end(code: int, message: str) -> None:
            self.ends.append((index, code, message))
            watch._closed = True  # the thread ends, in place of the process

        watch = Watch(index, names, links, **settings, end=end)
        return watch

    def _pair(self) -> tuple[Lines, Lines]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = socket.create_connection(server.getsockname())
            return Lines(server.accept()[0]), Lines(client)

    def together(self, *calls) -> list:
        """Results, or errors, of one call for each process, made side by side."""

        def call(one):
            try:
                return one()
            except ValueError as error:
                return error

        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(call, calls))

    def close(self) -> None:
        for one in self.each:
            if one.watch is not None:
                one.watch.close()
            if one._relay is not None:
                one._relay.close()


@pytest.fixture
def run(monkeypatch) -> Iterator[Run]:
    three = Run(3, monkeypatch)
    yield three
    three.close()


def test_values_are_shared(run):
    for i in range(20):  # one name may serve again and again
        shared = run.together(
            *[lambda p=p, i=i: p.share("place", [p.index, i]) for p in run.each]
        )
        assert shared == [[[0, i], [1, i], [2, i]]] * 3


def test_agreement(run):
    assert (
        run.together(*[lambda p=p: p.agree("x", "1") for p in run.each]) == [None] * 3
    )
    values = ["1", "2", "1"]
    errors = run.together(
        *[lambda p=p: p.agree("the data", values[p.index]) for p in run.each]
    )
    assert all(type(error) is Disagreement for error in errors)
    assert len({str(error) for error in errors}) == 1
    expected = (
        "hosts differ in the data:\n  1 on a (process 0), c (process 2)\n  2 on b"
    )
    assert str(errors[0]).startswith(expected)


def test_barrier_names_who_is_behind_and_where(run):
    first, second, third = run.each
    second.reached("data of step 40")
    time.sleep(0.5)
    errors = run.together(
        lambda: first.barrier("checkpoint", 1.0),
        lambda: third.barrier("checkpoint", 1.0),
    )
    assert all(type(error) is Behind for error in errors)
    assert str(errors[0]) == str(errors[1])
    assert "'checkpoint' waited 1 s for 1 of 3 processes" in str(errors[0])
    assert "b (process 1) was last seen at 'data of step 40', " in str(errors[0])
    assert "a (process" not in str(errors[0])
    assert not run.ends


def test_waiting_at_different_points_is_told_at_once(run):
    started = time.monotonic()
    calls = [lambda p=p: p.barrier("xy"[p.index == 1], 30.0) for p in run.each]
    errors = run.together(*calls)
    assert time.monotonic() - started < 5
    assert all(type(error) is Behind for error in errors)
    assert "b (process 1) at 'y'" in str(errors[2]), errors[2]
    assert "a (process 0) at 'x'" in str(errors[2])


def test_silence_is_a_death(run, monkeypatch):
    # Its thread hangs: nothing closes, nothing comes.
    hung = threading.Event()
    victim = run.each[2].watch
    monkeypatch.setattr(victim, "_send", lambda *_: hung.wait(5))
    run.each[2].reached("step 7")
    _until(lambda: len(run.ends) == 2)
    hung.set()
    assert sorted(index for index, _, _ in run.ends) == [0, 1]
    for _, code, message in run.ends:
        assert code == LOST_CODE
        assert message.startswith("c (process 2) stopped responding 1 s ago")


def test_beats_keep_a_slow_run_alive(run):
    time.sleep(2.5)  # more than twice the timeout
    assert not run.ends
    assert run.together(*[lambda p=p: p.barrier("x") for p in run.each]) == [None] * 3


def test_ready_to_leave_is_no_death(run):
    assert run.together(*[lambda p=p: p.close() for p in run.each]) == [None] * 3
    assert not run.ends and all(p.watch is None for p in run.each)
    run.each[1].reached("afterwards")  # costs nothing, does nothing


def test_the_last_meeting_has_its_name_for_itself(run):
    with pytest.raises(ValueError, match="take another"):
        run.each[0].barrier("leaving the run")


def test_error_of_a_collective_is_explained(run, monkeypatch):
    monkeypatch.setattr(processes_module, "VERDICT_S", 0.2)
    broken = "UNKNOWN: Gloo all-reduce failed: pair.cc:547] Connection closed by peer"
    found = run.each[1].explain(ValueError(broken))
    assert type(found) is PeerLost and broken in str(found)
    assert "b (process 1)" in str(found) and AGAIN in str(found)
    wrapped = RuntimeError("could not save")
    wrapped.__cause__ = RuntimeError("UNAVAILABLE: Socket closed")
    assert run.each[1].explain(wrapped) is not None
    for other in (ValueError("no gloo here"), RuntimeError("INTERNAL: out of memory")):
        assert run.each[1].explain(other) is None


@pytest.mark.parametrize(
    "error, code, words",
    [
        (SystemExit(0), 0, "c (process 2) ended with status 0 at 'load', so this"),
        (SystemExit(3), 1, "ended with an error at 'load'"),
        (KeyboardInterrupt(), 1, "it was interrupted"),
        (ValueError("no such file"), 1, "The error there:\nno such file"),
        (KeyError("b"), 1, "The error there:\nKeyError: 'b'"),
    ],
)
def test_how_one_ended_is_told(run, error, code, words):
    run.each[2].reached("load")
    with pytest.raises(type(error)), run.each[2]:
        raise error
    _until(lambda: len(run.ends) == 2)
    assert {(index, status) for index, status, _ in run.ends} == {(0, code), (1, code)}
    assert all(words in message for _, _, message in run.ends)


def test_error_on_all_is_told_by_each_itself(run):
    for one in run.each:
        one.failed(ValueError("the same"))
    time.sleep(2.5)  # longer than the time that each has for its own end
    assert not run.ends


def test_a_broken_watch_ends_the_process(run):
    run.each[1].watch.to_first({"kind": "meet", "at": "x"})  # no value: malformed
    _until(lambda: run.ends)
    assert "the watch over other processes broke: KeyError" in run.ends[0][2]


def test_many_threads_may_ask_at_once(run):
    # The main thread meets while the watch sends beats and others reach phases.
    stop = threading.Event()

    def reach(one: Processes) -> None:
        while not stop.is_set():
            one.reached("step 1")
            time.sleep(0.0001)

    with ThreadPoolExecutor(3) as pool:
        busy = [pool.submit(reach, one) for one in run.each]
        for i in range(20):
            run.together(*[lambda p=p, i=i: p.barrier(f"{i}") for p in run.each])
        stop.set()
        [one.result() for one in busy]
    assert not run.ends


def test_meetings_module_waits_for_no_one_alone():
    watch = Watch(0, ("a",), {}, peer_timeout_s=1.0)
    assert Meetings(watch).share("x", 1, 1.0) == [1]
    watch.close()


def test_stopping_does_not_import_jax():
    code = (
        "import sys\n"
        "from vtscale_jax.parallel.hosts import cluster, meetings\n"
        "from vtscale_jax.parallel.hosts import preflight, stopping\n"
        "print(sorted({'jax', 'jaxlib', 'numpy'} & set(sys.modules)))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ
    )
    assert child.stdout.strip() == "[]", child.stdout + child.stderr


def _until(condition) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
