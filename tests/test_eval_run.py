"""`eval run` on a run: the same answers whatever the batch, the hosts, or a kill."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from running import ROOT, free_port
from small_runs import rows, small_config
from xla_flags import xla_flags

from vtscale_jax.assemble import family_questions, prompts_encoding
from vtscale_jax.eval import decoding
from vtscale_jax.eval.__main__ import main
from vtscale_jax.eval.ask_items import ask_items
from vtscale_jax.eval.ledger import Ledger
from vtscale_jax.eval.models import Question
from vtscale_jax.eval.run_model import RunModel, open_run_model
from vtscale_jax.eval.tasks_by_name import items_of
from vtscale_jax.scaling.vlmevalkit import read_results
from vtscale_jax.train import train
from vtscale_jax.trained import open_on_mesh, run_config

GOLDEN = Path(__file__).parent / "golden" / "eval"
SHIPPED = {
    "model__vision__blocks__num_layers": 4,
    "model__fusion__blocks__num_layers": 4,
    "model__llm__blocks__num_layers": 4,
    "weights__llm": "embedded",
    "weights__init_from": "embedded",
    "optim__learning_rate": 1e-6,
    "optim__steps": 2,
    "eval__every": 1,
    "data__families": ("read", "locate", "exists"),
    "eval__questions": 12,
    "eval__max_new_tokens": 12,
}
TASKS = ("POPE", "exists")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of tables, as --data takes it."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("POPE", "ChartQA_TEST", "SEEDBench2", "MME"):
        shutil.copy(GOLDEN / name / f"{name}.tsv", folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    """A run from the shipped base, which knows how to read, asked tasks in training."""
    folder = tmp_path_factory.mktemp("eval") / "m16-embedded"
    asked = {"eval__tasks": ",".join(TASKS), "eval__data": str(data)}
    train(small_config(16, **SHIPPED, **asked), folder)
    return folder


def said(capsys, *arguments):
    status = main([*map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def entries(folder, task):
    return Ledger(folder / task / "ledger.jsonl").read()


def scores(folder, task):
    return json.loads((folder / task / "scores.json").read_text())


def test_training_asks_its_tasks(run, data, tmp_path, capsys):
    logged = [row for row in rows(run) if "score/POPE" in row]
    assert logged and all(0 <= row["score/exists"] <= 1 for row in logged)
    theirs = run / "benchmarks" / "m16-embedded-vqq"
    # The finished run, asked again by the command, says the same.
    asked = ("--run", run, "--tasks", ",".join(TASKS), "--data", data)
    assert said(capsys, "run", *asked, "--out", tmp_path)[0] == 0
    ours = tmp_path / "m16-embedded-vqq"
    for task in TASKS:
        assert entries(ours, task) == entries(theirs, task)
        assert scores(ours, task) == scores(theirs, task)
    # What is known of the family from the run's own evaluation.
    found = json.loads((run / "evaluation.json").read_text())["families"]["exists"]
    assert scores(ours, "exists")["scores"][0]["Overall"] == found["accuracy"] > 0.8
    read = {
        row["id"]: row["prediction"]
        for row in map(json.loads, (run / "samples.jsonl").read_text().splitlines())
    }
    for index, entry in entries(ours, "exists").items():
        assert entry.prediction == read[index]
        assert entry.vision_tokens == 16 < entry.prompt_tokens


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_batch_size_changes_nothing(run, data, tmp_path, capsys, batch_size):
    asked = ("--run", run, "--tasks", "read,locate,exists", "--out", tmp_path)
    status, text, _ = said(capsys, "run", *asked, "--batch_size", batch_size)
    assert status == 0 and f"{batch_size} questions at once" in text
    said_by_run = {
        row["id"]: (row["prediction"], row["correct"])
        for row in map(json.loads, (run / "samples.jsonl").read_text().splitlines())
    }
    folder = tmp_path / "m16-embedded-vqq"
    found = {}
    for task in ("read", "locate", "exists"):
        for line in (folder / task / "items.jsonl").read_text().splitlines():
            row = json.loads(line)
            found[row["index"]] = (row["prediction"], bool(row["score"]))
    assert found == said_by_run


def test_several_batches_at_once_answer_as_one_by_one(run):
    """On one device, where they may be; over several they take their turns."""
    config = run_config(run)
    spread = open_run_model(run, config, 8)
    assert spread.batches_at_once == 1 < jax.device_count()
    laid = open_on_mesh(run, config)
    alone = RunModel(
        jax.device_put(jax.device_get(laid.params), jax.devices()[0]),
        laid.model,
        prompts_encoding(laid.parts),
        laid.parts.layout(config.num_queries),
        batch_size=3,
        identity={},
    )
    assert alone.batches_at_once > 1
    (task,) = items_of(["read"], config, data=None, scorer="paper", limit=40)
    made = ask_items(alone, task, None, [])
    questions = [task.question(i) for i in range(40)]
    found = [alone.answer([question])[0].text for question in questions]
    assert [entry.prediction for entry in made] == found
    assert len(set(found)) > 10
    assert ask_items(spread, task, None, []) == made


def test_layers_are_apart_where_a_device_has_them_whole(run):
    sharded = run_config(run)
    sharded.mesh.update(data=1, fsdp=-1, frozen="sharded")
    models = [open_run_model(run, config, 8) for config in (run_config(run), sharded)]
    assert [m._config.llm.blocks.stacked for m in models] == [False, True]
    (task,) = items_of(["read"], sharded, data=None, scorer="paper", limit=8)
    whole, cut = (ask_items(model, task, None, []) for model in models)
    assert cut == whole and len({entry.prediction for entry in whole}) > 3


def test_an_image_is_looked_at_once_in_a_batch(run):
    """Questions about three pages, mixed; each page comes anew with each question."""
    config = run_config(run)
    families = ("locate", "exists", "read")
    records = family_questions(config, 3, "quick", families)
    asked = [
        Question((Image.fromarray(record.image),), record.turns[0].question, 12)
        for record in records[:8]
    ]
    assert len({one.images[0].tobytes() for one in asked}) == 3
    batches, models = [], {size: open_run_model(run, config, size) for size in (1, 8)}
    place = models[8]._place
    models[8]._place = lambda batch: batches.append(batch) or place(batch)
    for model in models.values():
        model._encoding = dataclasses.replace(model._encoding, require_image=False)

    def answered(size, questions):
        starts = range(0, len(questions), size)
        groups = [questions[i : i + size] for i in starts]
        return [answer for group in groups for answer in models[size].answer(group)]

    alone = answered(1, asked)
    assert answered(8, asked) == alone
    assert len({answer.text for answer in alone}) > 3
    # Eight questions about three pages of ten views: 30, in whole rows of eight.
    (batch,) = batches
    assert batch.fusion.crops.shape[0] == 32
    assert np.array_equal(batch.fusion.crop_row, np.repeat(np.arange(8), 10))
    # One pixel is another image, and questions that fill a batch cost no views.
    batches.clear()
    pixels = np.array(asked[0].images[0])
    pixels[0, 0] ^= 1
    near = asked[0]._replace(images=(Image.fromarray(pixels),))
    answered(8, [asked[0], near, asked[1]])
    assert batches[0].fusion.crops.shape[0] == 32
    assert batches[0].fusion.crop_index[:30].tolist() == list(range(30))
    assert batches[0].fusion.crop_index[30:].tolist() == 5 * list(range(20, 30))
    # Questions without an image, beside others and alone.
    blind = [one._replace(images=()) for one in asked[:3]]
    mixed = [blind[0], asked[0], blind[1], asked[1], blind[2]]
    expected = answered(1, mixed)
    assert answered(8, mixed) == expected
    assert answered(8, blind) == expected[::2]
    assert [one.vision_tokens for one in expected] == [0, 16, 0, 16, 0]
    # However many images there are, only the vision tower is compiled for them.
    batches.clear()
    same = [asked[0]._replace(images=one.images) for one in asked[:3]]
    answered(8, same)
    written = decoding._write._cache_size()
    answered(8, same[:1] * 8)
    answered(8, same[:2] * 4)
    assert [len(batch.fusion.crops) for batch in batches] == [32, 16, 24]
    assert decoding._write._cache_size() == written


def test_other_inputs_differ_and_are_compared(run, tmp_path, capsys):
    for more in ((), ("--inputs", "vq")):
        asked = ("--run", run, "--tasks", "locate,exists", "--out", tmp_path, *more)
        assert said(capsys, "run", *asked, "--json")[0] == 0
    first, second = tmp_path / "m16-embedded-vqq", tmp_path / "m16-embedded-vq"
    assert entries(first, "locate") != entries(second, "locate")
    status, text, _ = said(capsys, "compare", first, second, "--json")
    compared = json.loads(text)
    assert status == 0 and [row["task"] for row in compared["tasks"]] == [
        *("exists", "locate")
    ]
    for row in compared["tasks"]:
        overall = scores(first, row["task"])["scores"][0]["Overall"]
        assert row["n"] == 12 and row["first"] == pytest.approx(overall)
    status, text, _ = said(capsys, "compare", first, second)
    assert "McNemar" not in text and "locate" in text
    # One evaluation in a folder: what would mix two is refused.
    status, _, err = said(
        *(capsys, "run", "--run", run, "--tasks", "exists", "--out", tmp_path),
        *("--inputs", "vq", "--name", "m16-embedded-vqq"),
    )
    assert status == 1 and "inputs: vqq there, vq now" in err


def test_benchmarks_are_written_as_vlmevalkit_does(run, data, tmp_path, capsys):
    names = "POPE,ChartQA_TEST,SEEDBench2"
    asked = ("--run", run, "--tasks", names, "--data", data, "--out", tmp_path)
    status, text, _ = said(capsys, "run", *asked)
    assert status == 0 and "not the official table" in text
    folder = tmp_path / "m16-embedded-vqq"
    read = read_results(tmp_path)
    metrics = {score.metric for score in read.scores}
    assert {"POPE/Overall", "ChartQA_TEST/Overall", "SEEDBench2/Overall"} <= metrics
    assert {(score.n_l, score.inputs) for score in read.scores} == {(16, "vqq")}
    # The predictions' workbook, scored by the other command, gives the same scores.
    for task in names.split(","):
        book = folder / f"m16-embedded-vqq_{task}.xlsx"
        score = ("--tsv", data / f"{task}.tsv", "--task", task, "--predictions", book)
        status, text, _ = said(capsys, "score", *score, "--scorer", "paper", "--json")
        assert (
            status == 0 and json.loads(text)["scores"] == scores(folder, task)["scores"]
        )
    # Of several images the model looks at the first, and the ledger says so.
    found = scores(folder, "SEEDBench2")["failures"]
    several = [e for e in entries(folder, "SEEDBench2").values() if e.images > 1]
    assert found["images left out"] == len(several) > 0
    assert all(e.images_seen == 1 for e in several)


def test_what_cannot_be_asked_is_refused_before(run, data, tmp_path, capsys):
    def refused(*more, **other):
        asked = {"--run": run, "--out": tmp_path / "out", "--tasks": "POPE"} | other
        words = [word for pair in asked.items() for word in pair]
        status, _, err = said(capsys, "run", *words, *more)
        assert status == 1 and err.startswith("error: ")
        assert not (tmp_path / "out").exists()
        return err

    assert "say where its table lies" in refused()
    assert "Fetch the table" in refused("--data", tmp_path)
    err = refused(**{"--tasks": "POEP"})
    assert "POPE" in err and "families of Digit Pages" in err
    assert "exists more than once" in refused(**{"--tasks": "exists,exists"})
    err = refused("--data", data, "--limit", 5, **{"--tasks": "MME"})
    assert "its score needs every category" in err
    assert "learnt 16 queries" in refused("--num_queries", 17, **{"--tasks": "exists"})
    assert "no config.json" in refused(**{"--run": tmp_path, "--tasks": "exists"})
    taken = tmp_path / "taken" / "m16-embedded-vqq"
    taken.mkdir(parents=True)
    (taken / "thesis.txt").write_text("mine")
    asked = ("--run", run, "--tasks", "exists", "--out", tmp_path / "taken")
    status, _, err = said(capsys, "run", *asked)
    assert status == 1 and "is not empty" in err
    assert [path.name for path in taken.iterdir()] == ["thesis.txt"]


class Evaluation:
    """The command as child processes; four questions of POPE share each image."""

    TASKS = ("read", "POPE")

    def __init__(self, run, data, out, cache, processes=1, devices=1):
        port = free_port()
        command = [sys.executable, "-m", "vtscale_jax.eval", "run", "--run", str(run)]
        command += ["--tasks", ",".join(self.TASKS), "--data", str(data)]
        command += ["--batch_size", "4", "--out", str(out)]
        self.children = []
        for index in range(processes):
            environment = os.environ | {
                "JAX_COMPILATION_CACHE_DIR": str(cache / f"{processes}-{index}"),
                "XLA_FLAGS": xla_flags(devices, level=1),
            }
            if processes > 1:
                environment |= {
                    "VTSCALE_COORDINATOR": f"127.0.0.1:{port}",
                    "VTSCALE_NUM_PROCESSES": str(processes),
                    "VTSCALE_PROCESS_ID": str(index),
                }
            child = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self.children.append(child)

    def finish(self):
        outputs = [child.communicate(timeout=300)[0] for child in self.children]
        statuses = [child.returncode for child in self.children]
        assert statuses == [0] * len(statuses), "\n".join(outputs)
        return outputs


@pytest.fixture(scope="module")
def whole(run, data, tmp_path_factory):
    """The tasks of `Evaluation`, asked in one go by one process."""
    out = tmp_path_factory.mktemp("whole")
    asked = ("--run", run, "--tasks", ",".join(Evaluation.TASKS), "--data", data)
    assert main([*map(str, ("run", *asked, "--batch_size", 4, "--out", out))]) == 0
    return out / "m16-embedded-vqq"


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_and_doubles_nothing(
    run, data, whole, tmp_path, tmp_path_factory
):
    cache = tmp_path_factory.mktemp("cache")
    folder = tmp_path / "m16-embedded-vqq"
    rng = random.Random(3)
    ledger = Ledger(folder / "read" / "ledger.jsonl")
    for least in (1, 5):
        started = Evaluation(run, data, tmp_path, cache)
        while len(ledger.read()) < least:
            assert started.children[0].poll() is None, started.finish()
            time.sleep(0.01)
        time.sleep(rng.random() * 0.05)
        started.children[0].send_signal(signal.SIGKILL)
        started.children[0].communicate()
        # As if a line had been half written.
        with ledger.file.open("ab") as file:
            file.write(b'{"index": "read-hel')
    Evaluation(run, data, tmp_path, cache).finish()
    for task, number in (("read", 12), ("POPE", 48)):
        lines = (folder / task / "ledger.jsonl").read_text().splitlines()
        indices = [json.loads(line)["index"] for line in lines]
        assert len(indices) == len(set(indices)) == number
        assert entries(folder, task) == entries(whole, task)
        assert scores(folder, task) == scores(whole, task)


@pytest.mark.slow
def test_two_processes_answer_as_one(run, data, whole, tmp_path, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    outputs = Evaluation(run, data, tmp_path, cache, processes=2, devices=2).finish()
    assert "Results:" in outputs[0] and "Results:" not in outputs[1]
    folder = tmp_path / "m16-embedded-vqq"
    for task in Evaluation.TASKS:
        assert entries(folder, task) == entries(whole, task)
        assert scores(folder, task) == scores(whole, task)
