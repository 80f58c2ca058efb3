"""A sweep plans, runs what is missing, goes on, and leaves other folders alone."""

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from vtscale_jax.sweep import __main__ as command
from vtscale_jax.sweep import jobs as sweep_jobs
from vtscale_jax.sweep import parts as sweep_parts
from vtscale_jax.sweep import times as sweep_times
from vtscale_jax.sweep.options import parse
from vtscale_jax.sweep.parts import SweepError, make_parts, read_base

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch):
    monkeypatch.chdir(TESTS.parent)


def row(num_queries=8, **more):
    cost = {"num_queries": num_queries, "steps": 100, "step_flops": 1e10}
    return cost | {"shapes": 1, "prompts": 60, "prompt_flops": 1e9} | more


def machine(**more):
    found = {"platform": "cpu", "devices": 1, "cores": 2, "flops_per_s": 150e9}
    return found | more


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """Parts run a stand-in, costs and report are made up; the reports asked for."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    for name in ("FAILS", "WAITS", "ENDS"):
        monkeypatch.delenv(name, raising=False)
    reports: list[Path] = []

    def parts(*given, **more):
        made = make_parts(*given, **more)
        return [part._replace(module="sweep_stand_in") for part in made]

    def costs(parts):
        runs = [row(part.num_queries) for part in parts if part.of is None]
        return {"runs": runs} | machine()

    monkeypatch.setattr(command, "make_parts", parts)
    monkeypatch.setattr(command, "ask_costs", costs)
    monkeypatch.setattr(command, "report_on", lambda out: reports.append(out) or 0)
    return reports


def said(capsys, *arguments):
    status = command.main([str(word) for word in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def sweep(capsys, out, *more, queries="2,4"):
    return said(capsys, "--num_queries", queries, "--out", out, *more)


def states(out, queries=(2, 4), inputs=sweep_parts.INPUTS):
    base = read_base("embedded", None)
    return {
        p.name: sweep_parts.state(p) for p in make_parts(base, out, queries, inputs)
    }


def order(out):
    return (out / "order").read_text().split()


def test_a_sweep_makes_every_part_once(stand_ins, tmp_path, capsys):
    out = tmp_path / "out"
    status, text, _ = sweep(capsys, out, "--plan")
    assert status == 0 and not out.exists() and not stand_ins
    assert "6 parts, 2 at a time" in text and text.count(" to do ") == 6
    assert re.search(r"\nAbout \d.* for what is left, from counted operations", text)
    assert "m2-vq        to do" in text and "evaluates m2-vqq without" in text

    status, text, err = sweep(capsys, out)
    assert status == 0, err
    assert set(states(out).values()) == {"finished"} and stand_ins == [out]
    assert len(order(out)) == 6
    for m in (2, 4):  # an evaluation waits for its run
        assert order(out).index(f"m{m}-vqq") < order(out).index(f"m{m}-vq")
    for name in states(out):
        assert re.search(rf"^{name}: \d.* s; read 50\.0 \(%\)", text, re.MULTILINE)
        log = (out / "logs" / f"{name}.log").read_text()
        assert log.startswith("$ python -m sweep_stand_in ") and "cores 1" in log
        # A Ctrl-C comes to it once, from the sweep.
        assert "apart from the terminal: True" in log
    assert "Next:    python -m vtscale_jax.divergence measure --run" in text

    status, text, _ = sweep(capsys, out)
    assert status == 0 and "All parts are finished" in text
    assert len(order(out)) == 6 and stand_ins == [out, out]
    # More M in the same folder: what is finished stays, and says how long others take.
    status, text, _ = sweep(capsys, out, "--inputs", "vqq", queries="2,4,8")
    assert status == 0 and "what the finished parts took" in text
    assert order(out)[6:] == ["m8-vqq"]


def test_one_at_a_time_uses_all_cores(stand_ins, tmp_path, capsys):
    status, text, _ = sweep(capsys, tmp_path, "--jobs", 1, "--inputs", "vqq")
    assert status == 0 and "at a time" not in text
    log = (tmp_path / "logs" / "m2-vqq.log").read_text()
    assert f"cores {len(os.sched_getaffinity(0))}" in log


def test_what_an_evaluation_needs_is_trained_too(stand_ins, tmp_path, capsys):
    status, text, _ = sweep(capsys, tmp_path, "--inputs", "vq", "--plan")
    assert text.count("(not asked for, but m4-vq needs it)") == 1
    status, text, _ = sweep(capsys, tmp_path, "--inputs", "vq", "--jobs", 1)
    assert status == 0 and order(tmp_path) == ["m4-vqq", "m4-vq", "m2-vqq", "m2-vq"]


def test_a_failure_stops_the_sweep_unless_told_to_go_on(
    stand_ins, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("FAILS", "m4-vqq")
    status, text, err = sweep(capsys, tmp_path, "--jobs", 1)
    assert status == 1 and order(tmp_path) == ["m4-vqq"] and not stand_ins
    assert "m4-vqq: failed (status 7)" in text and "error: no such luck" in text
    assert f"see {tmp_path / 'logs' / 'm4-vqq.log'}" in err
    assert "No report: it takes finished parts of at least 2" in text

    status, text, err = sweep(capsys, tmp_path, "--jobs", 1, "--keep_going")
    assert status == 1 and "m4-vq: left out, since it needs m4-vqq" in text
    assert order(tmp_path)[1:] == ["m4-vqq", "m4-vq_ft", "m2-vqq", "m2-vq_ft", "m2-vq"]
    assert stand_ins == [tmp_path]  # of what there is
    assert "4 of 6 parts are finished" in err

    monkeypatch.delenv("FAILS")
    status, text, _ = sweep(capsys, tmp_path)
    assert status == 0 and set(states(tmp_path).values()) == {"finished"}
    assert sorted(order(tmp_path)[6:]) == ["m4-vq", "m4-vqq"]


def test_a_report_that_fails_is_a_failure(stand_ins, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "report_on", lambda out: 1)
    status, _, err = sweep(capsys, tmp_path, "--inputs", "vqq")
    assert status == 1
    assert f"python -m vtscale_jax.scaling report {tmp_path} --out" in err


def told_when(file, *numbers):
    """Sends signals to this process, as a terminal or a cluster would, once `file` is
    there."""

    def send():
        end = time.monotonic() + 30
        while not file.exists() and time.monotonic() < end:
            time.sleep(0.02)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.5)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)]
)
def test_a_signal_is_passed_on_and_the_same_command_goes_on(
    stand_ins, tmp_path, capsys, monkeypatch, number, status
):
    monkeypatch.setenv("WAITS", "m4-vqq")
    before = signal.getsignal(number)
    thread = told_when(tmp_path / "m4-vqq" / "waiting.json", number)
    got, text, _ = sweep(capsys, tmp_path, "--jobs", 1)
    thread.join()
    assert got == status and "the same command goes on" in text
    assert signal.getsignal(number) == before
    assert json.loads((tmp_path / "m4-vqq" / "saved.json").read_text())
    assert order(tmp_path) == ["m4-vqq"] and not stand_ins
    assert states(tmp_path)["m4-vqq"] == "interrupted"

    monkeypatch.delenv("WAITS")
    status, text, _ = sweep(capsys, tmp_path)
    assert status == 0 and "m4-vqq       interrupted" in text
    assert "goes on: m4-vqq" in (tmp_path / "logs" / "m4-vqq.log").read_text()


def test_a_second_signal_ends_the_parts_at_once(
    stand_ins, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("WAITS", "m4-vqq")
    stop = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    deaf = tmp_path / "deaf"
    deaf.mkdir()
    text = (TESTS / "sweep_stand_in.py").read_text()
    (deaf / "sweep_stand_in.py").write_text(
        text.replace("signal.signal(signal.SIGTERM, told)", stop)
    )
    monkeypatch.setenv("PYTHONPATH", str(deaf))
    out = tmp_path / "out"
    waiting = out / "m4-vqq" / "waiting.json"
    thread = told_when(waiting, signal.SIGTERM, signal.SIGTERM)
    started = time.monotonic()
    status, _, _ = sweep(capsys, out, "--jobs", 1)
    thread.join()
    assert status == 0 and time.monotonic() - started < 30


def test_a_part_that_was_told_to_stop_stops_the_sweep(
    stand_ins, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("ENDS", "m4-vqq")
    status, text, _ = sweep(capsys, tmp_path, "--jobs", 1)
    assert status == 0 and "was told to stop, not by this sweep" in text
    assert order(tmp_path) == ["m4-vqq"] and "the same command goes on" in text


def test_an_evaluation_of_another_training_is_made_again(stand_ins, tmp_path, capsys):
    sweep(capsys, tmp_path)
    file = tmp_path / "m2-vqq" / "manifest.json"
    file.write_text(json.dumps({"finished": True, "params_sha256": "other"}))
    assert states(tmp_path)["m2-vq"] == "interrupted"


def test_another_sweeps_folder_is_left_alone(stand_ins, tmp_path, capsys):
    out = tmp_path / "out"
    sweep(capsys, out, "--inputs", "vqq")
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    def refused(*more):
        status, _, err = sweep(capsys, *more)
        assert status == 1
        return err

    assert "belongs to another sweep" in refused(out, "--", "--config.seed=1")
    assert "train_arguments" in refused(out, "--", "--config.seed=1")
    assert "blank: false there, true now" in refused(out, "--blank")
    changed = json.loads((out / "sweep.json").read_text()) | {"base": "runs/other"}
    (out / "sweep.json").write_text(json.dumps(changed))
    before[out / "sweep.json"] = (out / "sweep.json").read_bytes()
    assert 'base: "runs/other" there, "embedded" now' in refused(out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    assert "is not empty and has no sweep.json" in refused(mine)
    assert "is a file" in refused(mine / "thesis.tex")
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]


def test_two_sweeps_in_one_folder(stand_ins, tmp_path, capsys):
    with sweep_parts_held(tmp_path):
        status, _, err = sweep(capsys, tmp_path)
    assert status == 1 and "is in use by another sweep" in err
    assert not (tmp_path / "order").exists()


def sweep_parts_held(out):
    from vtscale_jax.run_folder import held

    return held(out, ValueError("held"))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--num_queries", "0"], "'0' is no whole number of at least 1"),
        (["--num_queries", "4,x"], "'x' is no whole number"),
        (["--num_queries", "4,,8"], "'' is no whole number"),
        (["--num_queries", "-4"], "'-4' is no whole number"),
        (["--num_queries", "4,8,4"], "4 is there twice"),
        (["--inputs", "foo"], "'foo' is none of vqq, vq, vq_ft"),
        (["--inputs", "vq,vq"], "'vq' is there twice"),
        (["--jobs", "0"], "'0' is no whole number"),
        (["--config", "x"], "unrecognized arguments"),
    ],
)
def test_bad_arguments_show_the_usage(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and words in err and "usage" in err


@pytest.mark.parametrize(
    "word",
    ["--workdir=x", "--config=configs/m8.py", "--config.num_queries=3", "--dry_run"],
)
def test_train_arguments_that_a_sweep_sets_itself(word, tmp_path, capsys):
    status, _, err = said(capsys, "--out", tmp_path / "none", "--", word)
    assert status == 1 and "is set for each part of the sweep" in err
    assert not (tmp_path / "none").exists()
    status, _, err = said(capsys, "--out", tmp_path / "none", "--", "steps=3")
    assert "does not begin with --" in err


def base_folder(folder, *, manifest=None, weights=True, **config):
    folder.mkdir(parents=True)
    config = {"stage": "finetune", "preset": "smol", "num_queries": 64} | config
    (folder / "config.json").write_text(json.dumps(config))
    manifest = manifest or {"finished": True, "params_sha256": "abc"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if weights:
        (folder / "weights.safetensors").write_bytes(b"")
    return str(folder)


def test_bases(tmp_path):
    base = read_base(base_folder(tmp_path / "good"), None)
    assert base[1:] == ("smol", 64, "abc")
    for problem, folder in {
        "has no config.json": str(tmp_path),
        "is of stage align": base_folder(tmp_path / "a", stage="align"),
        "is not finished": base_folder(tmp_path / "b", manifest={"finished": False}),
        "is not  finished": base_folder(tmp_path / "c", weights=False),
    }.items():
        with pytest.raises(SweepError, match=problem.replace("  ", " ")):
            read_base(folder, None)
    with pytest.raises(SweepError, match="is a run of preset smol"):
        read_base(base.path, "paper")
    with pytest.raises(SweepError, match="--preset paper needs a base of its own"):
        read_base("embedded", "paper")


def test_queries_beyond_the_base_are_named(stand_ins, tmp_path, capsys):
    base = base_folder(tmp_path / "base")
    arguments = ("--base", base, "--inputs", "vqq", "--plan", "--out", tmp_path / "o")
    status, text, _ = said(capsys, *arguments)
    assert status == 0 and "10 parts" in text  # the paper's M
    assert "M = 128 with the question; the base has 64 queries, more are" in text
    assert "M = 64 with the question\n" in text
    parts = make_parts(read_base(base, None), tmp_path, [4], ["vqq"], ["--x=1"])
    assert f"--config.weights.init_from={base}" in parts[0].arguments
    assert "configs/base.py:m=4,smol,inputs=vqq" in parts[0].arguments
    assert parts[0].arguments[-1] == "--x=1"


def test_estimates_follow_work_speed_and_what_was_measured(tmp_path, stand_ins):
    base = read_base("embedded", None)
    parts = make_parts(base, tmp_path, [2, 4], ["vqq", "vq"])

    def seconds(finished=(), **more):
        costs = {"runs": [row(4, step_flops=3e12), row(2)]} | machine(**more)
        return sweep_times.estimate(parts, costs, finished)

    one = seconds()
    assert one.seconds["m4-vqq"] > 2 * one.seconds["m2-vqq"] > 0
    assert one.seconds["m2-vq"] < one.seconds["m2-vqq"]
    half = seconds(flops_per_s=75e9)
    for name, value in half.seconds.items():
        assert value == pytest.approx(2 * one.seconds[name])
    parts[2].folder.mkdir()
    took = {"finished": True, "duration_s": 3 * one.seconds["m2-vqq"]}
    (parts[2].folder / "manifest.json").write_text(json.dumps(took))
    scaled = seconds(["m2-vqq"])
    assert scaled.seconds["m4-vqq"] == pytest.approx(3 * one.seconds["m4-vqq"])
    assert "what the finished part took" in scaled.source
    many = sweep_times.Times({"a": 4.0, "b": 2.0, "c": 4.0}, 2, "")
    assert many.together("abc") == 5.0 and many.together("ab") == 4.0
    assert many.together("") == 0.0
    # Two at a time: each takes longer, both together less.
    costs = {"runs": [row(4), row(2)]} | machine()
    one = sweep_times.estimate(parts, costs, [], 1)
    both = sweep_times.estimate(parts, costs, [], 2)
    assert one.seconds["m4-vqq"] < both.seconds["m4-vqq"]
    assert both.together(both.seconds) < one.together(one.seconds)


def test_jobs_and_families_are_checked(stand_ins, tmp_path, capsys, monkeypatch):
    many = sweep(capsys, tmp_path / "o", "--jobs", 64)
    assert many[0] == 1 and "there are 2 cores" in many[2]

    def costs(parts):
        return {"runs": [row() for p in parts if p.of is None]} | machine(
            platform="gpu"
        )

    monkeypatch.setattr(command, "ask_costs", costs)
    assert (
        "each part takes all gpu devices"
        in sweep(capsys, tmp_path / "o", "--jobs", 2)[2]
    )
    assert "2 parts\n" in sweep(capsys, tmp_path / "o", "--inputs", "vqq", "--plan")[
        1
    ].replace("embedded in", "")

    def none(parts):
        return {"runs": [row(prompts=0) for p in parts if p.of is None]} | machine()

    monkeypatch.setattr(command, "ask_costs", none)
    assert "no held-out questions" in sweep(capsys, tmp_path / "o")[2]
    assert not (tmp_path / "o").exists()


def test_the_log_of_a_failure_is_cut(tmp_path):
    log = tmp_path / "log"
    log.write_text("\n".join(f"line {i}" for i in range(100)))
    part = make_parts(read_base("embedded", None), tmp_path, [2], ["vqq"])[0]
    text = sweep_jobs.failure(part, -9, log)
    assert "signal SIGKILL" in text and "line 99" in text and "line 50" not in text
