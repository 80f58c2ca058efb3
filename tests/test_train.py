"""The training command end to end, in all stages, and what it says of bad input."""

import gc
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file
from small_runs import manifest, rows, small_config

from vtscale_jax import paths, settings
from vtscale_jax.assemble import assemble, open_source
from vtscale_jax.encoding import encode
from vtscale_jax.eval.families import is_correct
from vtscale_jax.next_commands import next_stage
from vtscale_jax.parallel.mesh import make_mesh, spread
from vtscale_jax.run_folder import RunFolder, RunFolderError
from vtscale_jax.step import initial_state
from vtscale_jax.train import train
from vtscale_jax.types import Kind
from vtscale_jax.weights.checkpoints import CheckpointError, Checkpoints
from vtscale_jax.weights.naming.rows import resize_rows
from vtscale_jax.weights.starting import WeightsError, shipped


def long(value):
    return pytest.param(value, marks=pytest.mark.long)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "adapt"
    report = train(small_config(), folder)
    assert report == folder / "report.html"
    return folder


def test_a_run_leaves_the_files_of_the_design(adapted):
    for name in (
        "config.json",
        "manifest.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "evaluation.json",
        "samples.jsonl",
        "samples",
        "weights.safetensors",
        "report.html",
    ):
        assert (adapted / name).exists(), name
    steps = [row["step"] for row in rows(adapted) if row["split"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]
    held = [row for row in rows(adapted) if row["split"] == "heldout"]
    # The loss of every checkpoint, accuracies at evaluations.
    assert [row["step"] for row in held] == [2, 4, 6]
    assert all(np.isfinite(row["loss"]) for row in held)
    assert ["accuracy/read" in row for row in held] == [False, True, False]
    done = manifest(adapted)
    assert done["finished"] and done["duration_s"] > 0
    assert done["parameters"]["frozen"] > 0
    saved = paths.unflatten(load_file(adapted / "weights.safetensors"))
    assert paths.content_hash(saved) == done["params_sha256"]
    assert set(saved) == {"vision", "fusion", "projector"}
    kept = {int(p.name) for p in (adapted / "checkpoints").iterdir() if p.is_dir()}
    best = min(held, key=lambda row: row["loss"])["step"]
    assert kept == {4, 6, best}
    samples = [
        json.loads(line)
        for line in (adapted / "samples.jsonl").read_text().splitlines()
    ]
    assert len(samples) == 12 and all(row["answer"] for row in samples)
    scores = json.loads((adapted / "evaluation.json").read_text())["families"]
    for family, score in scores.items():
        right = sum(row["correct"] for row in samples if row["family"] == family)
        assert score["correct"] == right and score["n"] == 2 == score["blank_n"]
    html = (adapted / "report.html").read_text()
    assert 'src="http' not in html and 'href="http' not in html


def test_a_finished_run_is_not_run_again(adapted, capsys):
    before = (adapted / "weights.safetensors").stat().st_mtime_ns
    train(small_config(), adapted)
    assert "finished" in capsys.readouterr().out
    assert (adapted / "weights.safetensors").stat().st_mtime_ns == before


def test_an_interrupted_run_ends_with_the_same_parameters(adapted, tmp_path, capsys):
    """The checkpoint of step 4 is taken up; kills are in test_resume.py."""
    copy = tmp_path / "copy"
    shutil.copytree(adapted, copy)
    shutil.rmtree(copy / "checkpoints" / "6")
    (copy / "manifest.json").unlink()
    (copy / "weights.safetensors").unlink()
    train(small_config(), copy)
    assert "Continuing from step 4" in capsys.readouterr().out
    assert manifest(copy)["params_sha256"] == manifest(adapted)["params_sha256"]
    train_rows = [row["step"] for row in rows(copy) if row["split"] == "train"]
    assert train_rows == [1, 2, 3, 4, 5, 6]


@pytest.fixture
def abandoned():
    """Reading stops at the damage, with the other arrays' readers not yet awaited. The
    collector is to find them in here, not in a later test."""
    yield
    gc.collect()


ABANDONED = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@ABANDONED
@pytest.mark.usefixtures("abandoned")
@pytest.mark.parametrize("where", [1, long(2), long(3)])
def test_a_corrupted_checkpoint_falls_back_to_the_one_before(
    adapted, tmp_path, capsys, where
):
    copy = tmp_path / "copy"
    shutil.copytree(adapted, copy)
    (copy / "manifest.json").unlink()
    damaged = max(
        (p for p in (copy / "checkpoints" / "6").rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    content = bytearray(damaged.read_bytes())
    at = len(content) * where // 4
    content[at : at + 64] = bytes(64)
    damaged.write_bytes(content)
    train(small_config(), copy)
    said = capsys.readouterr()
    assert "cannot be used" in said.err and "Continuing from step 4" in said.out
    assert manifest(copy)["params_sha256"] == manifest(adapted)["params_sha256"]


@ABANDONED
@pytest.mark.usefixtures("abandoned")
def test_when_every_checkpoint_is_broken_nothing_is_written_over(adapted, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(adapted, copy)
    (copy / "manifest.json").unlink()
    for file in (copy / "checkpoints").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(b"")
    before = (copy / "metrics.jsonl").read_text()
    with pytest.raises(CheckpointError, match="no row of metrics was written over"):
        train(small_config(), copy)
    assert (copy / "metrics.jsonl").read_text() == before


def test_a_folder_of_another_config_is_refused(adapted):
    before = (adapted / "config.json").read_text()
    with pytest.raises(RunFolderError, match="optim.learning_rate: 0.0"):
        train(small_config(optim__learning_rate=0.5), adapted)
    assert (adapted / "config.json").read_text() == before


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="not a run folder"):
        train(small_config(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("num_queries", [6, long(2)])
def test_adapt_takes_a_finished_run_and_changes_the_number_of_queries(
    adapted, tmp_path, num_queries
):
    folder = tmp_path / "run"
    config = small_config(num_queries, weights__init_from=str(adapted), optim__steps=1)
    train(config, folder)
    saved = load_file(folder / "weights.safetensors")
    assert saved["fusion/queries"].shape == (num_queries - 1, 128)
    assert manifest(folder)["weights"]["init_from"]["sha256"]


@pytest.mark.slow
def test_finetune_with_a_curriculum_resumes_across_its_phases(tmp_path, capsys):
    config = small_config(
        4, "finetune", query_schedule=((0, 2), (5, 4)), eval__questions=0
    )
    train(config, tmp_path / "whole")
    seen = [(row["step"], row.get("num_queries")) for row in rows(tmp_path / "whole")]
    assert (5, 2) in seen and (6, 4) in seen
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "6")
    (tmp_path / "part" / "manifest.json").unlink()
    capsys.readouterr()
    train(config, tmp_path / "part")
    assert "Continuing from step 4" in capsys.readouterr().out
    whole, part = (manifest(tmp_path / name) for name in ("whole", "part"))
    assert whole["params_sha256"] == part["params_sha256"]


def test_align_then_finetune(tmp_path):
    align = tmp_path / "align"
    config = small_config(4, "align")
    train(config, align)
    assert {"contrastive", "orthogonality"} <= rows(align)[0].keys()
    finetune = small_config(
        4,
        "finetune",
        weights__init_from=str(align),
        query_schedule=(),
        optim__steps=1,
        seed=1,  # whose fresh weights are others
    )
    train(finetune, tmp_path / "finetune")
    start = load_file(align / "weights.safetensors")
    end = load_file(tmp_path / "finetune" / "weights.safetensors")
    # One small step: near what it started from.
    moved = np.abs(start["vision/pos_embed"] - end["vision/pos_embed"]).max()
    assert 0 < moved < 0.01


def test_accumulation_updates_once_for_its_batches(tmp_path):
    config = small_config(optim__steps=1, optim__accumulation=2, eval__questions=0)
    train(config, tmp_path / "run")
    updates = [row for row in rows(tmp_path / "run") if "grad_norm" in row]
    assert [row["step"] for row in updates] == [1, 2]
    # Both batches belong to the first update, and were met with the same parameters.
    assert updates[0]["learning_rate"] == updates[1]["learning_rate"] > 0


def test_the_best_checkpoint_is_kept_across_a_restart(tmp_path):
    params = {"w": jnp.zeros(3)}
    state = initial_state(params, optax.sgd(0.1))
    losses = {1: 0.9, 2: 0.2, 3: 0.8, 4: 0.7, 5: 0.6}
    for steps in ((1, 2, 3), (4, 5)):  # two launches
        with Checkpoints(tmp_path / "checkpoints", keep=2) as saved:
            for step in steps:
                now = state._replace(step=jnp.asarray(step, jnp.int32))
                saved.save(now, {"at": step}, heldout_loss=losses[step])
    with Checkpoints(tmp_path / "checkpoints", keep=2) as saved:
        assert saved.steps() == [5, 4, 2]
        assert saved.restore_latest(state).data == {"at": 5}


def test_a_run_does_not_go_on_from_other_inputs(adapted, tmp_path):
    """Its frozen LLM and then its data were replaced while it was interrupted."""
    page = next((adapted / "samples").glob("*.png"))
    shutil.copy(page, tmp_path / "page.png")
    lines = [conversation("page.png", str(i % 10)) for i in range(64)]
    file = jsonl(tmp_path, lines)
    llm = tmp_path / "llm.safetensors"
    shutil.copy(shipped("llm.safetensors"), llm)
    config = small_config(
        model__llm__blocks__num_layers=4,
        weights__llm=str(llm),
        data__name="jsonl",
        data__path=str(file),
        data__heldout_path=str(file),
        data__image_root=str(tmp_path),
        optim__steps=2,
    )
    train(config, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    folder.write("manifest.json", folder.read("manifest.json") | {"finished": False})
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    for what in ("weights", "data"):
        if what == "weights":
            tensors = load_file(llm)
            tensors["llm/norm/scale"] = tensors["llm/norm/scale"] * np.float16(1.01)
            save_file(tensors, llm)
        else:
            shutil.copy(shipped("llm.safetensors"), llm)
            jsonl(tmp_path, [conversation("page.png", "9"), *lines[1:]])
        with pytest.raises(RunFolderError, match=f"cannot go on.*\n *{what}") as caught:
            train(config, tmp_path / "run")
        assert "when it was started" in str(caught.value)
        assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_one_folder_has_one_run_at_a_time(tmp_path):
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with (
        first.claimed({"seed": 0}),
        pytest.raises(RunFolderError, match="in use by another process"),
        second.claimed({"seed": 0}),
    ):
        pass
    with second.claimed({"seed": 0}):
        pass


def test_a_torn_first_file_is_no_foreign_folder(tmp_path):
    (tmp_path / ".config.json.partial").write_text('{"se')
    with RunFolder(tmp_path).claimed({"seed": 0}):
        pass
    assert RunFolder(tmp_path).read("config.json") == {"seed": 0}
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="is a file, expected a folder"):
        RunFolder(tmp_path / "file").check({"seed": 0})


def test_batches_hold_a_long_record_that_comes_late(adapted, tmp_path):
    """Shapes are fitted to the longest records, wherever they stand."""
    page = next((adapted / "samples").glob("*.png"))
    shutil.copy(page, tmp_path / "page.png")
    lines = [conversation("page.png") for _ in range(120)]
    lines[110]["messages"] *= 6
    file = jsonl(tmp_path, lines)
    config = small_config(
        data__name="jsonl",
        data__path=str(file),
        data__heldout_path=str(file),
        data__image_root=str(tmp_path),
        optim__steps=15,  # an epoch: the long record is met
        checkpoint__every=15,
    )
    train(config, tmp_path / "run")
    assert rows(tmp_path / "run")[-1]["step"] == 15


def test_bad_data_leave_the_folder_unclaimed(tmp_path):
    """So that the remedy, another value of a data field, can be followed."""
    file = jsonl(tmp_path, [conversation("missing.png")] * 16)
    config = small_config(
        data__name="jsonl", data__path=str(file), data__image_root=str(tmp_path)
    )
    with pytest.raises(ValueError, match="data.heldout_path is empty"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weights__init_from": "runs/nowhere"},
            r"weights.init_from is 'runs/nowhere'",
        ),
        ({"weights__llm": "meta-llama/Llama"}, r"--config.weights.llm="),
        ({"num_followup_queries": 9}, "num_followup_queries is 9 with num_queries 4"),
        ({"inputs": "q"}, "inputs is 'q'"),
        ({"data__name": "coco"}, "data.name is 'coco'"),
        ({"data__batch_size": 9}, "data.batch_size is 9"),
        ({"model__dtype": "float16"}, "model.dtype is 'float16'"),
        ({"optim__steps": None, "optim__epochs": None}, "both None"),
        ({"data__template": "llama-3"}, "template is 'llama-3'"),
        ({"model__fusion__vocab_size": 12}, "model.fusion.vocab_size is 12"),
        ({"model__text__vocab_size": 12}, "model.text.vocab_size is 12"),
        ({"model__llm__vocab_size": 12}, "model.llm.vocab_size is 12"),
    ],
)
def test_bad_settings_name_the_field(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        train(small_config(**change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_of_another_size_are_refused_whole(adapted, tmp_path):
    config = small_config(
        weights__init_from=str(adapted), model__fusion__blocks__mlp_width=256
    )
    with pytest.raises(WeightsError, match="fusion/blocks/up/kernel") as caught:
        train(config, tmp_path / "run")
    assert "(1, 128, 512)" in str(caught.value) and "(1, 128, 256)" in str(caught.value)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((adapted / "weights.safetensors").read_bytes()[:5000])
    with pytest.raises(WeightsError, match="not a readable safetensors"):
        train(small_config(weights__init_from=str(broken)), tmp_path / "run")


def jsonl(folder, rows):
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def conversation(image, answer="2", roles=("user", "assistant")):
    question = {"role": roles[0], "content": "how many digits are there ?"}
    return {
        "image": image,
        "messages": [question, {"role": roles[1], "content": answer}],
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (conversation("missing.png"), "missing.png"),
        (conversation("cut.png"), "cut.png"),
        (conversation("empty.png"), "empty.png"),
        (conversation(None), "image"),
        (conversation("page.png", roles=("user", "user")), r"messages\[1\].role"),
        (conversation("page.png", answer=""), r"messages\[1\].content"),
    ],
)
def test_bad_records_stop_the_run_by_name(adapted, tmp_path, row, message):
    page = next((adapted / "samples").glob("*.png")).read_bytes()
    (tmp_path / "page.png").write_bytes(page)
    (tmp_path / "cut.png").write_bytes(page[: len(page) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    file = jsonl(tmp_path, [conversation("page.png")] * 7 + [row])
    config = small_config(
        data__name="jsonl",
        data__path=str(file),
        data__heldout_path=str(file),
        data__image_root=str(tmp_path),
    )
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.num_querys=3", "error: --config has no such field"),
        ("--config.optim.steps=many", "--config.optim.steps=many: invalid literal"),
        ("--config.num_followup_queries=9", "num_followup_queries is 9 with num_q"),
    ],
)
def test_the_command_line_ends_with_one_clear_line(
    tmp_path, repo_dir, argument, message
):
    command = [sys.executable, "-m", "vtscale_jax.train", "--config", "configs/m8.py"]
    done = subprocess.run(
        [*command, argument, "--workdir", str(tmp_path / "run")],
        cwd=repo_dir,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_new_query_rows_are_drawn_like_the_old_ones():
    old = np.random.default_rng(0).normal(0.3, 2.0, (50, 64)).astype("f4")
    grown = resize_rows(old, 400, seed=1)
    np.testing.assert_array_equal(grown[:50], old)
    assert grown[50:].mean() == pytest.approx(0.3, abs=0.1)
    assert grown[50:].std() == pytest.approx(2.0, abs=0.1)
    np.testing.assert_array_equal(resize_rows(old, 7, seed=1), old[:7])


def test_the_devices_split_the_batch(adapted):
    assert manifest(adapted)["device"]["count"] == jax.device_count() == 8
    rows_of = {"even": np.zeros((16, 3)), "odd": np.zeros((5, 3))}
    placed = spread(rows_of, make_mesh({"data": -1, "fsdp": 1, "tensor": 1}))
    shapes = {name: placed[name].addressable_shards[0].data.shape for name in rows_of}
    assert shapes == {"even": (2, 3), "odd": (5, 3)}


def test_the_next_command_names_a_folder_of_its_own(tmp_path):
    def words(stage, **changes):
        config = small_config(4, stage, **changes)
        return next_stage(config, tmp_path / "mine").split()

    align = words("align", inputs="vq")
    # No file is named after M = 4: the next command must be one that runs.
    assert "configs/base.py:m=4,embedded,stage=finetune,inputs=vq" in align
    assert f"--config.weights.init_from={tmp_path / 'mine'}" in align
    finetune = words("finetune")
    assert "configs/m16.py:embedded" in finetune
    assert "--config.name=m16-of-mine" in finetune
    adapt = words("adapt", weights__init_from="runs/base", name="m4-own")
    assert "--config.weights.init_from=runs/base" in adapt
    assert "--config.name=m16-own" in adapt


@pytest.mark.parametrize(("inputs", "asked"), [("vqq", True), ("vq", False)])
def test_inputs_say_whether_the_fusion_decoder_is_asked(inputs, asked):
    config = small_config(inputs=inputs)
    model = settings.model_config(config, "float32")
    parts = assemble(config, model.vision)
    record = open_source(config, "train")[0]
    sample = encode(record, parts.encoding, parts.layout(4))
    assert bool(np.any(sample.fusion.kinds == Kind.QUE)) == asked


@pytest.mark.parametrize(
    ("said", "right"),
    [("3 7", True), (" 3  7 ", True), ("3", False), ("3 7 1", False), ("7 3", False)],
)
def test_an_answer_is_right_when_its_words_are(said, right):
    assert is_correct(said, "3 7") == right
