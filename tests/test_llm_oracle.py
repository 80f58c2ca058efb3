"""The language model against a plain float64 Llama, where the goldens are silent.

No golden has grouped-query attention, heads narrower than width / heads, another base
of the rotary embedding, or more than a hundred positions.
"""

import jax
import numpy as np
import pytest

from vtscale_jax.layers import BlockConfig
from vtscale_jax.llm import LLM, LLMConfig

BLOCKS = BlockConfig(
    width=24,
    mlp_width=40,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    num_layers=2,
    norm_eps=1e-5,
    rope_theta=500.0,
)
LENGTH = 520


def rms_norm(x, gain):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + BLOCKS.norm_eps) * gain


def rotary(x):
    """Channel c of a head turns with channel c + C/2, by position · theta^(−2c/C)."""
    half = BLOCKS.head_dim // 2
    turned = np.empty_like(x)
    for c in range(half):
        angle = np.arange(len(x)) * BLOCKS.rope_theta ** (-2 * c / BLOCKS.head_dim)
        turned[:, c] = x[:, c] * np.cos(angle) - x[:, c + half] * np.sin(angle)
        turned[:, c + half] = x[:, c + half] * np.cos(angle) + x[:, c] * np.sin(angle)
    return turned


def kv_head(head):
    """Consecutive query heads share a key head."""
    return head // (BLOCKS.num_heads // BLOCKS.num_kv_heads)


def oracle(params, x, kv_head=kv_head):
    """States after the final norm `[S, D]` of one row, head by head."""
    causal = np.tril(np.ones((len(x), len(x)), bool))
    for i in range(BLOCKS.num_layers):
        p = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i], float), params["blocks"])
        y = rms_norm(x, p["norm1"]["scale"])
        wide = {n: y @ p["attn"][n]["kernel"] for n in ("query", "key", "value")}
        heads = []
        for h in range(BLOCKS.num_heads):
            q = wide["query"][:, h * 8 : h * 8 + 8]
            k = wide["key"][:, kv_head(h) * 8 : kv_head(h) * 8 + 8]
            v = wide["value"][:, kv_head(h) * 8 : kv_head(h) * 8 + 8]
            scores = np.where(causal, rotary(q) @ rotary(k).T / np.sqrt(8), -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(weights / weights.sum(axis=1, keepdims=True) @ v)
        x = x + np.concatenate(heads, axis=1) @ p["attn"]["out"]["kernel"]
        y = rms_norm(x, p["norm2"]["scale"])
        gate = y @ p["gate"]["kernel"]
        inner = gate / (1 + np.exp(-gate)) * (y @ p["up"]["kernel"])
        x = x + inner @ p["down"]["kernel"]
    return rms_norm(x, np.asarray(params["norm"]["scale"], float))


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def case(request):
    """Config, parameters (all of them random), ids, and our states and logits."""
    config = LLMConfig(31, BLOCKS, tie_embeddings=request.param)
    rng = np.random.default_rng(0)
    model = LLM(config)
    ids = rng.integers(0, 31, (1, LENGTH)).astype(np.int32)

    def run(llm, ids):
        hidden = llm(llm.embed(ids), ids >= 0).hidden
        return hidden, llm.logits(hidden)

    shapes = jax.eval_shape(
        lambda key, ids: model.init(key, ids, method=run), jax.random.key(0), ids
    )
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape, scale=0.3).astype(np.float32),
        shapes["params"],
    )
    params["norm"]["scale"] += 1
    hidden, logits = jax.jit(
        lambda params, ids: model.apply({"params": params}, ids, method=run)
    )(params, ids)
    return config, params, ids[0], np.asarray(hidden[0]), np.asarray(logits[0])


def test_grouped_heads_long_rows_and_tied_tables(case):
    config, params, ids, hidden, logits = case
    table = params["embed"].astype(float)
    expected = oracle(params, table[ids])
    np.testing.assert_allclose(hidden, expected, rtol=0, atol=1e-4)
    head = table.T if config.tie_embeddings else params["head"].astype(float)
    np.testing.assert_allclose(logits, expected @ head, rtol=0, atol=1e-4)


def test_other_groups_are_another_model(case):
    """Negative control: key heads dealt out in turn instead of in runs."""
    _, params, ids, hidden, _ = case
    in_turn = oracle(
        params, params["embed"].astype(float)[ids], lambda h: h % BLOCKS.num_kv_heads
    )
    assert np.max(np.abs(hidden - in_turn)) > 0.1
