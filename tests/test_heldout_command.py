"""A finished run is evaluated again: with its own inputs, with others, with fewer M."""

import json
import shutil

import pytest
from small_runs import small_config

from vtscale_jax import evaluate
from vtscale_jax.eval.__main__ import main, parse
from vtscale_jax.report.page import write_report
from vtscale_jax.train import train

SHIPPED = {
    "model__vision__blocks__num_layers": 4,
    "model__fusion__blocks__num_layers": 4,
    "model__llm__blocks__num_layers": 4,
    "weights__llm": "embedded",
    "weights__init_from": "embedded",
    "optim__learning_rate": 1e-6,
    "optim__steps": 1,
    "data__families": ("read", "locate", "exists"),
    "eval__questions": 8,
    "eval__max_new_tokens": 12,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one step from the shipped base, which knows how to read."""
    folder = tmp_path_factory.mktemp("heldout") / "run"
    train(small_config(16, **SHIPPED), folder)
    return folder


def said(capsys, *arguments):
    status = main(["heldout", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def read(folder, name):
    return json.loads((folder / name).read_text())


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_its_own_inputs_give_its_own_evaluation(run, tmp_path, capsys):
    out = tmp_path / "again"
    before = files(run)
    status, text, _ = said(capsys, "--run", run, "--out", out)
    assert status == 0 and "trained with vqq, evaluated with vqq" in text
    for name in ("evaluation.json", "samples.jsonl"):
        assert (out / name).read_bytes() == (run / name).read_bytes()
    pages = sorted(path.name for path in (run / "samples").iterdir())
    assert pages and pages == sorted(path.name for path in (out / "samples").iterdir())
    evaluated = read(out, "evaluated.json")
    assert evaluated.pop("duration_s") > 0
    assert evaluated == {
        "run": str(run),
        "num_queries": 16,
        "trained_inputs": "vqq",
        "inputs": "vqq",
        "questions": 8,
        "blank": True,
        "params_sha256": read(run, "manifest.json")["params_sha256"],
        "finished": True,
    }
    assert files(run) == before


def test_other_inputs_and_fewer_queries_differ(run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "vq"
    asked = ("--run", run, "--out", out, "--inputs", "vq", "--no_blank")
    status, text, _ = said(capsys, *asked)
    assert status == 0 and "trained with vqq, evaluated with vq\n" in text
    ours, theirs = (read(f, "evaluation.json")["families"] for f in (out, run))
    assert any(ours[name]["correct"] != theirs[name]["correct"] for name in theirs)
    assert not [key for row in ours.values() for key in row if "blank" in key]
    rows = (out / "samples.jsonl").read_text().splitlines()
    assert len(rows) == 24 and "blank_prediction" not in rows[0]
    assert write_report(out).is_file()  # of an evaluation without blank pages
    # It is there: nothing is evaluated or written again.
    before = files(out)
    monkeypatch.setattr(evaluate.Evaluator, "final", None)
    status, text, _ = said(capsys, *asked)
    assert status == 0 and "not evaluated again" in text
    assert files(out) == before
    monkeypatch.undo()
    fewer = tmp_path / "fewer"
    more = ("--num_queries", 2, "--questions", 4, "--no_blank")
    status, text, _ = said(capsys, "--run", run, "--out", fewer, *more)
    assert status == 0 and "M = 2" in text
    found = read(fewer, "evaluation.json")
    assert found["num_queries"] == 2 and found["families"]["read"]["n"] == 4


def test_an_evaluation_that_was_interrupted_is_made_anew(
    run, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"
    asked = ("--run", run, "--out", out, "--questions", 1, "--no_blank")

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate.Evaluator, "final", stopped)
    status, _, err = said(capsys, *asked)
    assert status == 130 and "the same command" in err
    assert not read(out, "evaluated.json")["finished"]
    monkeypatch.undo()
    assert said(capsys, *asked)[0] == 0
    assert read(out, "evaluated.json")["finished"]


def test_a_folder_that_is_taken_is_left_alone(run, tmp_path, capsys):
    out = tmp_path / "out"
    said(capsys, "--run", run, "--out", out, "--questions", 1, "--no_blank")
    before = files(out)

    def refused(*arguments):
        status, _, err = said(capsys, *arguments)
        assert status == 1 and err.startswith("error: ")
        return err

    err = refused("--run", run, "--out", out, "--questions", 1, "--inputs", "vq")
    assert "holds another evaluation" in err and "inputs: vqq there, vq now" in err
    assert "blank: False there" in err
    assert files(out) == before
    before = files(run)
    assert "has no evaluated.json" in refused("--run", run, "--out", run)
    assert files(run) == before
    (tmp_path / "file").write_text("x")
    assert "is a file" in refused("--run", run, "--out", tmp_path / "file")


def test_runs_that_cannot_be_evaluated(run, tmp_path, capsys):
    def refused(folder, *arguments):
        out = tmp_path / "none"
        status, _, err = said(capsys, "--run", folder, "--out", out, *arguments)
        assert status == 1 and not out.exists()
        return err

    assert "has learnt 16 queries" in refused(run, "--num_queries", 17)
    assert "configs/base.py:m=17,embedded" in refused(run, "--num_queries", 17)
    assert "has no config.json" in refused(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("checkpoints"))
    config, manifest = (read(run, f"{name}.json") for name in ("config", "manifest"))

    def changed(**fields):
        (copy / "config.json").write_text(json.dumps(config | fields))
        return refused(copy)

    data = config["data"] | {"name": "jsonl"}
    assert "only digit_pages has families" in changed(data=data)
    of = config["eval"] | {"questions": 0}
    assert "--questions 512" in changed(eval=of)
    short = {name: value for name, value in config.items() if name != "mesh"}
    (copy / "config.json").write_text(json.dumps(short))
    assert "it lacks mesh" in refused(copy)
    assert "no language model to answer with" in changed(stage="align")
    (copy / "config.json").write_text(json.dumps(config))
    for unfinished in (manifest | {"finished": False}, {"finished": True}):
        (copy / "manifest.json").write_text(json.dumps(unfinished))
        assert "is not finished" in refused(copy)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["heldout", "--run", "x"],
        ["heldout", "--run", "x", "--out", "y", "--inputs", "foo"],
        ["heldout", "--run", "x", "--out", "y", "--num_queries", "0"],
        ["heldout", "--run", "x", "--out", "y", "--questions", "x"],
    ],
)
def test_bad_arguments_show_the_usage(arguments, capsys):
    with pytest.raises(SystemExit):
        parse(arguments)
    assert "usage: python -m vtscale_jax.eval" in capsys.readouterr().err
