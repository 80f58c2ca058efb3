"""Name tables: strict in both directions, exact round trips, older layouts, configs."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_folders import stage2_weights
from safetensors.numpy import load_file

from vtscale_jax import paths
from vtscale_jax.stages import parameter_shapes
from vtscale_jax.vision import VisionTower
from vtscale_jax.vlm import VLM, AlignModel
from vtscale_jax.weights.authors import towers
from vtscale_jax.weights.files.tensors import ArrayTensors
from vtscale_jax.weights.naming import layouts, names


def config_of(golden_dir, folder):
    return json.loads((golden_dir / folder / "config.json").read_text())


@pytest.fixture(scope="module")
def sources(golden_dir):
    """Per kind of model: its layout, the tensors of a file, our empty tree."""
    clip = config_of(golden_dir, "G3_clip")["clip_config"]
    whole = config_of(golden_dir, "G4_vlm")["config"]
    tower = config_of(golden_dir, "G2_vision")["vision_config"]
    rows = {
        "vision": (
            layouts.VISION_LAYOUT,
            load_file(golden_dir / "G2_vision" / "weights.safetensors"),
            towers.vision_config(tower),
            VisionTower,
        ),
        "align": (
            layouts.ALIGN_LAYOUT,
            load_file(golden_dir / "G3_clip" / "weights.safetensors"),
            towers.align_config(clip, 52),
            AlignModel,
        ),
        "vlm": (
            layouts.VLM_LAYOUT,
            stage2_weights(golden_dir),
            towers.vlm_config(whole, 52),
            VLM,
        ),
    }
    return {
        kind: (layout, tensors, parameter_shapes(model, config))
        for kind, (layout, tensors, config, model) in rows.items()
    }


def read(layout, tensors, targets, **options):
    return names.import_tree(layout, ArrayTensors(tensors), targets, **options)


class Unread(ArrayTensors):
    """Tensors that must not be read: only their shapes and dtypes may be known."""

    def read(self, name, index=None):
        raise AssertionError(f"{name} was read although the checkpoint does not fit")


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert ours[name].shape == tensor.shape, name
        assert ours[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize("kind", ["vision", "align", "vlm"])
def test_import_then_export_is_the_file(sources, kind):
    layout, tensors, targets = sources[kind]
    tree = read(layout, tensors, targets)
    shapes = jax.tree.map(lambda leaf: leaf.shape, targets)
    assert jax.tree.map(np.shape, tree) == shapes
    assert_same(names.export_tree(layout, tree), tensors)
    # Negative control: one other bit is seen.
    name = sorted(tensors)[0]
    changed = {**tensors, name: np.nextafter(tensors[name], np.float32(9))}
    with pytest.raises(AssertionError):
        assert_same(names.export_tree(layout, read(layout, changed, targets)), tensors)


def test_layers_and_linears_go_where_they_belong(sources):
    layout, tensors, targets = sources["vlm"]
    tree = paths.flatten(read(layout, tensors, targets))
    theirs = tensors["llm_backbone.model.layers.1.mlp.gate_proj.weight"]
    assert np.array_equal(tree["llm/blocks/gate/kernel"][1], theirs.T)
    patch = "imgque_backbone.clip_model.vision_model.embeddings.patch_embedding.weight"
    # One output channel at one pixel of one colour: OIHW there, HWIO here.
    assert tree["vision/patch_embed/kernel"][3, 5, 2, 7] == tensors[patch][7, 2, 3, 5]
    assert np.array_equal(tree["llm/head"], tensors["llm_backbone.lm_head.weight"].T)


@pytest.mark.parametrize("first", [1, 52, 63, 64])
def test_queries_are_the_rows_from_the_first_query_id_on(golden_dir, sources, first):
    layout, tensors, _ = sources["align"]
    clip = config_of(golden_dir, "G3_clip")["clip_config"]
    config = towers.align_config(clip, first)
    tree = read(layout, tensors, parameter_shapes(AlignModel, config))
    table = tensors["imgque_model.embed_tokens.weight"]
    assert np.array_equal(tree["fusion"]["embed"], table[:first])
    # Rows of the table that no token uses are kept; without queries there is no leaf.
    assert ("queries" in tree["fusion"]) == (first < 64)
    assert np.array_equal(tree["fusion"].get("queries", table[64:]), table[first:])
    assert_same(names.export_tree(layout, tree), tensors)


def test_one_error_lists_everything_that_is_left_over(sources):
    layout, tensors, targets = sources["align"]
    bad = dict(tensors)
    bad["imgque_projection.wieght"] = bad.pop("imgque_projection.weight")
    del bad["clip_model.text_model.encoder.layers.1.mlp.fc1.bias"]
    bad["imgque_model.norm.weight"] = np.zeros(7, np.float32)
    more = {**targets, "align": {**targets["align"], "bias": jnp.zeros(3)}}
    with pytest.raises(ValueError) as caught:
        names.import_tree(layout, Unread(bad), more)
    text = str(caught.value)
    assert re.search(
        r"1 tensors without a place[^\n]*\n +imgque_projection.wieght", text
    )
    assert "2 tensors that the model needs" in text
    assert "imgque_projection.weight" in text
    assert "clip_model.text_model.encoder.layers.1.mlp.fc1.bias" in text
    assert "(7,) in the checkpoint, (128,) expected for fusion/norm/scale" in text
    assert re.search(r"parameters that no tensor fills:\n +align/bias", text)


def test_a_layer_too_many_or_too_few_is_an_error(sources):
    layout, tensors, targets = sources["vlm"]
    name = "llm_backbone.model.layers.{}.mlp.up_proj.weight"
    deeper = {**tensors, name.format(2): tensors[name.format(1)]}
    with pytest.raises(ValueError, match=r"without a place.*\n +.*layers\.2\.mlp"):
        read(layout, deeper, targets)
    fewer = {k: v for k, v in tensors.items() if k != name.format(1)}
    with pytest.raises(ValueError, match=r"lacks:\n +llm_backbone.*layers\.1\.mlp"):
        read(layout, fewer, targets)


def test_export_refuses_parameters_without_a_name(sources):
    layout, tensors, targets = sources["vision"]
    tree = {**read(layout, tensors, targets), "extra": {"scale": np.ones(2)}}
    with pytest.raises(ValueError, match=r"without a name:\n +extra/scale"):
        names.export_tree(layout, tree)


def older(tensors):
    """A stage-1 file in the older layout, with CLIP's own last norm still in it."""
    inner = "clip_model.vision_model."
    old = {
        name.replace(inner, f"{inner}vision_model.") if inner in name else name: tensor
        for name, tensor in tensors.items()
    }
    for part in ("weight", "bias"):
        name = f"{inner}vision_model.post_layernorm.{part}"
        old[name] = np.full(128, 9, np.float32)
    return old


def test_older_layout_reads_as_the_newer(sources):
    layout, tensors, targets = sources["align"]
    tree = read(layout, older(tensors), targets)
    assert_same(names.export_tree(layout, tree), tensors)
    # Only that one norm, and only where it used to be, may be passed over.
    for name in (
        "clip_model.vision_model.post_layernorm.weight",
        "post_layernorm.bias",
    ):
        with pytest.raises(ValueError, match=f"without a place.*\n +{name}"):
            read(layout, {**tensors, name: np.ones(128, np.float32)}, targets)


def test_older_layout_may_lack_a_norm_that_is_then_given(sources):
    layout, tensors, targets = sources["align"]
    old = {name: x for name, x in older(tensors).items() if "pos_layrnorm" not in name}
    with pytest.raises(ValueError, match=r"lacks:\n.*pos_layrnorm.bias"):
        read(layout, old, targets)
    fresh = {
        "vision/post_norm/scale": np.ones(128, np.float32),
        "vision/post_norm/bias": np.zeros(128, np.float32),
    }
    tree = read(layout, old, targets, given=fresh)
    assert np.all(tree["vision"]["post_norm"]["scale"] == 1)
    # What is given must not be in the file as well, and must be the model's.
    with pytest.raises(ValueError, match="without a place"):
        read(layout, tensors, targets, given=fresh)
    with pytest.raises(ValueError, match=r"does not have:\n +vision/other"):
        read(layout, old, targets, given={**fresh, "vision/other": np.ones(1)})
    wrong = {**fresh, "vision/post_norm/bias": np.zeros(5)}
    with pytest.raises(ValueError, match=r"given vision/post_norm/bias: \(5,\)"):
        read(layout, old, targets, given=wrong)


def test_two_spellings_of_one_tensor_are_refused(sources):
    layout, tensors, targets = sources["align"]
    name = "clip_model.vision_model.vision_model.token_LF"
    twice = {**tensors, name: tensors["clip_model.vision_model.token_LF"]}
    with pytest.raises(ValueError, match="two spellings of 'clip_model.vision_model"):
        read(layout, twice, targets)


def test_tied_embeddings_may_be_there_twice_if_equal(golden_dir, sources):
    layout, tensors, _ = sources["vlm"]
    config = config_of(golden_dir, "G4_vlm")["config"]
    config["llm_config"]["tie_word_embeddings"] = True
    targets = parameter_shapes(VLM, towers.vlm_config(config, 52))
    assert "head" not in targets["llm"]
    head, table = (
        "llm_backbone.lm_head.weight",
        "llm_backbone.model.embed_tokens.weight",
    )
    with pytest.raises(ValueError, match="values unlike those of llm_backbone.model"):
        read(layout, tensors, targets)
    equal = {**tensors, head: tensors[table]}
    once = {name: tensor for name, tensor in tensors.items() if name != head}
    assert_same(names.export_tree(layout, read(layout, equal, targets)), once)
    assert_same(names.export_tree(layout, read(layout, once, targets)), once)


def full_size_configs():
    """Sizes as the authors' scripts set them, at M = 256."""
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    }
    text = {
        "vocab_size": 49408 + 255,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "max_position_embeddings": 1024,
    }
    clip = {
        "vision_config": vision,
        "text_config": text,
        "projection_dim": 768,
        "num_hidden_layers": 24,
    }
    return {
        "align": towers.align_config(clip, 49408),
        "vlm": towers.vlm_config(
            {"imgque_config": clip, "llm_config": {"_": 0}}, 49408
        ),
    }


@pytest.mark.parametrize("kind, model", [("align", AlignModel), ("vlm", VLM)])
def test_full_size_names_and_shapes_are_the_authors(golden_dir, kind, model):
    listed = json.loads((golden_dir / "full_size_tensors.json").read_text())
    config = full_size_configs()[kind]
    targets = parameter_shapes(model, config)
    theirs = {
        name.replace("{i}", str(i)): tuple(shape)
        for name, (layers, *shape) in listed[kind].items()
        for i in range(layers or 1)
    }
    layout = layouts.ALIGN_LAYOUT if kind == "align" else layouts.VLM_LAYOUT

    # Nothing of 15 GB need be read: the first tensor is asked for once all fit.
    outlines = {name: np.broadcast_to(np.float32(0), s) for name, s in theirs.items()}
    with pytest.raises(AssertionError, match="was read although"):
        names.import_tree(layout, Unread(outlines), targets)
    count = sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(targets))
    expected = listed["counts"]["stage1_total" if kind == "align" else "vlm_total"]
    assert count == expected
    smaller = {**outlines, next(iter(theirs)): np.zeros(5, np.float32)}
    with pytest.raises(ValueError, match="tensors of another shape"):
        names.import_tree(layout, Unread(smaller), targets)


def test_config_decisions_on_quirks():
    clip = {"vision_config": {}, "text_config": {"pad_token_id": 1}}
    assert towers.fusion_config(clip, 49408).frozen_id == 1
    assert towers.llm_config({"pad_token_id": 0}).frozen_id == 0
    assert towers.llm_config({}).frozen_id is None
    # The nested flags are believed; an absent one is the reference's default.
    tower = {"image_size": 224, "patch_size": 14}
    assert towers.vision_config(tower).local_merge
    assert not towers.vision_config({**tower, "enable_local_merge": False}).local_merge
    # The fusion decoder follows from the vision tower: heads of 64.
    sizes = {"hidden_size": 192, "intermediate_size": 160, "num_hidden_layers": 5}
    fusion = towers.fusion_config({"vision_config": sizes, "num_hidden_layers": 7}, 9)
    assert fusion.blocks.num_heads == 3 and fusion.blocks.num_layers == 7
    assert fusion.blocks.mlp_width == 160 and fusion.blocks.norm_eps == 1e-6


@pytest.mark.parametrize(
    "change, message",
    [
        ({"attention_bias": True}, r"llm_config\.attention_bias: got True"),
        ({"model_type": "gpt2"}, r"llm_config\.model_type: got 'gpt2'"),
        ({"rope_scaling": {"type": "dynamic"}}, "rope_type: got 'dynamic'"),
        ({"hidden_act": "tanh"}, "activation 'tanh' is unknown"),
    ],
)
def test_llm_configs_that_we_do_not_compute_are_refused(change, message):
    assert towers.llm_config({"rope_scaling": None}).blocks.rope_theta == 10000.0
    with pytest.raises(ValueError, match=message):
        towers.llm_config(change)


def test_config_errors_name_the_field():
    with pytest.raises(ValueError, match=r"vision_config\.num_channels: got 4"):
        towers.vision_config({"num_channels": 4})
    with pytest.raises(ValueError, match="first_query_id: got 50000"):
        towers.fusion_config({}, 50000)
    with pytest.raises(ValueError, match=r"config\.llm_config: got nothing"):
        towers.vlm_config({"imgque_config": {"vision_config": {}}}, 1)
