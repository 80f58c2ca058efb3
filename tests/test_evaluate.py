"""Held-out losses while training goes on."""

import inspect
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from vtscale_jax import evaluate
from vtscale_jax.evaluate import heldout_scores


def test_one_batch_comes_while_another_is_computed(monkeypatch):
    """All of them at once would fill a device, and make CPU devices hang."""
    under_way, most = [], []

    def eval_step(params, frozen, batch):
        under_way.append(batch)
        most.append(len(under_way))
        return {"loss": np.float32(batch), "correct": np.float32(2 * batch)}

    def wait(rows):
        for row in rows:
            under_way.remove(int(row["loss"]))

    monkeypatch.setattr(evaluate, "feed", lambda batch, mesh, shards: batch)
    monkeypatch.setattr(jax, "block_until_ready", wait)
    program = SimpleNamespace(mesh=None, eval_step=eval_step)
    scores = inspect.unwrap(heldout_scores)(program, {}, {}, list(range(100)), None)
    assert max(most) == 2
    assert scores == pytest.approx({"loss": 49.5, "correct": 99.0})
