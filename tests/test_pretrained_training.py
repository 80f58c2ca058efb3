"""Training on pretrained models in Hugging Face folders: sizes, weights, tokenizers."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_runs import manifest, small_config

from vtscale_jax import paths
from vtscale_jax.embedded.vocabulary import build_tokenizer
from vtscale_jax.layers import BlockConfig
from vtscale_jax.llm import LLMConfig
from vtscale_jax.rotary import RopeScaling
from vtscale_jax.settings import block_config, model_config
from vtscale_jax.stages import parameter_shapes
from vtscale_jax.text_tower import TextConfig
from vtscale_jax.train import train
from vtscale_jax.trained import open_trained
from vtscale_jax.vision import VisionConfig
from vtscale_jax.vlm import AlignModel
from vtscale_jax.weights.files.fingerprint import tensors_sha256
from vtscale_jax.weights.files.tensors import open_tensors
from vtscale_jax.weights.huggingface import clip
from vtscale_jax.weights.huggingface.families import hf_config, llm_layout
from vtscale_jax.weights.language_models import llm_shapes, load_language_model
from vtscale_jax.weights.naming import names
from vtscale_jax.weights.sizes import fill_sizes

WORDS = 70
QWEN = LLMConfig(
    WORDS,
    BlockConfig(48, 64, 6, 2, num_kv_heads=2, norm_eps=1e-6, qkv_bias=True),
    tie_embeddings=True,
)
LLAMA = LLMConfig(
    WORDS,
    BlockConfig(
        48,
        64,
        6,
        2,
        num_kv_heads=2,
        rope_theta=5e5,
        rope_scaling=RopeScaling("llama3", factor=8.0, original_length=64),
    ),
)
VISION = VisionConfig(
    16, 4, BlockConfig(64, 96, 4, 3, norm_eps=1e-5, activation="quick_gelu")
)
TEXT = TextConfig(
    WORDS, 24, 40, BlockConfig(32, 48, 2, 2, norm_eps=1e-5, activation="quick_gelu")
)


def drawn(shapes, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape, scale=0.2).astype(np.float32), shapes
    )


def llm_folder(folder, config, model_type):
    """A Hugging Face folder with a random model of that config, and its parameters."""
    folder.mkdir()
    base = {"model_type": model_type, "max_position_embeddings": 512}
    base |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    about = hf_config(config, base)
    params = drawn(llm_shapes(config), 1)
    save_file(
        names.export_tree(llm_layout(about), params), folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(about))
    build_tokenizer().save_pretrained(folder)
    return params


@pytest.fixture(
    scope="module", params=["qwen2", pytest.param("llama", marks=pytest.mark.long)]
)
def adapted(request, tmp_path_factory):
    """A run on a language model of other people, and that model's parameters."""
    folder = tmp_path_factory.mktemp(request.param)
    config = {"qwen2": QWEN, "llama": LLAMA}[request.param]
    params = llm_folder(folder / "llm", config, request.param)
    settings = small_config(
        weights__llm=str(folder / "llm"), weights__tokenizer="llm", optim__steps=2
    )
    train(settings, folder / "run")
    return folder, config, params


def test_the_sizes_are_those_of_the_model(adapted):
    folder, config, _ = adapted
    part = json.loads((folder / "run" / "config.json").read_text())["model"]["llm"]
    assert part["vocab_size"] == WORDS
    assert part["tie_embeddings"] == config.tie_embeddings
    trained = open_trained(folder / "run")
    kept = dataclasses.replace(trained.model.llm.blocks, stacked=True)
    assert kept == config.blocks


def test_the_model_is_read_as_it_is_and_stays_so(adapted):
    folder, config, params = adapted
    found = manifest(folder / "run")["weights"]["llm"]
    assert found["path"] == str(folder / "llm")
    assert found["sha256"] == tensors_sha256(open_tensors(folder / "llm"))
    assert manifest(folder / "run")["parameters"]["frozen"] == sum(
        leaf.size for leaf in jax.tree.leaves(params)
    )
    loaded = load_language_model("x", str(folder / "llm"), dtype="float32")
    assert paths.content_hash(loaded.params) == paths.content_hash(params)
    assert loaded.end_ids == (2,) and loaded.limit == 512
    saved = load_file(folder / "run" / "weights.safetensors")
    assert saved["projector/kernel"].shape[1] == config.blocks.width
    assert not any(path.startswith("llm/") for path in saved)


def test_a_finished_run_is_recognised_and_another_model_is_refused(adapted, capsys):
    folder, config, _ = adapted
    again = small_config(
        weights__llm=str(folder / "llm"), weights__tokenizer="llm", optim__steps=2
    )
    train(again, folder / "run")
    assert "This run is finished" in capsys.readouterr().out
    about = json.loads((folder / "run" / "manifest.json").read_text())
    (folder / "run" / "manifest.json").write_text(
        json.dumps(about | {"finished": False})
    )
    file = folder / "llm" / "model.safetensors"
    held = file.read_bytes()
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.01
    save_file(tensors, file)
    with pytest.raises(ValueError, match="cannot go on.*\n.*weights.llm"):
        train(again, folder / "run")
    file.write_bytes(held)
    (folder / "run" / "manifest.json").write_text(json.dumps(about))


def test_a_model_that_does_not_fit_its_config_is_refused_whole(adapted, tmp_path):
    folder, config, _ = adapted
    broken = tmp_path / "llm"
    broken.mkdir()
    for file in (folder / "llm").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    about = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(about | {"intermediate_size": 72}))
    with pytest.raises(ValueError, match="tensors of another shape"):
        train(small_config(weights__llm=str(broken)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (broken / "config.json").write_text(json.dumps(about | {"model_type": "gpt9"}))
    with pytest.raises(ValueError, match="got 'gpt9'.*expected one of llama"):
        train(small_config(weights__llm=str(broken)), tmp_path / "run")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    towers = small_config(stage="align")
    changes = {
        "model.vision": {"image_size": 16, "patch_size": 4},
        "model.text": {"vocab_size": WORDS, "max_length": 24, "projection_width": 40},
    }
    with towers.unlocked(), towers.ignore_type():
        for part, fields in changes.items():
            towers.model[part.split(".")[1]].update(fields)
        towers.model.vision.blocks = clip_blocks(VISION.blocks)
        towers.model.text.blocks = clip_blocks(TEXT.blocks)
        towers.model.fusion.blocks.update({"width": 64, "num_heads": 1})
    model = model_config(towers, "float32")
    params = drawn(parameter_shapes(AlignModel, model), 2)
    params = {name: params[name] for name in ("vision", "text", "align")}
    exported = clip.export_clip(
        params, visual_projection=np.zeros((40, 64), np.float32)
    )
    save_file(
        {k: np.ascontiguousarray(v) for k, v in exported.tensors.items()},
        folder / "model.safetensors",
    )
    base = {"model_type": "clip", "text_config": {"eos_token_id": 2}}
    about = clip.hf_clip_config(VISION, TEXT, base)
    (folder / "config.json").write_text(json.dumps(about))
    build_tokenizer().save_pretrained(folder)
    return folder, params


def clip_blocks(blocks):
    keep = ("width", "mlp_width", "num_heads", "num_layers", "norm_eps", "activation")
    return {name: getattr(blocks, name) for name in keep}


def test_align_begins_from_a_clip_folder(clip_folder, tmp_path):
    folder, params = clip_folder
    config = small_config(
        stage="align",
        weights__clip=str(folder),
        weights__fusion_tokenizer="clip",
        optim__steps=1,
        optim__learning_rate=1e-12,
        data__page__page_size=48,
    )
    run = tmp_path / "run"
    train(config, run)
    about = json.loads((run / "config.json").read_text())["model"]
    assert about["vision"]["image_size"] == 16 and about["vision"]["patch_size"] == 4
    assert about["fusion"]["blocks"]["width"] == 64
    assert about["fusion"]["blocks"]["num_heads"] == 1
    assert about["fusion"]["blocks"]["num_layers"] == 1  # the config's own
    assert about["text"]["max_length"] == 32  # the config's; the CLIP has 24
    saved = load_file(run / "weights.safetensors")
    theirs = paths.flatten(params)
    for path in ("vision/blocks/attn/query/kernel", "vision/pos_embed", "text/embed"):
        np.testing.assert_allclose(saved[path], theirs[path], rtol=0, atol=1e-6)
    positions = saved["text/pos_embed"]
    np.testing.assert_allclose(
        positions[:24], theirs["text/pos_embed"], rtol=0, atol=1e-6
    )
    assert positions.shape[0] == 32 and positions[24:].std() == pytest.approx(
        theirs["text/pos_embed"].std(), rel=0.25
    )
    # What a CLIP has nothing for is fresh.
    np.testing.assert_allclose(saved["vision/post_norm/scale"], 1, rtol=0, atol=1e-6)
    assert 0.01 < saved["vision/merge/kernel"].std() < 0.03


@pytest.mark.long  # align is shown in short
def test_the_next_stage_follows_the_clip(clip_folder, tmp_path):
    folder, _ = clip_folder
    small = {"optim__steps": 1, "data__page__page_size": 48, "eval__questions": 1}
    align = small_config(
        stage="align",
        weights__clip=str(folder),
        weights__fusion_tokenizer="clip",
        **small,
    )
    train(align, tmp_path / "align")
    finetune = small_config(
        stage="finetune",
        weights__llm="embedded",
        weights__init_from=str(tmp_path / "align"),
        model__llm__blocks__num_layers=4,
        query_schedule=(),
        **small,
    )
    train(finetune, tmp_path / "finetune")
    trained = open_trained(tmp_path / "finetune")
    assert trained.model.vision.blocks == VISION.blocks
    assert trained.config.weights.clip == str(folder)
    assert trained.encoding.view_size == 16
    begun = load_file(tmp_path / "align" / "weights.safetensors")
    saved = trained.params["vision"]["pos_embed"]
    assert np.abs(saved - begun["vision/pos_embed"]).max() < 0.01


def test_what_changed_is_said(clip_folder, adapted):
    folder, config, _ = adapted
    settings = small_config(
        weights__llm=str(folder / "llm")
    ).copy_and_resolve_references()
    before = block_config(settings.model.llm.blocks)
    lines = fill_sizes(settings)
    assert f"model.llm.blocks.width: {before.width} -> 48" in lines
    assert fill_sizes(settings) == []
    own = small_config().copy_and_resolve_references()
    held = own.to_json()
    assert fill_sizes(own) == [] and own.to_json() == held
