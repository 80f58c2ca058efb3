"""Launchers run as they are, with small stand-ins for the commands they start."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
BIN = Path(sys.executable).parent
STARTED = 30.0  # seconds that a process has to start
TOLD = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)

# Says what it was given, and what it is told; behaves as its environment asks.
TRAIN = """
import json, os, signal, sys, time
from pathlib import Path

given = sys.argv[1:]
folder = Path(given[given.index("--workdir") + 1]) if "--workdir" in given else None
mine = {k: v for k, v in os.environ.items() if k.startswith(("VTSCALE_", "SLURM_"))}
more = ("CUDA_VISIBLE_DEVICES", "XLA_FLAGS", "JAX_PLATFORMS")
mine |= {k: os.environ.get(k) for k in more}
number = os.environ.get("VTSCALE_PROCESS_ID", os.environ.get("SLURM_PROCID", "0"))

def write(finished):
    if folder is not None and number == "0":
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"inner": {"finished": True}, "finished": finished}, indent=2)
        (folder / "manifest.json").write_text(text)

def told(number, _):
    time.sleep(0.3)
    write(False)
    print("saved after", signal.Signals(number).name, flush=True)
    sys.exit(0)

for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
    signal.signal(getattr(signal, name), told)
write(False)
print(json.dumps({"arguments": given, "environment": mine}), flush=True)
log = os.environ.get("LOG")
if log:
    with open(log, "a") as file:
        print(json.dumps(given), file=file)
fails = os.environ.get("FAILS", "").split()
if number in fails or folder is not None and folder.name in fails:
    sys.exit(int(os.environ.get("FAILS_WITH", "7")))
time.sleep(float(os.environ.get("SECONDS_EACH", "0")))
write(True)
print("no line end", end="")
"""


def stand_in_train(folder: Path) -> str:
    """The words of a stand-in for `python -m vtscale_jax.train`."""
    file = folder / "train.py"
    file.write_text(TRAIN)
    return f"{sys.executable} {file}"


def environment(tmp_path, **more):
    """The present one, with stand-ins first on PATH and no GPUs or devices set."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("SLURM_", "VTSCALE_", "XLA_", "CUDA_", "JAX_"))
    }
    return kept | {"PATH": f"{tmp_path}:{BIN}:{kept['PATH']}"} | more


def heard():
    """Words before a command for signals that these tests themselves ignore, as under
    nohup: bash cannot be told to heed what it was started without."""
    names = [s.name[3:] for s in TOLD if signal.getsignal(s) is signal.SIG_IGN]
    return ["env", f"--default-signal={','.join(names)}"] if names else []


@contextlib.contextmanager
def starting(tmp_path):
    """A function that starts a command; what still runs at the end is ended.

    It returns the process, and the file that its output goes to.
    """
    processes = []

    def start(command, **more):
        output = tmp_path / f"output-{time.monotonic_ns()}"
        with output.open("w") as file:
            process = subprocess.Popen(
                [*heard(), *map(str, command)],
                env=environment(tmp_path, **more),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=ROOT,
            )
        processes.append(process)
        return process, output

    try:
        yield start
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)


def run(command, tmp_path, **more):
    """The command's status and output."""
    with starting(tmp_path) as start:
        process, output = start(command, **more)
        return process.wait(120), output.read_text()


def wait_for(text, output, count=1):
    """Waits until a file has the text so many times."""
    end, found = time.monotonic() + STARTED, ""
    while found.count(text) < count:
        assert time.monotonic() < end, f"no {text!r} in {output}:\n{found}"
        time.sleep(0.05)
        found = output.read_text() if output.exists() else ""


def stand_in(folder, name, text):
    file = folder / name
    file.write_text(text)
    file.chmod(0o755)


def said(output):
    """What each process was given, in order of their numbers."""
    lines = re.findall(r'^\[(\d)\] (\{"arguments.*\})$', output, re.MULTILINE)
    return [json.loads(line) for _, line in sorted(lines)]


def write_manifest(folder, finished):
    folder.mkdir(parents=True)
    text = json.dumps({"finished": finished, "command": "x"}, indent=2)
    (folder / "manifest.json").write_text(text)
