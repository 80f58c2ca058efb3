"""The command that asks: on a run, typed or given, and what it says when it cannot."""

import io
import json
import shutil
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from small_runs import small_config

from vtscale_jax import ask
from vtscale_jax.compilation import CompileClock, keep_compiled
from vtscale_jax.conversation import Answering, ImageConversation
from vtscale_jax.train import train
from vtscale_jax.trained import RunError, open_trained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps from the shipped base, with two rows of samples a family."""
    folder = tmp_path_factory.mktemp("ask") / "run"
    shipped = {
        "model__vision__blocks__num_layers": 4,
        "model__fusion__blocks__num_layers": 4,
        "model__llm__blocks__num_layers": 4,
        "weights__llm": "embedded",
        "weights__init_from": "embedded",
        "optim__learning_rate": 1e-6,
        "optim__steps": 2,
        "eval__max_new_tokens": 24,
    }
    train(small_config(16, **shipped), folder)
    return folder


@pytest.fixture(scope="module")
def samples(run):
    lines = (run / "samples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["image"]]


@pytest.fixture(autouse=True)
def _caches_of_their_own(monkeypatch, tmp_path):
    """The command keeps compiled programs; tests keep theirs where they were."""
    monkeypatch.setattr(ask, "keep_compiled", lambda: None)


def said(capsys, *arguments):
    status = ask.main([str(word) for word in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_answers_are_those_of_the_evaluation(run, samples, capsys):
    for row in samples[:2]:
        status, out, _ = said(
            capsys,
            *("--run", run, "--image", run / row["image"]),
            *("--question", row["question"]),
        )
        assert status == 0
        first, question, answer, timing, *_ = out.splitlines()
        assert first.endswith("M = 16, N = 8")
        assert question == f"> {row['question']}"
        assert answer == row["prediction"]
        for part in ("first token after", "views", "vision", "fusion", "prefill"):
            assert part in timing
    assert "tokens/s" in out


def test_follow_ups_and_another_number_of_queries(run, samples, capsys):
    row = samples[0]
    page = ("--run", run, "--image", run / row["image"])
    two = ("--question", row["question"], "--question", "how many digits ?")
    _, out, _ = said(capsys, *page, *two)
    lines = out.splitlines()
    assert [line for line in lines if line.startswith(">")] == [
        f"> {row['question']}",
        "> how many digits ?",
    ]
    # The second one reads its own tokens only: M stays in the cache.
    reads = [
        line.split("(read ")[1].split(" tokens")[0] for line in lines if "(" in line
    ]
    whole, follow = (tuple(map(int, read.split(" of "))) for read in reads)
    assert whole[0] == whole[1] and follow[0] < 40 < follow[1]
    _, fewer, _ = said(capsys, *page, *two, "--num_queries", 4)
    assert "M = 4, N = 4" in fewer
    count = int(fewer.split("(read ")[1].split(" ")[0])
    assert whole[0] - count == 12
    _, fewer, _ = said(capsys, *page, *two, "--num_followup_queries", 2)
    assert "M = 16, N = 2" in fewer


def test_questions_are_typed_until_an_empty_line(run, samples, capsys, monkeypatch):
    row = samples[0]
    typed = f"{row['question']}\nhow many digits ?\n\nnot read\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    status, out, _ = said(capsys, "--run", run, "--image", run / row["image"])
    assert status == 0 and out.count("first token after") == 2
    assert row["prediction"] in out
    monkeypatch.setattr("sys.stdin", io.StringIO(row["question"]))
    _, out, _ = said(capsys, "--run", run, "--image", run / row["image"])
    assert out.count("first token after") == 1


def test_int8_and_drawn_answers(run, samples, capsys):
    row = samples[0]
    page = ("--run", run, "--image", run / row["image"], "--question", row["question"])
    status, out, _ = said(capsys, *page, "--int8")
    # A language model this small and this sure is the same in whole numbers.
    assert status == 0 and out.splitlines()[2] == row["prediction"]
    hot = ("--temperature", 3, "--max_new_tokens", 8)
    answers = {said(capsys, *page, *hot, "--seed", s)[1].splitlines()[2] for s in "123"}
    assert len(answers) > 1
    again = {said(capsys, *page, *hot, "--seed", 1)[1].splitlines()[2] for _ in "12"}
    assert len(again) == 1
    _, out, _ = said(capsys, *page, "--max_new_tokens", 2)
    assert "cut after 2 tokens: --max_new_tokens" in out
    stop = row["prediction"].split()[1]
    _, out, _ = said(capsys, *page, "--stop", stop)
    assert out.splitlines()[2].strip() == row["prediction"].partition(stop)[0].strip()


def test_what_cannot_be_asked_is_said_in_a_line(run, tmp_path, capsys):
    def refused(*arguments):
        status, _, err = said(capsys, *arguments, "--question", "how many digits ?")
        assert status == 1 and err.startswith("error: ")
        assert err.splitlines()[-1] == "(--traceback shows where)"
        return err

    assert "has no config.json" in refused("--run", tmp_path)
    assert "--image FILE" in refused("--run", run)
    missing = refused("--run", run, "--image", tmp_path / "none.png")
    assert "none.png" in missing and "no such file" in missing
    page = next((run / "samples").glob("*.png"))
    more = refused("--run", run, "--image", page, "--num_queries", 64)
    assert "has learnt 16 queries" in more and "configs/m64.py:embedded" in more
    assert "temperature is -1.0" in refused("--run", run, "--temperature", -1)
    unknown = refused("--llm", "no/such-model")
    assert "no/such-model" in unknown and "--llm=FOLDER" in unknown

    for arguments in (
        ["--question", "x"],
        ["--run", "a", "--llm", "b"],
        ["--llm", "b", "--image", "x.png"],
        ["--llm", "b", "--num_queries", "0"],
        ["--llm", "b", "--num_followup_queries", "2"],
        ["--run", "a", "--dtype", "float32"],
        ["--run", "a", "--system", "x"],
        ["--run", "a", "--max_new_tokens", "0"],
    ):
        with pytest.raises(SystemExit):
            ask.parse(arguments)
        assert "usage" in capsys.readouterr().err


def test_runs_that_cannot_answer(run, tmp_path):
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    (unfinished / "weights.safetensors").unlink()
    with pytest.raises(RunError, match="is not finished"):
        open_trained(unfinished)
    align = tmp_path / "align"
    shutil.copytree(run, align)
    text = (align / "config.json").read_text()
    (align / "config.json").write_text(
        text.replace('"stage": "adapt"', '"stage": "align"')
    )
    with pytest.raises(RunError, match="no language model to answer with"):
        open_trained(align)
    for text in ("[]", '{"stage": "adapt"}'):
        (align / "config.json").write_text(text)
        with pytest.raises(RunError, match="not the config of a run"):
            open_trained(align)
    older = json.loads((run / "config.json").read_text())
    del older["data"]["views"]
    (align / "config.json").write_text(json.dumps(older))
    with pytest.raises(RunError, match=r'add "views": "exact" to its "data"'):
        open_trained(align)
    other = tmp_path / "other"
    shutil.copytree(run, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["weights"]["llm"]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="another language model"):
        open_trained(other)
    (other / "manifest.json").write_text("{}")
    with pytest.raises(RunError, match="does not say which language model"):
        open_trained(other)
    (other / "manifest.json").unlink()
    with pytest.raises(ValueError, match="manifest.json cannot be read"):
        open_trained(other)
    config = json.loads((other / "config.json").read_text())
    config["weights"]["llm"] = "/nowhere/llm"
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match="set its place under weights in .*config.json"):
        open_trained(other)


def test_fewer_queries_mean_no_more_follow_up_queries(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_followup_queries": 8}))
    assert open_trained(copy, num_queries=4).layout.num_followup_queries == 4
    assert open_trained(copy).layout.num_followup_queries == 8


@pytest.mark.long  # test_answers_are_those_of_the_evaluation has the shipped one
def test_a_run_on_a_fresh_language_model_has_the_same_one_again(tmp_path):
    train(small_config(4, optim__steps=1), tmp_path / "run")
    rows = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    row = next(row for row in map(json.loads, rows) if row["image"])
    trained = open_trained(tmp_path / "run")
    talk = ImageConversation(
        trained.params,
        trained.model,
        trained.encoding,
        trained.layout,
        str(tmp_path / "run" / row["image"]),
        Answering(most=3, eos_ids=(2,)),
    )
    reply = talk.ask(row["question"])
    assert "".join(piece.text for piece in reply).strip() == row["prediction"]


def test_compiling_is_counted_once():
    clock = CompileClock()
    now = time.perf_counter

    def spend(name, inner=()):
        started = now()
        time.sleep(0.02)
        for one in inner:
            spend(one)
        clock._add(f"/jax/core/compile/{name}", now() - started)

    started = now()
    spend("outer", ["first", "second"])
    spend("after")
    assert abs(clock.seconds - (now() - started)) < 0.01
    clock._add("/jax/other", 5.0)
    assert clock.seconds < 1


def test_fewer_queries_are_the_first_ones(run):
    whole, fewer = open_trained(run), open_trained(run, num_queries=4)
    queries = np.asarray(whole.params["fusion"]["queries"])
    assert queries.shape[0] == 15
    assert np.array_equal(fewer.params["fusion"]["queries"], queries[:3])


def test_compiled_programs_are_kept_by_processor(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = {
        name: getattr(jax.config, name)
        for name in (
            "jax_compilation_cache_dir",
            "jax_persistent_cache_min_compile_time_secs",
        )
    }
    try:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
        keep_compiled()
        assert (
            jax.config.jax_compilation_cache_dir
            == (before["jax_compilation_cache_dir"])
        )
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        keep_compiled()
        folder = Path(jax.config.jax_compilation_cache_dir)
        assert folder.parent == tmp_path / "vtscale_jax" / "compiled"
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
