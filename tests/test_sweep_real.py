"""A sweep with the real commands: counted costs, and all parts of two M."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from small_runs import OVERRIDES, small_config
from xla_flags import xla_flags

from configs.base import with_queries
from vtscale_jax import paths, run_folder, settings
from vtscale_jax.stages import get_stage, init_params
from vtscale_jax.sweep import __main__ as sweep
from vtscale_jax.sweep import cost as sweep_cost
from vtscale_jax.sweep import parts as sweep_parts
from vtscale_jax.sweep import times as sweep_times
from vtscale_jax.sweep.parts import SweepError, make_parts, read_base

CHANGED = {
    "data.families": "('read','exists')",
    "data.num_threads": 0,
    "optim.steps": 40,
    "eval.every": 100,
    "eval.questions": 4,
    "checkpoint.every": 10,
}
TRAIN = [
    f"--config.{name}={value}"
    for name, value in (OVERRIDES | CHANGED).items()
    if name != "weights.init_from"
]


# Of ml_collections, which reads config files.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch, repo_dir):
    monkeypatch.chdir(repo_dir)
    monkeypatch.setenv("XLA_FLAGS", xla_flags(1))


def parts_of(out, queries, inputs=("vqq", "vq_ft"), train=TRAIN, base="embedded"):
    return make_parts(read_base(base, None), out, queries, inputs, train)


@pytest.fixture
def base(tmp_path):
    """A finished run of one layer each, with random weights."""
    config = small_config(8, "finetune")
    stage = get_stage("finetune")
    params = init_params(stage, settings.model_config(config, "float32"), seed=0)
    trained, _ = paths.partition(params, stage.trains)
    folder = run_folder.RunFolder(tmp_path / "base")
    folder.write("config.json", config.to_dict())
    paths.save(trained, folder.path / "weights.safetensors")
    whole = {"finished": True, "params_sha256": paths.content_hash(trained)}
    folder.write("manifest.json", whole)
    return str(folder.path)


def test_costs_are_counted_as_train_would_run(tmp_path):
    parts = parts_of(tmp_path, [64, 2], train=[])
    found = sweep_cost.costs([part.arguments for part in parts])
    assert json.loads(json.dumps(found)) == found
    vqq, vq, small, _ = found["runs"]
    assert vqq["num_queries"] == 64 and vqq["prompts"] == 6 * 512
    assert vqq["steps"] == 204 and vqq["shapes"] == 1
    assert vqq["step_flops"] > vq["step_flops"] > small["step_flops"] > 1e10
    assert vqq["step_flops"] > 3 * 16 * vqq["prompt_flops"] / 2
    assert found["platform"] == "cpu" and found["flops_per_s"] > 1e9
    # Without the narrower rows there would be several programs to compile.
    wide = [*parts[0].arguments, "--config.data.headroom=1.25"]
    assert sweep_cost.costs([wide])["runs"][0]["shapes"] > 1


def test_the_narrower_rows_change_no_result():
    name, _, value = sweep_parts.ONE_SHAPE[0].partition("=")
    field = name.removeprefix("--config.")
    assert field in run_folder.PRESENTATION
    assert float(value) < with_queries(8)("").data.headroom


def test_arguments_that_train_would_refuse_are_refused_before(tmp_path):
    for argument, words in (
        ("--config.optim.stepz=1", "stepz"),
        ("--config.eval.batch_size=0", "eval.batch_size is 0"),
        ("--nonsense=1", "nonsense"),
    ):
        with pytest.raises(ValueError, match=words):
            sweep_cost.costs([parts_of(tmp_path, [2], train=[argument])[0].arguments])
    parts = parts_of(tmp_path, [2], ["vqq"], ["--config.eval.batch_size=0"])
    with pytest.raises(SweepError, match="cannot be laid out: eval.batch_size is 0"):
        sweep_times.ask_costs(parts)


def stop_once(file: Path) -> threading.Thread:
    def send():
        end = time.monotonic() + 120
        while not file.exists() and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.long  # test_sweep.py has it with a stand-in for train
def test_a_run_and_its_evaluation(base, tmp_path, capsys, monkeypatch):
    """The shortest real sweep; of two M and all inputs it is the next test."""
    monkeypatch.setattr(sweep, "report_on", lambda out: 1)
    out = tmp_path / "out"
    command = ["--base", base, "--num_queries", "9", "--inputs", "vq", "--jobs", "1"]
    command += ["--out", str(out), "--", *TRAIN, "--config.optim.steps=2"]
    assert sweep.main(command) == 0
    text = capsys.readouterr().out
    assert "the base has 8 queries, more are drawn anew (not asked for" in text
    assert "No report" in text  # of a single M
    for part in parts_of(out, [9], ["vqq", "vq"], base=base):
        assert sweep_parts.state(part) == "finished"
        assert set(sweep_parts.scores(part)) == {"read", "exists"}
        assert len((part.folder / "samples.jsonl").read_text().splitlines()) == 8
        assert f"\n{part.name}: " in text
    of = json.loads((out / "m9-vq" / "evaluated.json").read_text())
    assert (of["trained_inputs"], of["inputs"], of["num_queries"]) == ("vqq", "vq", 9)
    assert "blank" not in (out / "m9-vqq" / "evaluation.json").read_text()


@pytest.mark.long
def test_a_real_sweep_is_stopped_goes_on_and_ends(base, tmp_path, capsys, monkeypatch):
    reports = []
    monkeypatch.setattr(sweep, "report_on", lambda out: reports.append(out) or 0)
    out = tmp_path / "out"
    command = ["--base", base, "--num_queries", "1,9", "--jobs", "2"]
    command += ["--out", str(out), "--", *TRAIN]
    thread = stop_once(out / "m9-vqq" / "checkpoints" / "10")
    assert sweep.main(command) == 0
    thread.join()
    text = capsys.readouterr().out
    assert "the base has 8 queries, more are drawn anew" in text
    assert "stopping: " in text and "the same command goes on" in text and not reports
    parts = parts_of(out, [1, 9], sweep_parts.INPUTS, base=base)
    stopped = {part.name: sweep_parts.state(part) for part in parts}
    assert "finished" not in stopped.values() and stopped["m9-vqq"] == "interrupted"

    assert sweep.main(command) == 0, capsys.readouterr()
    text = capsys.readouterr().out
    assert "Continuing from step" in (out / "logs" / "m9-vqq.log").read_text()
    assert reports == [out]
    for part in parts:
        assert sweep_parts.state(part) == "finished"
        assert set(sweep_parts.scores(part)) == {"read", "exists"}
        assert len((part.folder / "samples.jsonl").read_text().splitlines()) == 8
        assert f"\n{part.name}: " in text
    of = json.loads((out / "m1-vq" / "evaluated.json").read_text())
    assert (of["trained_inputs"], of["inputs"], of["num_queries"]) == ("vqq", "vq", 1)
    trained = json.loads((out / "m1-vq_ft" / "config.json").read_text())
    assert (trained["inputs"], trained["weights"]["init_from"]) == ("vq", base)
    assert "blank" not in (out / "m1-vqq" / "evaluation.json").read_text()
    # All is there: in no time, and no process is started.
    monkeypatch.setattr(subprocess, "Popen", None)
    assert sweep.main(command) == 0
    assert "All parts are finished" in capsys.readouterr().out


def test_the_sweeps_own_process_loads_no_jax():
    code = "import sys, vtscale_jax.sweep\nprint({'jax', 'flax'} & set(sys.modules))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.stdout.strip() == "set()", child.stderr
