"""The form of every benchmark, the suite that runs them, and the tables of both."""

import ast
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch_stand_ins import BIN, stand_in

from benchmarks import __main__ as command
from benchmarks import figures, jobs, record, short_run, suite, tables
from benchmarks.jobs import Job, Run

ROOT = Path(__file__).parents[1]
GPU_SCRIPT = ROOT / "benchmarks" / "gpu.sh"
MACHINE = {"platform": "cpu", "kind": "cpu", "count": 1}
MACHINE |= {"processor": "A Processor", "cores": 2, "memory": 2**30}
GPU = {**MACHINE, "platform": "gpu", "kind": "NVIDIA H200"}
SPEEDUP = {"num_queries": 16, "speedup": 1.25}


# The form of each program.


def ends_by_record(name: str, source: str) -> list[str]:
    """Each way through a benchmark ends by `record.finish` under its own name."""
    calls, wrong = [], []
    for node in ast.walk(ast.parse(source)):
        for body in (getattr(node, part, None) for part in ("body", "orelse")):
            for number, line in enumerate(body if isinstance(body, list) else []):
                if not (
                    isinstance(line, ast.Expr) and isinstance(line.value, ast.Call)
                ):
                    continue
                call = line.value
                if ast.unparse(call.func) != "record.finish":
                    continue
                calls.append(call)
                rest = [ast.unparse(each) for each in body[number + 1 :]]
                if any(not text.startswith(("return", "sys.exit(")) for text in rest):
                    wrong.append(f"{line.lineno}: {rest[0]!r} follows record.finish")
                said = getattr(call.args[0], "value", None)
                if not str(said).startswith(name):
                    wrong.append(f"{line.lineno}: recorded as {said!r}")
    return wrong if calls else ["no record.finish"]


@pytest.mark.parametrize("name", command.programs())
def test_every_benchmark_ends_by_recording(name):
    source = (ROOT / "benchmarks" / f"{name}.py").read_text()
    assert not ends_by_record(name, source)


@pytest.mark.parametrize(
    "source",
    [
        "def main():\n    print(json.dumps(result))",
        "def main():\n    record.finish('other', {}, None)",
        "def main():\n    record.finish('mine', {}, None)\n    print('done')",
    ],
)
def test_a_benchmark_that_ends_otherwise_is_seen(source):
    assert ends_by_record("mine", source)
    ends = "def main():\n    record.finish('mine', {}, None)\n    sys.exit(1)"
    assert not ends_by_record("mine", ends)


def test_every_benchmark_explains_itself_at_once():
    names = list(command.programs())
    assert len(names) > 10
    code = f"""
import contextlib, io, runpy, sys
for name in {names!r}:
    sys.argv = [name, "--help"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            runpy.run_path(f"benchmarks/{{name}}.py", run_name="__main__")
        except SystemExit as end:
            assert not end.code, (name, end.code)
    assert "--out" in said.getvalue(), name
    loaded = {{"torch", "transformers"}} & set(sys.modules)
    assert not loaded, f"{{name}} --help loads {{loaded}}"
print("all of them")
"""
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert child.stdout == "all of them\n", child.stderr


def test_every_benchmark_is_listed(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    assert command.main() == 0
    said = capsys.readouterr().out
    readme = tables.README.read_text()
    assert set(command.MINUTES) >= set(command.programs())
    for name in command.programs():
        assert f"{name}.py" in said and f"`{name}.py`" in readme
    for job in jobs.JOBS:
        assert f"\n{job.name} " in said
        for run in job.runs.values():
            assert Path(run.words[0]).stem in command.MINUTES


# What is recorded.


def test_a_result_is_recorded_with_its_machine(tmp_path, capsys):
    out = tmp_path / "new" / "a.json"
    record.finish("a", {"speed": 2.5}, out, packages=["pytest"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line == json.loads(out.read_text())
    assert list(line) == ["benchmark", "speed", *record.HEADER[1:]]
    assert line["benchmark"] == "a" and line["speed"] == 2.5
    assert line["device"]["platform"] == "cpu" and line["device"]["count"] == 8
    assert line["device"]["cores"] == len(os.sched_getaffinity(0))
    assert line["device"]["memory"] > 2**28 and line["device"]["processor"]
    assert line["versions"]["pytest"] == pytest.__version__
    assert {"python", "jax", "jaxlib", "flax", "numpy"} <= set(line["versions"])
    assert line["code"]["vtscale_jax"]


@pytest.mark.parametrize(
    "result, said",
    [
        ({"device": "cpu"}, "the result of a has device, which record.finish adds"),
        ({"rows": [{"x": float("nan")}]}, "a number that is not finite"),
    ],
)
def test_what_cannot_be_recorded_is_refused(tmp_path, capsys, result, said):
    out = tmp_path / "a.json"
    with pytest.raises(record.RecordError, match=said):
        record.finish("a", result, out, machine=MACHINE)
    assert not out.exists() and not capsys.readouterr().out


def test_a_short_run_is_read_from_its_folder(tmp_path):
    train = {"split": "train", "mfu": 0.2, "loader_wait": 0.5}
    rows = [
        {"step": 1, "loss": 3.0, "samples_per_s": 5.0, "compiled_programs": 7, **train},
        {"step": 9, "loss": 1.0, "samples_per_s": 8.0, "compiled_programs": 9, **train},
        {"step": 9, "split": "heldout", "loss": 2.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    manifest = dict.fromkeys(short_run.KEPT) | {"speed": {"loader_wait": 0.01}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"command": "x"}))
    found = short_run.found_in(tmp_path)
    assert "command" not in found["run"] and found["rows"] == rows
    assert "3.0000" in short_run.table(rows) and "2.0" not in short_run.table(rows)
    said = "M = 16: B 16: at most 4 shapes\nM = 64: B 8: at most 2 shapes (assumed)\n"
    shapes = short_run.batch_shapes(said)
    assert shapes == 6
    made = {
        one.what: (one.text, one.met)
        for one in figures.of("short_run", {**found, "batch_shapes": shapes})
    }
    assert made["loss at the first log"] == ("3.000", "")
    assert made["loss at the last log"] == ("1.000", "")
    assert made["time that the step waited for data"] == ("1.00%", "yes")
    assert made["programs compiled after the first log"] == ("2", "yes")
    late = figures.of("short_run", {**found, "batch_shapes": 2})[-1]
    assert (late.asked, late.met) == ("≤ 1", "no")
    with pytest.raises(SystemExit, match="did not say how many shapes"):
        short_run.batch_shapes("all is well")


# The suite.

WRITES = """
import json, os, sys
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
with open({count!r}, "a") as file:
    file.write("ran ")
print("working")
out.write_text(json.dumps({result!r}))
"""


def job(tmp_path: Path, name: str, code: str, seconds: int = 30) -> Job:
    """A job that runs this code on a CPU."""
    file = tmp_path / f"{name}.py"
    file.write_text(code)
    return Job(name, "", {"cpu": Run((str(file),), seconds)}, "no CPU at hand")


def good(tmp_path: Path, name: str = "good", **more: object) -> Job:
    """A job that is measured, and notes how often in a file."""
    result = {"benchmark": "allocator", "date": "today", **SPEEDUP, **more}
    code = WRITES.format(count=str(tmp_path / f"{name}.count"), result=result)
    return job(tmp_path, name, code)


def bad(tmp_path: Path) -> Job:
    """A job that fails with a reason."""
    return job(tmp_path, "bad", "import sys\nsys.exit('no such thing\\n')")


def made(tmp_path: Path, *found: Job, **options: object) -> suite.Suite:
    """A suite of these jobs."""
    return suite.Suite(
        found, MACHINE, tmp_path / "out.json", tmp_path / "logs", **options
    )


def times(tmp_path: Path, name: str = "good") -> int:
    """How often a job ran."""
    return (tmp_path / f"{name}.count").read_text().count("ran")


def test_one_that_fails_is_a_row_and_the_others_go_on(tmp_path):
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    works = made(
        tmp_path,
        bad(tmp_path),
        job(tmp_path, "killed", kill),
        job(tmp_path, "silent", "print('all is well')"),
        Job("elsewhere", "", {"gpu": Run(("x.py",), 1)}, "no GPU at hand"),
        good(tmp_path, "itself", not_measured="no weights"),
        good(tmp_path),
    )
    rows = works.run()
    assert rows == json.loads(works.out.read_text())["rows"]
    assert rows["bad"]["failed"] == "status 1: no such thing"
    assert Path(rows["bad"]["log"]).read_text().strip() == "no such thing"
    assert rows["killed"]["failed"] == "killed by SIGKILL"
    assert rows["silent"]["failed"] == "ended well, and wrote no result"
    assert rows["elsewhere"] == record.not_measured("elsewhere", "no GPU at hand")
    assert rows["itself"] == record.not_measured("itself", "no weights")
    assert rows["good"]["result"]["speedup"] == 1.25
    lines = tables.of_rows(rows, works.jobs)
    assert [line.split()[0] for line in lines] == ["job", *rows]
    assert "failed: killed by SIGKILL" in lines[2] and "1.25 ×" in lines[-1]


def test_one_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    code = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(tmp_path / "child")!r}, "w").write(str(child.pid))
time.sleep(60)
"""
    # Long enough for an interpreter to start on a machine that is busy.
    works = made(tmp_path, job(tmp_path, "hangs", code, seconds=5), good(tmp_path))
    rows = works.run()
    assert rows["hangs"]["failed"] == "ended after 5 s, its limit"
    assert "result" in rows["good"]
    pid = int((tmp_path / "child").read_text())
    assert gone(pid)


def gone(pid: int) -> bool:
    """Whether a process has ended, in ten seconds at the latest."""
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_told_to_end_the_suite_ends_its_child(tmp_path):
    child = tmp_path / "child"
    code = "import os, sys, time\nfrom pathlib import Path\n"
    code += f"Path({str(child)!r}).write_text(str(os.getpid()))\ntime.sleep(60)"
    hangs = job(tmp_path, "hangs", code, seconds=60)

    def told(number: int, frame: object) -> None:
        if child.exists() and child.read_text():
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, told)
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path, hangs).run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert gone(int(child.read_text()))


def test_what_was_measured_is_kept(tmp_path, monkeypatch, capsys):
    works = made(tmp_path, good(tmp_path), bad(tmp_path))
    first = works.run()
    assert works.run()["good"] == first["good"] and times(tmp_path) == 1
    assert "1 of 2: good: kept from today" in capsys.readouterr().err
    # Anew when it is asked for, with other arguments, and with other sources.
    dataclasses.replace(works, again=True).run()
    assert times(tmp_path) == 2
    run = Run(works.jobs[0].runs["cpu"].words, 30, quick=("--less",))
    quick = works.jobs[0]._replace(runs={"cpu": run})
    dataclasses.replace(works, jobs=[quick], quick=True).run()
    assert times(tmp_path) == 3
    for _ in range(2):
        works.run()
        assert times(tmp_path) == 4
    monkeypatch.setattr(suite, "sources", lambda: "others")
    rows = works.run()
    assert times(tmp_path) == 5 and rows["good"]["sources"] == "others"
    # One that writes nothing now has no result, though it wrote one before.
    job(tmp_path, "good", "print('all is well')")
    rows = dataclasses.replace(works, again=True).run()
    assert rows["good"]["failed"] == "ended well, and wrote no result"


def test_a_job_has_an_empty_folder_of_its_own(tmp_path):
    code = "import os, sys\nfrom pathlib import Path\n"
    code += "Path(sys.argv[1]).mkdir()\nPath(sys.argv[1], 'page.html').touch()"
    makes = job(tmp_path, "makes", code)
    words = (*makes.runs["cpu"].words, jobs.FOLDER)
    works = made(tmp_path, makes._replace(runs={"cpu": Run(words, 30)}))
    for _ in range(2):  # what an earlier attempt left does not stand in the way
        assert "wrote no result" in works.run()["makes"]["failed"]
        assert (works.logs / "makes" / "page.html").exists()


def test_a_job_that_was_too_slow_goes_on_in_its_folder(tmp_path):
    code = "import sys, time\nfrom pathlib import Path\n"
    code += "folder = Path(sys.argv[1])\n"
    code += "again = folder.exists()\nfolder.mkdir(exist_ok=True)\n"
    code += "time.sleep(0 if again else 60)"
    slow = job(tmp_path, "slow", code)
    words = (*slow.runs["cpu"].words, jobs.FOLDER)
    works = made(tmp_path, slow._replace(runs={"cpu": Run(words, 3)}))
    assert works.run()["slow"]["failed"] == "ended after 3 s, its limit"
    assert "wrote no result" in works.run()["slow"]["failed"]


def test_sources_are_told_apart(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    file = tmp_path / "configs" / "a.py"
    file.write_text("x = 1")
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    before = suite.sources()
    file.write_text("x = 2")
    assert suite.sources() != before
    file.write_text("x = 1")
    assert suite.sources() == before
    file.rename(file.with_name("b.py"))
    assert suite.sources() != before


def test_rows_of_other_jobs_stay(tmp_path):
    made(tmp_path, good(tmp_path)).run()
    rows = made(tmp_path, good(tmp_path, "more")).run()
    assert set(rows) == {"good", "more"}


def test_time_that_is_used_up_is_a_reason(tmp_path):
    rows = made(tmp_path, good(tmp_path), within=0.5).run()
    why = "the 0.5 s of --within were used up"
    assert rows["good"] == record.not_measured("good", why)
    slow = job(tmp_path, "slow", "import time\ntime.sleep(60)", seconds=60)
    rows = made(tmp_path, slow, good(tmp_path), within=2).run()
    assert rows["slow"]["failed"] == "ended after 2 s, its limit"
    assert "were used up" in rows["good"]["not_measured"]


@pytest.mark.parametrize(
    "content, said",
    [
        ("{", "is no result of `python -m benchmarks all`"),
        ('{"rows": {}}', "is no result .*KeyError: 'device'"),
        (
            json.dumps({"device": {**MACHINE, "cores": 64}, "rows": {}}),
            "another machine \\(cores 64 there and 2 here\\)",
        ),
    ],
)
def test_results_that_do_not_go_together_are_left_alone(tmp_path, content, said):
    works = made(tmp_path, good(tmp_path))
    works.out.write_text(content)
    with pytest.raises(suite.SuiteError, match=said):
        works.run()
    assert works.out.read_text() == content
    assert not (tmp_path / "good.count").exists()


def test_the_machine_says_what_it_is():
    found = suite.machine_at_hand()
    assert found == record.device()
    assert found["platform"] == "cpu"


def test_jobs_are_chosen_by_name_or_by_what_they_begin_with():
    every = [job.name for job in jobs.chosen((), ())]
    assert every == [job.name for job in jobs.JOBS] and len(set(every)) == len(every)
    assert [job.name for job in jobs.chosen(["loader"], ())] == ["loader"]
    paper = [job.name for job in jobs.chosen(["paper_step"], ["paper_step_align"])]
    every = ("m256", "m256_cudnn", "m768", "m1")
    assert paper == [f"paper_step_finetune_{name}" for name in every]
    with pytest.raises(jobs.JobError, match="--skip has 'trains', expected some of"):
        jobs.chosen((), ["trains"])


@pytest.mark.parametrize(
    "machine, name",
    [
        (GPU, "nvidia-h200"),
        ({**GPU, "count": 8}, "nvidia-h200-x8"),
        (MACHINE, "a-processor-2-cores"),
        (
            {**MACHINE, "processor": "Intel(R) Xeon(R) CPU @ 2.20GHz"},
            "intel-xeon-cpu-2-cores",
        ),
    ],
)
def test_results_are_named_by_their_machine(machine, name):
    assert jobs.file_name(machine) == name


def test_the_command_runs_all_and_says_what_failed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "JOBS", (bad(tmp_path), good(tmp_path)))
    monkeypatch.setattr(suite, "machine_at_hand", lambda: MACHINE)
    given = ["benchmarks", "all", "--out", str(tmp_path), "--logs", str(tmp_path / "l")]
    monkeypatch.setattr(sys, "argv", given)
    assert command.main() == 1
    said = capsys.readouterr().out
    log = tmp_path / "l" / "a-processor-2-cores" / "bad.log"
    assert f"failed: bad; log: {log}" in said
    last = json.loads(said.splitlines()[-1])
    assert last == json.loads((tmp_path / "a-processor-2-cores.json").read_text())
    assert last["rows"]["good"]["result"]["speedup"] == 1.25
    assert last["device"] == MACHINE
    monkeypatch.setattr(sys, "argv", [*given, "--skip", "bad"])
    assert command.main() == 0 and times(tmp_path) == 1


def test_quick_figures_stay_out_of_the_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "JOBS", (good(tmp_path),))
    monkeypatch.setattr(suite, "machine_at_hand", lambda: MACHINE)
    given = ["benchmarks", "all", "--quick", "--dry_run"]
    monkeypatch.setattr(sys, "argv", given)
    assert command.main() == 0
    quick = ROOT / "runs" / "benchmarks" / "a-processor-2-cores-quick.json"
    assert f"# results: {quick}" in capsys.readouterr().out


# What was recorded, as README.md has it.


def test_the_readme_has_what_was_recorded():
    text = tables.README.read_text()
    made = tables.markdown()
    assert tables.put(text, made) == text, "run: python -m benchmarks table --write"
    assert tables.put(text, made.replace("9", "8")) != text
    assert made.count("not measured: no GPU at hand") == text.count("no GPU at hand")
    for name, _, _ in figures.recorded():
        assert f"\n| {name} |" in made


def test_a_machine_of_its_own_has_rows_of_its_own(tmp_path):
    result = {"benchmark": "allocator", **SPEEDUP, "device": GPU, "code": {}}
    row = {"seconds": 1.0, "result": result}
    rows = {
        "generate": row,
        "divergence": {"failed": "status 1: no", "log": "here", "seconds": 2.0},
        "smol_run": record.not_measured("smol_run", "no weights"),
    }
    file = tmp_path / "nvidia-h200.json"
    file.write_text(json.dumps({"benchmark": "all", "rows": rows}))
    (tmp_path / "allocator.json").write_text(json.dumps(SPEEDUP))
    made = tables.markdown(tmp_path).splitlines()[2:]
    kept = "training step, M = 16, memory kept | 1.25 × |  |  |"
    assert made[0] == f"| allocator | {kept} not noted | not noted |"
    assert made[1] == f"| generate | {kept} NVIDIA H200, 2 cores | not noted |"
    assert made[2].startswith("| divergence | failed: status 1: no (log: here) |")
    wanted = {line.split(" | ")[0][2:]: line for line in made[3:]}
    assert "generate" not in wanted and "not measured: no weights" in wanted["smol_run"]
    assert "not measured: no GPU at hand" in wanted["paper_latency"]


# The script for a machine with a GPU.


def script(tmp_path: Path, *words: str, **environment: str) -> tuple[int, str, str]:
    """Status, output and errors of gpu.sh, with stand-ins of `tmp_path`/bin first."""
    path = f"{tmp_path / 'bin'}:{BIN}:/usr/bin:/bin"
    done = subprocess.run(
        [GPU_SCRIPT, *words],
        env={"PATH": path, "HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_shellcheck_has_nothing_to_say():
    words = [str(BIN / "shellcheck"), str(GPU_SCRIPT)]
    found = subprocess.run(words, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_a_dry_run_prints_every_command_with_its_limit(tmp_path):
    status, said, errors = script(tmp_path, "--dry_run", "--skip", "loader")
    assert status == 0, errors
    lines = [line for line in said.splitlines() if not line.startswith("#")]
    on_gpu = [job for job in jobs.JOBS if "gpu" in job.runs]
    assert len(lines) == len(on_gpu) > 10
    for one, line in zip(on_gpu, lines, strict=True):
        run = one.runs["gpu"]
        folder = str(ROOT / "runs" / "benchmarks" / "device" / one.name)
        words = " ".join(run.words).replace(jobs.FOLDER, folder)
        assert line == (
            f"timeout {run.seconds} python {words} --out {folder}.json"
        ).replace(f"--out {ROOT}/", "--out ")
    for part in ("--stage finetune", "--stage align"):
        for m in (1, 256, 768):
            assert any(
                "--preset paper --mfu" in line and f"{part} --num_queries {m} " in line
                for line in lines
            )
    # The one that counts most is first: where time is short, the last are lost.
    assert "--stage finetune --num_queries 256" in lines[0]


def test_a_machine_without_a_gpu_is_told_so(tmp_path):
    (tmp_path / "bin").mkdir()
    stand_in(tmp_path / "bin", "nvidia-smi", "#!/bin/sh\nexit 9\n")
    status, said, errors = script(tmp_path)
    assert (status, said) == (2, "")
    assert "error: nvidia-smi finds no GPU" in errors
    stand_in(tmp_path / "bin", "nvidia-smi", "#!/bin/sh\necho NVIDIA H200\n")
    status, said, errors = script(tmp_path, JAX_PLATFORMS="cpu")
    assert status == 2 and "the GPU build is missing" in errors


def test_all_jobs_together_have_ten_minutes(tmp_path):
    (tmp_path / "bin").mkdir()
    stand_in(tmp_path / "bin", "nvidia-smi", "#!/bin/sh\necho NVIDIA H200\n")
    log = tmp_path / "words"
    code = f'#!/bin/sh\necho "$@" >>{log}\n[ "$2" != benchmarks ] || exit 1\n'
    stand_in(tmp_path / "bin", "other-python", code)
    status, _, _ = script(tmp_path, "--only", "generate", PYTHON="other-python")
    assert status == 1  # that of the jobs
    last = log.read_text().splitlines()[-1].split()
    assert last[:-1] == (
        "-m benchmarks all --logs runs/benchmarks --only generate --within".split()
    )
    assert 500 < int(last[-1]) <= 560
