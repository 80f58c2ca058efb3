"""Several processes on one machine and a sweep over M: joined, told to stop, failing.

Those of clusters are in test_launch_clusters.py."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from launch_stand_ins import (
    BIN,
    LAUNCH,
    ROOT,
    run,
    said,
    stand_in,
    stand_in_train,
    starting,
    wait_for,
    write_manifest,
)

from configs.base import with_queries
from vtscale_jax.parallel.hosts.cluster import find_cluster

SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch", ROOT / ".ci" / "run"]
ALL_M = (1, 8, 16, 32, 64, 128, 256, 384, 512, 768)


@pytest.fixture
def start(tmp_path):
    with starting(tmp_path) as start:
        yield start


@pytest.fixture
def train(tmp_path):
    return stand_in_train(tmp_path)


def shellcheck(*arguments, text=None):
    return subprocess.run(
        [str(BIN / "shellcheck"), *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script):
    found = shellcheck(script)
    assert found.returncode == 0, found.stdout


def test_shellcheck_finds_what_is_wrong():
    found = shellcheck("-s", "bash", "-", text="#!/bin/bash\nrm -r $1/*\n")
    assert found.returncode == 1 and "SC2086" in found.stdout


@pytest.mark.parametrize("script", SCRIPTS[:-1], ids=lambda path: path.name)
def test_help_is_not_an_error_and_nonsense_is(script, tmp_path):
    status, output = run(["bash", script, "-h"], tmp_path)
    assert status == 0 and output.startswith("usage: ")
    # Every variable that is read is explained.
    read = set(re.findall(r"\$\{([A-Z][A-Z_]+):?[-+]", script.read_text()))
    ours = {
        v
        for v in read
        if not v.startswith(("SLURM_", "XLA_", "JAX_", "CUDA_", "BASH_"))
    }
    assert ours and all(re.search(rf"\b{v}\b", output) for v in ours), ours
    status, output = run(["bash", script, "--config", "x"], tmp_path)
    assert status == 2 and output.startswith("error: ") and "usage: " in output


# local.sh


def test_processes_are_joined(tmp_path, train):
    words = ["--config", "configs/m16.py:paper", "--name=two words"]
    flags = "--xla_a=1 --xla_force_host_platform_device_count=8"
    command = [LAUNCH / "local.sh", 3, *words]
    status, output = run(command, tmp_path, TRAIN=train, DEVICES="2", XLA_FLAGS=flags)
    assert status == 0, output
    given = said(output)
    assert [g["arguments"] for g in given] == [words] * 3
    assert [g["environment"]["VTSCALE_PROCESS_ID"] for g in given] == ["0", "1", "2"]
    assert {g["environment"]["VTSCALE_NUM_PROCESSES"] for g in given} == {"3"}
    (coordinator,) = {g["environment"]["VTSCALE_COORDINATOR"] for g in given}
    found = find_cluster({k: v for k, v in given[2]["environment"].items() if v})
    assert (found.launcher, found.process_id) == ("environment", 2)
    assert found.coordinator == coordinator and coordinator.startswith("127.0.0.1:")
    for g in given:
        assert g["environment"]["JAX_PLATFORMS"] == "cpu"
        assert g["environment"]["XLA_FLAGS"].split() == [
            "--xla_a=1",
            "--xla_force_host_platform_device_count=2",
        ]
    # Another process's line does not go on where one had no line end.
    assert set(re.findall(r"^\[\d\] no.*$", output, re.MULTILINE)) == {
        f"[{i}] no line end" for i in range(3)
    }


def test_gpus_are_shared_evenly(tmp_path, train):
    command = [LAUNCH / "local.sh", 2]
    _, output = run(command, tmp_path, TRAIN=train, CUDA_VISIBLE_DEVICES="4,5,6,7")
    visible = [g["environment"]["CUDA_VISIBLE_DEVICES"] for g in said(output)]
    assert visible == ["4,5", "6,7"]
    stand_in(tmp_path, "nvidia-smi", "#!/bin/sh\nprintf 'GPU 0: A\\nGPU 1: A\\n'\n")
    _, output = run(command, tmp_path, TRAIN=train)
    visible = [g["environment"]["CUDA_VISIBLE_DEVICES"] for g in said(output)]
    assert visible == ["0", "1"]
    status, output = run([command[0], 3], tmp_path, TRAIN=train)
    assert status == 2 and "2 GPUs (0 1) cannot be shared evenly by 3" in output
    assert not said(output)
    # A machine whose driver does not answer has none.
    stand_in(tmp_path, "nvidia-smi", "#!/bin/sh\necho NVIDIA-SMI has failed; exit 9\n")
    status, output = run([command[0], 3], tmp_path, TRAIN=train)
    assert status == 0
    assert [g["environment"]["CUDA_VISIBLE_DEVICES"] for g in said(output)] == [
        None
    ] * 3


@pytest.mark.parametrize(
    ("sent", "comes"),
    [("TERM", "TERM"), ("INT", "INT"), ("USR1", "USR1"), ("HUP", "TERM")],
)
def test_signals_come_to_every_process_once(tmp_path, start, train, sent, comes):
    process, output = start([LAUNCH / "local.sh", 2], TRAIN=train, SECONDS_EACH="60")
    wait_for("arguments", output, 2)
    process.send_signal(getattr(signal, f"SIG{sent}"))
    assert process.wait(20) == 0
    lines = [x for x in output.read_text().splitlines() if "saved" in x]
    assert sorted(lines) == [f"[{i}] saved after SIG{comes}" for i in "01"]


def test_one_that_fails_ends_the_others_after_a_while(tmp_path, train):
    more = {"TRAIN": train, "FAILS": "1", "SECONDS_EACH": "60", "GRACE": "5"}
    begin = time.monotonic()
    status, output = run([LAUNCH / "local.sh", 3], tmp_path, **more)
    assert status == 7
    assert 4 < time.monotonic() - begin < 40  # bash counts whole seconds
    assert "process 1 ended with status 7; the others have 5 s" in output
    assert "SIGTERM to processes 0 2" in output
    assert output.count("saved after SIGTERM") == 2
    # They may end by themselves, and then nothing is sent.
    more |= {"SECONDS_EACH": "1", "GRACE": "60"}
    status, output = run([LAUNCH / "local.sh", 3], tmp_path, **more)
    assert status == 7 and "SIG" not in output


def test_one_that_will_not_end_is_killed(tmp_path):
    stubborn = tmp_path / "stubborn"
    stand_in(
        tmp_path,
        "stubborn",
        "#!/bin/bash\ntrap '' TERM\n[ $VTSCALE_PROCESS_ID = 1 ] && exit 3\n"
        "exec sleep 100\n",
    )
    status, output = run(
        [LAUNCH / "local.sh", 2], tmp_path, TRAIN=str(stubborn), GRACE="1"
    )
    assert status == 3
    assert "SIGTERM to processes 0" in output and "SIGKILL to processes 0" in output


# sweep.sh


def table(output):
    rows = re.findall(r"^ +(\d+)  (\S+) +(\S.*)$", output, re.MULTILINE)
    return {int(m): state for m, _, state in rows}


def asked(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


def sweep(tmp_path, train, *arguments, **more):
    more = {"LAUNCH": train, "RUNS": str(tmp_path / "runs")} | more
    return run([LAUNCH / "sweep.sh", *arguments], tmp_path, **more)


def test_a_sweep_trains_every_m_once(tmp_path, train):
    log = tmp_path / "log"
    write_manifest(tmp_path / "runs" / "m8-embedded", True)
    write_manifest(tmp_path / "runs" / "m32-embedded", False)
    status, output = sweep(tmp_path, train, "--config.seed=1", LOG=str(log))
    assert status == 0, output
    assert table(output) == dict.fromkeys(ALL_M, "finished")
    sizes = [m for m in ALL_M if m != 8]
    for given, size in zip(asked(log), sizes, strict=True):
        assert given == [
            *("--config", f"configs/m{size}.py:embedded,stage=adapt,inputs=vqq"),
            *("--workdir", str(tmp_path / "runs" / f"m{size}-embedded")),
            "--config.seed=1",
        ]
    status, output = sweep(tmp_path, train, LOG=str(log))
    assert status == 0 and len(asked(log)) == len(sizes)  # all finished already


@pytest.mark.parametrize("preset", ["embedded", "smol", "paper"])
@pytest.mark.parametrize("stage", ["adapt", "align", "finetune"])
@pytest.mark.parametrize("inputs", ["vqq", "vq"])
def test_folders_are_named_as_the_command_names_them(
    tmp_path, train, preset, stage, inputs
):
    log = tmp_path / "log"
    more = {"PRESET": preset, "STAGE": stage, "INPUTS": inputs, "LOG": str(log)}
    sweep(tmp_path, train, M="16", **more)
    ((_, config, _, folder),) = asked(log)
    name = with_queries(16)(config.partition(":")[2]).name
    assert Path(folder).name == name


def test_a_sweep_stops_at_a_failure_unless_told_to_go_on(tmp_path, train):
    more = {"M": "1 8 16", "FAILS": "m8-embedded"}
    status, output = sweep(tmp_path, train, **more)
    assert status == 7
    failed = "failed with status 7"
    assert table(output) == {1: "finished", 8: failed, 16: "not started"}
    status, output = sweep(tmp_path, train, KEEP_GOING="1", **more)
    assert status == 7
    assert table(output) == {1: "finished", 8: failed, 16: "finished"}


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_an_interrupted_sweep_stops_and_goes_on(tmp_path, start, train, name):
    more = {"LAUNCH": train, "RUNS": str(tmp_path / "runs"), "M": "1 8"}
    command = [LAUNCH / "sweep.sh"]
    process, output = start(command, SECONDS_EACH="60", **more)
    wait_for("arguments", output)
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert process.wait(20) == 75
    text = output.read_text()
    assert f"saved after SIG{name}" in text and "the same command goes on" in text
    assert table(text) == {1: "interrupted", 8: "not started"}
    status, text = run(command, tmp_path, **more)
    assert status == 0 and table(text) == {1: "finished", 8: "finished"}


def test_a_sweep_through_another_launcher(tmp_path, train):
    local = f"{LAUNCH / 'local.sh'} 2"
    status, output = sweep(tmp_path, "", LAUNCH=local, TRAIN=train, M="8 16")
    assert status == 0 and len(said(output)) == 4
    assert table(output) == {8: "finished", 16: "finished"}
    # One that only queues leaves its runs unfinished.
    status, output = sweep(tmp_path, "true", SUBMIT="1", M="8 32 64")
    assert status == 0
    assert table(output) == {8: "finished", 32: "queued", 64: "queued"}


def test_a_sweep_names_what_it_cannot_do(tmp_path, train):
    log = tmp_path / "log"
    status, output = sweep(tmp_path, train, M="8 9", LOG=str(log))
    assert status == 2 and "M has 9, and there is no configs/m9.py" in output
    for word in ("--workdir=x", "--config", "--config=configs/m8.py"):
        status, output = sweep(tmp_path, train, word, LOG=str(log))
        assert status == 2 and f"{word} is set for each run" in output
    assert not log.exists()
