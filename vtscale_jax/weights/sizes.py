"""Sizes of the towers, taken from the pretrained models that a config names.

A config states sizes of its own, for models of this package. Where `weights.llm` or
`weights.clip` is a pretrained model, that model knows them: they are filled in before
anything is built, and the run's config.json has them.
"""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vtscale_jax.layers import BlockConfig
from vtscale_jax.llm import LLMConfig
from vtscale_jax.rotary import RopeScaling
from vtscale_jax.run_folder import RunFolder
from vtscale_jax.settings import block_config
from vtscale_jax.weights.authors.towers import FUSION_HEAD_WIDTH
from vtscale_jax.weights.huggingface import clip
from vtscale_jax.weights.huggingface.families import llm_config
from vtscale_jax.weights.starting import RUN_WEIGHTS, pretrained

# Fields that a run chooses itself, whatever the model.
OF_THE_RUN = ("dtype", "attention", "remat", "unroll", "stacked", "int8", "init_std")


def fill_sizes(config: ConfigDict) -> list[str]:
    """Sets the sizes under `config.model` to those of the pretrained models named under
    `config.weights`, in place. Returns a line for each field that was another before.

    The fusion decoder, whose width is the vision tower's, follows a pretrained CLIP in
    stage align as the authors build it: heads of 64 and CLIP's MLP width; its layers
    are the config's. In the later stages the towers' sizes, CLIP and fusion tokenizer
    are those of the run `weights.init_from`, if that began from a pretrained CLIP.
    Raises as `pretrained.open_pretrained`, `families.llm_config` and
    `clip.vision_config` do.
    """
    changed: list[str] = []
    model = config.model
    llm = pretrained("llm", config.weights.llm) if config.stage != "align" else None
    if llm is not None:
        size = llm_config(llm.config, where=llm.where)
        changed += _set(model.llm, "model.llm", llm_fields(size))
    if config.stage != "align":
        # The towers come from a run, and with them the CLIP that they began as.
        return changed + _follow(config)
    towers = pretrained("clip", config.weights.clip)
    if towers is not None:
        vision = clip.vision_config(towers.config)
        text = clip.text_config(towers.config)
        changed += _set(
            model.vision,
            "model.vision",
            {
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "blocks": block_fields(vision.blocks),
            },
        )
        changed += _set(
            model.text,
            "model.text",
            {
                "vocab_size": max(text.vocab_size, model.text.vocab_size),
                "max_length": max(text.max_length, model.text.max_length),
                "projection_width": text.projection_width,
                "blocks": block_fields(text.blocks),
            },
        )
        width = vision.blocks.width
        fusion = {
            "width": width,
            "mlp_width": vision.blocks.mlp_width,
            "num_heads": max(1, width // FUSION_HEAD_WIDTH),
        }
        changed += _set(
            model.fusion,
            "model.fusion",
            {
                "vocab_size": max(text.vocab_size, model.fusion.vocab_size),
                "blocks": fusion,
            },
        )
    return changed


def _follow(config: ConfigDict) -> list[str]:
    """What a run that began from a pretrained CLIP hands on to the next stage."""
    folder = Path(config.weights.init_from)
    if not (folder / RUN_WEIGHTS).is_file() or not (folder / "config.json").is_file():
        return []
    theirs = RunFolder(folder).read("config.json")
    if theirs["weights"]["clip"] in ("", "embedded", "fresh"):
        return []
    changed: list[str] = []
    for part in ("vision", "fusion", "text"):
        changed += _set(config.model[part], f"model.{part}", theirs["model"][part])
    with config.unlocked():
        for field in ("clip", "fusion_tokenizer"):
            old, new = config.weights[field], theirs["weights"][field]
            if old != new:
                changed.append(f"weights.{field}: {old} -> {new}")
                config.weights[field] = new
    return changed


def llm_fields(size: LLMConfig) -> dict[str, Any]:
    """What `config.model.llm` says of a language model."""
    return {
        "vocab_size": size.vocab_size,
        "tie_embeddings": size.tie_embeddings,
        "blocks": block_fields(size.blocks),
    }


def block_fields(blocks: BlockConfig) -> dict[str, Any]:
    """What the `blocks` of a tower's config say: every field that is not its default,
    and none that is a run's choice."""
    always = ("width", "mlp_width", "num_heads", "num_layers", "norm_eps", "activation")
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(blocks):
        value = getattr(blocks, field.name)
        if field.name in OF_THE_RUN:
            continue
        if field.name in always or value != field.default:
            is_scaling = isinstance(value, RopeScaling)
            fields[field.name] = dataclasses.asdict(value) if is_scaling else value
    return fields


def _set(part: ConfigDict, name: str, fields: dict[str, Any]) -> list[str]:
    """Sets fields, blocks whole; the lines that say what changed."""
    changed = []
    with part.unlocked(), part.ignore_type():
        for field, value in fields.items():
            old = part.get(field)
            if field == "blocks":
                before = block_config(part.blocks)
                # A pretrained CLIP says part of what the fusion decoder is.
                kept = part.blocks.to_dict() if name == "model.fusion" else {}
                part.blocks = ConfigDict(kept | value)
                after = block_config(part.blocks)
                changed += [
                    f"{name}.blocks.{one.name}: {getattr(before, one.name)} -> "
                    f"{getattr(after, one.name)}"
                    for one in dataclasses.fields(BlockConfig)
                    if getattr(before, one.name) != getattr(after, one.name)
                ]
            elif old != value:
                changed.append(f"{name}.{field}: {old} -> {value}")
                part[field] = value
    return changed
