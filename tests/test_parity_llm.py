"""Every family of language models against transformers, in both directions.

Tiny models with random weights, two rows of which one is padded, more positions than
any window or original length. float32 on both sides.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import CASES, rows, weights
from safetensors.numpy import load_file, save_file

from vtscale_jax.llm import LLM
from vtscale_jax.rotary import frequencies
from vtscale_jax.weights.files.tensors import ArrayTensors
from vtscale_jax.weights.huggingface import families
from vtscale_jax.weights.naming import names

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4


def read_all(llm, ids, keep):
    """Every hidden state as transformers lists them, and the logits."""
    hidden = llm(llm.embed(ids), keep).hidden
    return hidden, llm.logits(hidden)


@jax.jit(static_argnums=0)
def ours(config, params, ids, keep):
    model = LLM(config)
    (last, logits), state = model.apply(
        {"params": params}, ids, keep, method=read_all, mutable=["intermediates"]
    )
    seen = state["intermediates"]
    inner = seen["blocks"]["hidden"][0]
    return [seen["input"][0], *inner[:-1], last], logits


def theirs(model, ids, keep):
    """(hidden states, logits) of a transformers model."""
    import torch

    with torch.no_grad():
        out = model(
            torch.tensor(ids, dtype=torch.long),
            attention_mask=torch.tensor(keep),
            output_hidden_states=True,
        )
    return [h.numpy() for h in out.hidden_states], out.logits.numpy()


def error(one, other, keep):
    """The largest difference at kept places."""
    return float(np.max(np.abs(np.asarray(one) - np.asarray(other))[keep]))


class Case:
    """One family: their model, its tensors, and our parameters."""

    def __init__(self, name):
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        self.json = CASES[name]
        given = {k: v for k, v in self.json.items() if k != "model_type"}
        # A copy: transformers writes into the dictionaries that it gets.
        given = json.loads(json.dumps(given))
        config = AutoConfig.for_model(self.json["model_type"], **given)
        self.model = AutoModelForCausalLM.from_config(config).eval()
        state = self.model.state_dict()
        if config.tie_word_embeddings:
            del state["lm_head.weight"]
        self.tensors = weights({n: t.shape for n, t in state.items()})
        torch_tensors = {n: torch.from_numpy(t) for n, t in self.tensors.items()}
        self.model.load_state_dict(torch_tensors, strict=False)
        self.model.tie_weights()
        self.config = families.llm_config(self.json)
        self.params = self.read(self.tensors)
        self.ids, self.keep = rows(self.config.vocab_size)
        self.theirs = theirs(self.model, self.ids, self.keep)

    def read(self, tensors):
        """Our parameters from tensors under their names."""
        ids = jnp.zeros((1, 1), jnp.int32)
        model = LLM(self.config)
        shapes = jax.eval_shape(
            lambda key: model.init(key, ids, ids > 0, method=read_all),
            jax.random.key(0),
        )
        layout = families.llm_layout(self.json)
        return names.import_tree(layout, ArrayTensors(tensors), shapes["params"])

    def errors(self, config=None, params=None):
        """The largest difference of any hidden state, and of the logits."""
        hidden, logits = ours(
            config or self.config, params or self.params, self.ids, self.keep
        )
        expected, expected_logits = self.theirs
        assert len(hidden) == len(expected) == self.config.blocks.num_layers + 1
        pairs = zip(hidden, expected, strict=True)
        return max(error(a, b, self.keep) for a, b in pairs), error(
            logits, expected_logits, self.keep
        )


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return Case(request.param)


def test_hidden_states_and_logits(case):
    states, logits = case.errors()
    assert states < TOLERANCE and logits < TOLERANCE
    # Else a small error would say nothing.
    assert 0.3 < np.std(case.theirs[1][case.keep]) < 10


def test_one_weight_moved_by_a_hundredth_is_another_model(case):
    """Negative control: whichever tensor of layer 1 it is."""
    for name in case.tensors:
        if ".layers.1." in name:
            moved = {**case.tensors, name: case.tensors[name] * np.float32(1.01)}
            assert case.errors(params=case.read(moved))[1] > TOLERANCE, name


def changed(config):
    """The model with one number of its config moved."""
    blocks = config.blocks
    if blocks.window:
        change = {"window": blocks.window + 1}
    elif blocks.rope_share != 1:
        change = {"rope_share": 1.0}
    elif blocks.rope_scaling is None:
        change = {"rope_theta": blocks.rope_theta * 1.01}
    else:
        scaling = blocks.rope_scaling
        moved = dataclasses.replace(
            scaling,
            factor=scaling.factor * 1.01,
            factors=tuple(factor * 1.01 for factor in scaling.factors),
            long_factors=tuple(factor * 1.01 for factor in scaling.long_factors),
        )
        change = {"rope_scaling": moved}
    return dataclasses.replace(config, blocks=dataclasses.replace(blocks, **change))


def test_another_window_or_rotation_is_another_model(case):
    """Negative control."""
    assert case.errors(config=changed(case.config))[1] > TOLERANCE


def load_exported(folder, config, base, tensors):
    """transformers' model of what we write."""
    from transformers import AutoModelForCausalLM

    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    written = families.hf_config(config, base)
    (folder / "config.json").write_text(json.dumps(written))
    return AutoModelForCausalLM.from_pretrained(folder)


def test_what_we_export_is_what_they_load(case, tmp_path):
    exported = names.export_tree(families.llm_layout(case.json), case.params)
    loaded = load_exported(tmp_path, case.config, case.json, exported)
    assert type(loaded) is type(case.model)
    files = load_file(tmp_path / "model.safetensors")
    assert files.keys() == case.tensors.keys()
    for name, tensor in case.tensors.items():
        np.testing.assert_array_equal(files[name], tensor)
    _, logits = ours(case.config, case.params, case.ids, case.keep)
    found = theirs(loaded, case.ids, case.keep)[1]
    assert error(logits, found, case.keep) < TOLERANCE
    # And what they write is read as the same model.
    loaded.config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert families.llm_config(saved) == case.config


def test_factors_of_a_gguf_file_are_llama3s(tmp_path):
    """The worked-out divisors of a GGUF file and llama3's numbers are one model, and
    transformers loads it."""
    case = Case("llama3")
    blocks = case.config.blocks
    size, theta = blocks.head_dim, blocks.rope_theta
    divisors = frequencies(size, theta, None, 0) / frequencies(
        size, theta, blocks.rope_scaling, 0
    )
    rope = {"rope_type": "factors", "factors": divisors.tolist(), "rope_theta": theta}
    base = {**case.json, "rope_scaling": None, "rope_parameters": rope}
    config = families.llm_config(base)
    assert config.blocks.rope_scaling.kind == "factors"
    assert max(case.errors(config=config)) < TOLERANCE
    loaded = load_exported(tmp_path, config, base, case.tensors)
    found = theirs(loaded, case.ids, case.keep)[1]
    assert error(case.theirs[1], found, case.keep) < TOLERANCE
