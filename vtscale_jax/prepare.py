"""What a run needs before its first step, from its config.

    run = lay_out(config)     data, shapes, steps and shardings; nothing is loaded
    weights = load(run)       the starting weights

`train` goes on from both; a dry run stops after the first.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vtscale_jax import paths, settings
from vtscale_jax.assemble import Parts, assemble, open_source
from vtscale_jax.collate import blank_batch
from vtscale_jax.encoders import Encoder
from vtscale_jax.loader import Source, kept_records
from vtscale_jax.optim import OptimConfig
from vtscale_jax.parallel.mesh import check_batch, make_mesh, own_shards, place
from vtscale_jax.phases import Phase, make_phases
from vtscale_jax.program import Program, shardings
from vtscale_jax.remat import Share, alone, with_least_remat
from vtscale_jax.stages import get_stage
from vtscale_jax.types import Batch, Shards
from vtscale_jax.vlm import ModelConfig
from vtscale_jax.weights.starting import Provenance, starting_params


class Run(NamedTuple):
    """A run that could begin: its data, its phases and its steps on the mesh."""

    config: ConfigDict
    dtypes: settings.Dtypes
    optim: OptimConfig
    total_steps: int
    parts: Parts
    sources: dict[str, Source]
    shards: Shards
    encoder: Encoder
    phases: list[Phase]
    program: Program


class Weights(NamedTuple):
    """Starting weights: trainable ones on the host, frozen ones on the mesh."""

    trainable: dict
    frozen: dict
    provenance: dict[str, Provenance]


def lay_out(
    config: ConfigDict, say: Callable[[str], object] = print, share: Share = alone
) -> Run:
    """Everything derived from the config and its data; ValueError for what is wrong
    with either, before anything is written or loaded.

    `model.remat` of the run's config is never "auto"; `say` hears how it was chosen,
    and of several processes `share` lets all choose the same.
    """
    settings.check(config)
    dtypes = settings.resolve_dtypes(config, jax.default_backend())
    kernel = settings.resolve_attention(config, jax.default_backend(), dtypes.compute)
    model = settings.model_config(config, dtypes.compute, attention=kernel)
    _check_packing(config, model)
    parts = assemble(config, model.vision)
    sources = {split: open_source(config, split) for split in ("train", "heldout")}
    number = len(sources["train"])
    used = len(kept_records(number, (config.seed, config.data.subset)))
    optim = settings.optim_config(config, used)
    schedule = settings.query_schedule(config, optim)
    total_steps = optim.steps * optim.accumulation

    mesh = make_mesh(config.mesh.to_dict())
    check_batch(mesh, config.data.batch_size, "data.batch_size")
    shards = own_shards(mesh)
    encoder = parts.encoder(sources["train"])
    phases = make_phases(
        *(parts, sources["train"], sources["heldout"], schedule, total_steps),
        *(shards, encoder),
    )

    def program_of(config: ConfigDict) -> Program:
        return Program.of(
            get_stage(config.stage),
            settings.model_config(config, dtypes.compute, attention=kernel),
            optim,
            mesh,
            frozen_dtype=dtypes.llm_params,
            frozen_layout=config.mesh.frozen,
        )

    if config.model.remat != "auto":
        program = program_of(config)
    else:
        batch = largest_batch(config, model, parts, phases, shards)
        frozen_bytes = jnp.dtype(dtypes.llm_params).itemsize
        config, program = with_least_remat(
            *(config, program_of, batch),
            frozen_bytes=frozen_bytes,
            say=say,
            share=share,
        )
    return Run(
        *(config, dtypes, optim, total_steps, parts, sources, shards, encoder),
        *(phases, program),
    )


def largest_batch(
    config: ConfigDict,
    model: ModelConfig,
    parts: Parts,
    phases: Sequence[Phase],
    shards: Shards,
) -> Batch:
    """The largest shapes of the last phase, which has the most queries, as zeros."""
    return blank_batch(
        phases[-1].spec.largest(),
        config.stage,
        model.vision.image_size,
        hosts=shards.feeders,
        crop_dtype=parts.encoding.crop_dtype,
    )


def load(run: Run) -> Weights:
    """The starting weights, each group from the source its stage names."""
    program = run.program
    params, provenance = starting_params(
        program.stage,
        program.model,
        run.config.weights.to_dict(),
        run.config.seed,
        llm_dtype=run.dtypes.llm_params,
        llm_shardings=shardings(program.frozen).get("llm"),
    )
    trainable, frozen = paths.partition(params, program.stage.trains)
    del params
    frozen = jax.tree.map(
        lambda leaf, to: leaf if leaf.dtype == to.dtype else leaf.astype(to.dtype),
        frozen,
        program.frozen,
    )
    return Weights(trainable, place(frozen, shardings(program.frozen)), provenance)


def identity(run: Run, weights: Weights) -> dict[str, Any]:
    """What a result depends on beside the config; a run goes on from the same only."""
    return {
        "weights": {name: found.sha256 for name, found in weights.provenance.items()},
        "data": {split: found.fingerprint for split, found in run.sources.items()},
        "dtypes": dataclasses.asdict(run.dtypes),
    }


def _check_packing(config: ConfigDict, model: ModelConfig) -> None:
    scaling = model.llm.blocks.rope_scaling
    if config.data.pack and scaling is not None and scaling.kind == "longrope":
        raise ValueError(
            "data.pack is set, but the language model turns its keys by the length of "
            "the row (longrope), so a sample would not be read as if it were alone: "
            "set --config.data.pack=False"
        )


def first_notes(
    run: Run, weights: Weights, inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """What a run's manifest says of the run before its first step; `inputs` are its
    `identity`."""
    found = weights.provenance
    trees = {"trainable": weights.trainable, "frozen": weights.frozen}
    return {
        "inputs": inputs,
        "remat": run.config.model.remat,
        "weights": {name: source._asdict() for name, source in found.items()},
        "parameters": {name: count(tree) for name, tree in trees.items()},
        "finished": False,
    }


def count(tree: dict) -> int:
    """How many numbers a tree holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
