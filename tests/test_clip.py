"""CLIP folders ↔ our towers: configs, what is taken, grown, left fresh and left out.

Parity with transformers is in test_parity_clip.py; nothing here needs torch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import weights

from vtscale_jax import paths
from vtscale_jax.text_tower import TextTower
from vtscale_jax.vision import VisionTower
from vtscale_jax.weights.files.tensors import ArrayTensors
from vtscale_jax.weights.huggingface import clip
from vtscale_jax.weights.naming import layouts, names
from vtscale_jax.weights.naming.rows import resize_rows

VISION = {
    **{"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3},
    **{"num_hidden_layers": 2, "image_size": 16, "patch_size": 4},
}
TEXT = {
    **{"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 2},
    **{"num_hidden_layers": 2, "vocab_size": 30, "max_position_embeddings": 9},
    **{"eos_token_id": 29},
}
CONFIG = {
    "model_type": "clip",
    "projection_dim": 12,
    "vision_config": VISION,
    "text_config": TEXT,
}


def targets(**text_changes):
    """Shapes of our towers for CONFIG, with all that is ours alone."""
    key, row = jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
    vision = VisionTower(clip.vision_config(CONFIG))
    text = TextTower(clip.text_config(CONFIG, **text_changes))
    image = jnp.zeros((1, 16, 16, 3))
    return {
        "vision": jax.eval_shape(vision.init, key, image)["params"],
        "text": jax.eval_shape(text.init, key, row, row == 0, row[0])["params"],
    }


def checkpoint():
    """Tensors of a whole CLIP, with buffers as old files have them."""
    parts = ("vision", "text", "logit_scale")
    flat = paths.flatten({**targets(), "align": {"logit_scale": np.float32(0)}})
    rules = layouts.clip_layout("clip", parts).rules
    ours = {path for rule in rules for path in rule.targets}
    zeros = {
        p: np.zeros(leaf.shape, np.float32) for p, leaf in flat.items() if p in ours
    }
    tree = paths.unflatten(zeros)
    shapes = dict(
        names.ExportedTensors(layouts.clip_layout("clip", parts), tree).shapes
    )
    shapes |= {
        "visual_projection.weight": (12, 24),
        "vision_model.post_layernorm.weight": (24,),
        "vision_model.post_layernorm.bias": (24,),
    }
    buffers = {
        "text_model.embeddings.position_ids": np.arange(9)[None],
        "vision_model.embeddings.position_ids": np.arange(17)[None],
    }
    return {**weights(shapes), **buffers}


def test_towers_are_taken_and_the_rest_is_named():
    tensors = checkpoint()
    params, fresh = clip.import_clip(CONFIG, ArrayTensors(tensors), targets())
    assert fresh == (
        *("vision/merge/kernel", "vision/newline"),
        *("vision/post_norm/bias", "vision/post_norm/scale"),
    )
    missing = paths.flatten(targets()).keys() - paths.flatten(params).keys()
    assert missing == set(fresh) and "align" not in params
    np.testing.assert_array_equal(
        params["vision"]["patch_embed"]["kernel"][1, 2],
        tensors["vision_model.embeddings.patch_embedding.weight"][:, :, 1, 2].T,
    )
    np.testing.assert_array_equal(
        params["text"]["blocks"]["up"]["kernel"][1],
        tensors["text_model.encoder.layers.1.mlp.fc1.weight"].T,
    )
    np.testing.assert_array_equal(
        params["text"]["projection"]["kernel"], tensors["text_projection.weight"].T
    )


def test_one_tower_of_a_whole_clip_and_the_logit_scale_where_asked():
    tensors, wanted = checkpoint(), targets()
    for tower in ("vision", "text"):
        one = {tower: wanted[tower], "fusion": wanted["vision"]}
        params, fresh = clip.import_clip(CONFIG, ArrayTensors(tensors), one)
        assert params.keys() == {tower} and bool(fresh) == (tower == "vision")
    scale = {"align": {"logit_scale": jax.ShapeDtypeStruct((), np.float32)}}
    params, _ = clip.import_clip(CONFIG, ArrayTensors(tensors), {**wanted, **scale})
    assert params["align"]["logit_scale"] == tensors["logit_scale"]


def test_a_tower_saved_alone_with_and_without_its_prefix():
    tensors, wanted = checkpoint(), targets()
    whole, _ = clip.import_clip(CONFIG, ArrayTensors(tensors), wanted)
    for tower, config in (("vision", VISION), ("text", {**TEXT, "projection_dim": 12})):
        alone = {
            name: t for name, t in tensors.items() if name.startswith(f"{tower}_model.")
        }
        if tower == "text":
            alone["text_projection.weight"] = tensors["text_projection.weight"]
        bare = {name.removeprefix(f"{tower}_model."): t for name, t in alone.items()}
        config = {**config, "model_type": f"clip_{tower}_model"}
        for files in (alone, bare):
            one = {tower: wanted[tower]}
            params, _ = clip.import_clip(config, ArrayTensors(files), one)
            for path, leaf in paths.flatten(params).items():
                np.testing.assert_array_equal(leaf, paths.flatten(whole)[path])
    # A CLIPTextModel has no projection, and nothing is made up for it.
    del bare["text_projection.weight"]
    with pytest.raises(ValueError, match=r"lacks:\n\s+text_projection\.weight"):
        clip.import_clip(config, ArrayTensors(bare), {"text": wanted["text"]})


@pytest.mark.parametrize("stray", ["vision_model.extra.weight", "text_model.x.bias"])
def test_every_tensor_has_a_place_or_a_reason(stray):
    tensors = {**checkpoint(), stray: np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=f"without a place in the model:\n *{stray}"):
        clip.import_clip(CONFIG, ArrayTensors(tensors), targets())


def test_positions_and_words_grow_like_the_old_ones():
    """77 → 512 positions, and rows for added query tokens."""
    tensors = checkpoint()
    grown = targets(max_length=400, vocab_size=500)

    def read(seed):
        source = ArrayTensors(tensors)
        params, _ = clip.import_clip(CONFIG, source, grown, seed=seed)
        return params["text"]["pos_embed"], params["text"]["embed"]

    for table, name in zip(read(0), ("position", "token"), strict=True):
        old = tensors[f"text_model.embeddings.{name}_embedding.weight"]
        np.testing.assert_array_equal(table[: len(old)], old)
        new = table[len(old) :]
        assert abs(new.mean() - old.mean()) < 4 * old.std() / np.sqrt(new.size)
        assert abs(new.std() / old.std() - 1) < 0.05
    positions, words = read(0)
    assert np.array_equal(read(0)[0], positions)
    assert not np.array_equal(read(1)[0], positions)
    # The two tables do not get the same draws.
    both = [table[-300:].ravel() for table in (positions, words)]
    assert abs(np.corrcoef(*both)[0, 1]) < 0.05
    short = targets(max_length=5)
    params, _ = clip.import_clip(CONFIG, ArrayTensors(tensors), short)
    np.testing.assert_array_equal(params["text"]["pos_embed"], positions[:5])
    with pytest.raises(
        ValueError, match=r"text\.vocab_size: got 20, expected at least"
    ):
        clip.import_clip(CONFIG, ArrayTensors(tensors), targets(vocab_size=20))


def test_rows_in_bfloat16_have_the_tables_deviation():
    """A sum in bfloat16 stops at 256; the new rows would then be far too narrow."""
    table = np.random.default_rng(0).normal(3, 1, (4000, 8)).astype(jnp.bfloat16)
    new = resize_rows(table, 8000, (0, 1))[4000:]
    assert new.dtype == jnp.bfloat16
    assert abs(new.astype(float).mean() - 3) < 0.05
    assert abs(new.astype(float).std() - 1) < 0.05


def test_configs_have_transformers_defaults_and_older_spellings():
    bare = {"model_type": "clip_vision_model"}
    vision = clip.vision_config(bare, local_merge=False)
    assert vision.image_size == 224 and vision.patch_size == 32 and vision.newline
    assert vision.blocks.width == 768 and vision.blocks.activation == "quick_gelu"
    text = clip.text_config({"model_type": "clip"}, dtype="bfloat16", max_length=512)
    assert (text.vocab_size, text.max_length, text.projection_width) == (
        49408,
        512,
        512,
    )
    assert text.blocks.dtype == "bfloat16"
    # OpenAI's L/14-336 on the hub holds the towers twice.
    old = {
        "model_type": "clip",
        "projection_dim": 768,
        "text_config": {"hidden_size": 1, "eos_token_id": 2},
        "text_config_dict": {"hidden_size": 768, "num_attention_heads": 12},
    }
    text = clip.text_config(old)
    assert text.blocks.width == 768 and text.projection_width == 768
    assert clip.hf_clip_config(None, text, old)["eos_token_id"] == 49407


@pytest.mark.parametrize(
    "config, message",
    [
        (
            {"model_type": "siglip"},
            r"config\.model_type: got 'siglip', expected 'clip'",
        ),
        ({"model_type": "clip_text_model"}, "take a CLIP folder that has the vision"),
        (
            {"model_type": "clip", "vision_config": {"num_channels": 4}},
            r"vision_config\.num_channels: got 4, expected 3",
        ),
        (
            {"model_type": "clip", "vision_config": {"image_size": [224, 448]}},
            r"vision_config\.image_size: got \[224, 448\], expected one whole number",
        ),
        (
            {"model_type": "clip", "vision_config": {"hidden_act": "mish"}},
            "activation 'mish' is unknown",
        ),
    ],
)
def test_configs_that_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        clip.vision_config(config)


def test_imports_that_are_refused():
    source = ArrayTensors(checkpoint())
    with pytest.raises(ValueError, match="expected 'vision', 'text' or both"):
        clip.import_clip(CONFIG, source, {"fusion": targets()["vision"]})
    alone = {**VISION, "model_type": "clip_vision_model"}
    with pytest.raises(ValueError, match="take a CLIP folder that has the text tower"):
        clip.import_clip(alone, source, targets())
    larger = {**CONFIG, "vision_config": {**VISION, "image_size": 24}}
    image = jnp.zeros((1, 24, 24, 3))
    model = VisionTower(clip.vision_config(larger))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    with pytest.raises(ValueError, match=r"position_embedding\.weight: \(17, 24\) in"):
        clip.import_clip(larger, source, {"vision": shapes})


def test_exports_say_what_has_no_place():
    tensors = checkpoint()
    params, fresh = clip.import_clip(CONFIG, ArrayTensors(tensors), targets())
    flat, shapes = paths.flatten(params), paths.flatten(targets())
    flat |= {path: np.full(shapes[path].shape, 0.5, np.float32) for path in fresh}
    flat["align/projection/kernel"] = np.zeros((24, 12), np.float32)
    exported = clip.export_clip(
        {"vision": paths.unflatten(flat)["vision"], "fusion": params["text"]}
    )
    assert {"vision/merge/kernel", "vision/newline"} < set(exported.left_out)
    assert "fusion/embed" in exported.left_out
    assert all(name.startswith("vision_model.") for name in exported.tensors)
    assert np.all(exported.tensors["vision_model.post_layernorm.weight"] == 0.5)
    for name, tensor in exported.tensors.items():
        if "post_layernorm" not in name:
            np.testing.assert_array_equal(tensor, tensors[name])

    whole, projection = paths.unflatten(flat), tensors["visual_projection.weight"]
    with pytest.raises(ValueError, match="without align/logit_scale and visual_proj"):
        clip.export_clip(whole)
    whole["align"]["logit_scale"] = np.float32(4.6)
    with pytest.raises(ValueError, match="towers without visual_projection, which"):
        clip.export_clip(whole)
    exported = clip.export_clip(whole, visual_projection=projection)
    assert exported.tensors["logit_scale"] == np.float32(4.6)
    assert "align/projection/kernel" in exported.left_out
    with pytest.raises(ValueError, match="expected 'vision' or 'text'"):
        clip.export_clip({"fusion": params["text"]})


def test_exported_configs():
    vision, text = clip.vision_config(CONFIG), clip.text_config(CONFIG)
    whole = clip.hf_clip_config(vision, text, CONFIG, dtype="bfloat16")
    assert whole["architectures"] == ["CLIPModel"] and whole["dtype"] == "bfloat16"
    assert clip.vision_config(whole) == vision and clip.text_config(whole) == text
    one = clip.hf_clip_config(vision, None, CONFIG)
    assert one["model_type"] == "clip_vision_model"
    assert clip.vision_config(one) == vision
    assert clip.text_config(clip.hf_clip_config(None, text, CONFIG)) == text
    with pytest.raises(ValueError, match="eos_token_id: got 49407, expected an id of"):
        clip.hf_clip_config(None, text)
    with pytest.raises(ValueError, match="got neither"):
        clip.hf_clip_config(None, None, CONFIG)
