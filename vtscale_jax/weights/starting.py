"""Starting weights of a stage, gathered from the sources its table names.

A source is a value of `config.weights`: "embedded" (shipped in the package), "fresh",
a `.safetensors` file with this package's paths, or the folder of a finished run. `clip`
and `llm` may also be pretrained models: a Hugging Face folder or name, or a GGUF file
(`pretrained.open_pretrained`).
"""

import dataclasses
from collections.abc import Collection, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from vtscale_jax import paths
from vtscale_jax.llm import quantize, without_int8
from vtscale_jax.stages import Stage, init_params, parameter_shapes
from vtscale_jax.vlm import ModelConfig
from vtscale_jax.weights.files.fingerprint import tensors_sha256
from vtscale_jax.weights.huggingface.clip import import_clip
from vtscale_jax.weights.language_models import llm_params
from vtscale_jax.weights.naming.rows import resize_rows
from vtscale_jax.weights.pretrained import Pretrained, open_pretrained

RUN_WEIGHTS = "weights.safetensors"
SHIPPED = {
    "clip": "clip.safetensors",
    "llm": "llm.safetensors",
    "init_from": "base.safetensors",
}
PRETRAINED = ("clip", "llm")  # fields that also take models of other people
QUERIES = "fusion/queries"


class WeightsError(ValueError):
    """Starting weights that are missing, unreadable or of the wrong shape."""


class Provenance(NamedTuple):
    """Where one group of starting weights came from, for the manifest."""

    source: str
    path: str
    sha256: str


class Gathered(NamedTuple):
    """Leaves by path from one source, and the paths that it has nothing for."""

    leaves: dict[str, Any]
    fresh: tuple[str, ...] = ()


def shipped(name: str) -> Path:
    """Path of a file in the package's `embedded/weights` folder."""
    return Path(str(resources.files("vtscale_jax.embedded") / "weights" / name))


def pretrained(field: str, value: str) -> Pretrained | None:
    """The pretrained model that `config.weights.<field>` means, or None where it means
    weights of this package."""
    if field not in PRETRAINED or value in ("", "embedded", "fresh"):
        return None
    path = Path(value)
    if (path / RUN_WEIGHTS).is_file() or has_our_paths(path):
        return None
    return open_pretrained(f"weights.{field}", value)


def locate(field: str, value: str) -> Path:
    """The file of this package's weights that `config.weights.<field>` means.

    WeightsError names the field and the remedy when there is none.
    """
    if value == "embedded":
        return shipped(SHIPPED[field])
    path = Path(value)
    if value and path.is_dir():
        path = path / RUN_WEIGHTS
    if not value or not path.is_file():
        remedy = {
            "init_from": "run the earlier stage first (e.g. --config "
            "configs/m256.py:stage=align) or give the folder of a finished run",
        }.get(field, "give a local .safetensors file with this package's paths")
        raise WeightsError(
            f"weights.{field} is {value!r}, but {path if value else 'it'} "
            f"{'does not exist' if value else 'is empty'}: {remedy} "
            f"(--config.weights.{field}=...)"
        )
    return path


def read(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file by path, floating point ones as float32."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is not a readable safetensors file ({error}); make or copy it anew"
        ) from error
    return {
        name: value.astype(np.float32) if value.dtype.kind in "fV" else value
        for name, value in tensors.items()
    }


def starting_params(
    stage: Stage,
    config: ModelConfig,
    sources: Mapping[str, str],
    seed: int,
    *,
    llm_dtype: str = "float32",
    llm_shardings: dict | None = None,
) -> tuple[dict, dict[str, Provenance]]:
    """The stage's parameters, every path filled from the source its table names.

    `sources` is `config.weights`; "fresh" paths are initialised with `seed`. All of a
    source's tensors that belong to this stage must fit; WeightsError lists those that
    are missing or have another shape, and nothing is loaded by halves. A file's other
    tensors (the text tower after align) are left where they are.

    `fusion/queries` may have another number of rows than the source: fewer take the
    first (outputs of the first queries do not depend on later ones), additional rows
    are drawn as the authors grow tables (`rows.resize_rows`). So may the text tables of
    a pretrained CLIP have more. What a CLIP has nothing for is fresh.

    Leaves are NumPy float32, but those of a pretrained language model: these are jax
    arrays of `llm_dtype` on `llm_shardings` (default: the first device), since such a
    model may be too large to be held twice. With int8 in the language model's `config`
    its kernels are rounded once they are read.
    """
    int8 = config.llm.blocks.int8
    if int8:
        config = dataclasses.replace(config, llm=without_int8(config.llm))
        if llm_shardings is not None:
            llm_shardings = _of_floats(llm_shardings)
    target = paths.flatten(parameter_shapes(stage.model, config))
    wanted = {path: paths.match(path, stage.sources) for path in target}
    filled: dict[str, Any] = {}
    provenance: dict[str, Provenance] = {}
    fresh: set[str] = set()
    problems: list[str] = []
    for field in dict.fromkeys(wanted.values()):
        own = {path: target[path] for path in target if wanted[path] == field}
        value = "fresh" if field == "fresh" else sources[field]
        if value == "fresh":
            fresh.update(own)
            continue
        digest = ""
        found = pretrained(field, value)
        if found is None:
            file = locate(field, value)
            gathered, unlike = _from_file(file, own, seed)
            problems += unlike
            where = str(file)
        elif field == "llm":
            params = llm_params(found, config.llm, llm_dtype, llm_shardings)
            gathered = Gathered(paths.flatten({"llm": params}))
            where = found.where
            # Of the files, so that it is the same in every dtype of the run.
            digest = tensors_sha256(found.tensors)
        else:
            clip = import_clip(
                found.config,
                found.tensors,
                paths.unflatten(own),
                dtype=np.float32,
                seed=seed,
            )
            gathered = Gathered(paths.flatten(clip.params), clip.fresh)
            where = found.where
        filled |= gathered.leaves
        fresh.update(gathered.fresh)
        tree = paths.unflatten(gathered.leaves)
        digest = digest or (paths.content_hash(tree) if gathered.leaves else "")
        provenance[field] = Provenance(value, where, digest)
    if problems:
        listed = "\n  ".join(problems)
        raise WeightsError(
            f"starting weights do not fit the model; nothing was loaded:\n  {listed}\n"
            "Use the config that the weights were trained with (sizes under "
            "config.model), or other weights."
        )
    if fresh:
        made = init_params(stage, config, seed, fresh)
        filled |= paths.flatten(jax.device_get(made))
    params = paths.unflatten({path: filled.pop(path) for path in target})
    if int8 and "llm" in params:
        params["llm"] = quantize(params["llm"])
    return params, provenance


def _of_floats(shardings: dict) -> dict:
    """The shardings of a language model's parameters before they are made int8."""
    flat = paths.flatten(shardings)
    return paths.unflatten(
        {
            path.removesuffix("_int8"): one
            for path, one in flat.items()
            if not path.endswith("/kernel_scale")
        }
    )


def _from_file(
    file: Path, targets: Mapping[str, Any], seed: int
) -> tuple[Gathered, list[str]]:
    """The targets' leaves of a file with our paths, and what does not fit."""
    tensors = read(file)
    chosen, problems = {}, []
    for path, target in targets.items():
        if path == QUERIES and path in tensors:
            tensors[path] = resize_rows(tensors[path], target.shape[0], seed)
        if path not in tensors:
            problems.append(f"{path}: not in {file}")
        elif tensors[path].shape != target.shape:
            problems.append(
                f"{path}: {tensors[path].shape} in {file}, "
                f"{target.shape} in this config's model"
            )
        else:
            chosen[path] = tensors[path]
    return Gathered(chosen), problems


def has_our_paths(path: Path) -> bool:
    """Whether a .safetensors file names its tensors as this package does (a damaged
    one is for the reader to complain about)."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="np") as file:
            names: Collection[str] = file.keys()
            return all("." not in name for name in names)
    except SafetensorError:
        return True
