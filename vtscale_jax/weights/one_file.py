"""A pretrained model → one .safetensors file with this package's paths.

Not needed to use the model: `weights.llm` and `weights.clip` take it as it is. It is
for those who want a single file that nothing else has to be beside.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vtscale_jax import paths
from vtscale_jax.text_tower import TextTower
from vtscale_jax.vision import VisionTower
from vtscale_jax.weights.files.tensors import ArrayTensors
from vtscale_jax.weights.files.writing import ChosenTensors, check_free, write_tensors
from vtscale_jax.weights.huggingface import clip as clips
from vtscale_jax.weights.huggingface import families
from vtscale_jax.weights.language_models import llm_shapes
from vtscale_jax.weights.naming.names import ImportedTensors
from vtscale_jax.weights.pretrained import Pretrained


def import_file(found: Pretrained, out: Path, dtype: str = "float32") -> list[str]:
    """Writes `out`, whole or not at all; what its user should know.

    A language model is copied tensor by tensor. What a CLIP has nothing for is drawn
    fresh with seed 0. Raises ValueError for a model that is neither, as the readers do,
    and when there is such a file already.
    """
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if clip_towers(found.config):
        return _clip(found, out, dtype)
    config = families.llm_config(found.config, where=found.where)
    layout = families.llm_layout(found.config)
    imported = ImportedTensors(
        layout, found.tensors, llm_shapes(config), dtype=np.float32
    )
    chosen = {f"llm/{path}": (imported, path) for path in imported.shapes}
    write_tensors(out, ChosenTensors(found.where, chosen, dtype))
    return [f"the model's sizes go under config.model.llm: {config}"]


def _clip(found: Pretrained, out: Path, dtype: str) -> list[str]:
    towers = clip_towers(found.config)
    targets = {tower: tower_shapes(tower, found.config) for tower in towers}
    made = clips.import_clip(
        found.config, found.tensors, targets, dtype=np.float32, seed=0
    )
    leaves = paths.flatten(made.params)
    leaves |= _fresh(found.config, made.fresh) if made.fresh else {}
    arrays = ArrayTensors(leaves, found.where)
    chosen = {path: (arrays, path) for path in leaves}
    write_tensors(out, ChosenTensors(found.where, chosen, dtype))
    return [f"drawn fresh, since a CLIP has nothing for it: {', '.join(made.fresh)}"]


def _init(tower: str, config: Mapping[str, Any], key: jax.Array) -> Any:
    if tower == "vision":
        vision = clips.vision_config(config)
        size = vision.image_size
        crops = jnp.zeros((1, size, size, 3))
        return VisionTower(vision).init(key, crops)["params"]
    text, row = clips.text_config(config), jnp.zeros((1, 1), jnp.int32)
    return TextTower(text).init(key, row, row == 0, row[0])["params"]


def clip_towers(config: Mapping[str, Any]) -> list[str]:
    """Which of "vision" and "text" a config.json is of; none for what is no CLIP."""
    kind = config.get("model_type")
    return [t for t, alone in clips.ALONE.items() if kind in ("clip", alone)]


def tower_shapes(tower: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes and dtypes of our tower around that of a CLIP, in no memory."""
    return jax.eval_shape(lambda key: _init(tower, config, key), jax.random.key(0))


def _fresh(config: Mapping[str, Any], wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Initial values of these paths of the vision tower; no others are made."""

    def init(key: jax.Array) -> dict[str, Any]:
        flat = paths.flatten({"vision": _init("vision", config, key)})
        return {path: flat[path] for path in wanted}

    return jax.device_get(jax.jit(init)(jax.random.key(0)))
