"""Prompts to the character, and the images that go before them."""

import io
import json
import warnings

import numpy as np
import pandas as pd
import pytest
from benchmark_tables import (
    GOLDENS,
    NAMES,
    encoded,
    image_bytes,
    question_rows,
    write_table,
)
from PIL import Image

from vtscale_jax.eval.benchmarks.image_cells import ImageError
from vtscale_jax.eval.benchmarks.images import as_seen, images_seen
from vtscale_jax.eval.benchmarks.prompts import (
    image_names,
    message,
    prompt,
)
from vtscale_jax.eval.benchmarks.table import read_table
from vtscale_jax.eval.benchmarks.tasks import get_task

MMSTAR = get_task("MMStar")


@pytest.mark.parametrize("name", NAMES)
def test_messages_are_vlmevalkits(name):
    expected = json.loads((GOLDENS / name / "prompts.json").read_text())
    table = read_table(GOLDENS / name / f"{name}.tsv", get_task(name))
    assert [str(index) for index in table.rows["index"]] == list(expected)
    for i, parts in enumerate(expected.values()):
        assert message(table.task, table.row(i), table.num_images(i)) == parts


def test_the_goldens_have_what_is_easily_missed():
    texts = [
        part["value"]
        for name in NAMES
        for parts in json.loads((GOLDENS / name / "prompts.json").read_text()).values()
        for part in parts
    ]
    assert any("\nD. 36.0\n" in text or ".0\n" in text for text in texts)
    assert any(text.startswith("Hint: ") for text in texts)
    assert any("\nE. " in text for text in texts)
    assert any(text.endswith("_2.jpg") for text in texts)


def test_every_part_of_a_choice_has_its_place():
    row = {
        "question": "Which?",
        "hint": "Look.",
        "B": 2.0,
        "A": "one",
        "C": np.nan,
        "D": True,
        "a": "no option",
    }
    select = "Please select the correct answer from the options above. \n"
    assert prompt(MMSTAR, row) == (
        f"Hint: Look.\nQuestion: Which?\nOptions:\nA. one\nB. 2.0\nD. True\n{select}"
    )
    bare = {"question": "Why?", "hint": np.nan, "A": np.nan}
    assert prompt(MMSTAR, bare) == "Question: Why?\n"


@pytest.mark.parametrize("name", ["MME", "HallusionBench", "POPE", "OCRBench"])
def test_questions_of_yes_and_no_stand_as_they_are(name):
    text = " Is it? Please answer yes or no. "
    assert prompt(get_task(name), {"question": text, "hint": "x", "A": "y"}) == text


def test_images_are_named_by_root_index_and_place():
    assert image_names(get_task("COCO_VAL"), 7, 1) == ["images/COCO/7.jpg"]
    assert image_names(get_task("SEEDBench2"), "a", 2) == [
        "images/SEEDBench2/a_0.jpg",
        "images/SEEDBench2/a_1.jpg",
    ]


# --- images


def test_the_papers_version_sees_a_jpeg_of_quality_75():
    data = image_bytes(0, 32)
    expected = io.BytesIO()
    Image.open(io.BytesIO(data)).save(expected, "JPEG", quality=75)
    seen = as_seen(data, "paper")
    assert seen.mode == "RGB"
    np.testing.assert_array_equal(seen, Image.open(expected))
    original = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(np.asarray(seen, int) - original).max() > 30  # noise suffers most
    np.testing.assert_array_equal(as_seen(data, "current"), original)


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "1", "LA"])
@pytest.mark.parametrize("version", ["paper", "current"])
def test_every_mode_becomes_rgb(mode, version):
    image = Image.open(io.BytesIO(image_bytes(1, mode=mode)))
    assert image.mode == mode
    seen = as_seen(image_bytes(1, mode=mode), version)
    assert seen.mode == "RGB" and seen.size == (16, 16)
    if version == "current":
        with warnings.catch_warnings():
            # Of a palette with transparency, which VLMEvalKit converts all the same.
            warnings.simplefilter("ignore")
            np.testing.assert_array_equal(seen, image.convert("RGB"))


def test_jpeg_is_written_again_too():
    once = io.BytesIO()
    Image.open(io.BytesIO(image_bytes(2, 32))).save(once, "JPEG", quality=95)
    seen = [np.asarray(as_seen(once.getvalue(), v)) for v in ("paper", "current")]
    assert (seen[0] != seen[1]).any()
    np.testing.assert_array_equal(seen[1], Image.open(once))


def test_images_keep_their_order(tmp_path):
    rows = question_rows(2)
    pair = [encoded(image_bytes(5)), encoded(image_bytes(6))]
    rows[1]["image"] = str(pair)
    table = read_table(
        write_table(tmp_path / "t.tsv", rows), get_task("OCRVQA_TESTCORE")
    )
    first, second = images_seen(table, 1, "current")
    for image, seed in ((first, 5), (second, 6)):
        np.testing.assert_array_equal(image, Image.open(io.BytesIO(image_bytes(seed))))


def test_an_image_that_is_cut_off_is_named(tmp_path):
    rows = question_rows(2)
    rows[1]["image"] = encoded(image_bytes(1)[:-400])
    table = read_table(
        write_table(tmp_path / "t.tsv", rows), get_task("OCRVQA_TESTCORE")
    )
    with pytest.raises(ImageError, match=r"line 3 \(index 1\), image 1: .*cut off"):
        images_seen(table, 1, "paper")
    assert len(images_seen(table, 0, "paper")) == 1


def test_rows_of_a_frame_and_of_a_table_read_alike():
    table = read_table(GOLDENS / "RealWorldQA/RealWorldQA.tsv", get_task("RealWorldQA"))
    frame = pd.read_csv(GOLDENS / "RealWorldQA/RealWorldQA.tsv", sep="\t")
    for i in range(len(table)):
        assert prompt(table.task, table.row(i)) == prompt(
            table.task, dict(frame.iloc[i])
        )
