"""SmolLM2-135M-Instruct from its GGUF file: what it says, and what transformers' Llama
makes of the same tensors.

The sentences were observed with a throw-away implementation from the same file. They
matter because both sides of the comparison with transformers read the file through the
same tables, and could share a mistake in them.
"""

import dataclasses
import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from running import ROOT
from sklearn import datasets
from small_runs import manifest, rows

from vtscale_jax.conversation import Answering, TextConversation
from vtscale_jax.generate import begin, read, write
from vtscale_jax.llm import LLM, quantize, unstack
from vtscale_jax.templates import segments
from vtscale_jax.tokens import QueryLayout, llm_sequence
from vtscale_jax.types import Record, Turn
from vtscale_jax.weights import fetch
from vtscale_jax.weights.gguf.model import open_gguf
from vtscale_jax.weights.language_models import load_language_model

NAME = "smollm2-135m"
FILE = fetch.find(NAME)
pytestmark = [
    pytest.mark.real_model,
    pytest.mark.slow,
    pytest.mark.skipif(
        FILE is None, reason=f"run: python -m vtscale_jax.weights fetch {NAME}"
    ),
]
SAID = {
    "What is the capital of France?": "The capital of France is Paris.",
    "How many legs does a dog have?": (
        "The answer to this classic question is 4. A dog has four legs."
    ),
}
NEVER = (49152,)


@pytest.fixture(scope="module")
def model():
    return load_language_model("model", NAME, dtype="float32")


@pytest.fixture(scope="module")
def apart(model):
    blocks = dataclasses.replace(model.config.blocks, stacked=False)
    config = dataclasses.replace(model.config, blocks=blocks)
    return model._replace(params=unstack(dict(model.params)), config=config)


@pytest.fixture(scope="module")
def text_ids(model):
    """1,000 tokens of English prose."""
    text = datasets.load_breast_cancer().DESCR + datasets.load_digits().DESCR
    ids = model.tokenizer.encode(text + text[::-1], add_special_tokens=False)[:1000]
    assert len(ids) == 1000
    return np.array([ids], np.int32)


@pytest.fixture(scope="module")
def logits(model, text_ids):
    return np.asarray(_logits(model.params, jnp.asarray(text_ids), model.config))


def _logits(params, ids, config):
    def run(llm, ids):
        return llm.logits(llm(llm.embed(ids), ids >= 0).hidden)

    step = jax.jit(lambda p, i: LLM(config).apply({"params": p}, i, method=run))
    return step(params, ids)[0]


def perplexity(logits, ids):
    wide = logits[:-1].astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    norm = top[:, 0] + np.log(np.exp(wide - top).sum(axis=1))
    return math.exp(np.mean(norm - wide[np.arange(len(wide)), ids[0, 1:]]))


def test_it_says_what_it_is_known_to_say(apart):
    assert apart.end_ids == (2,) and apart.limit == 8192
    for question, answer in SAID.items():
        talk = TextConversation(
            apart.params,
            apart.config,
            apart.tokenizer,
            Answering(most=40, eos_ids=apart.end_ids),
        )
        reply = talk.ask(question)
        assert "".join(piece.text for piece in reply) == answer
        assert reply.ended == "end"


def test_our_template_is_the_one_in_the_file(model):
    turns = (Turn("One?", "Two."), Turn("Three?", ""))
    record = Record("r", None, turns)
    ours = "".join(text for text, _ in segments(record, "smollm2"))
    messages = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]
    theirs = model.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    assert ours == theirs
    # Tokenised piece by piece, it is still the template's own tokens.
    ids = llm_sequence(record, model.tokenizer, "smollm2", QueryLayout(1)).ids.tolist()
    assert ids == model.tokenizer.encode(theirs, add_special_tokens=False)


@pytest.mark.parity
def test_logits_perplexity_and_greedy_tokens_are_those_of_transformers(
    apart, text_ids, logits
):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    gguf = open_gguf(FILE)
    theirs = LlamaForCausalLM(LlamaConfig(**gguf.config)).eval()
    tensors = {n: torch.from_numpy(gguf.tensors.read(n)) for n in gguf.tensors.shapes}
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(text_ids).long()).logits[0].numpy()
    scale = np.linalg.norm(expected, axis=1)
    assert (np.linalg.norm(logits - expected, axis=1) < 1e-3 * scale).all()
    assert np.abs(logits - expected).max() < 1e-3 * np.abs(expected).max()
    ours, other = perplexity(logits, text_ids), perplexity(expected, text_ids)
    assert f"{ours:.4g}" == f"{other:.4g}" and abs(ours / other - 1) < 1e-4

    prompt = text_ids[:, :200]
    with torch.inference_mode():
        made = theirs.generate(
            torch.from_numpy(prompt).long(),
            attention_mask=torch.ones(1, 200, dtype=torch.long),
            max_new_tokens=64,
            min_new_tokens=64,
            do_sample=False,
            pad_token_id=0,
        )[0, 200:].tolist()
    assert answers(apart, [prompt[0].tolist()], 64) == [made]

    # Negative control: one projection of one layer, a hundredth larger.
    params = jax.tree.map(lambda leaf: leaf, apart.params)
    layer = params["blocks"]["layer3"]["attn"]["query"]
    layer["kernel"] = layer["kernel"] * 1.01
    changed = _logits(params, jnp.asarray(text_ids[:, :200]), apart.config)
    off = np.linalg.norm(np.asarray(changed) - expected[:200], axis=1)
    assert (off > 1e-3 * scale[:200]).any()


def answers(model, prompts, number):
    longest = max(map(len, prompts))
    ids = np.zeros((len(prompts), longest), np.int32)
    keep = np.zeros(ids.shape, bool)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)], keep[row, : len(prompt)] = prompt, True
    same = {"config": model.config, "eos_ids": NEVER}
    state = begin(model.config, len(prompts), longest + number)
    state = read(model.params, state, ids, keep, **same)
    first = np.asarray(state.ids)[:, None]
    _, tokens = write(model.params, state, num_steps=number - 1, **same)
    return np.concatenate([first, np.asarray(tokens)], axis=1).tolist()


@pytest.mark.long
def test_a_batch_says_what_its_rows_say_alone(apart, text_ids):
    row = text_ids[0].tolist()
    prompts = [row[:40], row[100:117], row[300:364], row[500:501]]
    together = answers(apart, prompts, 24)
    for prompt, said in zip(prompts, together, strict=True):
        assert answers(apart, [prompt], 24) == [said]


def test_int8_weights_change_the_logits_little(model, text_ids, logits):
    blocks = dataclasses.replace(model.config.blocks, int8=True)
    config = dataclasses.replace(model.config, blocks=blocks)
    near = np.asarray(
        _logits(quantize(dict(model.params)), jnp.asarray(text_ids), config)
    )
    # A constant added to all logits of a place changes nothing.
    centred = logits - logits.mean(axis=1, keepdims=True)
    error = np.linalg.norm(near - logits) / np.linalg.norm(centred)
    agree = np.mean(near.argmax(axis=1) == logits.argmax(axis=1))
    worse = perplexity(near, text_ids) / perplexity(logits, text_ids)
    # benchmarks/int8.py has the numbers: 0.085, 97 % and 0.998.
    assert 1e-4 < error < 0.12 and agree > 0.95 and abs(worse - 1) < 0.02


def command(*words):
    """What a command prints, on one device; for eight, this model compiles minutes."""
    words = [sys.executable, "-m", *map(str, words)]
    return subprocess.check_output(
        words, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""}, text=True
    )


@pytest.mark.long  # embedded runs do in short
def test_the_smol_preset_trains_and_its_run_answers(tmp_path):
    changes = {
        "num_queries": 4,
        "data.batch_size": 8,
        "data.num_records": 64,
        "data.num_threads": 1,
        "optim.steps": 3,
        "log.every": 1,
        "eval.questions": 1,
        "eval.batch_size": 8,
        "eval.max_new_tokens": 2,
    }
    run = tmp_path / "run"
    command(
        *("vtscale_jax.train", "--config", "configs/m8.py:smol,stage=finetune"),
        *("--workdir", run),
        *(f"--config.{name}={value}" for name, value in changes.items()),
    )
    about = manifest(run)
    assert about["parameters"]["frozen"] == 134_515_008
    assert about["weights"]["llm"]["path"] == str(FILE)
    losses = [row["loss"] for row in rows(run) if row["split"] == "train"]
    assert len(losses) == 3 and losses[-1] < losses[0]
    sample = json.loads((run / "samples.jsonl").read_text().splitlines()[0])
    said = command(
        *("vtscale_jax.ask", "--run", run, "--image", run / sample["image"]),
        *("--question", sample["question"], "--max_new_tokens", 2),
    )
    assert said.splitlines()[2].strip() == sample["prediction"]
