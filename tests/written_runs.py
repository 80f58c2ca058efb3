"""Run folders written by hand: random weights, as if they had been trained."""

import json
from pathlib import Path

import numpy as np
from small_runs import small_config

from vtscale_jax import paths, settings
from vtscale_jax.stages import get_stage, parameter_shapes
from vtscale_jax.weights import starting
from vtscale_jax.weights.sizes import fill_sizes

# The shipped language model answers; all that learns is random and small.
EMBEDDED = {"weights__llm": "embedded", "model__llm__blocks__num_layers": 4}


def write_run(folder: Path, num_queries=4, stage="adapt", seed=0, **more) -> Path:
    """A finished run of the embedded preset in `folder`; `more` as in `small_runs`."""
    config = small_config(num_queries, stage, **(EMBEDDED | more))
    with config.unlocked():
        fill_sizes(config)
    table = get_stage(stage)
    model = settings.model_config(config, "float32")
    shapes, _ = paths.partition(parameter_shapes(table.model, model), table.trains)
    rng = np.random.default_rng(seed)
    trained = {
        path: _drawn(path, leaf.shape, rng)
        for path, leaf in paths.flatten(shapes).items()
    }
    folder.mkdir(parents=True)
    paths.save(paths.unflatten(trained), folder / starting.RUN_WEIGHTS)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    manifest = {"finished": True, "weights": {}}
    if stage != "align":
        sources = {**config.weights.to_dict(), "init_from": str(folder)}
        _, found = starting.starting_params(get_stage("adapt"), model, sources, 0)
        manifest["weights"] = {name: one._asdict() for name, one in found.items()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _drawn(path, shape, rng):
    """Gains near one, everything else around zero, nothing like anything else."""
    if path.endswith("/scale"):
        return (1 + 0.2 * rng.standard_normal(shape)).astype(np.float32)
    fan_in = np.prod(shape[-2:-1]) if path.endswith("/kernel") else 25
    return (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
