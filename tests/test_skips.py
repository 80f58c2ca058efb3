"""Training with broken images: skipped, counted and named; too many stop it."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_runs import manifest, rows, small_config

from vtscale_jax.encoders import Unreadable
from vtscale_jax.losses import align_loss
from vtscale_jax.skips import SkipLog, TooManyUnreadable, skipped_places
from vtscale_jax.train import train

NUMBER = 60


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A JSONL file of `NUMBER` small pages, of which three cannot be read."""
    folder = tmp_path_factory.mktemp("pages")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(NUMBER):
        pixels = rng.integers(0, 256, (96, 96, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        asked = {"role": "user", "content": "What digit is in the top left cell?"}
        answer = {"role": "assistant", "content": "two"}
        lines.append({"id": f"p{i}", "image": f"{i}.png", "messages": [asked, answer]})
    (folder / "7.png").write_bytes(b"")
    (folder / "20.png").write_text("<html>404 Not Found</html>")
    whole = (folder / "33.png").read_bytes()
    (folder / "33.png").write_bytes(whole[: len(whole) // 2])
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "records.jsonl").write_text(text)
    # The loss is taken on pages that can be read.
    (folder / "heldout.jsonl").write_text("".join(text.splitlines(True)[40:]))
    return folder


def config_of(pages, **more):
    changes = {
        "data__name": "jsonl",
        "data__path": str(pages / "records.jsonl"),
        "data__heldout_path": str(pages / "heldout.jsonl"),
        "data__image_root": str(pages),
        "optim__steps": 14,  # nearly two epochs of eight each
        "eval__every": 14,
        "checkpoint__every": 4,
    }
    return small_config(**(changes | more))


def skipped_lines(folder):
    text = (folder / "skipped-0.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_broken_images_are_skipped_counted_and_named(pages, tmp_path):
    config = config_of(pages)
    train(config, tmp_path / "run")
    lines = skipped_lines(tmp_path / "run")
    # Each epoch meets all three (112 samples are fed: the second one not whole).
    assert {line["id"] for line in lines} == {"p7", "p20", "p33"}
    assert 3 <= len(lines) <= 6
    for line in lines:
        assert f"{line['id'].removeprefix('p')}.png" in line["reason"]
    found = manifest(tmp_path / "run")
    assert found["finished"] and found["samples_skipped"] == len(lines)
    assert all(np.isfinite(row["loss"]) for row in rows(tmp_path / "run"))
    report = (tmp_path / "run" / "report.html").read_text()
    assert f"{len(lines)} samples were skipped" in report


@pytest.mark.long  # test_encoders.py has the batches of both
def test_workers_skip_the_same_and_train_the_same(pages, tmp_path):
    for name, number in (("threads", 0), ("workers", 1)):
        train(config_of(pages, data__num_workers=number), tmp_path / name)
    one, two = (tmp_path / name for name in ("threads", "workers"))
    assert skipped_lines(one) == skipped_lines(two)
    assert manifest(one)["samples_fed"] == manifest(two)["samples_fed"]
    assert manifest(one)["params_sha256"] == manifest(two)["params_sha256"]


@pytest.mark.long  # the counts of a resumed run: the last three of this file
def test_a_resumed_run_counts_each_skip_once(pages, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(config_of(pages), whole)

    # The run ends by an error after step 11, and its last checkpoint is that of step 8.
    def fail(self, step, loss, grad_norm):
        if step == 11:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("vtscale_jax.loss_watch.LossWatch.see", fail)
        with pytest.raises(KeyboardInterrupt):
            train(config_of(pages), cut)
    assert skipped_lines(cut)
    train(config_of(pages), cut)
    assert skipped_lines(cut) == skipped_lines(whole)
    assert manifest(cut)["samples_skipped"] == manifest(whole)["samples_skipped"]
    assert manifest(cut)["params_sha256"] == manifest(whole)["params_sha256"]


def test_a_batch_that_is_skipped_as_a_whole_teaches_nothing():
    """Stage align: no answers and no slots, and no division by their number."""
    rng = np.random.default_rng(0)
    questions, answers, slots = (
        jnp.asarray(rng.normal(size=(4, 8)), jnp.float32) for _ in range(3)
    )

    def loss(questions, there):
        mask = jnp.full(4, there)
        scale = jnp.asarray(1.0)
        return align_loss(questions, answers, scale, mask, slots, mask).loss

    value, gradient = jax.value_and_grad(loss)(questions, False)
    assert value == 0 and not np.any(gradient)
    value, gradient = jax.value_and_grad(loss)(questions, True)
    assert value > 0.1 and np.any(gradient)


def test_too_many_stop_the_run(pages, tmp_path):
    """None is allowed, so the first one stops it, and its name is kept."""
    config = config_of(pages, data__max_unreadable=0.0)
    with pytest.raises(
        TooManyUnreadable, match=r"(?s)[12] of the .*png.*max_unreadable"
    ):
        train(config, tmp_path / "run")
    assert 1 <= len(skipped_lines(tmp_path / "run")) <= 2  # of one batch


def test_a_broken_held_out_image_is_an_error_that_names_it(pages, tmp_path):
    config = config_of(pages, data__heldout_path=str(pages / "records.jsonl"))
    with pytest.raises(ValueError, match=r"'p7'.*7\.png"):
        train(config, tmp_path / "run")


def test_a_missing_folder_is_noticed(pages, tmp_path):
    """Not one image is there: no shapes can be fitted."""
    empty = tmp_path / "images"
    empty.mkdir()
    config = config_of(pages, data__image_root=str(empty))
    with pytest.raises(ValueError, match=r"(?s)none of the 80 records.*no such file"):
        train(config, tmp_path / "run")


def test_the_share(tmp_path):
    bad = [(0, Unreadable("a", "a.png: no such file"))]
    log = SkipLog(tmp_path, 0, range(100), most=0.002, begun=0)
    log.see(1, bad)
    log.see(2, bad)  # two of the first thousand
    with pytest.raises(TooManyUnreadable, match=r"3 of the 300 samples.*allows 2"):
        log.see(3, bad)
    # A longer run may have more of them: 2,000 samples, of which four.
    again = SkipLog(tmp_path, 0, range(100), most=0.002, begun=2)
    assert skipped_places(tmp_path) == {(1, 0), (2, 0)}
    for step in range(3, 19):
        again.see(step, [])
    again.see(19, bad)
    again.see(20, bad)
    with pytest.raises(TooManyUnreadable):
        again.see(21, bad)
    with pytest.raises(TooManyUnreadable, match="max_unreadable is 2"):
        SkipLog(tmp_path, 0, range(100), most=2.0, begun=0)


def test_other_hosts_take_the_count_over(tmp_path):
    """Two processes fed rows 0-1 and 2-3; one goes on with all four."""
    bad = Unreadable("a", "a.png: no such file")
    for process, own in ((0, (0, 1)), (1, (2, 3))):
        log = SkipLog(tmp_path, process, own, most=1.0, begun=0)
        log.see(1, [(own[1], bad)])
    assert skipped_places(tmp_path) == {(1, 1), (1, 3)}
    one = SkipLog(tmp_path, 0, range(4), most=0.003, begun=1)
    one.see(2, [(0, bad)])
    with pytest.raises(TooManyUnreadable, match="4 of the"):
        one.see(3, [(0, bad)])
    # What another left of a line when it was killed is no line.
    with (tmp_path / "skipped-1.jsonl").open("a") as file:
        file.write('{"step": 9, "ro')
    assert (9, 0) not in skipped_places(tmp_path)
    shutil.rmtree(tmp_path)


def test_a_line_that_a_kill_has_cut_does_not_spoil_the_next(tmp_path):
    bad = [(0, Unreadable("a", "a.png: no such file"))]
    SkipLog(tmp_path, 0, range(4), most=1.0, begun=0).see(1, bad)
    with (tmp_path / "skipped-0.jsonl").open("a") as file:
        file.write('{"step": 2, "ro')
    SkipLog(tmp_path, 0, range(4), most=1.0, begun=1).see(2, bad)
    assert [line["step"] for line in skipped_lines(tmp_path)] == [1, 2]
    assert skipped_places(tmp_path) == {(1, 0), (2, 0)}
