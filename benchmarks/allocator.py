"""What keeping freed memory is worth to a CPU training step of the embedded preset.

    python benchmarks/allocator.py [--num_queries 16] [--steps 8] [--rounds 3]

Runs the same step in fresh processes, with malloc as it is and after
`parallel.host.keep_freed_memory`, by turns, and compares the fastest steps.
"""

import argparse
import runpy
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import record


def fastest_step(num_queries: int, steps: int, keep: bool) -> float:
    """Seconds of the fastest of `steps` training steps."""
    import jax

    from vtscale_jax import paths, settings
    from vtscale_jax.assemble import assemble, open_source, probed
    from vtscale_jax.optim import make_optimizer
    from vtscale_jax.parallel.host import keep_freed_memory
    from vtscale_jax.stages import get_stage, init_params
    from vtscale_jax.step import initial_state, make_steps

    if keep and not keep_freed_memory():
        sys.exit("this system's malloc cannot be told to keep memory (glibc only)")
    config = runpy.run_path(f"configs/m{num_queries}.py")["get_config"]("")
    model, stage = settings.model_config(config, "float32"), get_stage("adapt")
    parts = assemble(config, model.vision)
    source = open_source(config, "train")
    spec = parts.training_shapes(probed(source), num_queries)
    batch = jax.device_put(parts.stream(source, spec, num_queries, 0).batch(0))
    params, frozen = paths.partition(init_params(stage, model, 0), stage.trains)
    optimizer = make_optimizer(settings.optim_config(config, 1000), params)
    step = jax.jit(make_steps(stage, model, optimizer)[0], donate_argnums=0)
    state, times = initial_state(params, optimizer), []
    for _ in range(steps + 1):
        start = time.perf_counter()
        state, metrics = step(state, frozen, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main() -> None:
    """Prints a table and, last, one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_queries", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--one", choices=("keep", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(fastest_step(args.num_queries, args.steps, args.one == "keep"))
        return
    found: dict[str, list[float]] = {"plain": [], "keep": []}
    for _ in range(args.rounds):
        for name in found:
            command = [sys.executable, __file__, "--one", name]
            command += ["--num_queries", str(args.num_queries)]
            command += ["--steps", str(args.steps)]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name].append(float(run.stdout.split()[-1]))
    best = {name: min(times) for name, times in found.items()}
    print(f"{'malloc':8} {'fastest step':>14}")
    for name, seconds in best.items():
        print(f"{name:8} {seconds * 1e3:11.0f} ms")
    ratio = best["plain"] / best["keep"]
    result = {"num_queries": args.num_queries, "speedup": round(ratio, 3)}
    record.finish("allocator", result, args.out)


if __name__ == "__main__":
    main()
