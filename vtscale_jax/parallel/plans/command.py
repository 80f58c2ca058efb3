"""The command `plan`: from its words to plans, tables and JSON."""

import argparse
import copy
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vtscale_jax import config_files, settings
from vtscale_jax.assemble import assemble, open_source, probed
from vtscale_jax.collate import BatchSpec, blank_batch
from vtscale_jax.devices import GPU
from vtscale_jax.encoding import crop_dtype
from vtscale_jax.loader import kept_records
from vtscale_jax.parallel.mesh import check_batch, make_mesh, num_shards
from vtscale_jax.parallel.plans import search, table
from vtscale_jax.parallel.plans.lengths import Lengths, assumed_shapes
from vtscale_jax.parallel.plans.plan import Arithmetic, Plan, PlanError, make_plan
from vtscale_jax.parallel.plans.topologies import ALL, Topology, topology
from vtscale_jax.program import Program
from vtscale_jax.remat import least_remat
from vtscale_jax.stages import get_stage
from vtscale_jax.step_cost import arithmetic
from vtscale_jax.types import Batch, Shards
from vtscale_jax.vlm import ModelConfig


def plan_command(
    options: argparse.Namespace, fill_sizes: Callable[[ConfigDict], Sequence[str]]
) -> int:
    """Plans what the command line asks for and prints it; the exit status.

    `fill_sizes` sets the sizes of pretrained models that are at hand in a config, and
    says what it changed.
    """
    config = read_config(options.config_words)
    notes = [f"from the weights: {line}" for line in fill_sizes(config)]
    settings.check(config)
    everything = options.topology == "all"
    names = ALL if everything else (options.topology,)
    plans: list[Plan] = []
    searches: list[search.Found] = []
    refused: list[str] = []
    for machine in map(topology, names):
        job = Job(config, machine, options)
        try:
            if options.search:
                found = job.fastest()
                searches.append(found)
                plans += [found.best] if found.best else []
                if found.best is None:
                    refused.append(f"{machine.name}: nothing that was tried fits")
            else:
                plans.append(job.as_it_is())
                _say(table.summary(plans[-1]))
        except (ValueError, jax.errors.JaxRuntimeError) as error:
            if not everything:
                raise
            refused.append(f"{machine.name}: not planned: {error}")
        report = {
            "plans": [table.as_json(plan) for plan in plans],
            "tried": [search.as_json(found) for found in searches],
            "refused": refused,
        }
        # After each machine: it took minutes, and the next may be interrupted.
        if options.json and options.json != "-":
            Path(options.json).write_text(json.dumps(report, indent=2) + "\n")
    if options.json == "-":
        print(json.dumps(report, indent=2))
    else:
        text = [*notes, *(table.lines(plans) if plans else [])]
        for found in searches:
            text += ["", *search.lines(found)]
            if found.best is not None:
                text += [f"add: {' '.join(found.best.overrides)}"]
        print("\n".join([*text, *refused]))
    return int(bool(refused) or not all(plan.fits for plan in plans))


def read_config(words: Sequence[str]) -> ConfigDict:
    """`config_files.read_config`, with a PlanError for what there is not."""
    try:
        return config_files.read_config(words)
    except ValueError as error:
        raise PlanError(f"--config: {error}") from error


class Job:
    """One config on one machine."""

    def __init__(
        self,
        config: ConfigDict,
        machine: Topology,
        options: argparse.Namespace,
    ):
        self.machine = machine
        self.stage = get_stage(config.stage)
        self._devices: list[Any] | None = None
        self._options = options
        self._config = config
        self._lengths = Lengths(
            options.turns, options.question, options.answer, options.system
        )
        backend = "gpu" if isinstance(machine.chip, GPU) else "tpu"
        self._dtypes = settings.resolve_dtypes(config, backend)
        self._attention = settings.resolve_attention(
            config, backend, self._dtypes.compute
        )
        if self._attention == "cudnn":
            raise PlanError(
                f"model.attention is cudnn on {machine.name}, which is compiled on a "
                "GPU only: plan with --config.model.attention=xla, whose memory is an "
                "upper bound"
            )
        at_hand = options.lengths == "data" or (
            options.lengths == "auto" and data_at_hand(config)
        )
        self._data = open_source(config, "train") if at_hand else None

    @property
    def devices(self) -> list[Any]:
        """The machine's, made once."""
        if self._devices is None:
            self._devices = self.machine.devices()
        return self._devices

    def as_it_is(self) -> Plan:
        """The config as it is, but for `--per_device`."""
        config = self._own_config()
        mesh = make_mesh(config.mesh.to_dict(), self.devices)
        if self._options.per_device is not None:
            update = config.data.batch_size * config.optim.accumulation
            config.data.batch_size = self._options.per_device * num_shards(mesh)
            if self.stage.name != "align":
                each = max(1, round(update / config.data.batch_size))
                config.optim.accumulation = each
        if config.model.remat != "auto":
            return self._plan(config)
        check_batch(mesh, config.data.batch_size, "data.batch_size")
        config.mesh.update(dict(mesh.shape))
        plans: dict[str, Plan] = {}

        def at_least(remat: str) -> int:
            config.model.remat = remat
            updates = (config.mesh.frozen, config.optim.accumulation)
            return self._cost(config).least_memory(dict(mesh.shape), *updates).total

        def as_compiled(remat: str) -> int:
            config.model.remat = remat
            plans[remat] = self._plan(config)
            return plans[remat].needed

        remat = least_remat(self.machine.room, at_least, as_compiled).remat
        # What does not fit by arithmetic has no plan yet.
        return plans[remat] if remat in plans else self._plan(config)

    def fastest(self) -> search.Found:
        """The fastest way that fits."""
        config, model = self._config, self._model(self._config)
        seen = ("vision", "fusion", "text" if self.stage.name == "align" else "llm")
        blocks = [getattr(model, tower).blocks for tower in seen]
        ways = search.choices(
            self.machine.num_devices,
            config.data.batch_size,
            config.optim.accumulation,
            num_heads=[n for b in blocks for n in (b.num_heads, b.num_kv_heads)],
            aligns=self.stage.name == "align",
        )
        return search.search(
            self.machine,
            tuple(ways),
            sizes_of=lambda choice: self._cost(self._chosen(choice)),
            plan_of=lambda choice: self._plan(self._chosen(choice)),
            efficiency=self._options.efficiency,
            most_compiled=self._options.compile_at_most,
            say=_say,
        )

    def _chosen(self, choice: search.Choice) -> ConfigDict:
        config = self._own_config()
        config.mesh.update(choice.mesh, frozen=choice.frozen)
        config.model.remat = choice.remat
        config.data.batch_size = choice.batch_size
        config.optim.accumulation = choice.accumulation
        return config

    def _own_config(self) -> ConfigDict:
        return copy.deepcopy(self._config)

    def _model(self, config: ConfigDict) -> ModelConfig:
        return settings.model_config(
            config, self._dtypes.compute, attention=self._attention
        )

    def _spec(self, config: ConfigDict, shards: int) -> BatchSpec:
        vision = self._model(config).vision
        if self._data is None:
            return assumed_shapes(config, self._lengths, vision.tokens_per_crop)
        # One host that feeds all parts: the shapes of the global batch.
        whole = Shards(tuple(range(shards)), shards)
        parts = assemble(config, vision)
        return parts.training_shapes(probed(self._data), config.num_queries, whole)

    def _batch(self, spec: BatchSpec, model: ModelConfig) -> Batch:
        return blank_batch(
            *(spec, self.stage.name, model.vision.image_size),
            crop_dtype=crop_dtype(self._config.data.views),
        )

    def _cost(self, config: ConfigDict) -> Arithmetic:
        model = self._model(config)
        shards = config.data.batch_size
        if self._data is not None:
            shards = config.mesh.data * config.mesh.fsdp
        batch = self._batch(self._spec(config, shards), model)
        return arithmetic(
            self.stage,
            model,
            batch,
            jnp.dtype(self._dtypes.llm_params).itemsize,
            config.optim.accumulation,
        )

    def _plan(self, config: ConfigDict) -> Plan:
        mesh = make_mesh(config.mesh.to_dict(), self.devices)
        check_batch(mesh, config.data.batch_size, "data.batch_size")
        # As sizes, so that -1 is what it stands for.
        config.mesh.update(dict(mesh.shape))
        model = self._model(config)
        spec = self._spec(config, num_shards(mesh))
        batch = self._batch(spec, model)
        optim = settings.optim_config(config, self._records(config))
        _say(f"compiling for {self.machine.name} …")
        program = Program.of(
            self.stage,
            model,
            optim,
            mesh,
            frozen_dtype=self._dtypes.llm_params,
            frozen_layout=config.mesh.frozen,
        )
        said = self._lengths.describe()
        source = f"assumed: {said}" if self._data is None else "of the config's data"
        return make_plan(
            config,
            program,
            batch,
            self.machine,
            self._cost(config).work,
            shapes=f"{spec.largest().describe(self.stage.name)} ({source})",
            steps=optim.steps * optim.accumulation,
            efficiency=self._options.efficiency,
        )

    def _records(self, config: ConfigDict) -> int:
        if self._data is None:
            return max(1, round(self._options.records * config.data.subset))
        return len(kept_records(len(self._data), (config.seed, config.data.subset)))


def data_at_hand(config: ConfigDict) -> bool:
    """Whether the records and the tokenizers of a config lie on this disk."""

    def here(field: str) -> bool:
        value = config.weights[field]
        if value in ("llm", "clip"):
            value = config.weights[value]
        return value == "embedded" or Path(value).exists()

    if config.data.name != "digit_pages" and not config.data.path:
        return False
    return here("fusion_tokenizer") and (config.stage == "align" or here("tokenizer"))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
