"""How the tiny LLaVA is made: its tower's beginning, its batches and its losses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from configs import m256
from vtscale_jax import paths, settings
from vtscale_jax.embedded import pretrain, pretrain_llava, ship
from vtscale_jax.embedded.digit_pages import DigitPages
from vtscale_jax.embedded.page_tower import CODE, page_positions, page_tower
from vtscale_jax.embedded.pretrain_llava import (
    CellBatch,
    cell_batches,
    cell_loss,
    family_accuracy,
    page_batch,
    page_loss,
    page_vision,
    starting_params,
)
from vtscale_jax.embedded.vocabulary import build_tokenizer
from vtscale_jax.eval.baselines.answering import LlavaModel, Reading
from vtscale_jax.eval.baselines.llava import Llava, LlavaConfig
from vtscale_jax.eval.baselines.named import named
from vtscale_jax.eval.baselines.pixels import prepare
from vtscale_jax.eval.baselines.tower import FeatureTower
from vtscale_jax.eval.models import Question
from vtscale_jax.generate import for_generation
from vtscale_jax.images import load_image
from vtscale_jax.layers import BlockConfig
from vtscale_jax.optim import OptimConfig
from vtscale_jax.tokens import QueryLayout, llm_sequence
from vtscale_jax.vision import VisionConfig
from vtscale_jax.weights.llava_models import (
    EMBEDDED_VISION,
    SHIPPED_FILE,
    load_llava,
)
from vtscale_jax.weights.starting import read, shipped

VIEW = VisionConfig(
    32, 8, BlockConfig(128, 512, 4, 4, norm_eps=1e-5, activation="quick_gelu")
)
CLIP, LLM = shipped("clip.safetensors"), shipped("llm.safetensors")
PAGE = (96, 144)


@pytest.fixture(scope="module")
def clip():
    return paths.unflatten(read(CLIP))["vision"]


@pytest.fixture(scope="module")
def records():
    source = DigitPages("train", num_pages=8, seed=5)
    return [source[i] for i in range(8)]


def test_the_tower_of_pages_is_the_one_that_is_loaded():
    assert page_vision(VIEW) == EMBEDDED_VISION
    assert (EMBEDDED_VISION.grid, EMBEDDED_VISION.tokens_per_crop) == (12, 145)


def test_positions_are_those_within_a_cell_with_its_code():
    rng, channels = np.random.default_rng(0), np.arange(9) + 3
    table = rng.normal(size=(17, 20)).astype(np.float32)
    page = page_positions(table, channels)
    assert page.shape == (145, 20)
    others = np.delete(np.arange(20), channels)
    np.testing.assert_array_equal(page[0, others], table[0, others])
    assert not page[0, channels].any()
    grid, view = page[1:].reshape(12, 12, 20), table[1:].reshape(4, 4, 20)
    for row, column, cell in ((0, 0, 0), (3, 4, 1), (5, 11, 5), (11, 2, 6)):
        np.testing.assert_array_equal(
            grid[row, column, others], view[row % 4, column % 4, others]
        )
        code = np.zeros(9)
        code[cell] = CODE
        np.testing.assert_array_equal(grid[row, column, channels], code)


def other_cells_matter(params, records):
    """How much the features of the upper left cell change with the other cells."""
    pages = np.stack([record.image for record in records])
    alone = pages.copy()
    alone[:, 32:], alone[:, :, 32:] = 128, 128
    seen = []
    for pixels in (pages, alone):
        view = FeatureTower(EMBEDDED_VISION, (3,)).apply(
            {"params": params}, jnp.asarray(pretrain_llava.normalize(pixels))
        )
        seen.append(np.asarray(view.features).reshape(-1, 12, 12, 128)[:, :4, :4])
    return np.abs(seen[0] - seen[1]).mean() / np.abs(seen[0]).mean()


def test_a_patch_looks_at_its_own_cell_first(clip, records):
    tower = page_tower(clip, 3, 4)
    assert len(tower["blocks"]["up"]["bias"]) == 3
    assert other_cells_matter(tower, records) < 0.25
    # Without the code the same blocks mix the cells up.
    channels = np.flatnonzero(tower["patch_embed"]["kernel"].sum((0, 1, 2)) == 0)
    assert len(channels) == 9
    plain = {**tower, "pos_embed": tower["pos_embed"].copy()}
    plain["pos_embed"][:, channels] = 0
    assert other_cells_matter(plain, records) > 0.5
    # The CLIP is as it was.
    np.testing.assert_array_equal(
        clip["pos_embed"], paths.unflatten(read(CLIP))["vision"]["pos_embed"]
    )


def test_pixels_are_those_of_the_evaluation(records):
    image = records[0].image
    ours = pretrain_llava.normalize(image[None])[0]
    np.testing.assert_allclose(ours, prepare(load_image(image), 96, "crop"), atol=1e-6)


def test_rows_hold_the_vectors_behind_bos_and_then_the_text(records):
    tokenizer = build_tokenizer()
    batch = page_batch(records, 144)
    for row, record in enumerate(records):
        text = llm_sequence(
            record._replace(image=None), tokenizer, "plain", QueryLayout(1)
        ).ids
        assert batch.keep[row].sum() == len(text) + 144
        ids = batch.ids[row][batch.keep[row]]
        np.testing.assert_array_equal(np.delete(ids, np.arange(144) + 1), text)
        np.testing.assert_array_equal(batch.slots[row], np.arange(144) + 1)
        places = batch.positions[row][batch.mask[row]]
        said = batch.targets[row][batch.mask[row]]
        np.testing.assert_array_equal(ids[places + 1], said)
        answers = [f"{turn.answer} </s>" for turn in record.turns]
        assert tokenizer.decode(said) == " ".join(answers)
    long = records[0]._replace(turns=records[0].turns * 3)
    with pytest.raises(ValueError, match="broadcast"):
        page_batch([long], 144)


class Copies:
    """Says what stands in the row: every answer, or every answer wrong."""

    def __init__(self, off=0):
        self.off = off

    def init(self, key, *batch):
        return {"params": {}}

    def apply(self, variables, pixels, ids, keep, slots, positions):
        said = jnp.take_along_axis(ids, positions + 1, axis=1)
        return 9.0 * (jnp.arange(70) == (said + self.off)[..., None])


def test_accuracy_counts_whole_answers():
    assert set(family_accuracy(Copies(), {}, 96, 4, number=3).values()) == {1.0}
    assert set(family_accuracy(Copies(1), {}, 96, 4, number=3).values()) == {0.0}


def test_the_loss_is_that_of_the_answers(records):
    batch = jax.tree.map(jnp.asarray, page_batch(records, 144))
    right, metrics = page_loss(Copies(), {}, batch)
    assert right < 0.02 and metrics["token_accuracy"] == 1
    wrong, metrics = page_loss(Copies(1), {}, batch)
    assert wrong > 8 and metrics["token_accuracy"] == 0


class Words:
    """Gives every patch the embedding of a word by the patch's cell."""

    def __init__(self, words):
        self.words = words

    def init(self, key, *batch):
        return {"params": {}}

    def apply(self, variables, given, method):
        if method == "see":
            return type("View", (), {"features": given})
        grid = jnp.repeat(jnp.repeat(self.words.reshape(-1, 3, 3), 4, 1), 4, 2)
        return variables["params"]["llm"]["embed"][grid.reshape(-1, 144)]


def test_patches_are_to_be_the_words_of_their_cells():
    batch = next(cell_batches(0, 96))
    source = DigitPages("train", num_pages=1, seed=0)
    words = ["none" if cell is None else str(cell) for cell in source.page(0).cells]
    tokenizer = build_tokenizer()
    assert tokenizer.decode(batch.words[0]) == " ".join(words)
    table = np.random.default_rng(0).normal(size=(70, 16)).astype(np.float32)
    params = {"llm": {"embed": jnp.asarray(table)}}
    loss, metrics = cell_loss(Words(jnp.asarray(batch.words)), params, batch)
    assert loss < 0.1 and metrics["accuracy"] == 1
    turned = CellBatch(batch.pixels, batch.words[:, ::-1].copy())
    loss, metrics = cell_loss(Words(jnp.asarray(batch.words)), params, turned)
    assert loss > 1 and metrics["accuracy"] < 0.6


@pytest.mark.slow
def test_training_moves_what_trains_and_nothing_else(tmp_path, monkeypatch):
    short = OptimConfig(steps=2, learning_rate=1e-3)
    monkeypatch.setitem(pretrain.RECIPES, "llava", short)
    monkeypatch.setattr(pretrain, "ALIGNMENT", short)
    monkeypatch.setattr(pretrain_llava, "PAGES_PER_BATCH", 2)
    monkeypatch.setattr(pretrain_llava, "PAGES_PER_ALIGNMENT", 2)
    monkeypatch.setattr(pretrain_llava, "HELDOUT_QUESTIONS", 2)

    config = settings.model_config(m256.get_config(), "float32")
    assert config.vision.blocks == VIEW.blocks
    model = Llava(LlavaConfig(EMBEDDED_VISION, config.llm))
    file = pretrain.pretrain("llava", config, tmp_path, seed=3, llava=model)
    start, _ = starting_params(model, CLIP, LLM, PAGE, 4, 3)
    made = read(file)
    flat = paths.flatten(start)
    assert made.keys() == flat.keys(), "the LLM is not written again"
    assert all(made[path].shape == leaf.shape for path, leaf in flat.items())
    for path in ("vision/blocks/up/kernel", "projector/linear_2/kernel"):
        assert np.any(made[path] != flat[path])
    about = json.loads((tmp_path / "pretrain.json").read_text())
    files = json.loads(shipped("manifest.json").read_text())["files"]
    assert about["from"] == {name: files[name]["sha256"] for name in ("clip", "llm")}
    assert set(about["accuracy"]) == set(pretrain_llava.FAMILIES)
    # What was trained from other weights does not ship.
    about["from"]["llm"] = "0" * 64
    (tmp_path / "pretrain.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"was trained from .* train it anew"):
        ship.ship_llava(tmp_path)


@pytest.fixture(scope="module")
def manifest():
    return json.loads(shipped("manifest.json").read_text())


def test_what_ships_is_what_its_manifest_says(manifest):
    about, file = manifest["llava"], shipped(SHIPPED_FILE)
    tensors = load_file(file)
    assert paths.content_hash(paths.unflatten(tensors)) == about["sha256"]
    assert sum(leaf.size for leaf in tensors.values()) == about["parameters"]
    assert file.stat().st_size < 3 * 2**20
    ours = {name: manifest["files"][name]["sha256"] for name in ("clip", "llm")}
    assert about["from"] == ours, "other weights ship now: train LLaVA anew"
    assert about["recipe"]["steps"] == pretrain.RECIPES["llava"].steps
    assert about["align_recipe"]["steps"] == pretrain.ALIGNMENT.steps
    assert len(about["curve"]) > 5 and len(about["align_curve"]) > 5


@pytest.mark.parametrize(
    ("family", "least"),
    [("exists", 0.8), ("locate", 0.7), ("choice", 0.7), ("count", 0.6), ("read", 0.3)],
)
def test_the_recorded_accuracy_is_that_of_a_model_that_sees(manifest, family, least):
    assert manifest["llava"]["accuracy"][family] >= least


def test_the_shipped_model_answers_as_its_manifest_says(manifest):
    """Through the evaluation's own way of asking; and a blank page is not enough."""
    found = load_llava("weights", "embedded")
    params, config = for_generation(found.params, LlavaConfig(*found.fields[:6]))
    reading = Reading("plain", "crop", found.tokenizer, None, found.end_ids)
    model = LlavaModel(
        params,
        config,
        reading,
        reducer=named("none"),
        n=144,
        batch_size=32,
        source={"weights": found.sha256},
    )
    source = DigitPages(
        "heldout", num_pages=32, seed=3, families=("locate",), questions_per_page=1
    )
    records = [source[i] for i in range(32)]
    blank = Image.new("RGB", (96, 96), (230, 230, 230))
    right = {}
    for name in ("page", "blank"):
        asked = [
            Question(
                (Image.fromarray(record.image) if name == "page" else blank,),
                record.turns[0].question,
                8,
            )
            for record in records
        ]
        pairs = zip(model.answer(asked), records, strict=True)
        right[name] = np.mean([a.text == r.turns[0].answer for a, r in pairs])
    assert abs(right["page"] - manifest["llava"]["accuracy"]["locate"]) < 0.2
    assert right["page"] - right["blank"] > 0.3
