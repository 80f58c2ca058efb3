"""The launchers of SLURM, Cloud TPU and GKE: against stand-ins for srun, scontrol and
gcloud that do what is asked on this machine, and against the schemas of Kubernetes."""

import copy
import json
import re
import shutil
import signal
import subprocess
import sys
from string import Template

import jsonschema
import kubernetes_validate
import pytest
import yaml
from launch_stand_ins import (
    BIN,
    LAUNCH,
    run,
    stand_in,
    stand_in_train,
    starting,
    wait_for,
)

from vtscale_jax.parallel.hosts.cluster import find_cluster

# Runs its command on two nodes, with the variables of SLURM; passes USR1 on.
SRUN = """
import json, os, signal, subprocess, sys
from pathlib import Path

options = [w for w in sys.argv[1:] if w.startswith("--")]
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
here = Path(__file__).parent
(here / "srun.json").write_text(json.dumps({"options": options, "command": words}))
pattern = next(o.partition("=")[2] for o in options if o.startswith("--output="))
tasks = []
for task in range(2):
    node = task
    numbers = {
        "SLURM_PROCID": task,
        "SLURM_LOCALID": 0,
        "SLURM_NTASKS": 2,
        "SLURM_STEP_ID": 0,
        "SLURM_STEP_NUM_TASKS": 2,
        "SLURM_STEP_NODELIST": "node[0-1]",
    }
    env = os.environ | {k: str(v) for k, v in numbers.items()}
    log = open(pattern.replace("%N", f"node{node}"), "a")
    tasks.append(subprocess.Popen(words, env=env, stdout=log, stderr=log))
(here / "tasks").write_text(" ".join(str(t.pid) for t in tasks))

def pass_on(number, _):
    for t in tasks:
        t.send_signal(number)

signal.signal(signal.SIGUSR1, pass_on)
sys.exit(max(t.wait() for t in tasks))
"""


@pytest.fixture
def start(tmp_path):
    with starting(tmp_path) as start:
        yield start


@pytest.fixture
def slurm(tmp_path):
    """What sbatch would set, with srun and scontrol on PATH."""
    stand_in(tmp_path, "srun", f"#!{sys.executable}\n{SRUN}")
    stand_in(tmp_path, "scontrol", f'#!/bin/sh\necho "$@" >>{tmp_path}/scontrol.log\n')
    return {
        "TRAIN": stand_in_train(tmp_path),
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NODELIST": "node[0-1]",
        "SLURM_CPUS_PER_TASK": "8",
    }


def test_slurm_runs_every_task_and_keeps_logs(tmp_path, slurm):
    (tmp_path / "setup").write_text("export SLURM_SETUP=done; [ -z $UNSET ]\n")
    words = ["--config", "configs/m16.py:paper", "--workdir", tmp_path / "two words"]
    more = {"SETUP": str(tmp_path / "setup"), "WRAP": "env SLURM_WRAPPED=1"}
    command = ["bash", LAUNCH / "slurm.sbatch", *words]
    status, output = run(command, tmp_path, SRUN_ARGS="--x=1 --y", **more, **slurm)
    assert status == 0, output
    assert f"finished: {tmp_path}/two words/report.html" in output
    assert not (tmp_path / "scontrol.log").exists()
    asked = json.loads((tmp_path / "srun.json").read_text())
    assert {"--label", "--kill-on-bad-exit=1", "--x=1", "--y"} <= set(asked["options"])
    assert "--cpus-per-task=8" in asked["options"]
    assert asked["command"][:2] == ["env", "SLURM_WRAPPED=1"]
    assert asked["command"][-4:] == [str(word) for word in words]
    for number in (0, 1):
        log = tmp_path / "two words-logs" / f"42-node{number}.log"
        environ = json.loads(log.read_text().splitlines()[0])["environment"]
        assert environ["SLURM_SETUP"] == "done"
        found = find_cluster({k: v for k, v in environ.items() if v is not None})
        assert (found.launcher, found.num_processes) == ("slurm", 2)
        assert (found.process_id, found.hosts) == (number, ("node0", "node1"))


def start_slurm(tmp_path, start, slurm):
    command = ["bash", LAUNCH / "slurm.sbatch", f"--workdir={tmp_path / 'run'}"]
    process, output = start(command, SECONDS_EACH="60", **slurm)
    wait_for("logs in", output)
    for node in ("node0", "node1"):
        log = tmp_path / "run-logs" / f"42-{node}.log"
        wait_for("arguments", log)
    return process, output


def test_slurm_queues_again_what_was_told_to_save(tmp_path, start, slurm):
    """At the time limit SLURM tells the tasks; USR1 tells this script."""
    for told in ("tasks", "script"):
        process, output = start_slurm(tmp_path, start, slurm)
        if told == "script":
            process.send_signal(signal.SIGUSR1)
        else:
            pids = (tmp_path / "tasks").read_text().split()
            subprocess.run(["kill", "-TERM", *pids], check=True)
        assert process.wait(30) == 0
        assert "saved, not finished: queued again" in output.read_text()
        assert (tmp_path / "scontrol.log").read_text() == "requeue 42\n"
        (tmp_path / "scontrol.log").unlink()
        for log in (tmp_path / "run-logs").glob("*"):
            log.unlink()
    status, text = run(
        ["bash", LAUNCH / "slurm.sbatch", f"--workdir={tmp_path / 'run'}"],
        tmp_path,
        SLURM_RESTART_COUNT="2",
        **slurm,
    )
    assert status == 0 and "restart 2" in text and "finished: " in text


def test_slurm_does_not_queue_again_what_was_cancelled_or_failed(
    tmp_path, start, slurm
):
    process, output = start_slurm(tmp_path, start, slurm)
    # scancel tells the tasks and the script.
    process.send_signal(signal.SIGTERM)
    subprocess.run(["kill", "-TERM", *(tmp_path / "tasks").read_text().split()])
    assert process.wait(30) == 0
    assert "saved, not finished; the same sbatch goes on" in output.read_text()
    command = ["bash", LAUNCH / "slurm.sbatch", f"--workdir={tmp_path / 'run'}"]
    status, text = run(command, tmp_path, FAILS="1", **slurm)
    assert status == 7 and "training failed with status 7" in text
    assert not (tmp_path / "scontrol.log").exists()


def test_slurm_queues_again_some_times_what_lost_a_process(tmp_path, slurm):
    command = ["bash", LAUNCH / "slurm.sbatch", f"--workdir={tmp_path / 'run'}"]
    lost = {"FAILS": "0", "FAILS_WITH": "75", "RETRIES": "2"} | slurm
    status, text = run(command, tmp_path, SLURM_RESTART_COUNT="1", **lost)
    assert status == 0 and "a process was lost" in text
    assert (tmp_path / "scontrol.log").read_text() == "requeue 42\n"
    status, text = run(command, tmp_path, SLURM_RESTART_COUNT="2", **lost)
    assert status == 75 and "training failed with status 75" in text
    assert (tmp_path / "scontrol.log").read_text() == "requeue 42\n"


# tpu_vm.sh

# A slice is a folder with a home for each worker; what ssh is asked runs there.
GCLOUD = """
import json, os, shutil, subprocess, sys
from pathlib import Path

here = Path(__file__).parent / "slice"
group, verb, *rest = sys.argv[3:]
assert sys.argv[1:4] == ["compute", "tpus", "tpu-vm"], sys.argv
verb, rest = sys.argv[4], sys.argv[5:]
options = dict(w[2:].partition("=")[::2] for w in rest if w.startswith("--"))
named = [w for w in rest if not w.startswith("--")]
with (here.parent / "gcloud.log").open("a") as log:
    print(json.dumps([verb, named, options]), file=log)
workers = ["0", "1"] if "16" in (here.parent / "type").read_text() else ["0"]
state = here / "state"

def homes():
    asked = workers if options["worker"] == "all" else [options["worker"]]
    return [here / w for w in asked]

if verb == "list":
    print(state.read_text() if state.exists() else "")
elif verb == "create":
    for w in workers:
        uv = here / w / ".local" / "bin" / "uv"
        uv.parent.mkdir(parents=True)
        uv.write_text(os.environ["UV"])
        uv.chmod(0o755)
    state.write_text("READY")
elif verb == "delete":
    shutil.rmtree(here)
elif verb == "describe":
    print(";".join(f"10.0.0.{w}" for w in workers))
elif verb == "scp":
    source, target = named
    if ":" in target:
        for home in homes():
            shutil.copy(source, home / target.partition(":")[2])
    else:
        found = homes()[0] / source.partition(":")[2]
        shutil.copytree(found, Path(target) / found.name)
elif verb == "ssh":
    codes = []
    for home in homes():
        env = os.environ | {"HOME": str(home)}
        done = subprocess.run(["bash", "-c", options["command"]], env=env, cwd=home)
        codes.append(done.returncode)
    sys.exit(max(codes) if state.exists() and state.read_text() == "READY" else 255)
"""


@pytest.fixture
def tpu(tmp_path):
    """A cloud with one type of slice, whose uv makes a venv with our stand-in in it."""
    stand_in(tmp_path, "gcloud", f"#!{sys.executable}\n{GCLOUD}")
    stand_in(tmp_path, "python3", f'#!/bin/sh\necho "$@" >>{tmp_path}/python3.log\n')
    for name in ("mountpoint", "sudo"):
        stand_in(tmp_path, name, f'#!/bin/sh\necho {name} "$@" >>{tmp_path}/mount.log\n'
                 f"[ {name} = sudo ]\n")  # fmt: skip
    (tmp_path / "type").write_text("v6e-8")
    # `python -m vtscale_jax.train …` is the stand-in with what follows.
    words = stand_in_train(tmp_path)
    uv = f"""#!/bin/sh
echo "$@" >>{tmp_path}/uv.log
mkdir -p venv/bin
printf '#!/bin/sh\\nshift 2\\nexec {words} "$@"\\n' >venv/bin/python
chmod +x venv/bin/python
"""
    return {"UV": uv, "ZONE": "z", "WAIT": "0.1"}


def calls(tmp_path):
    lines = (tmp_path / "gcloud.log").read_text().splitlines()
    return [json.loads(line) for line in lines]


def tpu_vm(tmp_path, tpu, *words, **more):
    return run([LAUNCH / "tpu_vm.sh", *words], tmp_path, **tpu, **more)


def test_a_slice_is_made_and_trains(tmp_path, tpu):
    words = ["--config", "configs/m16.py:paper", "--config.name=two words"]
    status, output = tpu_vm(tmp_path, tpu, "one", "train", *words, SPOT="1")
    assert status == 0 and "finished; next: " in output, output
    assert all(options["zone"] == "z" for _, _, options in calls(tmp_path))
    ((_, named, options),) = [c for c in calls(tmp_path) if c[0] == "create"]
    assert named == ["one"] and "spot" in options
    assert options["accelerator-type"] == "v6e-8"
    assert options["version"] == "v2-alpha-tpuv6e"
    home = tmp_path / "slice" / "0"
    given = json.loads((home / "train.log").read_text().splitlines()[0])["arguments"]
    assert given == [*words, "--workdir", "../runs/one"]
    assert (home / "vtscale_jax" / "configs" / "m16.py").is_file()
    assert not (home / "vtscale_jax" / ".git").exists()
    assert "vtscale_jax[tpu]" in (tmp_path / "uv.log").read_text()
    assert not (tmp_path / "mount.log").exists()
    assert tpu_vm(tmp_path, tpu, "one", "fetch", tmp_path / "here")[0] == 0
    assert (tmp_path / "here" / "one" / "manifest.json").is_file()
    # The slice is there: nothing is created again.
    assert tpu_vm(tmp_path, tpu, "one", "train", *words)[0] == 0
    assert [c[0] for c in calls(tmp_path)].count("create") == 1
    assert tpu_vm(tmp_path, tpu, "one", "delete")[0] == 0
    assert not (tmp_path / "slice").exists()


def test_virtual_environments_stay_here(tmp_path, tpu):
    """Of a checkout with one of an unusual name, half a gigabyte in a real one."""
    checkout = tmp_path / "check out"
    (checkout / "launch").mkdir(parents=True)
    shutil.copy(LAUNCH / "tpu_vm.sh", checkout / "launch")
    for name in ("my env/pyvenv.cfg", "my env/lib/large.py", "data/kept.txt"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("text")
    subprocess.run(["git", "init", "-q", checkout], check=True)
    script = checkout / "launch" / "tpu_vm.sh"
    status, output = run([script, "one", "train", "--config", "c"], tmp_path, **tpu)
    assert status == 0, output
    sent = tmp_path / "slice" / "0" / "vtscale_jax"
    assert (sent / "data" / "kept.txt").is_file()
    assert not (sent / "my env").exists()


def test_training_on_a_slice_is_stopped_and_goes_on(tmp_path, start, tpu):
    command = [LAUNCH / "tpu_vm.sh", "one", "train", "--config", "c"]
    process, output = start(command, SECONDS_EACH="60", **tpu)
    wait_for("arguments", output)
    status, text = tpu_vm(tmp_path, tpu, "one", "train")
    assert status == 2 and "one is training already" in text
    assert tpu_vm(tmp_path, tpu, "one", "stop")[0] == 0
    assert process.wait(30) == 0
    assert "saved after SIGTERM" in output.read_text()
    assert "saved and stopped; the same train command goes on" in output.read_text()
    status, text = tpu_vm(tmp_path, tpu, "one", "train", "--config", "c")
    assert status == 0 and "finished; next: " in text
    status, text = tpu_vm(tmp_path, tpu, "one", "log")
    assert status == 0 and "no line end" in text


def test_training_that_fails_on_a_slice_says_so(tmp_path, tpu):
    status, output = tpu_vm(
        tmp_path, tpu, "one", "train", FAILS="0", RESTARTS="3", NFS="h:/p"
    )
    assert status == 7 and "training failed with status 7" in output
    assert [c[0] for c in calls(tmp_path)].count("create") == 1
    # A lost worker is no error of the training.
    more = {"FAILS": "0", "FAILS_WITH": "75", "RESTARTS": "2", "NFS": "h:/p"}
    status, output = tpu_vm(tmp_path, tpu, "one", "train", **more)
    assert status == 75 and "restart 2 of 2" in output
    assert [c[0] for c in calls(tmp_path)].count("create") == 1


def test_a_slice_that_is_taken_away_is_made_again(tmp_path, start, tpu):
    more = {"RESTARTS": "2", "NFS": "10.0.0.9:/runs", "SECONDS_EACH": "60"}
    command = [LAUNCH / "tpu_vm.sh", "one", "train", "--config", "c"]
    process, output = start(command, **more, **tpu)
    for turn in (1, 2):
        wait_for("arguments", output, turn)
        home = tmp_path / "slice" / "0"
        (tmp_path / "slice" / "state").write_text("PREEMPTED")
        pid = (home / "train.pid").read_text().strip()
        subprocess.run(["kill", "-TERM", pid], check=True)
        wait_for(f"the slice is PREEMPTED; restart {turn} of 2", output)
    wait_for("arguments", output, 3)
    pid = (tmp_path / "slice" / "0" / "train.pid").read_text().strip()
    subprocess.run(["kill", "-TERM", pid], check=True)
    assert process.wait(30) == 75
    assert "RESTARTS=2 is used up" in output.read_text()
    verbs = [c[0] for c in calls(tmp_path)]
    assert (verbs.count("create"), verbs.count("delete")) == (3, 2)
    assert "mount -t nfs 10.0.0.9:/runs runs" in (tmp_path / "mount.log").read_text()


def test_run_folders_that_would_be_lost_are_refused(tmp_path, tpu):
    status, output = tpu_vm(tmp_path, tpu, "one", "train", RESTARTS="1")
    assert status == 2 and "RESTARTS without NFS" in output
    assert not (tmp_path / "gcloud.log").exists()
    (tmp_path / "type").write_text("v6e-16")
    status, output = tpu_vm(tmp_path, tpu, "one", "train", TYPE="v6e-16")
    assert status == 2
    assert "has several workers (10.0.0.0;10.0.0.1)" in output and "set NFS" in output


def test_a_slice_installs_from_git(tmp_path, tpu):
    source = tmp_path / "source"
    subprocess.run(["git", "init", "-q", source], check=True)
    (source / "pyproject.toml").write_text("")
    for words in (["add", "."], ["commit", "-qm", "x"]):
        who = ["-c", "user.name=x", "-c", "user.email=x@x"]
        subprocess.run(["git", "-C", source, *who, *words], check=True)
    status, output = tpu_vm(tmp_path, tpu, "one", "train", SOURCE=f"file://{source}")
    assert status == 0, output
    assert (tmp_path / "slice" / "0" / "vtscale_jax" / ".git").is_dir()


# gke_jobset.yaml

VALUES = {
    "NAME": "m256-paper",
    "IMAGE": "us-docker.pkg.dev/p/r/vtscale:1",
    "CONFIG": "configs/m256.py:paper",
    "CLAIM": "runs",
    "ACCELERATOR": "tpu-v5-lite-podslice",
    "TOPOLOGY": "4x4",
    "HOSTS": "4",
    "CHIPS": "4",
}
NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 50}
STRINGS = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
COUNT = {"type": "integer", "minimum": 0}


def fields(required=(), **properties):
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


# JobSet v1alpha2, from its reference at https://jobset.sigs.k8s.io/docs/reference/. The
# template of a job is of Kubernetes itself, whose schemas kubernetes_validate has.
JOBSET = fields(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=fields(
        ("name",),
        name=NAME,
        namespace=NAME,
        labels={"type": "object", "additionalProperties": {"type": "string"}},
        annotations={"type": "object", "additionalProperties": {"type": "string"}},
    ),
    spec=fields(
        ("replicatedJobs",),
        replicatedJobs={
            "type": "array",
            "minItems": 1,
            "items": fields(
                ("name", "template"),
                name=NAME,
                groupName=NAME,
                replicas=COUNT,
                template={"type": "object"},
                dependsOn={
                    "type": "array",
                    "items": fields(
                        ("name", "status"),
                        name=NAME,
                        status={"enum": ["Ready", "Complete"]},
                    ),
                },
            ),
        },
        network=fields(
            enableDNSHostnames={"type": "boolean"},
            subdomain=NAME,
            publishNotReadyAddresses={"type": "boolean"},
        ),
        successPolicy=fields(
            ("operator",),
            operator={"enum": ["All", "Any"]},
            targetReplicatedJobs=STRINGS,
        ),
        failurePolicy=fields(
            maxRestarts=COUNT,
            restartStrategy={"enum": ["Recreate", "BlockingRecreate"]},
            rules={
                "type": "array",
                "items": fields(
                    ("name", "action"),
                    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*)$"},
                    action={
                        "enum": [
                            "FailJobSet",
                            "RestartJobSet",
                            "RestartJobSetAndIgnoreMaxRestarts",
                        ]
                    },
                    targetReplicatedJobs=STRINGS,
                    onJobFailureReasons={
                        **STRINGS,
                        "items": {
                            "enum": [
                                "BackoffLimitExceeded",
                                "DeadlineExceeded",
                                "FailedIndexes",
                                "MaxFailedIndexesExceeded",
                                "PodFailurePolicy",
                            ]
                        },
                    },
                ),
            },
        ),
        coordinator=fields(
            ("replicatedJob",), replicatedJob=NAME, jobIndex=COUNT, podIndex=COUNT
        ),
        suspend={"type": "boolean"},
        managedBy={"type": "string"},
        ttlSecondsAfterFinished=COUNT,
    ),
)


def filled(gpu=False):
    """The JobSet with `VALUES`, of the TPU or the GPU variant."""
    text = (LAUNCH / "gke_jobset.yaml").read_text()
    if gpu:
        text = re.sub(r"^( *).*\n *# GPU: (.*)$", r"\1\2", text, flags=re.MULTILINE)
        text = re.sub(r"^ *\(nothing\)\n", "", text, flags=re.MULTILINE)
    return yaml.safe_load(Template(text).safe_substitute(VALUES))


def check(jobset):
    """ValidationError where JobSet or Kubernetes would refuse it."""
    jsonschema.validate(jobset, JOBSET)
    for job in jobset["spec"]["replicatedJobs"]:
        template = {"apiVersion": "batch/v1", "kind": "Job", **job["template"]}
        for version in ("1.30", "1.36"):
            kubernetes_validate.validate(template, version, strict=True)


def pod(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("gpu", [False, True])
def test_the_jobset_is_one(gpu):
    jobset = filled(gpu)
    check(jobset)
    container = pod(jobset)["containers"][0]
    limits = container["resources"]["limits"]
    assert limits == {"nvidia.com/gpu" if gpu else "google.com/tpu": 4}
    assert len(pod(jobset)["nodeSelector"]) == (1 if gpu else 2)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == job["parallelism"] == 4
    settings = {e["name"]: e.get("value") for e in container["env"]}
    # JobSet names pods <jobset>-<job>-<replica>-<index>, in the domain <jobset>.
    host, _, port = settings["VTSCALE_COORDINATOR"].partition(":")
    assert host == "m256-paper-train-0-0.m256-paper"
    assert int(port) in [p["containerPort"] for p in container["ports"]]
    found = find_cluster(settings | {"JOB_COMPLETION_INDEX": "3"})
    assert (found.launcher, found.num_processes) == ("kubernetes", 4)
    assert (found.process_id, found.coordinator) == (3, f"{host}:{port}")
    assert {m["name"] for m in container["volumeMounts"]} == {
        v["name"] for v in pod(jobset)["volumes"]
    }


def at(tree, *path):
    for key in path:
        tree = tree[key]
    return tree


POD = ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec")


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ((), "apiVersion", "jobset.x-k8s.io/v1"),
        (("spec",), "failurePolicies", {}),
        (("spec", "failurePolicy"), "maxRestart", 3),
        (("spec", "failurePolicy", "rules", 0), "action", "RestartJobsetAndIgnore"),
        (("spec", "failurePolicy", "rules", 0), "onJobFailureReasons", ["PodFailure"]),
        (("spec", "replicatedJobs", 0), "replica", 1),
        (POD[:5], "backofflimit", 0),
        (POD[:5], "parallelism", "four"),
        ((*POD[:5], "podFailurePolicy", "rules", 0), "onPodCondition", []),
        (POD, "terminationGracePeriod", 300),
        (POD, "terminationGracePeriodSeconds", "five minutes"),
        ((*POD, "containers", 0), "imagePullpolicy", "Always"),
        ((*POD, "containers", 0, "env", 0), "valueFrom", {"fieldref": {}}),
        ((*POD, "volumes", 0, "persistentVolumeClaim"), "claim", "runs"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused(path, name, value):
    jobset = copy.deepcopy(filled())
    at(jobset, *path)[name] = value
    with pytest.raises(jsonschema.ValidationError):
        check(jobset)


def test_the_jobset_says_how_it_is_filled():
    text = (LAUNCH / "gke_jobset.yaml").read_text()
    used = set(re.findall(r"\$\{(\w+)\}", text))
    listed = re.search(r"envsubst '(.*)'", text)
    assert listed is not None
    assert used == set(VALUES) == {word[1:] for word in listed[1].split()}
    exported = re.findall(r"\b([A-Z]+)=", text[: text.index("envsubst")])
    assert used <= set(exported)


@pytest.mark.parametrize("index", ["0", "1"])
def test_a_pod_passes_sigterm_on_and_tells_finished_from_saved(tmp_path, start, index):
    """Runs the command of the container, with the stand-in for training."""
    container = pod(filled())["containers"][0]
    (script,) = container["args"]
    shown = subprocess.run(
        [BIN / "shellcheck", "-s", "bash", "-"],
        input=script,
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stdout
    script = script.replace("/runs/", f"{tmp_path}/runs/")
    words = stand_in_train(tmp_path)
    stand_in(tmp_path, "python", f'#!/bin/sh\nshift 2\nexec {words} "$@"\n')
    command, more = [*container["command"], script], {"VTSCALE_PROCESS_ID": index}
    more |= {"JOB_COMPLETION_INDEX": index}
    process, output = start(command, SECONDS_EACH="60", **more)
    wait_for("arguments", output)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == (75 if index == "0" else 0)
    assert "saved after SIGTERM" in output.read_text()
    status, text = run(command, tmp_path, **more)
    assert status == 0, text
    line = next(line for line in text.splitlines() if "arguments" in line)
    given = json.loads(line)["arguments"]
    assert given[:2] == ["--config", "configs/m256.py:paper"]
    assert given[2:] == ["--workdir", f"{tmp_path}/runs/m256-paper"]
    assert run(command, tmp_path, FAILS=index, **more)[0] == 7
