"""Memory of a run's train step: what is planned, and what it takes.

    python benchmarks/run_memory.py
    python -m vtscale_jax.weights fetch smollm2-135m        # for smol
    python benchmarks/run_memory.py --config configs/m256.py:smol,stage=finetune

For each config the run is laid out as `python -m vtscale_jax.train` does it, with its
own data, batch shapes and sharding; its step for the largest batch is compiled, and
taken three times with random weights, in a process of its own. Planned is what
`train --dry_run` prints and a run notes as `step_memory_bytes`. Taken is the device's
own peak where it tells one (GPU, TPU), and else how far the resident memory of the
process grows from before there are any weights. Prints a table and, last, one line of
JSON.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import record
from vtscale_jax.weights import fetch

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = (
    "configs/m16.py",
    "configs/m64.py",
    "configs/m256.py",
    "configs/m64.py:smol,stage=finetune",
)
STEPS = 3


def take(words: str) -> dict[str, Any]:
    """The planned and the taken bytes of one config's step, in this process."""
    from vtscale_jax.parallel import host

    host.take_gpu_memory()
    import jax
    import numpy as np

    from benchmarks.resident import resident, settle
    from benchmarks.step_presets import drawn
    from vtscale_jax import machine
    from vtscale_jax.config_files import read_config
    from vtscale_jax.pace import CompiledSteps
    from vtscale_jax.parallel.mesh import feed
    from vtscale_jax.prepare import largest_batch, lay_out
    from vtscale_jax.weights.sizes import fill_sizes

    on_cpu = jax.default_backend() == "cpu"
    if on_cpu:
        host.keep_freed_memory()  # as `train` does
    config = read_config([f"--config={words}"])
    fill_sizes(config)
    run = lay_out(config, lambda line: print(line, file=sys.stderr))
    program, spec = run.program, run.phases[-1].spec.largest()
    blank = largest_batch(config, program.model, run.parts, run.phases, run.shards)
    steps = CompiledSteps(program, run.optim.accumulation)
    before = feed(blank, program.mesh, run.shards)
    compiled = steps.compile(before)
    del before
    base = settle() if on_cpu else 0
    # Copied, so that its pages are written and not the one that all zeros share.
    batch = feed(jax.tree.map(np.copy, blank), program.mesh, run.shards)
    state = program.start(drawn(program.state.params, seed=0))
    frozen = drawn(program.frozen, seed=1)
    jax.block_until_ready((batch, state, frozen))
    if on_cpu:
        settle()
    for _ in range(STEPS):
        state, metrics = compiled.run(state, frozen, batch)
        jax.block_until_ready((state, metrics))
    taken = machine.device_peak(jax.local_devices()[0])
    return {
        "config": words,
        "remat": run.config.model.remat,
        "shapes": spec.describe(config.stage),
        "planned": steps.memory,
        "taken": resident("VmHWM") - base if taken is None else taken,
        "taken_by": "process" if taken is None else "device",
    }


def child(words: str) -> dict[str, Any]:
    """`take` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.run_memory", "--child", words]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{words} ended with {done.returncode}; its lines say why")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures, prints, and writes `--out`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config",
        action="append",
        metavar="FILE[:WORDS]",
        help="may be given several times; default: embedded for three M, and smol",
    )
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(take(options.child)))
        return
    rows, mib = [], 2**20
    print(f"{'config':<40}{'planned':>14}{'taken':>14}{'taken / planned':>18}")
    for words in options.config or CONFIGS:
        if "smol" in words and fetch.cached("smollm2-135m") is None:
            get = "python -m vtscale_jax.weights fetch smollm2-135m"
            rows.append(record.not_measured(words, f"no weights of SmolLM2: {get}"))
            print(f"{words:<40}not measured: {rows[-1]['not_measured']}", flush=True)
            continue
        rows.append(child(words))
        planned, taken = rows[-1]["planned"], rows[-1]["taken"]
        sizes = f"{planned / mib:>10.0f} MiB{taken / mib:>10.0f} MiB"
        print(f"{words:<40}{sizes}{taken / planned:>18.2f}", flush=True)
    record.finish("run_memory", {"rows": rows}, options.out)


if __name__ == "__main__":
    main()
