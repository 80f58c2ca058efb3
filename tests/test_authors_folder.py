"""The authors' published folders: in as runs, out again, and what is refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from authors_folders import processor, stage1, stage2, word_tokenizer
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer
from written_runs import write_run

from vtscale_jax import paths, settings
from vtscale_jax.ask import main as ask
from vtscale_jax.stages import get_stage
from vtscale_jax.tokens import QueryLayout, fusion_sequence, llm_sequence
from vtscale_jax.trained import open_trained
from vtscale_jax.types import Kind, Record, Turn
from vtscale_jax.vlm import VLM
from vtscale_jax.weights import starting
from vtscale_jax.weights.__main__ import main
from vtscale_jax.weights.authors import config_json
from vtscale_jax.weights.authors.exporting import export_authors
from vtscale_jax.weights.parity import golden_batches, goldens
from vtscale_jax.weights.run_parts import open_run
from vtscale_jax.weights.tokenizer_files import (
    TokenizerError,
    placeholder_ids,
    save_tokenizer,
    with_placeholders,
    without_placeholders,
)

TABLE = "imgque_backbone.imgque_model.embed_tokens.weight"


def run_command(*arguments):
    assert main([*map(str, arguments)]) == 0


def refused(capsys, *arguments):
    """What the command says when it refuses: one error, and no traceback."""
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and "Traceback" not in said.err
    return said.err


def read_config(folder):
    return json.loads((folder / "config.json").read_text())


def change_config(folder, change):
    config = read_config(folder)
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def home(tmp_path_factory, golden_dir):
    """Both goldens as published folders, their runs, and the runs exported again."""
    folder = tmp_path_factory.mktemp("authors")
    stage1(golden_dir, folder / "theirs1")
    stage2(golden_dir, folder / "theirs2")
    for number in "12":
        theirs, run = folder / f"theirs{number}", folder / f"run{number}"
        run_command("import", theirs, "--out", run)
        run_command("export", run, "--to", "authors", folder / f"again{number}")
    return folder


def golden_of(run, golden_dir, *names):
    """The golden's cases with the model of a run in place of the golden's own."""
    config = ConfigDict(read_config(run))
    model = settings.model_config(config, "float32")
    sources = {**config.weights.to_dict(), "init_from": str(run)}
    params, _ = starting.starting_params(get_stage("adapt"), model, sources, 0)
    folder = golden_dir / "G4_vlm"
    cases = {name: dict(np.load(folder / f"{name}.npz")) for name in names}
    return goldens.Golden("run", "vlm", model, params, read_config(folder), cases)


def failures(golden):
    reports = [r for case in golden.cases for r in goldens.check_file(golden, case)]
    return [report.line() for report in reports if report.failed]


def test_an_imported_checkpoint_answers_as_the_authors_code_did(home, golden_dir):
    golden = golden_of(home / "run2", golden_dir, "gen_single", "gen_multi")
    assert failures(golden) == []
    # Negative control: the queries in another order are another model.
    fusion = golden.params["fusion"]
    turned = {**golden.params, "fusion": {**fusion, "queries": fusion["queries"][::-1]}}
    assert len(failures(golden._replace(params=turned))) == 2


def test_an_imported_run_reads_questions_as_the_authors_code_did(home, golden_dir):
    run = open_trained(home / "run2")
    assert (run.layout.num_queries, run.layout.num_followup_queries) == (4, 3)
    assert run.encoding.max_local_views == 4
    said = read_config(golden_dir / "G4_vlm")["generation"]["gen_multi"]["messages"]
    turns = (Turn(said[0], said[1]), Turn(said[2], ""))
    record = Record("golden", "image", turns)
    theirs = np.load(golden_dir / "G4_vlm" / "gen_multi.npz")
    fusion = fusion_sequence(record, run.encoding.fusion_tokenizer, run.layout)
    assert fusion.ids.tolist() == theirs["in__que_input_ids"][0].tolist()
    assert fusion.kinds.tolist() == theirs["in__que_input_tps"][0].tolist()
    llm = llm_sequence(record, run.tokenizer, run.encoding.template, run.layout)
    assert llm.ids.tolist() == theirs["in__input_ids"][0].tolist()
    # One query more or less is another sequence (the trap of N and N - 1).
    other = QueryLayout(3, 3, run.layout.first_query_id)
    shorter = fusion_sequence(record, run.encoding.fusion_tokenizer, other)
    assert shorter.ids.tolist() != theirs["in__que_input_ids"][0].tolist()


@pytest.mark.parametrize("number, name", [("1", "G3_clip"), ("2", "G4_vlm")])
def test_in_and_out_again_is_the_same_checkpoint(home, golden_dir, number, name):
    before = load_file(home / f"theirs{number}" / "model.safetensors")
    after = load_file(home / f"again{number}" / "model.safetensors")
    listed = read_config(golden_dir / name)["weights"]  # of the reference's state_dict
    assert {n: list(x.shape) for n, x in after.items()} == listed
    assert all(after[n].tobytes() == before[n].tobytes() for n in before)
    tokenizers = [
        AutoTokenizer.from_pretrained(home / f"{kind}{number}" / "clip")
        for kind in ("theirs", "again")
    ]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    processors = [
        json.loads((home / f"{kind}{number}" / "preprocessor_config.json").read_text())
        for kind in ("theirs", "again")
    ]
    assert processors[0].items() <= processors[1].items()
    again = home / f"twice{number}"
    run_command("import", home / f"again{number}", "--out", again)
    files = [
        (r / "weights.safetensors").read_bytes() for r in (again, home / f"run{number}")
    ]
    assert files[0] == files[1]


def reference_reads(config):
    """What the reference makes of a stage-1 config.json: flags from its top, the fusion
    decoder from the vision tower (spec: checkpoints; quirk 5)."""
    vision = config["vision_config"]
    return {
        "merge": config.get("enable_local_merge", True),
        "newline": config.get("enable_token_crlf", True),
        "kernel": config.get("vembed_merge_kernel_size", 3),
        "rows": config.get("vocab_size", config["text_config"]["vocab_size"]),
        "layers": config.get("num_hidden_layers"),
        "heads": vision["hidden_size"] // 64,
        "padding_idx": config["text_config"]["pad_token_id"],
        "lengths": (config["length_que_end"], config["length_que_end_short"]),
    }


def test_the_reference_reads_back_what_the_run_has(home, tmp_path):
    config = read_config(home / "again2")
    golden = read_config(home / "theirs2")
    assert reference_reads(config["imgque_config"]) == {
        **{"merge": True, "newline": True, "kernel": 3, "rows": 64, "layers": 3},
        **{"heads": 2, "padding_idx": 1, "lengths": (4, 3)},
    }
    for field in ("fusion_name", "model_type", "hidden_size", "length_que_end"):
        assert config[field] == golden[field], field
    for field in ("rope_theta", "rope_scaling", "num_key_value_heads", "rms_norm_eps"):
        assert config["llm_config"][field] == golden["llm_config"][field], field
    # A tower without merge and newline keeps them off when it is read back.
    run = open_run(write_run(tmp_path / "run", stage="align"))
    plain = dataclasses.replace(run.model.vision, local_merge=False, newline=False)
    run = run._replace(model=dataclasses.replace(run.model, vision=plain))
    read = reference_reads(config_json.align_json(run, {"eos_token_id": 2}))
    assert not read["merge"] and not read["newline"] and read["padding_idx"] is None


def test_rows_that_no_token_uses_wait_for_a_larger_number(home):
    table = load_file(home / "theirs2" / "model.safetensors")[TABLE]
    config = ConfigDict(read_config(home / "run2"))
    config.num_queries = 8
    sources = {**config.weights.to_dict(), "init_from": str(home / "run2")}
    model = settings.model_config(config, "float32")
    params, _ = starting.starting_params(get_stage("adapt"), model, sources, 0)
    assert np.array_equal(params["fusion"]["queries"], table[52:59])
    assert np.array_equal(params["fusion"]["embed"], table[:52])


def test_a_run_answers_the_same_after_a_round_trip(tmp_path, capsys):
    run = write_run(tmp_path / "run", num_queries=5, num_followup_queries=2)
    run_command("export", run, "--to", "authors", tmp_path / "authors")
    options = ["--template", "plain", "--out", tmp_path / "again"]
    run_command("import", tmp_path / "authors", *options)
    before, after = (
        load_file(f / "weights.safetensors") for f in (run, tmp_path / "again")
    )
    assert before.keys() == after.keys()
    assert all(before[n].tobytes() == after[n].tobytes() for n in before)
    found = [open_trained(folder) for folder in (run, tmp_path / "again")]
    hashes = [paths.content_hash(one.params) for one in found]
    assert hashes[0] == hashes[1]  # the language model's too
    assert found[0].layout == found[1].layout
    assert found[0].encoding.max_local_views == found[1].encoding.max_local_views
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "page.png")
    said = []
    for folder in (run, tmp_path / "again"):
        capsys.readouterr()
        asked = ["--image", str(tmp_path / "page.png"), "--max_new_tokens", "12"]
        for question in ("read all digits in order .", "how many digits are there ?"):
            asked += ["--question", question]
        assert ask(["--run", str(folder), *asked]) == 0
        lines = capsys.readouterr().out.splitlines()
        said.append([x for x in lines[1:] if not x.startswith("  ")])
    assert said[0] == said[1] and len(said[0]) == 4


def test_placeholders_without_rows_become_copies_of_the_pad_row(tmp_path, golden_dir):
    """`append_special_padding` False: all of them were the pad token."""
    folder = stage2(
        golden_dir, tmp_path / "theirs", placeholders=0, append_special_padding=False
    )
    run_command("import", folder, "--out", tmp_path / "run")
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    assert weights["fusion/queries"].shape == (3, 128)
    assert np.all(weights["fusion/queries"] == weights["fusion/embed"][2])
    golden = golden_of(tmp_path / "run", golden_dir, "sharedpad")
    arrays = golden.cases["sharedpad"]
    ids, kinds = arrays["in__que_input_ids"], arrays["in__que_input_tps"]
    # Our ids of the same queries: the file has 64 rows, and slot j is row 64 + j.
    for row, slots in zip(ids, kinds == Kind.QED, strict=True):
        for start in np.flatnonzero(slots & ~np.roll(slots, 1)):
            count = np.argmin(np.append(slots[start:], False))
            row[start : start + count] = 64 + np.arange(count)
    batch = golden_batches.vlm_batch(arrays, golden.config.vision.tokens_per_crop)

    def error(params):
        vlm, variables = VLM(golden.config), {"params": params}
        inputs = jax.tree.map(jnp.asarray, batch.fusion)
        found = vlm.apply(variables, inputs, method="query_vectors")
        is_slot = batch.fusion.slots < batch.fusion.ids.shape[1]
        return np.abs(np.asarray(found)[is_slot] - arrays["out__projected"]).max()

    assert error(golden.params) < 1e-5
    fusion = golden.params["fusion"]
    other = {**fusion, "queries": fusion["queries"] + 0.1}
    assert error({**golden.params, "fusion": other}) > 1e-3
    # Out again it has rows of its own, and the ids between are filled.
    run_command("export", tmp_path / "run", "--to", "authors", tmp_path / "again")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "again" / "clip")
    assert placeholder_ids(tokenizer) == [64, 65, 66]
    assert read_config(tmp_path / "again")["imgque_config"]["vocab_size"] == 67


def test_bfloat16_shards_and_an_absent_placeholder_token(home, tmp_path, golden_dir):
    folder = stage2(golden_dir, tmp_path / "theirs", placeholders=0)
    tensors = load_file(folder / "model.safetensors")
    narrow = {n: x.astype(ml_dtypes.bfloat16) for n, x in tensors.items()}
    (folder / "model.safetensors").unlink()
    names = sorted(narrow)
    index = {}
    for i, part in enumerate((names[:40], names[40:])):
        file = f"model-{i + 1:05}-of-00002.safetensors"
        save_file({n: narrow[n] for n in part}, folder / file)
        index |= dict.fromkeys(part, file)
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": index}))
    run_command("import", folder, "--out", tmp_path / "run")
    # The authors' parser would add the tokens after the last one, and so did we.
    config = ConfigDict(read_config(tmp_path / "run"))
    assert config.model.fusion.vocab_size == 52
    ours = load_file(tmp_path / "run" / "weights.safetensors")
    assert {x.dtype.name for x in ours.values()} == {"float32"}
    assert read_config(tmp_path / "run" / "llm")["torch_dtype"] == "bfloat16"
    llm = load_file(tmp_path / "run" / "llm" / "model.safetensors")
    assert {x.dtype.name for x in llm.values()} == {"bfloat16"}
    out = tmp_path / "again"
    run_command(
        "export", tmp_path / "run", "--to", "authors", out, "--dtype", "bfloat16"
    )
    again = load_file(out / "model.safetensors")
    assert all(again[n].tobytes() == narrow[n].tobytes() for n in names)
    assert read_config(out)["torch_dtype"] == "bfloat16"


def test_a_tied_language_model_is_written_with_its_head(tmp_path, golden_dir):
    folder = stage2(golden_dir, tmp_path / "theirs")
    tensors = load_file(folder / "model.safetensors")
    head, table = (
        f"llm_backbone.{n}.weight" for n in ("lm_head", "model.embed_tokens")
    )
    change_config(folder, lambda c: c["llm_config"].update(tie_word_embeddings=True))
    save_file({**tensors, head: tensors[table]}, folder / "model.safetensors")
    run_command("import", folder, "--out", tmp_path / "run")
    llm = load_file(tmp_path / "run" / "llm" / "model.safetensors")
    assert "lm_head.weight" not in llm and "model.embed_tokens.weight" in llm
    run_command("export", tmp_path / "run", "--to", "authors", tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert np.array_equal(again[head], tensors[table])


def set_in(path, value):
    def change(config):
        *parts, last = path.split(".")
        for part in parts:
            config = config[part]
        config[last] = value

    return change


REFUSED = {
    "imgque_config.vision_config.num_attention_groups": (2, "num_attention_groups"),
    "use_second_tower": (True, "got the fields use_second_tower"),
    "quantization_config": ({"bits": 4}, "quantization_config"),
    "fusion_name": ("concat_base", "fusion_name: got 'concat_base'"),
    "replace_imgque_encoder_by_encoder_with_layer": (3, "encoder_with_layer: got 3"),
    "length_que_end_short": (8, r"length_que_end_short: got 8 with length_que_end 4"),
    "length_que_end": (0, "length_que_end: got 0"),
    "imgque_config.imgque_config.num_attention_heads": (
        4,
        "num_attention_heads: got 4",
    ),
    "imgque_config.imgque_config.rope_theta": (5e5, "rope_theta: got 500000.0"),
    "imgque_config.enable_local_merge": (False, "enable_local_merge: got True"),
    "imgque_config.vision_config.vembed_hidden_size": (
        64,
        "vembed_hidden_size: got 64",
    ),
    "imgque_config.vision_config.enable_token_crlf": (False, "token_LF"),
    "imgque_config.model_type": ("modeling_image_multi_query_clip", "model_type"),
    "llm_config.attention_bias": (True, "attention_bias: got True"),
    "llm_config": (None, "llm_config: got None"),
    "hidden_size": (128, "hidden_size: got 128"),
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_is_not_computed_here_is_named(home, tmp_path, capsys, field):
    value, message = REFUSED[field]
    shutil.copytree(home / "theirs2", tmp_path / "theirs")
    change_config(tmp_path / "theirs", set_in(field, value))
    said = refused(capsys, "import", tmp_path / "theirs", "--out", tmp_path / "run")
    assert message in said
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def broken(folder, what):
    """Breaks a published folder in one way; what must be said of it."""
    file = folder / "model.safetensors"
    if what == "no clip":
        shutil.rmtree(folder / "clip")
        return "got no folder clip/"
    if what == "no crops":
        (folder / "preprocessor_config.json").unlink()
        return "--max_local_views 9"
    if what == "other pixels":
        processor(folder, image_std=[0.5, 0.5, 0.5])
        return "image_std: got [0.5, 0.5, 0.5]"
    if what == "no tokenizer":
        (folder / "tokenizer.json").unlink()
        return "no tokenizer of the language model"
    if what == "large tokenizer":
        words = {f"w{i}": i for i in range(200)} | {"<unk>": 200, "</s>": 201}
        save_tokenizer(word_tokenizer(words, "</s>"), folder)
        return "ids reach 201, but the embedding table has 96 rows"
    if what == "few rows":
        change_config(folder, lambda c: c.update(length_que_end=20))
        return "length_que_end: got 20"
    if what == "token behind":
        tokenizer = AutoTokenizer.from_pretrained(folder / "clip")
        tokenizer.add_tokens(["later"])
        save_tokenizer(tokenizer, folder / "clip")
        return "the tokenizer's last id"
    if what == "truncated":
        file.write_bytes(file.read_bytes()[:-7])
        return "truncated"
    tensors = load_file(file)
    del tensors["fusion_backbone.imgque_proj.weight"]
    save_file(tensors, file)
    return "fusion_backbone.imgque_proj.weight"


BROKEN = (
    *("no clip", "no crops", "other pixels", "no tokenizer", "large tokenizer"),
    *("few rows", "token behind", "truncated", "no projection"),
)


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_folder_leaves_nothing(home, tmp_path, capsys, what):
    shutil.copytree(home / "theirs2", tmp_path / "theirs")
    message = broken(tmp_path / "theirs", what)
    said = refused(capsys, "import", tmp_path / "theirs", "--out", tmp_path / "run")
    assert message in said
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_what_the_folder_lacks_may_be_given(home, tmp_path):
    shutil.copytree(home / "theirs2", tmp_path / "theirs")
    (tmp_path / "theirs" / "preprocessor_config.json").unlink()
    change_config(tmp_path / "theirs", set_in("length_que_end_short", None))
    given = ["--max_local_views", "6", "--num_followup_queries", "2", "--inputs", "vq"]
    run_command("import", tmp_path / "theirs", "--out", tmp_path / "run", *given)
    run = open_trained(tmp_path / "run")
    assert run.layout.num_followup_queries == 2
    assert run.encoding.max_local_views == 6 and run.encoding.question == "dropped"


def test_runs_that_their_code_cannot_build_are_refused(tmp_path):
    run = open_run(write_run(tmp_path / "run", stage="align"))
    for field, value in (("num_heads", 4), ("norm_eps", 1e-5), ("rope_theta", 5e5)):
        changed = {field: value, "head_dim": 0} if "heads" in field else {field: value}
        blocks = dataclasses.replace(run.model.fusion.blocks, **changed)
        fusion = dataclasses.replace(run.model.fusion, blocks=blocks)
        other = run._replace(model=dataclasses.replace(run.model, fusion=fusion))
        with pytest.raises(ValueError, match=f"fusion.{field}: {value}"):
            export_authors(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_placeholder_tokens_in_and_out():
    words = {"<unk>": 0, "</s>": 1, "yes": 2}
    plain = word_tokenizer(words, "</s>")
    made = with_placeholders(plain, 5, 3)
    assert placeholder_ids(made) == [5, 6, 7] and placeholder_ids(plain) == []
    assert made.encode("yes <|placeholder_qed_1|>") == [2, 6]
    back = without_placeholders(made)
    # The two tokens between stay, so that ids are what they were.
    assert sorted(back.get_vocab().values()) == [0, 1, 2, 3, 4]
    assert back.encode("yes") == [2] and back.eos_token_id == 1
    assert len(plain) == 3  # not changed by any of this
    with pytest.raises(TokenizerError, match="ids reach 2"):
        with_placeholders(plain, 2, 3)
    plain.add_tokens(["<|placeholder_qed_1|>"])
    with pytest.raises(TokenizerError, match="expected numbers from 0 on"):
        without_placeholders(plain)
