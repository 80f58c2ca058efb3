"""A finished run as a model that answers: what `ask` and `heldout` open."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from vtscale_jax import paths, settings
from vtscale_jax.assemble import Parts, assemble, prompts_encoding
from vtscale_jax.config_files import config_file
from vtscale_jax.encoding import Encoding
from vtscale_jax.generate import for_generation
from vtscale_jax.llm import held_in
from vtscale_jax.parallel.mesh import make_mesh, place, spread, to_host
from vtscale_jax.program import Program, shardings
from vtscale_jax.run_folder import RunFolder
from vtscale_jax.stages import get_stage
from vtscale_jax.tokens import QueryLayout
from vtscale_jax.vlm import ModelConfig
from vtscale_jax.weights import starting
from vtscale_jax.weights.pretrained import PretrainedError

# The parts of a run's config that a model is made from.
READ = "stage preset seed num_queries num_followup_queries inputs model weights data"
READ = READ.split()
# Fields that came later, with what runs without them did.
ADDED = {
    "data": {"views": "exact", "truncate_answers": False},
    "model": {"llm_int8": False},
}


class RunError(ValueError):
    """A folder that holds no run that could answer."""


class Trained(NamedTuple):
    """A run's model, ready to generate: the layers of its LLM lie apart."""

    config: ConfigDict
    model: ModelConfig
    params: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    encoding: Encoding
    layout: QueryLayout


def open_trained(
    folder: Path,
    *,
    num_queries: int | None = None,
    num_followup_queries: int | None = None,
    int8: bool = False,
) -> Trained:
    """The run in `folder`, with M = `num_queries` (default: the run's) query tokens for
    a first question and N for later ones; `int8` holds the LLM's kernels as int8, as a
    run that was trained with them does anyway.

    Any M up to the run's is possible, because the first queries do not depend on later
    ones; the run was trained for its own. Raises RunError for a folder without a
    finished run, stage align (which has nothing to answer with), a larger M, and a
    frozen LLM that is not the one the run was trained with.
    """
    config = run_config(
        folder, num_queries=num_queries, num_followup_queries=num_followup_queries
    )
    if int8:
        config.model.llm_int8 = True
    dtypes = settings.resolve_dtypes(config, jax.default_backend())
    model = settings.model_config(config, dtypes.compute)
    parts, params = read_run(folder, config, model, llm_dtype=dtypes.llm_params)
    # Held by nobody else: its tensors are let go one by one.
    params["llm"] = _held(params.pop("llm"), dtypes.llm_params)
    params, model = for_generation(params, model)
    assert parts.llm_tokenizer is not None  # not stage align
    return Trained(
        config,
        model,
        jax.device_put(params),
        parts.llm_tokenizer,
        prompts_encoding(parts),
        parts.layout(config.num_queries),
    )


def _held(llm: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A frozen language model's parameters in the dtypes that it is held in."""
    flat = paths.flatten(llm)
    return paths.unflatten(
        {path: leaf.astype(held_in(path, dtype)) for path, leaf in flat.items()}
    )


class OnMesh(NamedTuple):
    """A run's model with its parameters laid out over the devices as in training."""

    parts: Parts
    model: ModelConfig
    mesh: Mesh
    params: dict[str, Any]

    def place(self, batch: Any) -> Any:
        """A batch that every process holds as a whole, on the devices."""
        return spread(batch, self.mesh)

    def fetch(self, tree: Any) -> Any:
        """What the devices hold as numpy arrays, whole on every process."""
        return to_host(tree)


def open_on_mesh(folder: Path, config: ConfigDict) -> OnMesh:
    """The run in `folder` on the mesh of its `config` (from `run_config`)."""
    dtypes = settings.resolve_dtypes(config, jax.default_backend())
    model = settings.model_config(config, dtypes.compute)
    program = Program.of(
        get_stage("adapt"),
        model,
        settings.optim_config(config, num_records=1),  # nothing is trained
        make_mesh(config.mesh.to_dict()),
        frozen_dtype=dtypes.llm_params,
        frozen_layout=config.mesh.frozen,
    )
    lie = shardings(paths.merge(program.state.params, program.frozen))
    parts, params = read_run(
        folder,
        config,
        model,
        llm_dtype=dtypes.llm_params,
        llm_shardings=lie["llm"],
    )
    llm = params.pop("llm")
    params["llm"] = jax.tree.map(
        lambda leaf, to: leaf if leaf.dtype == to.dtype else leaf.astype(to.dtype),
        llm,
        program.frozen["llm"],
    )
    return OnMesh(parts, program.model, program.mesh, place(params, lie))


def run_config(
    folder: Path,
    *,
    num_queries: int | None = None,
    num_followup_queries: int | None = None,
) -> ConfigDict:
    """The config of the run in `folder`, for M = `num_queries` and N, starting from its
    own weights; RunError as of `open_trained`."""
    config = _config(folder)
    trained_for = config.num_queries
    if num_queries is not None and not 1 <= num_queries <= trained_for:
        raise RunError(
            f"--num_queries is {num_queries}, but {folder} has learnt {trained_for} "
            f"queries: choose 1 to {trained_for}, or train more: python -m "
            "vtscale_jax.train --config "
            f"{config_file(max(1, num_queries), config.preset)} "
            f"--config.weights.init_from={folder}"
        )
    with config.unlocked():
        config.num_queries = num_queries or trained_for
        if num_followup_queries is not None:
            config.num_followup_queries = num_followup_queries
        elif config.num_followup_queries is not None:
            # The run's own, unless fewer are asked for of the first question.
            config.num_followup_queries = min(
                config.num_followup_queries, config.num_queries
            )
        config.weights.init_from = str(folder)
    return config


def read_run(
    folder: Path,
    config: ConfigDict,
    model: ModelConfig,
    *,
    llm_dtype: str,
    llm_shardings: dict | None = None,
) -> tuple[Parts, dict[str, Any]]:
    """Tokenizers and parameters of a run, as `starting.starting_params` returns them;
    `config` is from `run_config`. RunError where a model that the run needs is missing,
    or is another one."""
    try:
        parts = assemble(config, model.vision)
        # A finetuned run is as whole as an adapted one: all of it is taken as it is.
        params, found = starting.starting_params(
            get_stage("adapt"),
            model,
            config.weights.to_dict(),
            config.seed,
            llm_dtype=llm_dtype,
            llm_shardings=llm_shardings,
        )
    except PretrainedError as error:
        raise RunError(
            f"--run {folder} needs models that it does not hold: {error}\nWhere one "
            f"has moved, set its place under weights in {folder / 'config.json'}"
        ) from error
    if "llm" in found:  # a fresh one is drawn again from the run's seed
        check_llm(folder, found["llm"].sha256)
    return parts, params


def _config(folder: Path) -> ConfigDict:
    """The run's resolved config; RunError when the folder holds no run to answer."""
    if not (folder / "config.json").is_file():
        raise RunError(
            f"--run {folder} has no config.json, expected the folder of a run: train "
            "one first (python -m vtscale_jax.train --config configs/m256.py)"
        )
    content = RunFolder(folder).read("config.json")
    lacking = READ
    if isinstance(content, dict):
        lacking = [name for name in READ if name not in content]
    if lacking:
        raise RunError(
            f"{folder / 'config.json'}: not the config of a run, it lacks "
            f"{', '.join(lacking)}; give --run the folder that train wrote"
        )
    older = {
        part: lacking
        for part, fields in ADDED.items()
        if (lacking := {k: v for k, v in fields.items() if k not in content[part]})
    }
    if older:
        added = "; ".join(
            f'{json.dumps(fields)[1:-1]} to its "{part}"'
            for part, fields in older.items()
        )
        raise RunError(
            f"{folder / 'config.json'} lacks fields: the run is of an earlier version; "
            f"add {added}, which is what it did"
        )
    config = ConfigDict(content)
    if config.stage == "align":
        raise RunError(
            f"--run {folder} is of stage align, which has no language model to answer "
            "with: run stage finetune from it first (python -m vtscale_jax.train "
            f"--config {config_file(config.num_queries, config.preset)},stage=finetune "
            f"--config.weights.init_from={folder})"
        )
    if not (folder / starting.RUN_WEIGHTS).is_file():
        raise RunError(
            f"--run {folder} has no {starting.RUN_WEIGHTS}: the run is not finished. "
            "Go on with it by the command it was started with (manifest.json has it)"
        )
    return config


def check_llm(folder: Path, sha256: str) -> None:
    """RunError unless the run in `folder` was trained with the language model of this
    hash."""
    manifest = RunFolder(folder).read("manifest.json")
    theirs = manifest.get("weights", {}).get("llm")
    if theirs is None:
        raise RunError(
            f"{folder / 'manifest.json'}: does not say which language model the run "
            "was trained with (weights.llm); restore the file"
        )
    if theirs["sha256"] != sha256:
        raise RunError(
            f"--run {folder} was trained with another language model than "
            f"{theirs['source']} now is (hash {theirs['sha256'][:12]} then, "
            f"{sha256[:12]} now): bring that one back"
        )
