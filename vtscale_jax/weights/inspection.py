"""What a file or folder of weights is, from its headers: `inspect`.

facts = inspect("smollm2-135m")
facts["kind"], facts["sizes"], facts["types"]
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from vtscale_jax import paths, settings
from vtscale_jax.layers import BlockConfig
from vtscale_jax.llm import LLMConfig
from vtscale_jax.stages import parameter_shapes
from vtscale_jax.tokens import Tokenizer, end_ids
from vtscale_jax.vlm import VLM, AlignModel, ModelConfig
from vtscale_jax.weights import one_file, starting
from vtscale_jax.weights.authors.folder import (
    PATTERNS,
    AuthorsFolder,
    is_authors,
    open_authors,
)
from vtscale_jax.weights.authors.importing import authors_layout
from vtscale_jax.weights.files.tensors import TensorSource, open_tensors, read_json
from vtscale_jax.weights.huggingface import clip as clips
from vtscale_jax.weights.huggingface import families
from vtscale_jax.weights.language_models import configured_ends, llm_shapes
from vtscale_jax.weights.naming import layouts
from vtscale_jax.weights.naming.rules import Layout, current_names, source_tensors
from vtscale_jax.weights.pretrained import Pretrained, PretrainedError, open_pretrained
from vtscale_jax.weights.run_parts import is_run, unfit

SPECIAL = ("bos", "eos", "pad", "unk")


class Row(NamedTuple):
    """One tensor: its name, shape, stored type, and what it is here."""

    name: str
    shape: tuple[int, ...]
    type: str
    ours: str


class Found(NamedTuple):
    """What was found: facts by name (JSON), a row per tensor, and the tensors that do
    not fit the model; None where there is no model to fit."""

    facts: dict[str, Any]
    rows: list[Row]
    leftovers: list[str] | None


def inspect(source: str) -> Found:
    """What `source` is: a run, a file with our paths, a folder of the authors', or any
    pretrained model that `pretrained.open_pretrained` takes.

    Only headers, configs and tokenizers are read. Raises ValueError where there is
    nothing, or something damaged; what is merely unknown is a fact.
    """
    path = Path(source).expanduser()
    if is_run(path):
        return _run(path)
    if path.is_file() and path.suffix == ".safetensors":
        if starting.has_our_paths(path):
            tensors = open_tensors(path)
            return _bare(tensors, "weights file of this package", ours=True)
        if not (path.parent / "config.json").is_file():
            return _bare(open_tensors(path), "tensors without a config.json")
    found = open_pretrained("SOURCE", source, files=PATTERNS)
    if is_authors(found.config):
        return _authors(open_authors(found))
    return _pretrained(found)


def _bare(tensors: TensorSource, kind: str, ours: bool = False) -> Found:
    rows = _rows(tensors, {name: name if ours else "?" for name in tensors.shapes})
    return Found(_facts(kind, tensors), rows, None)


def _facts(kind: str, tensors: TensorSource) -> dict[str, Any]:
    sizes = [int(np.prod(shape)) for shape in tensors.shapes.values()]
    return {
        "kind": kind,
        "where": tensors.where,
        "parameters": sum(sizes),
        "tensors": len(sizes),
        "types": dict(Counter(_types(tensors).values()).most_common()),
    }


def _types(tensors: TensorSource) -> dict[str, str]:
    """What is stored under each name; a quantised file's types are its own."""
    stored = getattr(tensors, "types", None)
    return stored or {name: str(dtype) for name, dtype in tensors.dtypes.items()}


def _rows(tensors: TensorSource, ours: Mapping[str, str]) -> list[Row]:
    types = _types(tensors)
    return [
        Row(name, tuple(shape), types[name], ours[name])
        for name, shape in tensors.shapes.items()
    ]


def _run(folder: Path) -> Found:
    config = ConfigDict(read_json(folder / "config.json"))
    file = folder / starting.RUN_WEIGHTS
    if not file.is_file():
        raise PretrainedError(
            f"{folder}: a run without {file.name}, which is not finished. Go on with "
            "it by the command it was started with (manifest.json has it)"
        )
    tensors = open_tensors(file)
    model = settings.model_config(config, "float32")
    facts = _facts(f"run of stage {config.stage}", tensors)
    facts |= {
        "queries": f"M = {config.num_queries}, "
        f"N = {settings.num_followup_queries(config)}",
        "inputs": config.inputs,
        "template": config.data.template,
        "weights": config.weights.to_dict(),
        **_towers(model, config.stage),
    }
    rows = _rows(tensors, {name: name for name in tensors.shapes})
    leftovers = unfit(tensors.shapes, config, model)
    return Found(facts, rows, leftovers)


def _authors(folder: AuthorsFolder) -> Found:
    kind = {"align": "stage 1 (align)", "finetune": "stage 2 (finetune or adapt)"}
    facts = _facts(f"the authors' checkpoint, {kind[folder.stage]}", folder.tensors)
    fusion = folder.model.fusion
    used = folder.num_queries - 1
    facts |= {
        "queries": f"M = {folder.num_queries}, N = {folder.num_followup_queries}",
        "local_views": folder.max_local_views,
        **_towers(folder.model, folder.stage),
        "fusion_table": f"{fusion.vocab_size} text rows, "
        + (
            f"then {fusion.num_query_rows} of queries, of which {used} are used"
            if folder.pad_row is None
            else f"all placeholders are row {folder.pad_row}"
        ),
        "fusion_tokenizer": _tokenizer(folder.fusion_tokenizer, []),
    }
    model = AlignModel if folder.stage == "align" else VLM
    targets = parameter_shapes(model, folder.model)
    return _fitted(facts, authors_layout(folder), folder.tensors, targets)


def _towers(model: ModelConfig, stage: str) -> dict[str, Any]:
    vision = {
        "image": model.vision.image_size,
        "patch": model.vision.patch_size,
        "tokens_per_view": model.vision.tokens_per_crop,
        **_blocks(model.vision.blocks),
    }
    facts = {"vision": vision, "fusion": _blocks(model.fusion.blocks)}
    if stage == "align":
        text = {"positions": model.text.max_length, **_blocks(model.text.blocks)}
        return {**facts, "text": text}
    return {**facts, "llm": _llm(model.llm)}


def _blocks(blocks: BlockConfig) -> dict[str, Any]:
    heads: dict[str, Any] = {"heads": blocks.num_heads}
    if blocks.num_kv_heads != blocks.num_heads:
        heads["kv_heads"] = blocks.num_kv_heads
    return {
        "width": blocks.width,
        "layers": blocks.num_layers,
        **heads,
        "head_width": blocks.head_dim,
        "mlp": blocks.mlp_width,
    }


def _llm(config: LLMConfig) -> dict[str, Any]:
    blocks = config.blocks
    more: dict[str, Any] = {"window": blocks.window} if blocks.window else {}
    more |= {"qkv_bias": True} if blocks.qkv_bias else {}
    return {
        **_blocks(blocks),
        "vocabulary": config.vocab_size,
        "tied_embeddings": config.tie_embeddings,
        **more,
    }


def _pretrained(found: Pretrained) -> Found:
    config, path = found.config, Path(found.where)
    kind = "Hugging Face folder" if path.is_dir() else f"{path.suffix[1:]} file"
    facts = _facts("GGUF file" if kind == "gguf file" else kind, found.tensors)
    towers = one_file.clip_towers(config)
    if towers:
        facts |= {"family": f"{config['model_type']}, {' and '.join(towers)} tower"}
        return _clip(facts, found, towers)
    named = config.get("model_type")
    if named not in families.FAMILIES:
        known = ", ".join(families.FAMILIES)
        facts["family"] = f"{named}, which is not known here (known: {known}, clip)"
        ours = dict.fromkeys(found.tensors.shapes, "?")
        return Found(facts, _rows(found.tensors, ours), None)
    llm = families.llm_config(config, where=found.where)
    rope: dict[str, Any] = {"theta": llm.blocks.rope_theta}
    scaling = llm.blocks.rope_scaling
    rope |= {"scaling": scaling.kind, "factor": scaling.factor} if scaling else {}
    rope |= {"share": llm.blocks.rope_share} if llm.blocks.rope_share != 1 else {}
    facts |= {
        "family": f"{named} ({families.FAMILIES[named].architecture})",
        "sizes": _llm(llm),
        "rope": rope,
        "context": families.filled(config)["max_position_embeddings"],
        **_chat(found),
    }
    layout = layouts.llm_layout(named, ours="llm/")
    return _fitted(facts, layout, found.tensors, {"llm": llm_shapes(llm)})


def _clip(facts: dict[str, Any], found: Pretrained, towers: list[str]) -> Found:
    if "vision" in towers:
        vision = clips.vision_config(found.config)
        sizes = {"image": vision.image_size, "patch": vision.patch_size}
        facts["vision"] = {**sizes, **_blocks(vision.blocks)}
    if "text" in towers:
        text = clips.text_config(found.config)
        sizes = {"vocabulary": text.vocab_size, "positions": text.max_length}
        facts["text"] = {**sizes, **_blocks(text.blocks)}
    shapes = {tower: one_file.tower_shapes(tower, found.config) for tower in towers}
    held = {
        path: leaf
        for path, leaf in paths.flatten(shapes).items()
        if not path.startswith(clips.OURS_ALONE)
    }
    facts |= _chat(found) if "text" in towers else {}
    layout = layouts.clip_layout(found.config["model_type"], towers)
    return _fitted(facts, layout, found.tensors, paths.unflatten(held))


def _chat(found: Pretrained) -> dict[str, Any]:
    try:
        tokenizer = found.tokenizer()
    except ValueError as error:
        return {"tokenizer": f"none: {error}"}
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default", next(iter(template.values())))
    facts = _tokenizer(tokenizer, configured_ends(found.config))
    return {"tokenizer": facts, "chat_template": template or None}


def _tokenizer(
    tokenizer: PreTrainedTokenizerBase, more_ends: list[int]
) -> dict[str, Any]:
    """Size, special tokens, and the tokens that end an answer."""

    def named(number: int) -> str:
        return f"{tokenizer.convert_ids_to_tokens(number)} ({number})"

    facts: dict[str, Any] = {"tokens": len(tokenizer)}
    for name in SPECIAL:
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            facts[name] = named(number)
    if tokenizer.eos_token_id is not None or more_ends:
        ends = end_ids(cast(Tokenizer, tokenizer), more_ends)
        facts["ends"] = [named(number) for number in ends]
    return facts


def _fitted(
    facts: dict[str, Any], layout: Layout, tensors: TensorSource, targets: Any
) -> Found:
    """What each tensor becomes under a layout, and what is left over on either side."""
    shapes = {p: tuple(leaf.shape) for p, leaf in paths.flatten(targets).items()}
    facts["parameters"] = sum(int(np.prod(shape)) for shape in shapes.values())
    pieces = source_tensors(layout, shapes)
    current = current_names(layout, tensors.shapes)
    names = {file: name for name, file in current.items()}
    twins = dict(layout.duplicates)
    ours, leftovers = {}, []
    for file, shape in tensors.shapes.items():
        piece = pieces.get(names.get(file, ""))
        if piece is not None:
            layer = "" if piece.layer is None else f"[{piece.layer}]"
            ours[file] = " + ".join(share.path + layer for share in piece.shares)
            if tuple(shape) != piece.shape:
                leftovers.append(f"{file}: {tuple(shape)}, {piece.shape} expected")
        elif file not in names:
            ours[file] = "(not needed)"
        elif names[file] in twins and twins[names[file]] in current:
            ours[file] = f"(second copy of {twins[names[file]]})"
        else:
            ours[file] = "(no place)"
            leftovers.append(f"{file}: no place in the model")
    leftovers += [f"{name}: missing" for name in pieces if name not in current]
    return Found(facts, _rows(tensors, ours), leftovers)


def lines(found: Found, tensors: bool) -> list[str]:
    """What `inspect` prints for people; with `tensors`, a line for each of them."""
    said = []
    for name, value in found.facts.items():
        if name == "chat_template":
            text = "none" if value is None else _first_lines(value)
        elif name == "types":
            text = ", ".join(f"{kind} × {count:,}" for kind, count in value.items())
        else:
            text = _words(value)
        said.append(_line(name, text))
    leftovers = found.leftovers or []
    if found.leftovers is not None:
        fits = f"no, {len(leftovers)} do not:" if leftovers else "every tensor does"
        said.append(_line("fits", fits))
    said += [f"    {leftover}" for leftover in leftovers]
    if tensors:
        said += [
            f"{row.name}  {list(row.shape)}  {row.type}  ->  {row.ours}"
            for row in found.rows
        ]
    return said


def _line(name: str, text: str) -> str:
    return f"{name.replace('_', ' '):17} {text}"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        parts = [f"{name.replace('_', ' ')} {_words(v)}" for name, v in value.items()]
        return ", ".join(parts)
    if isinstance(value, list):
        return " ".join(map(_words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _first_lines(text: str, shown: int = 3, width: int = 90) -> str:
    kept = [line[:width] for line in text.splitlines() if line.strip()]
    more = [f"({len(text):,} characters)"]
    return ("\n" + " " * 18).join([*kept[:shown], *more])
