"""Killed at random moments, a run ends with the parameters of an uninterrupted one."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import last_step
from small_runs import flags, manifest, rows
from xla_flags import xla_flags

STEPS = 24


def start(folder: Path, repo_dir: Path, cache: Path, seed: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-m", "vtscale_jax.train"]
    command += ["--config", "configs/m8.py", "--workdir", str(folder)]
    command += flags(
        4, optim__steps=STEPS, eval__questions=0, data__batch_size=4, seed=seed
    )
    # One device, as a user has it, and compiled programs kept between the launches.
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "XLA_FLAGS": xla_flags(1),
    }
    return subprocess.Popen(
        command,
        cwd=repo_dir,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(folder: Path, repo_dir: Path, cache: Path) -> str:
    process = start(folder, repo_dir, cache)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def kill_at(process: subprocess.Popen, folder: Path, step: int, pause: float) -> None:
    """Kill -9 once the run has logged `step`, after `pause` seconds more."""
    while process.poll() is None and last_step(folder) < step:
        time.sleep(0.02)
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, repo_dir):
    folder = tmp_path_factory.mktemp("whole")
    cache = tmp_path_factory.mktemp("cache")
    finish(folder / "run", repo_dir, cache)
    return folder / "run", cache


@pytest.mark.long  # test_hosts.py and test_eval_run.py kill too
def test_one_run_killed_again_and_again(whole, tmp_path, repo_dir):
    """Three kills in a row, at random moments, each run continuing the one before."""
    reference, cache = whole
    chance = random.Random(0)
    for after in (3, 9, 16):
        process = start(tmp_path / "run", repo_dir, cache)
        kill_at(process, tmp_path / "run", after, chance.uniform(0, 0.5))
        assert process.returncode == -signal.SIGKILL
    assert not manifest(tmp_path / "run")["finished"]
    output = finish(tmp_path / "run", repo_dir, cache)
    assert "Continuing from step" in output
    ours, theirs = manifest(tmp_path / "run"), manifest(reference)
    assert ours["params_sha256"] == theirs["params_sha256"]
    losses = [(r["step"], r["split"], r["loss"]) for r in rows(tmp_path / "run")]
    assert losses == [(r["step"], r["split"], r["loss"]) for r in rows(reference)]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("number", range(10))
def test_ten_random_kills(whole, tmp_path, repo_dir, number):
    """Kill -9 at a random moment of the run, start-up and saving included."""
    reference, cache = whole
    chance = random.Random(100 + number)
    run, killed = tmp_path / "run", False
    while not killed:  # again, at another moment, if the run had ended before
        shutil.rmtree(run, ignore_errors=True)
        process = start(run, repo_dir, cache)
        kill_at(process, run, chance.randrange(STEPS), chance.uniform(0, 2))
        killed = process.returncode == -signal.SIGKILL
    finish(run, repo_dir, cache)
    assert manifest(run)["finished"] and (run / "report.html").exists()
    ours, theirs = manifest(tmp_path / "run"), manifest(reference)
    assert ours["params_sha256"] == theirs["params_sha256"]


@pytest.mark.long
def test_another_seed_ends_elsewhere(whole, tmp_path, repo_dir):
    """The control: equal hashes are not a matter of course."""
    reference, cache = whole
    process = start(tmp_path / "run", repo_dir, cache, seed=1)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    ours, theirs = manifest(tmp_path / "run"), manifest(reference)
    assert ours["params_sha256"] != theirs["params_sha256"]
