"""Starting weights of a stage, gathered from the sources its table names.

A source is a value of `config.weights`: "embedded" (shipped in the package), "fresh",
a `.safetensors` file with this package's paths, or the folder of a finished run.
"""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file

from vtscale_jax import paths
from vtscale_jax.stages import Stage, init_params, parameter_shapes
from vtscale_jax.vlm import ModelConfig

RUN_WEIGHTS = "weights.safetensors"
SHIPPED = {
    "clip": "clip.safetensors",
    "llm": "llm.safetensors",
    "init_from": "base.safetensors",
}
QUERIES = "fusion/queries"


class WeightsError(ValueError):
    """Starting weights that are missing, unreadable or of the wrong shape."""


class Provenance(NamedTuple):
    """Where one group of starting weights came from, for the manifest."""

    source: str
    path: str
    sha256: str


def shipped(name: str) -> Path:
    """Path of a file in the package's `embedded/weights` folder."""
    return Path(str(resources.files("vtscale_jax.embedded") / "weights" / name))


def locate(field: str, value: str) -> Path:
    """The file that `config.weights.<field>` means.

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
    stage: Stage, config: ModelConfig, sources: Mapping[str, str], seed: int
) -> tuple[dict, dict[str, Provenance]]:
    """The stage's parameters, every path filled from the source its table names.

    `sources` is `config.weights`; "fresh" paths are initialised with `seed`. All of a
    source's tensors that belong to this stage must fit; WeightsError lists those that
    are missing or have another shape, and nothing is loaded by halves. A file's other
    tensors (the text tower after align) are left where they are.

    `fusion/queries` may have another number of rows than the source: fewer take the
    first (outputs of the first queries do not depend on later ones), additional rows
    are drawn from the normal distribution with the old rows' mean and deviation, as
    the authors grow tables.
    """
    target = paths.flatten(parameter_shapes(stage.model, config))
    wanted = {path: paths.match(path, stage.sources) for path in target}
    filled: dict[str, np.ndarray] = {}
    provenance: dict[str, Provenance] = {}
    fresh: set[str] = set()
    problems: list[str] = []
    for field in dict.fromkeys(wanted.values()):
        names = [path for path in target if wanted[path] == field]
        value = "fresh" if field == "fresh" else sources[field]
        if value == "fresh":
            fresh.update(names)
            continue
        file = locate(field, value)
        tensors = read(file)
        chosen = {}
        for path in names:
            if path == QUERIES and path in tensors:
                rows = target[path].shape[0]
                tensors[path] = resize_queries(tensors[path], rows, seed)
            if path not in tensors:
                problems.append(f"{path}: not in {file}")
            elif tensors[path].shape != target[path].shape:
                problems.append(
                    f"{path}: {tensors[path].shape} in {file}, "
                    f"{target[path].shape} in this config's model"
                )
            else:
                chosen[path] = tensors[path]
        filled |= chosen
        digest = paths.content_hash(paths.unflatten(chosen)) if chosen else ""
        provenance[field] = Provenance(value, str(file), digest)
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
    return paths.unflatten({path: filled[path] for path in target}), provenance


def resize_queries(
    queries: Float[np.ndarray, "old D"], rows: int, seed: int
) -> Float[np.ndarray, "rows D"]:
    """The first `rows` query rows, or all of them with new rows drawn like them."""
    if rows <= len(queries):
        return queries[:rows]
    rng = np.random.default_rng(seed)
    new = rng.normal(
        queries.mean(), queries.std(), (rows - len(queries), queries.shape[1])
    )
    return np.concatenate([queries, new.astype(queries.dtype)])
