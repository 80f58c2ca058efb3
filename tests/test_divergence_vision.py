"""Branches of vision tokens: the states that the whole model has at its M slots."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image
from written_runs import write_run

from vtscale_jax.assemble import family_questions
from vtscale_jax.buckets import fit_buckets
from vtscale_jax.collate import collate
from vtscale_jax.divergence.__main__ import _pages, main
from vtscale_jax.divergence.pairs.images import (
    by_twos,
    images_sha256,
    read_image_pairs,
)
from vtscale_jax.divergence.pairs.schemas import BadRow, PairsError
from vtscale_jax.divergence.result import read_result
from vtscale_jax.divergence.vision_branches import VisionBranches
from vtscale_jax.encoding import encode
from vtscale_jax.tokens import llm_slots
from vtscale_jax.trained import open_trained
from vtscale_jax.vlm import VLM

M = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", M)


@pytest.fixture(scope="module")
def run(folder):
    return open_trained(folder)


def mesh(devices: int = 1) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]), ("data",))


def branches(run, rows, *, devices: int = 1, layer: str = "final", **more):
    return VisionBranches(
        run, rows, layer=layer, mesh=mesh(devices), batch_size=2, **more
    )


def states(source):
    """Both branches of all pairs, in order."""
    ((_, chunk),) = source.chunks([0])
    found = []
    for batch in chunk.batches:
        a, b = source.states(batch.inputs)
        found.append(np.stack([a, b])[:, : len(batch.index)])
    return np.concatenate(found, axis=1)


def whole_model(run, record):
    """States at the slots of one image, from the model that sees the whole prompt."""
    sample = encode(record, run.encoding, run.layout)
    tokens = run.model.vision.tokens_per_crop
    spec = fit_buckets([sample], batch_size=1, tokens_per_crop=tokens)
    batch = jax.tree.map(jnp.asarray, collate([sample], spec))
    hidden = VLM(run.model).apply(
        {"params": run.params}, batch.fusion, batch.llm, method=VLM.hidden
    )
    return np.asarray(hidden)[0, llm_slots(sample.llm)]


@pytest.mark.parametrize("devices", [1, 2])
def test_states_are_those_of_the_whole_model(run, devices):
    records = family_questions(run.config, 1, "final")[:6]
    rows = by_twos(records)
    found = states(branches(run, rows, devices=devices))
    assert found.shape[:3] == (2, 3, M)
    twos = zip(records[::2], records[1::2], strict=True)
    for number, (one, other) in enumerate(twos):
        # The question of the first, asked of both images.
        asked = other._replace(turns=one.turns)
        expected = [whole_model(run, record) for record in (one, asked)]
        np.testing.assert_allclose(found[:, number], expected, atol=2e-5)
        # The control: the other's own question is another one.
        assert np.abs(found[1, number] - whole_model(run, other)).max() > 1e-3


def test_layers_are_earlier_states(run):
    rows = by_twos(family_questions(run.config, 1, "final"))[:2]
    last = states(branches(run, rows))
    first = states(branches(run, rows, layer="1"))
    assert first.shape == last.shape and np.abs(first - last).max() > 0.1


def write_pairs(folder, *extra):
    """Two pages of noise as files, and a JSONL of a pair of them with more rows."""
    rng = np.random.default_rng(0)
    for name in "ab":
        pixels = rng.integers(0, 255, (64, 64), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    good = {"image_a": "a.png", "image_b": "b.png", "question": "count all digits"}
    lines = [json.dumps(good), *(json.dumps({**good, **row}) for row in extra)]
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_files_of_image_pairs(run, tmp_path):
    path = write_pairs(
        tmp_path,
        {"image_b": "a.png"},
        {"question": ""},
        {"image_b": "gone.png"},
        {"image_a": "b.png", "image_b": "a.png"},
    )
    with path.open("a") as file:
        file.write('\n{"image_a": "a.png"}\nno json\n')
    rows = list(read_image_pairs(path))
    bad = [(row.line, row.reason) for row in rows if isinstance(row, BadRow)]
    assert bad == [
        (2, "same branches"),
        (3, "wrong type"),
        (7, "missing field"),
        (8, "not JSON"),
    ]
    with pytest.raises(PairsError, match="line 2: same branches"):
        branches(run, rows)
    ((_, chunk),) = branches(run, rows, max_bad_share=0.9).chunks([0])
    assert chunk.rows == [1, 5]
    assert [row["reason"] for row in chunk.bad][1] == "wrong type"
    assert (4, "unreadable image") in [(r["line"], r["reason"]) for r in chunk.bad]
    a, b = states(branches(run, rows, max_bad_share=0.9))
    np.testing.assert_allclose(a[0], b[1], atol=1e-5)  # the same two images, turned
    np.testing.assert_allclose(b[0], a[1], atol=1e-5)
    with pytest.raises(PairsError, match="cannot be read"):
        list(read_image_pairs(tmp_path / "none.jsonl"))


def test_no_image_is_in_two_pairs(run):
    """Bands and p-values take pairs for independent."""
    records = _pages(run.config, 40)
    rows = by_twos(records)
    images = [np.asarray(i).tobytes() for r in rows for i in (r.image_a, r.image_b)]
    assert len(rows) == 20 and len(set(images)) == 40
    assert [row.question for row in rows] == [r.turns[0].question for r in records[::2]]
    assert len({row.question for row in rows}) > 5


def test_images_are_hashed_as_they_look(tmp_path):
    path = write_pairs(tmp_path, {"image_a": "b.png", "image_b": "a.png"})
    before = images_sha256(list(read_image_pairs(path)))
    assert images_sha256(list(read_image_pairs(path))) == before
    Image.new("L", (64, 64)).save(tmp_path / "b.png")
    assert images_sha256(list(read_image_pairs(path))) != before


def test_command_measures_a_run(folder, tmp_path, capsys):
    options = ["--num_pairs", "7", "--replicates", "100", "--out", str(tmp_path)]
    command = ["measure", "--run", str(folder), *options]
    assert main(command) == 0
    result = read_result(tmp_path / "tiny.json")
    assert result.kind == "vision" and result.num_positions == M
    assert result.counts.tolist() == [7] * M
    assert "Result:" in capsys.readouterr().out
    assert main([*command, "--num_queries", "2"]) == 0
    fewer = read_result(tmp_path / "tiny-first2.json")
    # Outputs of the first queries do not depend on later ones, but the M-th is ⟨eos⟩.
    assert fewer.num_positions == 2
    np.testing.assert_allclose(
        fewer.curve("D").mean[0], result.curve("D").mean[0], rtol=1e-5
    )
    assert main(command) == 0
    assert "not measured again" in capsys.readouterr().out
    path = write_pairs(tmp_path)
    mine = [*command, "--pairs", str(path), "--name", "mine"]
    assert main(mine) == 0
    assert read_result(tmp_path / "mine.json").counts.tolist() == [1] * M
    # Another image under the same name is another measurement.
    Image.new("L", (64, 64)).save(tmp_path / "b.png")
    assert main(mine) == 1
    assert "pairs_sha256" in capsys.readouterr().err


def test_a_single_vision_token(tmp_path_factory, tmp_path, capsys):
    """M = 1: D(1) alone, no cross measure, nothing to fit."""
    run = write_run(tmp_path_factory.mktemp("runs") / "one", 1)
    options = ["--num_pairs", "12", "--replicates", "100", "--out", str(tmp_path)]
    assert main(["measure", "--run", str(run), "--null", "1", *options]) == 0
    result = read_result(tmp_path / "one.json")
    assert result.counts.tolist() == [12] and result.curve("D").mean[0] > 0
    assert np.isnan(result.curve("psi_cross_ab").mean).all()
    assert "no n ≥ 2" in capsys.readouterr().out.lower()
