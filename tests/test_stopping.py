"""Signals that ask to stop: every process stops after the same step and ends with 0."""

import os
import random
import re
import signal
import threading
import time
from typing import NamedTuple

import pytest
from two_processes import Ended, finish, launch, wait_for

from vtscale_jax.parallel.stopping import StopRequests
from vtscale_jax.parallel.watch import Watch


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
