"""The notebook, executed from top to bottom as on a machine without accelerators."""

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from xla_flags import xla_flags

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "launch" / "colab.ipynb"
PNG = b"\x89PNG\r\n\x1a\n"


def read():
    """The notebook as it is in git."""
    return nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)


def cell(notebook, name):
    (found,) = [one for one in notebook.cells if one.id == name]
    return found


def set_up(notebook, **values):
    """Writes other values into the cell of settings, all of which must be there."""
    settings = cell(notebook, "settings")
    for name, value in values.items():
        line = re.compile(rf"^{name} = [^#\n]*", re.MULTILINE)
        settings.source, changed = line.subn(f"{name} = {value!r}  ", settings.source)
        assert changed == 1, name


def printed(found):
    return "".join(out.text for out in found.outputs if out.output_type == "stream")


def images(found):
    """The decoded pictures that a cell shows, in its outputs or its HTML."""
    shown = [out.data for out in found.outputs if out.output_type == "display_data"]
    texts = [data["image/png"] for data in shown if "image/png" in data]
    for data in shown:
        texts += re.findall(
            r"data:image/png;base64,([^\"]+)", data.get("text/html", "")
        )
    return [base64.b64decode(text) for text in texts]


def environment(**more):
    """That of a user: with one device, not with the tests' eight."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    # Kernels of this Python only; the machine's GPUs are left alone.
    nowhere = {"JUPYTER_PATH": "", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    return kept | nowhere | {"XLA_FLAGS": xla_flags(1, level=1)} | more


def execute(notebook, monkeypatch, **more):
    """Runs it in a kernel that starts in launch/; what it printed last, on an error."""
    for name in {*os.environ} - {*environment(**more)}:
        monkeypatch.delenv(name)
    for name, value in environment(**more).items():
        monkeypatch.setenv(name, value)
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources=where
    ).execute()


def test_what_git_keeps_is_a_clean_notebook():
    notebook = read()
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    ids = [one.id for one in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z-]+", one) for one in ids), "ids say what cells do"
    for one in notebook.cells:
        if one.cell_type == "code":
            assert not one.outputs and one.execution_count is None, one.id
    # Named in the text, and there.
    text = "\n".join(one.source for one in notebook.cells)
    for path in re.findall(r"`((?:launch|configs)/[\w.]+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.slow
def test_from_top_to_bottom(tmp_path, monkeypatch):
    notebook = read()
    set_up(notebook, STEPS=4, QUESTIONS=2, RUNS=str(tmp_path))
    # Whoever calls pip would need the network.
    (tmp_path / "pip.py").write_text("raise SystemExit('pip was called')")
    kept = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    execute(notebook, monkeypatch, PYTHONPATH=str(tmp_path), **kept)
    outputs = [out for one in notebook.cells for out in one.get("outputs", ())]
    assert all(out.output_type != "error" for out in outputs)

    install = printed(cell(notebook, "install"))
    assert f"Installed already, from {ROOT}" in install
    assert re.search(r"JAX runs on 1 x cpu", install)

    run = tmp_path / "m16-4-steps"
    assert json.loads((run / "manifest.json").read_text())["finished"]
    training = printed(cell(notebook, "train"))
    assert "step 4/4" in training and "M = 16" in training
    assert training.index("stage adapt") < training.index("step 4/4")

    drawn = images(cell(notebook, "curves"))
    assert len(drawn) == 2 and all(data.startswith(PNG) for data in drawn)
    assert drawn[0] == (run / "plots" / "curves.png").read_bytes()
    rows = [json.loads(x) for x in (run / "samples.jsonl").read_text().splitlines()]
    table = cell(notebook, "pages").outputs[0].data["text/html"]
    assert 1 <= len(images(cell(notebook, "pages"))) <= 3
    pages = list(dict.fromkeys(row["image"] for row in rows if row["image"]))[:3]
    for row in rows:
        if row["image"] in pages:
            assert row["prediction"] in table and row["answer"] in table

    asked = cell(notebook, "ask")
    assert images(asked) == [(run / pages[0]).read_bytes()]
    answers = re.findall(r"^> (.*)\n(.+)\n  first token", printed(asked), re.MULTILINE)
    assert [question for question, _ in answers] == [
        "read all digits in order",
        "how many digits are on the page ?",
    ]
    # Four steps leave the base as it is, which answers in digits.
    assert all(re.fullmatch(r"\d( \d)*", answer.strip()) for _, answer in answers)

    measured = cell(notebook, "divergence")
    assert "128 pairs" in printed(measured)
    figures = tmp_path / "divergence" / "figures"
    assert images(measured) == [(figures / "fig05_divergence.png").read_bytes()]


def test_a_command_that_fails_ends_the_notebook(tmp_path, monkeypatch):
    notebook = read()
    set_up(notebook, STEPS=-1, RUNS=str(tmp_path))
    with pytest.raises(CellExecutionError, match="status 1"):
        execute(notebook, monkeypatch)
    assert "error: " in printed(cell(notebook, "train"))
    assert not cell(notebook, "curves").outputs
    with pytest.raises(AssertionError, match="NOTHING"):
        set_up(notebook, NOTHING=1)


# What the first cells do on other machines: as a program, with a stand-in for pip.

PIP = """
import json, sys
from pathlib import Path

(Path(__file__).parent / "pip.json").write_text(json.dumps(sys.argv[1:]))
"""


def install(folder, repository="", **more):
    """Runs the cells of settings and installation in `folder`, with nothing installed:
    `vtscale_jax` is hidden by one that cannot be imported."""
    notebook = read()
    set_up(notebook, REPOSITORY=str(repository))
    names = ("settings", "install")
    source = "\n".join(cell(notebook, name).source for name in names)
    stand_ins = folder / "stand-ins"
    (stand_ins / "vtscale_jax").mkdir(parents=True, exist_ok=True)
    (stand_ins / "vtscale_jax" / "__init__.py").write_text("raise ImportError")
    (stand_ins / "pip.py").write_text(PIP)
    here = folder / "here"
    here.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", source],
        cwd=here,
        env=environment(PYTHONPATH=str(stand_ins), **more),
        capture_output=True,
        text=True,
        check=False,
    )
    file = stand_ins / "pip.json"
    return done, json.loads(file.read_text()) if file.exists() else None


@pytest.fixture
def source(tmp_path):
    """A repository that looks like ours, in git."""
    folder = tmp_path / "source"
    (folder / "vtscale_jax").mkdir(parents=True)
    (folder / "vtscale_jax" / "train.py").write_text("")
    who = ["-c", "user.name=x", "-c", "user.email=x@x"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", folder, *words], check=True)
    return folder


def test_without_a_checkout_it_asks_for_one(tmp_path):
    done, pip = install(tmp_path)
    assert done.returncode == 1 and pip is None
    assert done.stderr.strip() == "Set REPOSITORY, in the first cell, and run it again."


def test_it_fetches_and_installs(tmp_path, source):
    done, pip = install(tmp_path, source)
    assert done.returncode == 0, done.stderr
    assert pip == ["install", "--quiet", "--editable", "."]
    assert "$ python -m pip install --quiet --editable ." in done.stdout
    assert (tmp_path / "here" / "vtscale_source" / ".git").is_dir()
    # Run again, it uses what it fetched.
    assert install(tmp_path, "nothing there")[0].returncode == 0


def test_it_unpacks_an_archive(tmp_path, source):
    archive = tmp_path / "vtscale_jax.zip"
    command = ["git", "-C", source, "archive", "--prefix=vtscale-main/", "-o", archive]
    subprocess.run([*command, "HEAD"], check=True)
    done, pip = install(tmp_path, archive)
    assert done.returncode == 0 and pip is not None, done.stderr
    assert (tmp_path / "here" / "vtscale_source" / "vtscale-main").is_dir()


def test_it_installs_what_a_gpu_needs(tmp_path, source):
    smi = tmp_path / "nvidia-smi"
    for status, extra in ((0, ".[gpu]"), (9, ".")):
        smi.write_text(f"#!/bin/sh\nexit {status}\n")
        smi.chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        done, pip = install(tmp_path, source, PATH=path)
        assert pip is not None and pip[-1] == extra, done.stderr
        # The stand-in for pip installs nothing, so JAX still sees no more than the CPU.
        assert ("It leaves a gpu unused" in done.stdout) == (status == 0)
