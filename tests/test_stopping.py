"""Signals that ask to stop: every process stops after the same step and ends with 0."""

import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from two_processes import Ended, finish, launch, wait_for

from vtscale_jax.parallel.hosts.lines import Lines
from vtscale_jax.parallel.hosts.stopping import StopRequests
from vtscale_jax.parallel.hosts.watch import Watch


class Alone(NamedTuple):
    """A run of one process."""

    watch: Watch | None = None


def stopped_after(ended: Ended) -> int:
    found = re.search(r"^stopped after (\d+)$", ended.out, re.MULTILINE)
    assert found, ended
    return int(found[1])


# Which processes get a signal, and after how many seconds of the loop.
MOMENTS = [
    *[((0,), seconds) for seconds in (0.0, 0.11)],
    *[((1,), seconds) for seconds in (0.0, 0.23, 0.4)],
    *[((0, 1), seconds) for seconds in (0.05, 0.3)],
]


@pytest.mark.parametrize("who, seconds", MOMENTS)
def test_all_stop_after_the_same_step(who, seconds):
    three = launch("loop", count=3, STEPS="3000", STEP_S="0.004")
    wait_for(three[2], "step 2")
    time.sleep(seconds + random.random() * 0.02)
    for i in who:
        three[i].send_signal(signal.SIGTERM)
    ended = finish(three)
    assert [one.code for one in ended] == [0, 0, 0], ended
    assert len({stopped_after(one) for one in ended}) == 1
    for i, one in enumerate(ended):
        assert "then a checkpoint is saved" in one.err
        by = "SIGTERM:" if i in who else r"SIGTERM on [abc] \(process \d\):"
        assert re.search(by, one.err)
        assert one.out.splitlines()[-1] == "no jax"


def test_stop_of_real_training():
    both = launch("train")
    wait_for(both[0], "step 20")
    both[1].send_signal(signal.SIGUSR1)
    ended = finish(both)
    assert [one.code for one in ended] == [0, 0], ended
    assert stopped_after(ended[0]) == stopped_after(ended[1]) >= 20
    assert all(one.out.splitlines()[-1] == "end" for one in ended)
    assert "SIGUSR1 on b (process 1): this step is finished" in ended[0].err


@pytest.mark.parametrize("victim", [0, 1])
def test_signal_before_the_first_step_ends_all_at_once(victim):
    both = launch("loop", STEPS="10", START_S="30")
    for one in both:
        wait_for(one, "started")
    sent = time.monotonic()
    both[victim].send_signal(signal.SIGTERM)
    ended = finish(both)
    assert time.monotonic() - sent < 5
    assert [one.code for one in ended] == [0, 0], ended
    name = f"SIGTERM on {'ab'[victim]} (process {victim}): ended at once"
    for one in ended:
        assert name in one.err and "nothing is lost" in one.err
        assert "step" not in one.out and "Traceback" not in one.err


def test_signal_ends_a_process_that_runs_no_python():
    both = launch("loop", STEPS="10", HANG="1")
    for one in both:
        wait_for(one, "started")
    time.sleep(0.2)
    sent = time.monotonic()
    both[0].send_signal(signal.SIGTERM)
    ended = finish(both)
    assert time.monotonic() - sent < 5
    assert [one.code for one in ended] == [0, 0], ended
    assert all("nothing is lost" in one.err for one in ended)


def test_signal_while_waiting_for_others_ends_at_once():
    [alone] = launch("loop", missing=1, STEPS="10")
    wait_for(alone, "begun")
    time.sleep(0.3)
    alone.send_signal(signal.SIGTERM)
    [ended] = finish([alone])
    assert ended.code == 0 and "nothing is lost" in ended.err


def test_signal_after_the_last_checkpoint_ends_all_at_once():
    both = launch("loop", STEPS="5", RESULTS_S="30")
    for one in both:
        wait_for(one, "results")
    sent = time.monotonic()
    both[1].send_signal(signal.SIGTERM)
    ended = finish(both)
    assert time.monotonic() - sent < 5
    assert [one.code for one in ended] == [0, 0], ended
    assert all("the last checkpoint stands" in one.err for one in ended)


def test_signal_in_the_last_step_is_heard_after_it():
    # Too late to stop the loop, so the run ends where the results begin.
    both = launch("loop", STEPS="3", STEP_S="0.5", RESULTS_S="30")
    wait_for(both[0], "step 2")
    time.sleep(0.1)
    both[0].send_signal(signal.SIGTERM)
    ended = finish(both)
    assert [one.code for one in ended] == [0, 0], ended
    last = [one.out.splitlines()[-1] for one in ended]
    # The decision is step 3, which is the last one, or comes after it.
    assert last in (["no jax"] * 2, ["results"] * 2), ended


def test_second_signal_says_that_it_is_stopping_already():
    [one] = launch("loop", count=1, STEPS="500", SAVE_S="0.5")
    wait_for(one, "step 2")
    one.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    one.send_signal(signal.SIGUSR1)
    [ended] = finish([one])
    assert ended.code == 0 and stopped_after(ended) < 500
    assert "SIGTERM: this step is finished" in ended.err
    assert "SIGUSR1 again: stopping already" in ended.err
    assert ended.out.splitlines()[-1] == "no jax"


class Together:
    """Two processes in one: their decisions, without signals."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = socket.create_connection(server.getsockname())
            links = [{1: Lines(server.accept()[0])}, {0: Lines(client)}]
        self.left: list[str] = []
        monkeypatch.setattr(
            StopRequests, "_leave", lambda _, why: self.left.append(why)
        )
        self.watches = [
            Watch(i, ("a", "b"), links[i], peer_timeout_s=20.0) for i in range(2)
        ]
        # The decision takes its time: who has answered must wait for it.
        to_all = self.watches[0].to_all
        monkeypatch.setattr(self.watches[0], "to_all", lambda m: _later(to_all, m))
        self.stops = [StopRequests(), StopRequests()]
        for stop, watch in zip(self.stops, self.watches, strict=True):
            stop.attach(Alone(watch))

    def answered(self) -> None:
        """Waits until both said where they are."""
        _until(lambda: len(self.stops[0]._reports) == 2 and self.stops[1]._asked)


def _later(to_all, message: dict) -> None:
    if message["kind"] == "decided":
        threading.Timer(0.5, to_all, [message]).start()
    else:
        to_all(message)


@pytest.fixture
def both(monkeypatch) -> Iterator[Together]:
    two = Together(monkeypatch)
    yield two
    for watch in two.watches:
        watch.leaving = True
    for watch in two.watches:
        watch.close()


@pytest.mark.parametrize("who", [0, 1])
def test_who_is_ahead_waits_for_the_decision(both, who):
    first, second = both.stops
    assert not first.requested(5)
    assert not second.requested(5) and not second.requested(6)
    both.stops[who]._came("SIGTERM")
    both.answered()
    # Step 7 is the first that nobody has passed.
    assert second.requested(7)
    assert not first.requested(6)
    assert first.requested(7)
    assert not both.left


def test_a_decision_stays(both):
    first, second = both.stops
    assert not first.requested(5) and not second.requested(5)
    first._came("SIGTERM")
    assert first.requested(6)
    first.leave_at_once("saved")  # before the other one asked
    time.sleep(0.7)
    assert second.requested(6) and not both.left
    second.leave_at_once("saved")
    _until(lambda: len(both.left) == 2)


def test_who_has_not_begun_lets_all_leave(both):
    first, second = both.stops
    assert not first.requested(1)
    first._came("SIGTERM")
    both.answered()
    _until(lambda: len(both.left) == 2)
    assert both.left == ["SIGTERM on a (process 0)"] * 2


def test_who_is_through_waits_for_the_others(both):
    first, second = both.stops
    assert not first.requested(9) and not second.requested(9)
    assert not first.requested(10)
    first.leave_at_once("all is saved")
    second._came("SIGTERM")
    both.answered()
    assert not second.requested(10)  # the last step, which the first one passed
    assert not both.left
    second.leave_at_once("all is saved")
    _until(lambda: len(both.left) == 2)
    assert both.left == ["SIGTERM on b (process 1)"] * 2


def _until(condition) -> None:
    until = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_without_a_signal_nothing_stops():
    ended = finish(launch("loop", STEPS="20"))
    assert [one.code for one in ended] == [0, 0], ended
    assert all("stopped" not in one.out and one.err == "" for one in ended)


def test_handlers_come_back():
    def mine(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, mine)
    threads = threading.active_count()
    try:
        with StopRequests() as stop:
            stop.attach(Alone())
            assert signal.getsignal(signal.SIGTERM) is not mine
            assert not stop.requested(1)
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.set_wakeup_fd(-1) == -1
        assert threading.active_count() == threads
    finally:
        signal.signal(signal.SIGTERM, before)


def test_one_process_stops_after_the_step_in_flight(capfd):
    with StopRequests() as stop:
        stop.attach(Alone())
        assert not stop.requested(41)
        os.kill(os.getpid(), signal.SIGTERM)
        until = time.monotonic() + 5
        while "SIGTERM" not in capfd.readouterr().err:
            assert time.monotonic() < until
        assert stop.requested(42)
        assert stop.requested(42)  # and stays so


def test_one_process_leaves_before_its_first_step(capfd):
    with pytest.raises(SystemExit) as ended, StopRequests() as stop:
        stop.attach(Alone())
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert ended.value.code == 0
    assert "nothing is lost" in capfd.readouterr().err


def test_a_signal_that_does_not_wake_the_main_thread_is_sent_again(monkeypatch):
    """One that comes just as it goes to sleep is noticed after the sleep only."""
    sent, kill = [], signal.pthread_kill

    def lose_the_first(thread: int, number: int) -> None:
        sent.append(number)
        if len(sent) > 1:
            kill(thread, number)

    monkeypatch.setattr(signal, "pthread_kill", lose_the_first)
    monkeypatch.setattr(os, "_exit", lambda code: sent.append(f"ended by {code}"))
    with pytest.raises(SystemExit), StopRequests() as stop:
        stop.attach(Alone())
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(8)
    assert len(sent) > 1 and set(sent) == {signal.SIGTERM}


def test_outside_the_main_thread_it_leaves_signals_alone():
    answers, before = [], signal.getsignal(signal.SIGTERM)

    def run() -> None:
        with StopRequests() as stop:
            stop.attach(Alone())
            answers.append((stop.requested(1), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert answers == [(False, before)]
