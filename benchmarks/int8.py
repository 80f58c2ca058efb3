"""What int8 weights of a frozen language model cost and save, on SmolLM2-135M.

    python -m vtscale_jax.weights fetch smollm2-135m
    python benchmarks/int8.py

Logits at 1,000 tokens of English beside those of the float32 weights, the perplexity of
the text, and, in the same process, decoding speed in chunks of tokens as `ask` streams
them, and the bytes that a chunk's program needs beside its arguments. Prints a table
and a line of JSON.
"""

import argparse
import dataclasses
import math
import time
from pathlib import Path

import numpy as np

from benchmarks import record

CHUNKS = 4  # of stream.CHUNK tokens each


def logits_of(params, ids, config) -> np.ndarray:
    """Logits at every place of one row."""
    import jax

    from vtscale_jax.llm import LLM

    def run(llm, ids):
        return llm.logits(llm(llm.embed(ids), ids >= 0).hidden)

    step = jax.jit(lambda p, i: LLM(config).apply({"params": p}, i, method=run))
    return np.asarray(step(params, ids)[0], np.float64)


def perplexity(logits: np.ndarray, ids: np.ndarray) -> float:
    """exp of the mean surprise at each next token."""
    top = logits[:-1].max(axis=1, keepdims=True)
    norm = top[:, 0] + np.log(np.exp(logits[:-1] - top).sum(axis=1))
    return math.exp(np.mean(norm - logits[np.arange(len(ids) - 1), ids[1:]]))


def decode(params, config, ids) -> tuple[float, int]:
    """Seconds per token of one row, the best of three times four chunks; and the bytes
    of a chunk's temporaries."""
    import jax
    import jax.numpy as jnp

    from vtscale_jax import generate
    from vtscale_jax.stream import CHUNK

    same = {"config": config, "eos_ids": (config.vocab_size,)}
    keep = jnp.ones(ids.shape, bool)
    times = []
    for _ in range(4):
        state = generate.begin(config, 1, ids.shape[1] + CHUNKS * CHUNK)
        state = generate.read(params, state, ids, keep, **same)
        jax.block_until_ready(state.ids)
        started = time.perf_counter()
        for _ in range(CHUNKS):
            state, tokens = generate.write(params, state, num_steps=CHUNK, **same)
            jax.block_until_ready(tokens)
        times.append(time.perf_counter() - started)
    made = generate.write.lower(params, state, num_steps=CHUNK, **same).compile()
    analysis = made.memory_analysis()
    return min(times[1:]) / (CHUNKS * CHUNK), analysis.temp_size_in_bytes


def num_bytes(params) -> int:
    """Bytes of all parameters."""
    import jax

    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def main() -> None:
    """Measures, prints, and writes `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    import jax.numpy as jnp
    from sklearn import datasets

    from vtscale_jax.llm import quantize, unstack
    from vtscale_jax.weights.language_models import load_language_model

    model = load_language_model("model", "smollm2-135m", dtype="float32")
    text = datasets.load_breast_cancer().DESCR + datasets.load_digits().DESCR
    row = model.tokenizer.encode(text, add_special_tokens=False)[:1000]
    ids = jnp.array([row], jnp.int32)
    found: dict[str, dict[str, float]] = {}
    kept: dict[str, np.ndarray] = {}
    for name, int8 in (("float32", False), ("int8", True)):
        params = quantize(dict(model.params)) if int8 else model.params
        blocks = dataclasses.replace(model.config.blocks, int8=int8)
        config = dataclasses.replace(model.config, blocks=blocks)
        kept[name] = logits_of(params, ids, config)
        apart = dataclasses.replace(
            config, blocks=dataclasses.replace(blocks, stacked=False)
        )
        seconds, temporary = decode(unstack(dict(params)), apart, ids[:, :128])
        found[name] = {
            "megabytes": num_bytes(params) / 1e6,
            "blocks_megabytes": num_bytes(params["blocks"]) / 1e6,
            "perplexity": perplexity(kept[name], np.array(row)),
            "decode_ms": 1e3 * seconds,
            "temporary_megabytes": temporary / 1e6,
        }
    exact, near = kept["float32"], kept["int8"]
    centred = exact - exact.mean(axis=1, keepdims=True)
    result = {
        "model": "SmolLM2-135M-Instruct",
        "tokens": len(row),
        "relative_logit_error": float(
            np.linalg.norm(near - exact) / np.linalg.norm(centred)
        ),
        "largest_logit_error": float(np.abs(near - exact).max()),
        "same_most_likely_token": float(
            np.mean(near.argmax(axis=1) == exact.argmax(axis=1))
        ),
        "rows": found,
        "decode_ratio": found["float32"]["decode_ms"] / found["int8"]["decode_ms"],
    }
    print(
        f"{'':8} {'MB':>7} {'blocks MB':>10} {'perplexity':>11} {'ms/token':>9} "
        f"{'temporary MB':>13}"
    )
    for name, line in found.items():
        print(
            f"{name:8} {line['megabytes']:7.1f} {line['blocks_megabytes']:10.1f} "
            f"{line['perplexity']:11.4f} {line['decode_ms']:9.2f} "
            f"{line['temporary_megabytes']:13.1f}"
        )
    print(
        f"logits: {result['relative_logit_error']:.4f} relative, at most "
        f"{result['largest_logit_error']:.3f}; the same most likely token at "
        f"{result['same_most_likely_token']:.1%} of {len(row)}"
    )
    record.finish("int8", result, options.out)


if __name__ == "__main__":
    main()
