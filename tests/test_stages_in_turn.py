"""One stage after the other, phases of a curriculum, and restarts between them."""

import shutil

import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import load_file
from small_runs import manifest, rows, small_config

from vtscale_jax.step import initial_state
from vtscale_jax.train import train
from vtscale_jax.weights.checkpoints import Checkpoints


def test_finetune_with_a_curriculum_resumes_across_its_phases(tmp_path, capsys):
    config = small_config(
        4, "finetune", query_schedule=((0, 2), (5, 4)), eval__questions=0
    )
    train(config, tmp_path / "whole")
    seen = [(row["step"], row.get("num_queries")) for row in rows(tmp_path / "whole")]
    assert (5, 2) in seen and (6, 4) in seen
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "6")
    (tmp_path / "part" / "manifest.json").unlink()
    capsys.readouterr()
    train(config, tmp_path / "part")
    assert "Continuing from step 4" in capsys.readouterr().out
    whole, part = (manifest(tmp_path / name) for name in ("whole", "part"))
    assert whole["params_sha256"] == part["params_sha256"]


def test_align_then_finetune(tmp_path):
    align = tmp_path / "align"
    config = small_config(4, "align")
    train(config, align)
    assert {"contrastive", "orthogonality"} <= rows(align)[0].keys()
    finetune = small_config(
        4,
        "finetune",
        weights__init_from=str(align),
        query_schedule=(),
        optim__steps=1,
        seed=1,  # whose fresh weights are others
    )
    train(finetune, tmp_path / "finetune")
    start = load_file(align / "weights.safetensors")
    end = load_file(tmp_path / "finetune" / "weights.safetensors")
    # One small step: near what it started from.
    moved = np.abs(start["vision/pos_embed"] - end["vision/pos_embed"]).max()
    assert 0 < moved < 0.01


def test_accumulation_updates_once_for_its_batches(tmp_path):
    config = small_config(optim__steps=1, optim__accumulation=2, eval__questions=0)
    train(config, tmp_path / "run")
    updates = [row for row in rows(tmp_path / "run") if "grad_norm" in row]
    assert [row["step"] for row in updates] == [1, 2]
    # Both batches belong to the first update, and were met with the same parameters.
    assert updates[0]["learning_rate"] == updates[1]["learning_rate"] > 0


def test_the_best_checkpoint_is_kept_across_a_restart(tmp_path):
    params = {"w": jnp.zeros(3)}
    state = initial_state(params, optax.sgd(0.1))
    losses = {1: 0.9, 2: 0.2, 3: 0.8, 4: 0.7, 5: 0.6}
    for steps in ((1, 2, 3), (4, 5)):  # two launches
        with Checkpoints(tmp_path / "checkpoints", keep=2) as saved:
            for step in steps:
                now = state._replace(step=jnp.asarray(step, jnp.int32))
                saved.save(now, {"at": step}, heldout_loss=losses[step])
    with Checkpoints(tmp_path / "checkpoints", keep=2) as saved:
        assert saved.steps() == [5, 4, 2]
        assert saved.restore_latest(state).data == {"at": 5}
