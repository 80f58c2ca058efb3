"""The command on LLaVA: the shipped tiny one behind each reducer; its goldens."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.numpy

from configs import llava, presets
from vtscale_jax.eval.__main__ import main
from vtscale_jax.eval.baselines.named import NAMES
from vtscale_jax.eval.ledger import Ledger

# ml_collections loads config files by a method that Python 3.12 will not have.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")

GOLDEN = Path(__file__).parent / "golden"
ASKED = ("--tasks", "exists,count", "--limit", "8", "--batch_size", "8")


def said(capsys, *arguments):
    status = main([*map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def entries(folder, task="exists"):
    return Ledger(folder / task / "ledger.jsonl").read()


def test_its_pages_are_those_of_the_embedded_preset():
    ours = llava.get_config()
    theirs = presets.embedded("adapt")
    assert ours.data.page.to_dict() == theirs["data"]["page"]
    for field in ("questions", "max_new_tokens"):
        assert ours.eval[field] == theirs["eval"][field]
    assert llava.REDUCERS == NAMES


@pytest.mark.parametrize(
    ("words", "tokens"),
    [
        ("", 144),
        ("reducer=visionzip,n=16", 16),
        ("reducer=vispruner,n=7", 7),
        ("reducer=downsample,n=4", 4),
    ],
)
def test_the_llm_sees_exactly_n_tokens(tmp_path, capsys, words, tokens):
    config = ":".join(["configs/llava.py", *([words] if words else [])])
    asked = ("run", "--config", config, *ASKED, "--out", tmp_path)
    status, text, _ = said(capsys, *asked)
    assert status == 0 and f"{tokens} vision tokens" in text
    (folder,) = tmp_path.iterdir()
    found = entries(folder)
    assert {entry.vision_tokens for entry in found.values()} == {tokens}
    assert all(entry.error is None for entry in found.values())
    identity = json.loads((folder / "evaluation.json").read_text())["model"]
    assert identity["reducer"]["n"] == identity["vision_tokens"] == tokens
    assert bool(identity["reducer"]["extension"]) == ("n=7" in words)
    # It is there: nothing is asked again, and another model is refused.
    before = (folder / "exists" / "ledger.jsonl").read_bytes()
    assert said(capsys, *asked)[0] == 0
    assert (folder / "exists" / "ledger.jsonl").read_bytes() == before
    other = ("--config", "configs/llava.py:reducer=pool,n=9", "--name", folder.name)
    status, _, err = said(capsys, "run", *other, *ASKED, "--out", tmp_path)
    assert status == 1 and "holds another evaluation" in err


def test_fields_are_set_on_the_command_line(tmp_path, capsys):
    config = ("--config", "configs/llava.py:reducer=visionzip,n=16")
    for contextual in (10, 3):
        changed = f"--config.reducer.contextual={contextual}"
        name = ("--out", tmp_path, "--name", f"c{contextual}")
        assert said(capsys, "run", *config, changed, *ASKED, *name)[0] == 0
        identity = json.loads(
            (tmp_path / f"c{contextual}" / "evaluation.json").read_text()
        )["model"]["reducer"]
        assert identity["reducer"] == {10: "visionzip", 3: "visionzip-c3"}[contextual]


def test_what_cannot_be_asked_is_refused(tmp_path, capsys):
    def refused(*words):
        status, _, err = said(capsys, "run", *words, *ASKED, "--out", tmp_path / "out")
        assert status == 1 and err.startswith("error: ")
        assert not (tmp_path / "out").exists()
        return err

    baseline = ("--config", "configs/llava.py:reducer=pool,n=9")
    assert "expected 1 to 144" in refused(*baseline, "--config.reducer.n=145")
    assert "nearest" in refused("--config", "configs/llava.py:reducer=downsample,n=5")
    assert "no baseline's" in refused("--config", "configs/m8.py")
    assert "nothing" in refused(*baseline, "--config.nothing=3")
    assert "--inputs is of runs" in refused(*baseline, "--inputs", "vq")
    missing = ("--config", tmp_path / "absent.py")
    assert "absent.py" in refused(*missing)
    with pytest.raises(SystemExit):
        main(["run", *baseline, "--run", "runs/x", "--tasks", "exists"])
    with pytest.raises(SystemExit):
        main(["compare", "a", "b", "--config.n=3"])
    assert "unrecognized arguments" in capsys.readouterr().err


def test_goldens_of_all_kinds_are_checked(tmp_path, capsys):
    for kind in ("reducers", "llava_tiny"):
        shutil.copytree(GOLDEN / kind, tmp_path / kind)
    shutil.copytree(GOLDEN / "eval" / "POPE", tmp_path / "eval" / "POPE")
    status, text, _ = said(capsys, "check-goldens", tmp_path)
    lines = text.splitlines()
    last = json.loads(lines[-1])
    assert status == 0 and last == {"checked": len(lines) - 1, "failed": 0}
    for name in ("visionzip", "vispruner", "llava logits", "POPE"):
        assert any(name in line for line in lines)
    # The control: one weight is another.
    file = tmp_path / "llava_tiny" / "weights.safetensors"
    tensors = safetensors.numpy.load_file(file)
    name = next(name for name in tensors if name.endswith("linear_1.weight"))
    tensors[name] = tensors[name] * 1.01
    safetensors.numpy.save_file(tensors, file)
    status, text, _ = said(capsys, "check-goldens", tmp_path / "llava_tiny")
    failed = [line for line in text.splitlines() if line.startswith("FAIL")]
    assert status == 1 and any("projector" in line for line in failed)
    assert not any("tower" in line for line in failed)
    status, _, err = said(capsys, "check-goldens", tmp_path / "eval" / "POPE" / "x")
    assert status == 1 and "is no folder" in err
