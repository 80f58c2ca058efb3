"""LLaVA read from folders: every spelling of the names, and what does not fit."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vtscale_jax import paths
from vtscale_jax.eval.baselines import llava_goldens
from vtscale_jax.eval.baselines.llava import LlavaConfig
from vtscale_jax.weights.files.tensors import ArrayTensors
from vtscale_jax.weights.huggingface.llava import (
    import_llava,
    llava_fields,
    llava_layout,
    llava_shapes,
)
from vtscale_jax.weights.llava_models import load_llava
from vtscale_jax.weights.naming.rules import current_names, source_tensors


@pytest.fixture(scope="module")
def folder(golden_dir):
    return golden_dir / "llava_tiny"


@pytest.fixture(scope="module")
def config(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def tensors(folder):
    return load_file(folder / "weights.safetensors")


def renamed(tensors, *rules):
    """The tensors with their names spelt in another way."""
    made = {}
    for name, tensor in tensors.items():
        for pattern, new in rules:
            name = re.sub(f"^{pattern}", new, name)
        made[name] = tensor
    return made


# From the names of the golden file, which are those of transformers before 5.
SPELLINGS = {
    "as in files": (),
    "in memory of transformers 5": (
        (r"vision_tower\.vision_model\.", "model.vision_tower."),
        (r"multi_modal_projector\.", "model.multi_modal_projector."),
        (r"language_model\.model\.", "model.language_model."),
        (r"language_model\.lm_head\.", "lm_head."),
    ),
    "as transformers 5 writes it": (
        (r"vision_tower\.vision_model\.", "vision_tower."),
    ),
    "between the two": (
        (r"vision_tower\.", "model.vision_tower."),
        (r"multi_modal_projector\.", "model.multi_modal_projector."),
        (r"language_model\.model\.", "model.language_model."),
        (r"language_model\.lm_head\.", "lm_head."),
    ),
    "of the original authors": (
        (r"vision_tower\.", "model.vision_tower.vision_tower."),
        (r"multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
        (r"multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
        (r"language_model\.model\.", "model."),
        (r"language_model\.lm_head\.", "lm_head."),
    ),
}


def read(config, tensors):
    return import_llava(config, ArrayTensors(tensors))


def checks(folder, fields, params):
    model = LlavaConfig(*fields[:6])
    return llava_goldens.check(folder, params, model, fields.image_token_id)


@pytest.mark.goldens
@pytest.mark.parametrize("spelling", ["as in files", "in memory of transformers 5"])
def test_goldens(folder, config, tensors, spelling):
    found = checks(folder, *read(config, renamed(tensors, *SPELLINGS[spelling])))
    assert len(found) == 20
    assert [one for one in found if not one.ok] == []


@pytest.mark.goldens
@pytest.mark.parametrize(
    ("name", "fails"),
    [
        ("vision_tower.vision_model.pre_layrnorm.bias", "llava tower"),
        (
            "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
            "llava class attention",
        ),
        ("multi_modal_projector.linear_2.weight", "llava projector"),
        ("language_model.model.layers.1.mlp.up_proj.weight", "llava logits of row 1"),
        ("language_model.lm_head.weight", "llava logits of row 0"),
    ],
)
def test_one_weight_moved_fails(folder, config, tensors, name, fails):
    """Negative control."""
    moved = tensors[name].copy()
    moved.flat[:3] += 0.05
    found = checks(folder, *read(config, {**tensors, name: moved}))
    assert fails in [one.name for one in found if not one.ok]
    # What comes before it is as it was.
    assert [one for one in found if one.ok]


@pytest.mark.goldens
def test_another_layer_fails(folder, config, tensors):
    """Negative control: the pixels still agree, nothing after the tower does."""
    fields, params = read(config, tensors)
    wrong = fields._replace(feature_layers=(1,))  # the same one, by another number
    assert all(one.ok for one in checks(folder, wrong, params))
    fields, params = read({**config, "vision_feature_layer": -1}, tensors)
    with np.load(folder / "io.npz") as file:
        assert "vision_hidden_2" in file
    failed = [one.name for one in checks(folder, fields, params) if not one.ok]
    assert "llava tower" not in failed and "llava projector" in failed


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_the_same_model(config, tensors, spelling):
    _, expected = read(config, tensors)
    old = {
        "vision_tower.vision_model.embeddings.position_ids": np.arange(17)[None],
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(6),
    }
    spelt = renamed({**tensors, **old}, *SPELLINGS[spelling])
    _, found = read(config, spelt)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_what_nothing_reads_need_not_be_there(config, tensors):
    """The last block and the norm behind it; and they are not read when they are."""
    fields, params = read(config, tensors)
    assert len(params["vision"]["blocks"]["norm1"]["bias"]) == 1
    assert "post_norm" not in params["vision"]
    gone = r"vision_tower\.vision_model\.(encoder\.layers\.1\.|post_layernorm)"
    kept = {name: t for name, t in tensors.items() if not re.match(gone, name)}
    assert len(kept) == len(tensors) - 18
    _, found = read(config, kept)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    # With the last layer asked for they are needed.
    last = {**config, "vision_feature_layer": -1}
    with pytest.raises(ValueError, match=r"lacks:\s+vision_tower.encoder.layers.1."):
        read(last, kept)


def test_all_that_does_not_fit_is_in_one_error(config, tensors):
    name = "multi_modal_projector.linear_1.weight"
    bad = dict(tensors)
    bad["multi_modal_projector.linear_1.weight"] = bad[name][:, :-1]
    bad["model.image_newline"] = np.ones(48, np.float32)
    bad["vision_tower.vision_model.encoder.layers.7.mlp.fc1.bias"] = np.ones(64)
    del bad["language_model.model.norm.weight"]
    with pytest.raises(ValueError) as caught:
        read(config, bad)
    said = str(caught.value)
    for part in (
        "2 tensors without a place in the model",
        "model.image_newline",
        "vision_tower.vision_model.encoder.layers.7.mlp.fc1.bias",
        "language_model.model.norm.weight",
        f"{name}: (48, 31) in the checkpoint, (48, 32) expected",
    ):
        assert part in said
    both = {**tensors, "lm_head.weight": tensors["language_model.lm_head.weight"]}
    with pytest.raises(ValueError, match="two spellings of 'language_model.lm_head"):
        read(config, both)


HUB = {
    "model_type": "llava",
    "image_token_index": 32000,
    "pad_token_id": 32001,
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
}
ORIGINAL = {
    "model_type": "llava",
    "architectures": ["LlavaLlamaForCausalLM"],
    "hidden_size": 4096,
    "max_position_embeddings": 4096,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "rms_norm_eps": 1e-05,
    "vocab_size": 32000,
}


@pytest.mark.parametrize(("config", "rows"), [(HUB, 32064), (ORIGINAL, 32000)])
def test_the_7b_at_full_size(config, rows):
    """Sizes by shapes alone: the projector's 20,979,712 parameters, 23 of 24 blocks."""
    fields = llava_fields(config)
    shapes = llava_shapes(fields)
    count = {part: _count(tree) for part, tree in shapes.items()}
    assert count["projector"] == 20_979_712
    # CLIP L/14 at 336 has 303,507,456; without block 23 and post_layernorm.
    assert count["vision"] == 303_507_456 - 12_596_224 - 2048
    assert count["llm"] == 6_738_415_616 + 2 * (rows - 32000) * 4096
    model = LlavaConfig(*fields[:6])
    assert (model.states, model.num_patches, model.num_tokens) == ((23,), 576, 576)
    assert fields.llm.blocks.norm_eps == 1e-5 and fields.llm.blocks.activation == "silu"
    assert fields.vision.blocks.activation == "quick_gelu"
    assert fields.image_token_id == (32000 if config is HUB else None)
    # Every name that a file of it has: none is left over, none is missing.
    layout = llava_layout(fields, "llama")
    flat = {path: tuple(leaf.shape) for path, leaf in paths.flatten(shapes).items()}
    wanted = source_tensors(layout, flat)
    block = "vision_tower.vision_model.encoder.layers.{}.mlp.fc1.weight"
    files = ["vision_tower.vision_model.embeddings.position_ids", *wanted]
    assert set(current_names(layout, [*files, block.format(23)])) == set(wanted)
    assert set(current_names(layout, [block.format(24)])) - set(wanted)


def _count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in paths.flatten(tree).values())


def test_left_out_fields_have_the_defaults_of_transformers(config):
    bare = {"model_type": "llava", "text_config": {"hidden_size": 64}}
    fields = llava_fields(bare)
    assert (fields.vision.image_size, fields.vision.blocks.num_layers) == (336, 24)
    assert fields[2:] == ((-2,), False, "gelu", True, 32000)
    assert fields.llm.vocab_size == 32000 and fields.llm.blocks.norm_eps == 1e-6
    full = {**config, "vision_feature_select_strategy": "full", "image_token_id": 7}
    del full["image_token_index"]
    assert llava_fields(full).keep_class and llava_fields(full).image_token_id == 7
    listed = llava_fields({**config, "vision_feature_layer": [-2, 0]})
    assert listed.feature_layers == (-2, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "llava_next"},
            "model_type: got 'llava_next', expected 'llava'",
        ),
        ({"vision_feature_select_strategy": "cls"}, "got 'cls', expected one of"),
        ({"mm_vision_tower": "siglip"}, "mm_vision_tower: got 'siglip'"),
        (
            {"mm_vision_tower": "clip-vit-large-patch14-336"},
            "mm_projector_type: got None",
        ),
    ],
)
def test_other_models_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        llava_fields({**config, **changes})


@pytest.mark.parametrize("layer", [3, -4, "-2", []])
def test_layers_that_are_not_there(config, layer):
    with pytest.raises(ValueError, match=r"number from -3 to 2, or a list of them"):
        llava_fields({**config, "vision_feature_layer": layer})
    if isinstance(layer, int):
        fields = llava_fields(config)._replace(feature_layers=(layer,))
        with pytest.raises(ValueError, match=r"expected numbers from -3 to 2, the st"):
            LlavaConfig(*fields[:6])


def test_a_folder_with_its_tokenizer(tmp_path, config, tensors):
    from vtscale_jax.embedded.vocabulary import save_tokenizer

    text = {**config["text_config"], "vocab_size": 70}
    (tmp_path / "config.json").write_text(json.dumps({**config, "text_config": text}))
    grown = dict(tensors)
    for name in (
        "language_model.lm_head.weight",
        "language_model.model.embed_tokens.weight",
    ):
        grown[name] = np.concatenate([tensors[name], tensors[name][:6]])
    save_file(grown, tmp_path / "model.safetensors")
    save_tokenizer(tmp_path)
    found = load_llava("weights", str(tmp_path), dtype="bfloat16")
    leaves = jax.tree.leaves(found.params)
    assert {str(leaf.dtype) for leaf in leaves} == {"bfloat16"}
    assert found.limit == 128 and found.end_ids == (2,)
    again = load_llava("weights", str(tmp_path), dtype="float32")
    assert found.sha256 == again.sha256
    with pytest.raises(ValueError, match="weights: .*nowhere does not exist"):
        load_llava("weights", str(tmp_path / "nowhere"))
