"""LLaVA against transformers' LlavaForConditionalGeneration on random weights.

Sizes all different, nothing at its initial value; the folders are those that
transformers writes, with one file or several. float32 on both sides.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import weights

from vtscale_jax.eval.baselines.llava import Llava, LlavaConfig
from vtscale_jax.weights.files.tensors import open_tensors
from vtscale_jax.weights.huggingface.llava import import_llava

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4
IMAGE = 90

VISION = {
    **{"model_type": "clip_vision_model", "hidden_size": 48, "intermediate_size": 80},
    **{"num_attention_heads": 3, "num_hidden_layers": 4, "image_size": 40},
    **{"patch_size": 8, "projection_dim": 16},
}
TEXT = {
    **{"model_type": "llama", "vocab_size": 96, "hidden_size": 64},
    **{"intermediate_size": 88, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 5000.0},
    **{"max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2},
}
CASES = {
    "usual": {},
    "several layers": {"vision_feature_layer": [-2, 1, 0]},
    "last layer, class row": {
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
    "no bias, silu": {
        "multimodal_projector_bias": False,
        "projector_hidden_act": "silu",
    },
}


class Case:
    """A model of theirs with random weights, and its folder."""

    def __init__(self, fields, folder, shard_size="1GB"):
        import torch
        from transformers import LlavaConfig as TheirConfig
        from transformers import LlavaForConditionalGeneration

        config = TheirConfig(
            vision_config=dict(VISION),
            text_config=dict(TEXT),
            image_token_index=IMAGE,
            tie_word_embeddings=False,
            **fields,
        )
        config._attn_implementation = "eager"
        self.model = LlavaForConditionalGeneration(config).eval()
        state = self.model.state_dict()
        made = weights({name: tensor.shape for name, tensor in state.items()})
        self.model.load_state_dict({n: torch.from_numpy(t) for n, t in made.items()})
        self.model.save_pretrained(folder, max_shard_size=shard_size)
        self.json = json.loads((folder / "config.json").read_text())
        self.folder = folder
        rng = np.random.default_rng(5)
        self.pixels = rng.normal(size=(2, 40, 40, 3)).astype(np.float32)
        self.number = 25 + (fields.get("vision_feature_select_strategy") == "full")
        text = rng.integers(3, 89, (2, 20)).astype(np.int32)
        image = np.full((2, self.number), IMAGE, np.int32)
        self.ids = np.concatenate([text[:, :7], image, text[:, 7:]], axis=1)

    def theirs(self):
        import torch

        with torch.no_grad():
            out = self.model(
                input_ids=torch.tensor(self.ids, dtype=torch.long),
                attention_mask=torch.ones(self.ids.shape, dtype=torch.long),
                pixel_values=torch.from_numpy(self.pixels.transpose(0, 3, 1, 2)),
            )
        return out.logits.numpy()

    def read(self, **changes):
        return import_llava({**self.json, **changes}, open_tensors(self.folder))

    def ours(self, fields, params):
        config = LlavaConfig(*fields[:6])
        shape = self.ids.shape
        slots = np.broadcast_to(7 + np.arange(self.number), (2, self.number))
        logits = Llava(config).apply(
            {"params": jax.tree.map(jnp.asarray, params)},
            jnp.asarray(self.pixels),
            jnp.asarray(self.ids),
            jnp.ones(shape, bool),
            jnp.asarray(slots),
            jnp.broadcast_to(jnp.arange(shape[1]), shape),
        )
        return np.asarray(logits)


@pytest.mark.parametrize("name", CASES)
def test_logits(name, tmp_path):
    case = Case(CASES[name], tmp_path)
    fields, params = case.read()
    assert fields.image_token_id == IMAGE
    expected = case.theirs()
    assert 0.3 < np.std(expected) < 30
    np.testing.assert_allclose(case.ours(fields, params), expected, atol=TOLERANCE)


def test_one_weight_moved_is_another_model(tmp_path):
    """Negative control: whichever tensor of ours it is."""
    case = Case({}, tmp_path)
    fields, params = case.read()
    expected = case.theirs()
    for part, path in (
        ("vision", ("blocks", "attn", "value", "kernel")),
        ("vision", ("pre_norm", "bias")),
        ("projector", ("linear_1", "bias")),
        ("llm", ("norm", "scale")),
    ):
        moved = jax.tree.map(np.array, params)
        node = moved[part]
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] *= 1.05
        assert np.max(np.abs(case.ours(fields, moved) - expected)) > 1e-3, path


def test_another_layer_is_another_model(tmp_path):
    """Negative control: one layer off, or another activation."""
    case = Case({}, tmp_path)
    expected = case.theirs()
    for changes in ({"vision_feature_layer": -3}, {"projector_hidden_act": "silu"}):
        found = case.ours(*case.read(**changes))
        assert np.max(np.abs(found - expected)) > 1e-2


def test_a_folder_of_several_files(tmp_path):
    case = Case({}, tmp_path, shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    found = case.ours(*case.read())
    np.testing.assert_allclose(found, case.theirs(), atol=TOLERANCE)
