"""What a finished run is made of, for export: its weights, and its language model as a
Hugging Face checkpoint, wherever that comes from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from vtscale_jax import paths, settings
from vtscale_jax.assemble import load_tokenizer
from vtscale_jax.layers import BlockConfig
from vtscale_jax.llm import LLMConfig
from vtscale_jax.stages import get_stage, parameter_shapes
from vtscale_jax.trained import RunError, check_llm
from vtscale_jax.vlm import ModelConfig
from vtscale_jax.weights import starting
from vtscale_jax.weights.files.fingerprint import tensors_sha256
from vtscale_jax.weights.files.tensor_slices import Shape
from vtscale_jax.weights.files.tensors import TensorSource, read_json
from vtscale_jax.weights.files.writing import ChosenTensors
from vtscale_jax.weights.huggingface import families
from vtscale_jax.weights.language_models import llm_shapes
from vtscale_jax.weights.naming.layouts import llm_layout
from vtscale_jax.weights.naming.names import ExportedTensors, ImportedTensors
from vtscale_jax.weights.pretrained import Pretrained


class Run(NamedTuple):
    """A finished run: its config, and its trained parameters by path (float32).

    `fusion/queries` may have more rows than the M − 1 of the model.
    """

    folder: Path
    config: ConfigDict
    model: ModelConfig
    params: dict[str, np.ndarray]


class RunLLM(NamedTuple):
    """A run's language model as Hugging Face has it.

    `config` is a config.json; `tensors` are exactly those of the model, in the names of
    its family. `folder` is where they lie already as a Hugging Face folder, or None.
    """

    config: dict[str, Any]
    tensors: TensorSource
    folder: Path | None


def is_run(folder: Path) -> bool:
    """Whether a folder has the config of a run; TensorFileError for one that is no
    JSON."""
    file = folder / "config.json"
    if not file.is_file():
        return False
    return {"stage", "model", "weights"} <= read_json(file).keys()


def open_run(folder: Path) -> Run:
    """The run in `folder`, whatever its stage.

    Raises RunError when it is none, is not finished, or when its weights are not those
    of its config; and as the readers of its files do.
    """
    if not is_run(folder):
        raise RunError(
            f"{folder} holds no config.json of a run, expected the folder of one: "
            "train (python -m vtscale_jax.train), or import the authors' "
            "(python -m vtscale_jax.weights import)"
        )
    file = folder / starting.RUN_WEIGHTS
    if not file.is_file():
        raise RunError(
            f"{folder} has no {file.name}: the run is not finished. Go on with it by "
            "the command it was started with (manifest.json has it)"
        )
    config = ConfigDict(read_json(folder / "config.json"))
    model = settings.model_config(config, "float32")
    params = starting.read(file)
    unlike = unfit({path: leaf.shape for path, leaf in params.items()}, config, model)
    if unlike:
        raise RunError(
            f"{file}: it does not hold the parameters of the run's config.json; bring "
            "the two together again:\n  " + "\n  ".join(unlike)
        )
    return Run(folder, config, model, params)


def unfit(
    shapes: Mapping[str, Shape], config: ConfigDict, model: ModelConfig
) -> list[str]:
    """What is wrong with the shapes of a run's weights, parameter by parameter."""
    stage = get_stage(config.stage)
    trained, _ = paths.partition(parameter_shapes(stage.model, model), stage.trains)
    targets = {p: tuple(leaf.shape) for p, leaf in paths.flatten(trained).items()}

    def fits(path: str) -> bool:
        found, wanted = shapes.get(path), targets.get(path)
        if path != starting.QUERIES or found is None:
            return found == wanted
        # There may be rows for a larger M; with M = 1 a model has none.
        rows = 0 if wanted is None else wanted[0]
        return found[0] >= rows and (wanted is None or found[1:] == wanted[1:])

    return [
        f"{path}: {shapes.get(path, 'absent')} in the file, "
        f"{targets.get(path, 'absent')} in the model"
        for path in sorted(shapes.keys() | targets.keys())
        if not fits(path)
    ]


def run_llm(run: Run) -> RunLLM:
    """The language model of a run of stage finetune or adapt.

    Nothing of a pretrained one is read but its hash, which must be that of the model
    the run was trained with; one of this package is named and laid out as a Hugging
    Face model of the family that computes the same. Raises RunError for another hash.
    """
    value = run.config.weights.llm
    found = starting.pretrained("llm", value)
    if found is not None:
        check_llm(run.folder, tensors_sha256(found.tensors))
        return _pretrained_llm(run, found)
    sources = {**run.config.weights.to_dict(), "init_from": str(run.folder)}
    params, origin = starting.starting_params(
        get_stage("adapt"), run.model, sources, run.config.seed
    )
    if "llm" in origin:
        check_llm(run.folder, origin["llm"].sha256)
    config = own_llm_config(run)
    tensors = ExportedTensors(llm_layout(config["model_type"]), params["llm"])
    return RunLLM(config, tensors, None)


def _pretrained_llm(run: Run, found: Pretrained) -> RunLLM:
    config = families.llm_config(found.config, where=found.where)
    if settings.block_config(run.config.model.llm.blocks) != config.blocks:
        raise RunError(
            f"{run.folder}: config.model.llm is not what {found.where} says of itself; "
            "one of the two was changed since the run was trained"
        )
    imported = ImportedTensors(
        families.llm_layout(found.config), found.tensors, llm_shapes(config)
    )
    chosen = {name: (found.tensors, name) for name in imported.used}
    folder = Path(found.where) if Path(found.where).is_dir() else None
    return RunLLM(found.config, ChosenTensors(found.where, chosen), folder)


def own_llm_config(run: Run) -> dict[str, Any]:
    """A config.json for a language model of this package, with the special tokens of
    the run's tokenizer. Raises ValueError for one that no family computes."""
    tokenizer = load_tokenizer(run.config, "tokenizer")
    ids = {"bos_token_id": tokenizer.bos_token_id}
    ids |= {"eos_token_id": tokenizer.eos_token_id}
    base = {"model_type": family_for(run.model.llm), **ids}
    return families.hf_config(run.model.llm, base)


def family_for(config: LLMConfig) -> str:
    """The `model_type` that has everything this decoder uses."""
    blocks: BlockConfig = config.blocks
    if blocks.qkv_bias:
        return "qwen2"
    scaling = blocks.rope_scaling
    if blocks.rope_share != 1 or (scaling is not None and scaling.kind == "longrope"):
        return "phi3"
    return "llama" if blocks.window is None else "mistral"
