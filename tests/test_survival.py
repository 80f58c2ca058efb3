"""What ends a run early: a loss gone wrong, a full disk. Nothing that was saved is
lost, and what happened is written down."""

import json
import math
import resource

import numpy as np
import pytest
from running import Command, last_step, losses, saved_steps
from small_runs import manifest, small_config

from vtscale_jax.assemble import open_source
from vtscale_jax.loss_watch import HISTORY, LossWatch, TrainingStopped
from vtscale_jax.phases import samples_hash, total_hash
from vtscale_jax.train import train


def noisy(number: int, seed: int = 0) -> list[float]:
    return (1 + 0.1 * np.random.default_rng(seed).normal(size=number)).tolist()


def test_a_spike_is_found_and_noise_is_not():
    watch = LossWatch(spike=8, window=50)
    for step, loss in enumerate(noisy(500)):
        watch.see(step, loss, 1.0)
    limit = watch.limit()
    assert limit is not None and 1.8 <= limit < 2.2  # never below twice the median
    watch.see(500, 0.99 * limit, 1.0)
    with pytest.raises(
        TrainingStopped, match="loss is 2.5 at step 501.*stop.spike is 8"
    ):
        watch.see(501, 2.5, 1.0)


def test_a_loss_that_falls_or_drifts_is_no_spike():
    watch = LossWatch(spike=8, window=20)
    for step in range(300):
        watch.see(step, 3 * 0.99**step + 0.002 * step, 1.0)


def test_nothing_is_a_spike_before_the_noise_is_known_or_without_a_limit():
    watch = LossWatch(spike=8, window=50)
    for step in range(HISTORY - 1):
        watch.see(step, 1.0, 1.0)
    watch.see(HISTORY - 1, 1e6, 1.0)
    watch = LossWatch(spike=0, window=50)
    for step, loss in enumerate([*noisy(100), 1e6]):
        watch.see(step, loss, 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_and_gradient_must_be_finite(bad):
    watch = LossWatch(spike=0, window=50)
    for loss, norm in ((bad, 1.0), (1.0, bad)):
        with pytest.raises(TrainingStopped, match="at step 3, expected finite") as stop:
            watch.see(3, loss, norm)
        assert (stop.value.step, stop.value.reason) == (3, "not finite")


def test_settings_of_the_watch_are_checked():
    with pytest.raises(ValueError, match="stop.window 3, expected at least"):
        LossWatch(spike=1, window=3)


def test_a_run_that_is_stopped_leaves_the_ids_of_the_batch_and_no_checkpoint(tmp_path):
    """Between two rows of the log, too: the step that broke is named, not the row."""
    config = small_config(
        optim__learning_rate=1e30, optim__warmup=0.0, log__every=5, eval__questions=0
    )
    folder = tmp_path / "run"
    with pytest.raises(
        TrainingStopped, match=r"ids of that batch's 8 samples are in"
    ) as stop:
        train(config, folder)
    assert "lower --config.optim.learning_rate" in str(stop.value)
    found = json.loads((folder / "stopped.json").read_text())
    assert found["reason"] == "not finite" and found["step"] < 5
    first = 8 * (found["step"] - 1)
    source = open_source(config, "train")
    assert len(set(found["sample_ids"])) == 8
    assert set(found["sample_ids"]) <= {source[i].id for i in range(len(source))}
    assert [row["step"] for row in found["recent"]][-1] >= found["step"]
    assert first < len(source)
    assert saved_steps(folder) == []


def test_hashes_of_what_was_fed_add_up():
    ids = [f"sample {i}" for i in range(6)]
    whole = samples_hash(4, range(6), ids)
    halves = samples_hash(4, (0, 1, 4), [ids[i] for i in (0, 1, 4)])
    halves += samples_hash(4, (2, 3, 5), [ids[i] for i in (2, 3, 5)])
    assert halves % 2**64 == whole
    assert samples_hash(5, range(6), ids) != whole  # another step
    assert samples_hash(4, range(6), ids[::-1]) != whole  # another order
    parts = np.array([[0, 1, 5], [0, 1, 5], [2, 0xFFFFFFFF, 0xFFFFFFFF]], np.uint32)
    assert total_hash(parts) == (2**32 + 5 + 2**64 - 1) % 2**64


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path):
    """From some moment on no file may grow beyond 16 KiB, as on a full disk."""
    folder, cache = tmp_path / "run", tmp_path / "cache"
    run = Command(folder, cache, 1, 1, checkpoint__every=6)
    run.wait_for_checkpoint(6)
    assert run.running() and saved_steps(folder) == [6]
    resource.prlimit(run.children[0].pid, resource.RLIMIT_FSIZE, (2**14, 2**14))
    statuses, outputs = run.end()
    assert statuses == [1], outputs[0]
    # orbax reports on stderr what it could not finish, before our line, which is the
    # last but for warnings of Python as it ends.
    lines = outputs[0].strip().splitlines()
    said = [line for line in lines if "RuntimeWarning" not in line][-2:]
    assert said[0].startswith(f"error: the disk of {folder} is full"), outputs[0]
    assert saved_steps(folder)[0] == 6 and last_step(folder) >= 6
    again = Command(folder, cache, 1, 1, checkpoint__every=6).finish()[0]
    assert "Continuing from step 6" in again
    assert manifest(folder)["finished"]
    assert len(losses(folder)) == len(set(losses(folder)))
