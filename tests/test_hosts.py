"""Several processes train as one does, end together, and lose nothing."""

import random
import re
import signal

import numpy as np
import pytest
from running import STEPS, Command, last_step, losses, saved_steps
from small_runs import manifest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def one(tmp_path_factory, cache):
    """One process with four devices."""
    folder = tmp_path_factory.mktemp("one") / "run"
    Command(folder, cache / "one", 1, 4).finish()
    return folder


def assert_same_training(folder, reference):
    # Held-out losses also stand where a run happened to save.
    ours, theirs = (
        [row for row in losses(run) if row[1] == "train"] for run in (folder, reference)
    )
    assert [row[0] for row in ours] == [row[0] for row in theirs]
    values = [np.array([row[2] for row in rows]) for rows in (ours, theirs)]
    np.testing.assert_allclose(*values, rtol=0, atol=1e-6)
    assert manifest(folder)["samples_fed"] == manifest(reference)["samples_fed"]


def assert_trained_as_one(folder, outputs, reference):
    """By two processes: the same losses and samples, and one that writes reports."""
    assert_same_training(folder, reference)
    devices = manifest(reference)["device"] | {"processes": 2}
    assert manifest(folder)["device"] == devices
    assert "Report:" in outputs[0] and "Report:" not in outputs[1]


@pytest.mark.long  # the next but one shows it of two halves of a run
def test_two_processes_train_as_one(one, tmp_path, cache):
    outputs = Command(tmp_path / "run", cache, 2, 2).finish()
    assert_trained_as_one(tmp_path / "run", outputs, one)


@pytest.mark.long
def test_another_seed_feeds_other_samples(one, tmp_path, cache):
    """The control: equal hashes and losses are not a matter of course."""
    Command(tmp_path / "run", cache / "one", 1, 4, seed=1).finish()
    run = tmp_path / "run"
    assert manifest(run)["samples_fed"] != manifest(one)["samples_fed"]
    with pytest.raises(AssertionError):
        assert_same_training(run, one)


@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_one_killed_process_is_named_and_the_run_goes_on(one, tmp_path, cache, killed):
    run = Command(tmp_path / "run", cache, 2, 2, checkpoint__every=5)
    run.wait_for(7)
    run.send(signal.SIGKILL, killed)
    statuses, outputs = run.end()
    survivor = 1 - killed
    assert statuses[killed] == -signal.SIGKILL
    assert statuses[survivor] not in (0, -signal.SIGKILL, -signal.SIGABRT)
    assert re.search(rf"process {killed}\b", outputs[survivor]), outputs[survivor]
    assert "Start the same command again" in outputs[survivor]
    again = Command(tmp_path / "run", cache, 2, 2).finish()
    assert "Continuing from step 5 of" in again[0]
    assert_trained_as_one(tmp_path / "run", again, one)


@pytest.mark.parametrize(
    "processes_of",
    [
        pytest.param((2,), marks=pytest.mark.long),
        pytest.param((2, 2, 1, 2, 2), marks=pytest.mark.long),
    ],
)
def test_sigterm_at_random_moments_loses_nothing(one, tmp_path, cache, processes_of):
    """Several in a row, to one process or to both, each run going on from the one
    before, on as many processes as come: two, or one that has all devices."""
    folder, chance = tmp_path / "run", random.Random(5)
    asked = sorted(chance.sample(range(1, STEPS - 2), len(processes_of)))
    done = 0
    for step, processes in zip(asked, processes_of, strict=True):
        place = cache if processes == 2 else cache / "one"
        run = Command(folder, place, processes, 4 // processes)
        run.wait_for(max(step, done + 1))
        run.send(
            signal.SIGTERM, *chance.choice([[0], [processes - 1], range(processes)])
        )
        statuses, outputs = run.end()
        assert set(statuses) == {0}, "\n".join(outputs)
        found = re.search(r"Stopped after step (\d+), which is saved", outputs[0])
        assert found, outputs[0]
        # All that was done is saved: the step in flight is the last.
        assert saved_steps(folder)[-1] == int(found[1]) >= last_step(folder)
        assert int(found[1]) > done
        done = int(found[1])
    # One process goes on where two stopped.
    Command(folder, cache / "one", 1, 4).finish()
    assert_same_training(folder, one)


def tear(folder, step):
    """Cuts the largest file of a checkpoint in half."""
    files = (folder / "checkpoints" / str(step)).rglob("*")
    largest = max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


@pytest.mark.long
def test_a_torn_checkpoint_is_passed_over_by_all(one, tmp_path, cache):
    folder = tmp_path / "run"
    run = Command(folder, cache, 2, 2, checkpoint__every=6)
    run.wait_for_checkpoint(12)
    run.send(signal.SIGTERM, 0, 1)
    run.end()
    *before, last = saved_steps(folder)
    tear(folder, last)
    outputs = Command(folder, cache, 2, 2, checkpoint__every=6).finish()
    assert f"Continuing from step {before[-1]} of" in outputs[0]
    assert all("cannot be used" in output for output in outputs)
    assert_same_training(folder, one)


@pytest.mark.long  # test_stopping has it without a model
def test_sigterm_before_the_first_step_ends_at_once(tmp_path, cache):
    run = Command(tmp_path / "run", cache, 1, 4)
    while not (tmp_path / "run" / "manifest.json").exists() and run.running():
        pass
    run.send(signal.SIGTERM, 0)
    statuses, outputs = run.end()
    assert statuses == [0], outputs
    assert "nothing is lost" in outputs[0] or "is saved" in outputs[0]
