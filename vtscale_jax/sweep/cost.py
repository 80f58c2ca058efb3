"""What the runs of a sweep cost, and how fast this machine is.

    python -m vtscale_jax.sweep.cost '[["--config", "configs/m8.py"], …]'

A sweep asks this of a child process, since it takes JAX, and a device for a moment. The
answer is one line of JSON. Nothing is loaded or written: shapes are enough.
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from vtscale_jax import paths, settings
from vtscale_jax.assemble import Parts, assemble, open_source, probed
from vtscale_jax.collate import blank_batch
from vtscale_jax.cost import flops, peak
from vtscale_jax.loader import kept_records
from vtscale_jax.prepare import count
from vtscale_jax.stages import get_stage, parameter_shapes
from vtscale_jax.types import Record
from vtscale_jax.vlm import ModelConfig
from vtscale_jax.weights.sizes import fill_sizes


def read_config(arguments: Sequence[str]) -> ConfigDict:
    """The config that train would make of its `arguments`; ValueError for one that it
    would refuse."""
    values = flags.FlagValues()
    found = config_flags.DEFINE_config_file(
        "config", flag_values=values, sys_argv=["train", *arguments]
    )
    for name in ("workdir", "log"):
        flags.DEFINE_string(name, None, "of train", flag_values=values)
    try:
        values(["train", *arguments])
    except (AttributeError, flags.Error) as error:
        raise ValueError(f"train arguments: {error}") from error
    config = found.value.copy_and_resolve_references()
    fill_sizes(config)
    settings.check(config)
    return config


def costs(runs: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The speed of the devices, and of each run (a list of train's arguments) its
    steps, operations of a step, prompts of its evaluation and operations of one's
    forward pass. ValueError for a config that is none."""
    probes: dict[str, tuple[list[Record], int]] = {}
    rows = []
    for arguments in runs:
        config = read_config(arguments)
        dtypes = settings.resolve_dtypes(config, jax.default_backend())
        model = settings.model_config(config, dtypes.compute)
        parts = assemble(config, model.vision)
        # All runs have the same data, of which reading may take long.
        key = json.dumps([config.seed, config.data.to_dict()], sort_keys=True)
        if key not in probes:
            train, heldout = (open_source(config, s) for s in ("train", "heldout"))
            probes[key] = ([*probed(train), *probed(heldout)], len(train))
        rows.append(_run_cost(config, model, parts, *probes[key]))
    return {
        "runs": rows,
        "platform": jax.default_backend(),
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)),
        "flops_per_s": peak.product_speed("float32"),
    }


def _run_cost(
    config: ConfigDict,
    model: ModelConfig,
    parts: Parts,
    probe: list[Record],
    number: int,
) -> dict[str, float | int]:
    used = len(kept_records(number, (config.seed, config.data.subset)))
    optim = settings.optim_config(config, used)
    settings.query_schedule(config, optim)
    spec = parts.training_shapes(probe, config.num_queries)
    batch = blank_batch(
        *(spec.largest(), config.stage, model.vision.image_size),
        crop_dtype=parts.encoding.crop_dtype,
    )
    stage = get_stage(config.stage)
    trains, _ = paths.partition(parameter_shapes(stage.model, model), stage.trains)
    step = flops.step_flops(
        stage,
        model,
        flops.batch_sizes(batch),
        trainable=count(trains),
        accumulation=optim.accumulation,
    )
    asks = config.stage != "align" and config.data.name == "digit_pages"
    forward = sum(part.forward for part in step.parts)
    return {
        "num_queries": config.num_queries,
        "steps": optim.steps * optim.accumulation,
        "step_flops": step.total,
        "shapes": spec.num_shapes(config.stage),
        "prompts": config.eval.questions * len(config.data.families) if asks else 0,
        "prompt_flops": forward / config.data.batch_size,
    }


def main(arguments: Sequence[str]) -> int:
    """Prints the costs as a line of JSON; the exit status."""
    try:
        print(json.dumps(costs(json.loads(arguments[0]))))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
