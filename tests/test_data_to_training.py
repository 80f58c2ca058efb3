"""From a download with broken files to a trained run, by the commands."""

import json

import numpy as np
import pytest
from PIL import Image
from small_runs import manifest, small_config

from vtscale_jax.data.__main__ import main
from vtscale_jax.next_commands import next_stage
from vtscale_jax.train import train

ROWS = 120


@pytest.fixture(scope="module")
def download(tmp_path_factory):
    """LLaVA's file about 120 images, of which one in twenty is broken."""
    folder = tmp_path_factory.mktemp("download")
    images = folder / "images"
    (images / "coco/train2017").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(ROWS):
        path = f"coco/train2017/{i:012}.jpg"
        size = (int(rng.integers(60, 200)), int(rng.integers(60, 200)), 3)
        pixels = rng.integers(0, 256, size, np.uint8)
        Image.fromarray(pixels).save(images / path)
        asked = {"from": "human", "value": "<image>\nIs there any 5 in the middle row?"}
        told = {"from": "gpt", "value": f"there is no 5 in row {i}"}
        rows.append({"id": f"{i}", "image": path, "conversations": [asked, told]})
    file = [images / row["image"] for row in rows]
    file[11].write_bytes(file[11].read_bytes()[:700])  # truncated
    file[31].write_bytes(b"")
    file[51].write_text("<html>404 Not Found</html>")
    file[71].unlink()
    Image.new("1", (12_000, 12_000)).save(file[91], "PNG")  # 144 million pixels
    Image.new("RGB", (64, 64)).save(file[111], "PNG")  # a PNG by the name of .jpg
    (folder / "llava.json").write_text(json.dumps(rows))
    return folder


def prepare(download, out, *more):
    main(
        ["prepare", "llava", str(download / "llava.json")]
        + ["--images", str(download / "images"), "--out", str(out), *more]
    )


def config_of(path, name, heldout):
    return small_config(
        data__name=name,
        data__path=str(path),
        data__heldout_path=str(heldout),
        data__max_local_views=4,
        optim__steps=4,
        eval__every=4,
        checkpoint__every=4,
    )


@pytest.mark.parametrize(
    "store", [pytest.param("jsonl", marks=pytest.mark.long), "arrayrecord"]
)
def test_what_prepare_lets_through_trains_without_a_skip(download, tmp_path, store):
    out = tmp_path / "llava"
    prepare(download, out, "--workers", "1", "--store", store)
    report = json.loads((out / "report.json").read_text())
    shown = json.dumps(report)
    assert report["images"]["notes"] == {"PNG file named .jpg": 1}  # and kept
    for number in (11, 31, 51, 71, 91):
        assert f"{number:012}.jpg" in shown
    records = (out / "records.jsonl").read_text().splitlines()
    ids = [json.loads(line)["image"] for line in records]
    kept = [i for i in range(ROWS) if i not in (11, 31, 51, 71, 91)]
    assert ids == [f"coco/train2017/{i:012}.jpg" for i in kept]
    mixture = tmp_path / "mixture.json"
    main(["mixture", "--out", str(mixture), f"llava={out}"])
    heldout = out if store == "arrayrecord" else mixture
    if store == "arrayrecord":
        config = config_of(out, "array_record", heldout)
    else:
        config = config_of(mixture, "mixture", heldout)
    train(config, tmp_path / "run")
    found = manifest(tmp_path / "run")
    assert found["finished"] and found["samples_skipped"] == 0
    following = next_stage(config, tmp_path / "run")
    assert f"--config.data.name={config.data.name}" in following
    assert f"--config.data.path={config.data.path}" in following
    assert "image_root" not in following


@pytest.mark.long  # test_skips has each of both
def test_without_it_the_broken_ones_are_skipped_or_stop_the_run(download, tmp_path):
    """The same rows as they were downloaded: what `prepare` would have left out."""
    rows = json.loads((download / "llava.json").read_text())
    lines = [
        {
            "id": row["id"],
            "image": row["image"],
            "messages": [
                {"role": "user", "content": "Is there any 5 in the middle row?"},
                {"role": "assistant", "content": row["conversations"][1]["value"]},
            ],
        }
        for row in rows
    ]
    whole = [line for line in lines if int(line["id"]) % 20 != 11]
    for name, some in (("all", lines), ("whole", whole)):
        text = "".join(json.dumps(line) + "\n" for line in some)
        (tmp_path / f"{name}.jsonl").write_text(text)
    config = config_of(tmp_path / "all.jsonl", "jsonl", tmp_path / "whole.jsonl")
    config.data.image_root = str(download / "images")
    config.optim.steps = ROWS // config.data.batch_size  # one epoch
    config.eval.every = config.optim.steps
    train(config, tmp_path / "run")
    lines = (tmp_path / "run" / "skipped-0.jsonl").read_text().splitlines()
    skipped = [json.loads(line)["id"] for line in lines]
    assert sorted(skipped, key=int) == ["11", "31", "51", "71", "91"]
    assert manifest(tmp_path / "run")["samples_skipped"] == 5
