"""CLIP's towers against transformers, in both directions.

Random weights, nothing at its initial value; one case has the shape of L/14 at 336
pixels with two layers. float32 on both sides.
"""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import weights
from safetensors.numpy import save_file

from vtscale_jax import paths
from vtscale_jax.text_tower import TextTower
from vtscale_jax.vision import VisionTower
from vtscale_jax.weights.files.tensors import ArrayTensors, open_tensors
from vtscale_jax.weights.huggingface import clip

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4
EOS = 89

TINY_VISION = {
    **{"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 3},
    **{"num_hidden_layers": 3, "image_size": 92, "patch_size": 4},
}
TINY_TEXT = {
    **{"hidden_size": 40, "intermediate_size": 72, "num_attention_heads": 2},
    **{"num_hidden_layers": 3, "vocab_size": 90, "max_position_embeddings": 530},
    **{"eos_token_id": EOS, "bos_token_id": 88},
}
CASES = {
    "quick_gelu": {"vision": TINY_VISION, "text": TINY_TEXT, "projection_dim": 24},
    "gelu": {
        "vision": {**TINY_VISION, "hidden_act": "gelu", "layer_norm_eps": 1e-3},
        "text": {**TINY_TEXT, "hidden_act": "gelu", "layer_norm_eps": 1e-3},
        "projection_dim": 56,
    },
    "L/14-336": {
        "vision": {
            **{"hidden_size": 1024, "intermediate_size": 4096, "image_size": 336},
            **{"num_attention_heads": 16, "num_hidden_layers": 2, "patch_size": 14},
        },
        "text": {
            **{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 2},
            **{"num_attention_heads": 12, "vocab_size": 90, "eos_token_id": EOS},
        },
        "projection_dim": 768,
    },
}


@jax.jit(static_argnums=0)
def see(config, params, pixels):
    """Hidden states before the last norm, and the class token after it."""
    out, state = VisionTower(config).apply(
        {"params": params}, pixels, mutable=["intermediates"]
    )
    seen = state["intermediates"]
    return [seen["input"][0], *seen["blocks"]["hidden"][0]], out.class_token


@jax.jit(static_argnums=0)
def read(config, params, ids, keep, eos):
    """Hidden states, the last one after the norm too, and the texts' vectors."""
    out, state = TextTower(config).apply(
        {"params": params}, ids, keep, eos, mutable=["intermediates"]
    )
    seen = state["intermediates"]
    return [seen["input"][0], *seen["blocks"]["hidden"][0]], seen["normed"][0], out


def error(one, other):
    return float(np.max(np.abs(np.asarray(one) - np.asarray(other))))


class Case:
    """One CLIP: their model, its tensors, our towers and inputs."""

    def __init__(self, name):
        from transformers import CLIPConfig, CLIPModel

        given = CASES[name]
        self.json = {
            "model_type": "clip",
            "projection_dim": given["projection_dim"],
            "vision_config": given["vision"],
            "text_config": given["text"],
        }
        fields = {k: v for k, v in copy.deepcopy(self.json).items() if "type" not in k}
        self.model = CLIPModel(CLIPConfig(**fields)).eval()
        state = self.model.state_dict()
        self.tensors = weights({n: t.shape for n, t in state.items()})
        load(self.model, self.tensors)
        plain = {"local_merge": False, "newline": False, "keep_class": True}
        self.vision = clip.vision_config(self.json, **plain)
        self.text = clip.text_config(self.json)
        self.params = self.read(self.tensors)

        rng = np.random.default_rng(3)
        side, length = self.vision.image_size, self.text.max_length
        self.pixels = rng.normal(size=(1, side, side, 3)).astype(np.float32)
        self.ids = rng.integers(0, 87, (2, length)).astype(np.int32)
        self.eos = np.array([length - 1, length // 2], np.int32)
        self.keep = np.arange(length) <= self.eos[:, None]
        self.ids = np.where(self.keep, self.ids, 0)
        self.ids[[0, 1], self.eos] = EOS

    def targets(self):
        """Shapes of our towers."""
        side, key = self.vision.image_size, jax.random.key(0)
        row = jnp.zeros((1, 1), jnp.int32)
        vision, text = VisionTower(self.vision), TextTower(self.text)
        image = jnp.zeros((1, side, side, 3))
        return {
            "vision": jax.eval_shape(vision.init, key, image)["params"],
            "text": jax.eval_shape(text.init, key, row, row == 0, row[0])["params"],
            "align": {"logit_scale": jax.ShapeDtypeStruct((), np.float32)},
        }

    def read(self, tensors):
        """Our parameters from a CLIP's tensors; our own norm has its post_layernorm, so
        that the class token too can be compared."""
        source = ArrayTensors(tensors)
        params, fresh = clip.import_clip(self.json, source, self.targets())
        assert fresh == ("vision/post_norm/bias", "vision/post_norm/scale")
        params["vision"]["post_norm"] = {
            "scale": tensors["vision_model.post_layernorm.weight"],
            "bias": tensors["vision_model.post_layernorm.bias"],
        }
        return params

    def vision_errors(self, params=None, model=None):
        """The largest difference of any hidden state, and of the class token."""
        import torch

        params, model = params or self.params, model or self.model.vision_model
        hidden, token = see(self.vision, params["vision"], self.pixels)
        with torch.no_grad():
            pixels = torch.from_numpy(self.pixels.transpose(0, 3, 1, 2))
            out = model(pixels, output_hidden_states=True)
        assert len(hidden) == len(out.hidden_states)
        states = max(map(error, hidden, out.hidden_states))
        assert 0.3 < np.std(hidden[-1]) < 10
        return states, error(token, out.pooler_output)

    def text_errors(self, params=None, model=None, eos=None):
        """The largest difference of any kept hidden state, and of the vectors."""
        import torch

        params, model = params or self.params, model or self.model
        eos = self.eos if eos is None else eos
        hidden, normed, vectors = read(
            self.text, params["text"], self.ids, self.keep, eos
        )
        ids = torch.tensor(self.ids, dtype=torch.long)
        keep = torch.tensor(self.keep)
        with torch.no_grad():
            out = model.text_model(ids, keep, output_hidden_states=True)
            embeds = model.text_projection(out.pooler_output)
        states = zip(
            [*hidden, normed], [*out.hidden_states, out.last_hidden_state], strict=True
        )
        assert 0.3 < np.std(vectors) < 10
        return max(error(a[self.keep], b[self.keep]) for a, b in states), error(
            vectors, embeds
        )


def load(model, tensors):
    import torch

    model.load_state_dict({n: torch.from_numpy(t) for n, t in tensors.items()})


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return Case(request.param)


def test_towers(case):
    assert max(*case.vision_errors(), *case.text_errors()) < TOLERANCE
    assert case.params["align"]["logit_scale"] == case.tensors["logit_scale"]


def test_one_weight_moved_by_a_hundredth_is_another_model(case):
    """Negative control: whichever tensor of layer 1, or of the embeddings, it is."""
    tiny = case.vision.blocks.width < 100
    names = [n for n in case.tensors if ".layers.1." in n or "embedding" in n]
    for name in names if tiny else names[::7]:
        # It adds the same to every score of a query, and so changes nothing.
        if name.endswith("k_proj.bias"):
            continue
        moved = {**case.tensors, name: case.tensors[name] * np.float32(1.01)}
        errors = case.vision_errors if name.startswith("vision") else case.text_errors
        assert max(errors(case.read(moved))) > TOLERANCE, name


def test_another_end_is_another_text(case):
    """Negative control."""
    assert case.text_errors(eos=case.eos - 1)[1] > 1e-2


def test_what_we_export_is_what_they_load(case, tmp_path):
    import transformers

    projection = case.tensors["visual_projection.weight"]
    whole = clip.export_clip(case.params, visual_projection=projection)
    assert whole.left_out == ()
    assert whole.tensors.keys() == case.tensors.keys()
    for name, tensor in case.tensors.items():
        np.testing.assert_array_equal(whole.tensors[name], tensor)

    def exchange(name, towers, exported, config):
        """Their model of our files, which they write and we read again."""
        kind, folder = getattr(transformers, name), tmp_path / name
        folder.mkdir()
        save_file(exported.tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config))
        model, info = kind.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info
        model.save_pretrained(folder)
        saved = json.loads((folder / "config.json").read_text())
        source = open_tensors(folder / "model.safetensors")
        targets = {tower: case.targets()[tower] for tower in towers}
        again = clip.import_clip(saved, source, targets).params
        for tower in towers:
            kept = paths.flatten(case.params[tower])
            for path, leaf in paths.flatten(again[tower]).items():
                np.testing.assert_array_equal(leaf, kept[path])
        return model

    both = clip.hf_clip_config(case.vision, case.text, case.json)
    model = exchange("CLIPModel", ["vision", "text"], whole, both)
    vision = exchange(
        "CLIPVisionModel",
        ["vision"],
        clip.export_clip({"vision": case.params["vision"]}),
        clip.hf_clip_config(case.vision, None),
    )
    text = exchange(
        "CLIPTextModelWithProjection",
        ["text"],
        clip.export_clip({"text": case.params["text"]}),
        clip.hf_clip_config(None, case.text, case.json),
    )
    for errors in (
        *(case.vision_errors(model=model.vision_model), case.text_errors(model=model)),
        *(case.vision_errors(model=vision), case.text_errors(model=text)),
    ):
        assert max(errors) < TOLERANCE
