"""The reducers against the published code's own results, and what must not pass.

A part of a case is changed and the same check must then fail, so that none of them
passes by looking at nothing.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import reducer_oracle

from vtscale_jax.eval.baselines import goldens
from vtscale_jax.eval.baselines.visionzip import VisionZip
from vtscale_jax.eval.baselines.vispruner import VisPruner
from vtscale_jax.eval.goldens.benchmarks import GoldensError

pytestmark = pytest.mark.goldens
CASE = "case1_n64_r0.5_c10"


@pytest.fixture(scope="module")
def folder(golden_dir):
    return golden_dir / "reducers"


@pytest.fixture(scope="module")
def checks(folder):
    return goldens.check(folder)


@pytest.fixture
def one_case(folder, tmp_path):
    """A folder of one case and no edges, and how to change its arrays."""
    listed = json.loads((folder / "cases.json").read_text())
    listed["cases"] = [c for c in listed["cases"] if c["file"].startswith(CASE)]
    listed.pop(goldens.EDGES)
    (tmp_path / "cases.json").write_text(json.dumps(listed))
    path = tmp_path / f"{CASE}.npz"
    shutil.copy(folder / path.name, path)

    def change(**arrays):
        with np.load(folder / path.name) as file:
            held = dict(file)
        held |= {name: how(held[name].copy()) for name, how in arrays.items()}
        np.savez(path, **held)
        return tmp_path

    return change


def failed(folder):
    return [check.name.split()[-1] for check in goldens.check(folder) if not check.ok]


def test_every_case_and_edge_holds(folder, checks):
    assert not [check for check in checks if not check.ok]
    listed = json.loads((folder / "cases.json").read_text())
    number = len(listed["cases"]) + len(listed[goldens.EDGES])
    assert len({check.name for check in checks}) == len(checks) == 2 * number
    assert len(listed["cases"]) == 7


def test_edges_say_what_is_ours(checks):
    said = {check.name: check.detail for check in checks}
    assert (
        "published: raises IndexError; 2 tokens by vispruner: "
        in (said["edge n=2 vispruner"])
    )
    assert "8 tokens by visionzip: 7 contextual" in said["edge n=8 visionzip"]
    assert "12 tokens by the published rule" in said["edge n=12 vispruner"]
    assert "refused: reducer vispruner: n = 577" in said["edge n=577 vispruner"]


def exchanged(rows):
    """The first two rows in each other's place."""
    rows[[0, 1]] = rows[[1, 0]]
    return rows


def moved(rows):
    """One number a little larger."""
    rows.ravel()[-1] += 1
    return rows


@pytest.mark.parametrize(
    "name, how, reducer",
    [
        ("vispruner_kept", moved, "vispruner"),
        ("vispruner_kept", lambda kept: kept[:-1], "vispruner"),
        ("vispruner_important", moved, "vispruner"),
        ("visionzip_kept_with_cls", moved, "visionzip"),
        ("visionzip_targets", moved, "visionzip"),
        ("visionzip_sources", exchanged, "visionzip"),
        ("visionzip_assign", moved, "visionzip"),
        ("visionzip_out", exchanged, "visionzip"),
        ("visionzip_out", lambda out: out * (1 + 5e-5), "visionzip"),
        ("keys", lambda keys: keys[:, ::-1], "visionzip"),
    ],
)
def test_a_changed_case_fails(one_case, name, how, reducer):
    assert failed(one_case(**{name: how})) == [reducer]


def test_an_unchanged_case_holds(one_case):
    assert failed(one_case()) == []


def test_other_inputs_fail_for_both(one_case):
    turned = one_case(cls_attention=lambda rows: rows[:, ::-1])
    assert failed(turned) == ["vispruner", "visionzip"]


@pytest.mark.parametrize("told", [{"n": 8, "vispruner_r0_5_tokens": 8}, None])
def test_an_extension_that_is_not_named_fails(one_case, told, monkeypatch):
    """Told that the published code gives 8, our extension is not its rule; and an
    extension that hides fails beside "raises"."""
    folder = one_case()
    listed = json.loads((folder / "cases.json").read_text())
    edge = told or {"n": 8, "visionzip_c10_tokens": "raises RuntimeError"}
    (folder / "cases.json").write_text(json.dumps({**listed, goldens.EDGES: [edge]}))
    if told is None:
        assert failed(folder) == []
        settle = VisionZip.settle

        def silent(self, num_patches, n):
            return dataclasses.replace(settle(self, num_patches, n), extension="")

        monkeypatch.setattr(VisionZip, "settle", silent)
    assert len(failed(folder)) == 1


@pytest.mark.parametrize("name", [f"case{i}" for i in range(7)])
def test_restated_in_float64(folder, name):
    """The cases by the restatement alone: a check of the oracle of other tests."""
    (path,) = folder.glob(f"{name}_*.npz")
    cases = json.loads((folder / "cases.json").read_text())["cases"]
    (case,) = (c for c in cases if c["file"] == path.name)
    with np.load(path) as file:
        a = dict(file)
    kept, important, gap = reducer_oracle.vispruner(
        a["hidden"][1:], a["cls_attention"], case["n"], case["important_ratio"]
    )
    assert kept == a["vispruner_kept"].tolist()
    assert sorted(important) == a["vispruner_important"].tolist()
    assert gap > 0
    out, rows, _ = reducer_oracle.visionzip(
        a["hidden"],
        a["cls_attention"],
        a["keys"],
        case["dominant"],
        case["contextual"],
    )
    assert rows == a["visionzip_kept_with_cls"].tolist()
    np.testing.assert_allclose(out, a["visionzip_out"], rtol=1e-5, atol=2e-6)


def test_a_refused_case_is_a_failed_one(one_case):
    folder = one_case()
    listed = json.loads((folder / "cases.json").read_text())
    listed["cases"][0]["n"] = 577
    (folder / "cases.json").write_text(json.dumps(listed))
    (wrong, _) = goldens.check(folder)
    assert not wrong.ok and "expected 1 to 576" in wrong.detail


def test_rounds_of_the_published_code():
    rounds = {n: len(VisPruner().settle(576, n).rounds) for n in (16, 64, 128, 384)}
    assert rounds == {16: 70, 64: 64, 128: 56, 384: 24}


@pytest.mark.parametrize(
    "break_it, said",
    [
        (lambda f: (f / "cases.json").unlink(), "cases.json is not there"),
        (lambda f: (f / "cases.json").write_text("{"), "not JSON"),
        (lambda f: (f / "cases.json").write_text("[]"), "a list `cases`"),
        (lambda f: (f / "cases.json").write_text('{"cases": [{"n": 1}]}'), "lacks fil"),
        (lambda f: (f / f"{CASE}.npz").unlink(), "though cases.json lists it"),
        (lambda f: np.savez(f / f"{CASE}.npz", hidden=np.zeros(1)), "lacks cls_atten"),
    ],
)
def test_a_broken_folder_is_explained(one_case, break_it, said):
    folder = one_case()
    break_it(folder)
    with pytest.raises(GoldensError, match=said):
        goldens.check(folder)


@pytest.mark.parametrize(
    "edge, said",
    [
        ({"vispruner_r0_5_tokens": 1}, "lacks n"),
        ({"n": 4, "vispruner_tokens": 4}, "unknown field 'vispruner_tokens'"),
    ],
)
def test_a_broken_edge_is_explained(one_case, edge, said):
    folder = one_case()
    listed = json.loads((folder / "cases.json").read_text())
    (folder / "cases.json").write_text(json.dumps({**listed, goldens.EDGES: [edge]}))
    with pytest.raises(GoldensError, match=said):
        goldens.check(folder)
