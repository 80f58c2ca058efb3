"""The real command as child processes, on as many processes and devices as asked."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from small_runs import flags, rows
from xla_flags import xla_flags

ROOT = Path(__file__).parents[1]
STEPS = 24


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Command:
    """The training command, on `processes` with `devices` virtual devices each."""

    def __init__(
        self, folder: Path, cache: Path, processes: int, devices: int, **changes
    ):
        self.folder, port = folder, free_port()
        settings = {
            "eval__questions": 0,
            "optim__steps": STEPS,
            "data__num_threads": 0,
            "checkpoint__every": 12,
            "eval__every": 12,
            "hosts__timeout_s": 60.0,
            "hosts__wait_s": 120.0,
        }
        command = [sys.executable, "-m", "vtscale_jax.train"]
        command += ["--config", "configs/m8.py", "--workdir", str(folder)]
        command += flags(4, **(settings | changes))
        self.children = []
        for index in range(processes):
            environment = os.environ | {
                "JAX_COMPILATION_CACHE_DIR": str(cache / str(index)),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "XLA_FLAGS": xla_flags(devices, level=1),
            }
            if processes > 1:
                environment |= {
                    "VTSCALE_COORDINATOR": f"127.0.0.1:{port}",
                    "VTSCALE_NUM_PROCESSES": str(processes),
                    "VTSCALE_PROCESS_ID": str(index),
                }
            child = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self.children.append(child)

    def wait_for(self, step: int) -> None:
        """Until the run has logged `step`, or has ended."""
        while self.running() and last_step(self.folder) < step:
            time.sleep(0.02)

    def wait_for_checkpoint(self, step: int) -> None:
        """Until the checkpoint of `step` is written, or the run has ended."""
        while self.running() and step not in saved_steps(self.folder):
            time.sleep(0.02)

    def running(self) -> bool:
        return all(child.poll() is None for child in self.children)

    def send(self, number: signal.Signals, *indices: int) -> None:
        for index in indices:
            self.children[index].send_signal(number)

    def end(self) -> tuple[list[int], list[str]]:
        """Exit statuses and outputs of all processes."""
        outputs = [child.communicate(timeout=300)[0] for child in self.children]
        return [child.returncode for child in self.children], outputs

    def finish(self) -> list[str]:
        statuses, outputs = self.end()
        assert set(statuses) == {0}, "\n".join(outputs)
        return outputs


def last_step(folder: Path) -> int:
    """The last step whose loss is in metrics.jsonl."""
    try:
        found = [row["step"] for row in rows(folder) if row["split"] == "train"]
    except (OSError, ValueError):  # not there yet, or a line half written
        return 0
    return max(found, default=0)


def losses(folder: Path) -> list[tuple[int, str, float]]:
    return [(row["step"], row["split"], row["loss"]) for row in rows(folder)]


def saved_steps(folder: Path) -> list[int]:
    names = [path.name for path in (folder / "checkpoints").glob("[0-9]*")]
    return sorted(int(name) for name in names if name.isdigit())
