"""The weights in the package: as their manifest says, and able to see."""

import importlib
import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from vtscale_jax import paths, settings
from vtscale_jax.assemble import assemble, blanked, family_questions
from vtscale_jax.embedded import ship
from vtscale_jax.embedded.questions import FAMILIES
from vtscale_jax.embedded.vocabulary import build_tokenizer
from vtscale_jax.eval import families
from vtscale_jax.eval.families import family_scores
from vtscale_jax.evaluate import Evaluator
from vtscale_jax.parallel.mesh import make_mesh
from vtscale_jax.run_folder import RunFolder
from vtscale_jax.stages import get_stage
from vtscale_jax.weights.starting import shipped, starting_params

ALL = {"data": -1, "fsdp": 1, "tensor": 1}


def load(num_queries: int, arg: str = ""):
    return importlib.import_module(f"configs.m{num_queries}").get_config(arg)


def starting(num_queries: int, arg: str = ""):
    config = load(num_queries, arg)
    model = settings.model_config(config, "float32")
    stage = get_stage(config.stage)
    params, _ = starting_params(stage, model, config.weights.to_dict(), 0)
    return config, model, params


def test_the_files_are_those_of_the_manifest():
    manifest = json.loads(shipped("manifest.json").read_text())
    total = 0
    for name, about in manifest["files"].items():
        tensors = load_file(shipped(f"{name}.safetensors"))
        assert paths.content_hash(paths.unflatten(tensors)) == about["sha256"]
        total += shipped(f"{name}.safetensors").stat().st_size
    assert set(manifest["files"]) == {"clip", "llm", "base"}
    assert total < 12 * 2**20, "a few MB in total"
    for part in ("clip", "llm", "align", "finetune", "again_align", "again"):
        about = manifest[part]
        assert about["command"] and about["seconds"] > 0 and len(about["curve"]) > 5
        assert isinstance(about["seed"], int)


def test_the_tokenizer_beside_them_is_the_one_they_were_trained_with():
    tokenizer = AutoTokenizer.from_pretrained(shipped("tokenizer.json").parent)
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    text = "<s> Is there any 5? </s>"
    assert tokenizer.encode(text) == build_tokenizer().encode(text)


def test_another_seed_reaches_the_same_scores():
    manifest = json.loads(shipped("manifest.json").read_text())
    shipped_run, again = manifest["finetune"], manifest["again"]
    for stage in ("align", "finetune"):
        other = {"align": "again_align", "finetune": "again"}[stage]
        assert manifest[stage]["seed"] != manifest[other]["seed"]
    assert set(shipped_run["accuracy"]) == set(FAMILIES)
    for family, accuracy in shipped_run["accuracy"].items():
        assert abs(accuracy - again["accuracy"][family]) <= 0.05, family


def test_only_a_chain_of_runs_ships(tmp_path):
    llm, other = load_file(shipped("llm.safetensors")), tmp_path / "other.safetensors"
    exact = {name: tensor.astype(np.float32) for name, tensor in llm.items()}
    run = RunFolder(tmp_path / "run")
    run.write("config.json", {"stage": "finetune"})
    digest = paths.content_hash(paths.unflatten(exact))
    run.write("manifest.json", {"weights": {"llm": {"sha256": digest}}})
    paths.save(paths.unflatten(exact), tmp_path / "llm.safetensors")
    ship._check_origin(run.path, "llm", tmp_path / "llm.safetensors")
    paths.save(paths.unflatten(exact | {"llm/norm/scale": np.ones(128)}), other)
    with pytest.raises(ValueError, match=r"did not start from .*other.*weights.llm"):
        ship._check_origin(run.path, "llm", other)


def recorded(repo_dir) -> dict[int, dict]:
    """`benchmarks/embedded.py`'s runs of the bare command, by M."""
    found = json.loads((repo_dir / "benchmarks/results/embedded.json").read_text())
    manifest = json.loads(shipped("manifest.json").read_text())
    files = {name: row["sha256"] for name, row in manifest["files"].items()}
    assert found["shipped"] == files, "other weights ship now: measure again"
    return {row["num_queries"]: row for row in found["runs"]}


@pytest.mark.parametrize(
    ("family", "least", "above_blank"),
    [
        ("exists", 0.85, 0.20),
        ("locate", 0.75, 0.30),
        ("choice", 0.75, 0.30),
        ("count", 0.65, 0.30),
    ],
)
def test_the_recorded_run_sees(repo_dir, family, least, above_blank):
    row = recorded(repo_dir)[256]["families"][family]
    assert row["n"] >= 500 and row["blank_n"] >= 500
    assert row["accuracy"] >= least
    assert row["accuracy"] - row["blank_accuracy"] >= above_blank


def test_the_recorded_runs_read_more_with_more_queries(repo_dir):
    runs = recorded(repo_dir)
    shares = [runs[m]["families"]["read"]["accuracy"] for m in (1, 8, 16, 64)]
    assert shares == sorted(set(shares))
    assert all(run["seconds"] < 8 * 60 for run in runs.values())
    assert all(run["peak_memory_gb"] < 6 for run in runs.values())


@pytest.mark.parametrize("num_queries", [1, 8, 256, 768])
def test_the_base_starts_every_m(num_queries):
    _, _, params = starting(num_queries)
    base = load_file(shipped("base.safetensors"))
    known = min(num_queries - 1, len(base["fusion/queries"]))
    if num_queries > 1:
        ours = params["fusion"]["queries"]
        assert ours.shape[0] == num_queries - 1
        np.testing.assert_array_equal(
            ours[:known], base["fusion/queries"][:known].astype(np.float32)
        )
    else:
        assert "queries" not in params["fusion"]


def test_align_starts_from_the_shipped_clip():
    _, _, params = starting(16, "stage=align")
    clip = load_file(shipped("clip.safetensors"))
    np.testing.assert_array_equal(
        params["vision"]["merge"]["kernel"],
        clip["vision/merge/kernel"].astype(np.float32),
    )


def test_a_question_asked_twice_is_answered_once(monkeypatch):
    config, model, params = starting(8)
    with config.unlocked():
        config.data.families = ("read", "locate")
        config.eval.batch_size = 8
    parts = assemble(config, model.vision)
    answerer = Evaluator(config, parts, model, make_mesh(ALL)).answerer(8)
    records = blanked(family_questions(config, 16, "quick"), config)
    batches = []
    encoded = families.encode
    monkeypatch.setattr(
        families, "encode", lambda *given: batches.append(1) or encoded(*given)
    )
    together = answerer.answer(params, records, title="all")
    different = {record.turns[-1].question for record in records}
    assert len(different) <= len(batches) < len(different) + 8 < len(records)
    alone = [
        answerer.answer(params, [record], title="one")[0]
        for record in (records[3], records[-1])
    ]
    assert alone == [together[3], together[-1]]


def test_the_base_sees():
    """Without any training it reads held-out handwriting, and a blank page says
    nothing: the sum over three families is far apart."""
    config, model, params = starting(256)
    with config.unlocked():
        config.data.families = ("count", "read", "describe")
        config.eval.batch_size = 24
    parts = assemble(config, model.vision)
    evaluator = Evaluator(config, parts, model, make_mesh(ALL))
    records = family_questions(config, 24, "quick")
    answerer = evaluator.answerer(256)
    seen = answerer.answer(params, records, title="pages")
    blind = answerer.answer(params, blanked(records, config), title="blank")
    scores = family_scores(records, seen, blind)
    assert sum(row["correct"] for row in scores.values()) >= 24
    assert sum(row["blank_correct"] for row in scores.values()) <= 12
