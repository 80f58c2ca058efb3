"""A run of ours → a checkpoint folder of the authors', which their PyTorch code loads.

Written are their tensor names, a config.json with the nested configs that their classes
read, the language model's tokenizer at the top, the CLIP tokenizer with the placeholder
tokens in clip/, and the image processor's file.

What the published code cannot build is refused before anything is written: the config
and the tensors are read back as an import would, and must give the model of the run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vtscale_jax import paths
from vtscale_jax.assemble import load_tokenizer
from vtscale_jax.stages import parameter_shapes
from vtscale_jax.vlm import VLM, AlignModel, ModelConfig
from vtscale_jax.weights.authors import towers
from vtscale_jax.weights.authors.config_json import (
    TRANSFORMERS,
    ExportError,
    align_json,
    processor_json,
    vlm_json,
)
from vtscale_jax.weights.authors.folder import CLIP_FOLDER, PROCESSOR
from vtscale_jax.weights.authors.importing import LLM_PREFIX, Use
from vtscale_jax.weights.files.tensors import TensorSource
from vtscale_jax.weights.files.writing import (
    ChosenTensors,
    check_free,
    one_dtype,
    whole_folder,
    write_json,
    write_shards,
)
from vtscale_jax.weights.naming import layouts
from vtscale_jax.weights.naming.names import ExportedTensors, ImportedTensors
from vtscale_jax.weights.run_parts import Run, RunLLM, run_llm
from vtscale_jax.weights.tokenizer_files import save_tokenizer, with_placeholders

VIEW_SIZE = 336  # of the published image processor, whatever the tower


def export_authors(run: Run, out: Path, dtype: str | None = None) -> list[str]:
    """Writes the folder `out`, whole or not at all; what its user should know.

    `dtype` is what floating point tensors become; None keeps what they are (float32,
    and what the language model's files have). Raises ExportError for a model that the
    published code has no way to build, and as `run_parts.run_llm` does.
    """
    check_free(out)
    align = run.config.stage == "align"
    llm = None if align else run_llm(run)
    tensors = _tensors(run, llm, dtype)
    fusion: Any = load_tokenizer(run.config, "fusion_tokenizer")
    ids = {"bos_token_id": fusion.bos_token_id, "eos_token_id": fusion.eos_token_id}
    clip = align_json(run, ids)
    outer = clip if llm is None else vlm_json(run, clip, llm)
    config = {
        **outer,
        "torch_dtype": one_dtype(tensors),
        "transformers_version": TRANSFORMERS,
    }
    first = run.model.fusion.vocab_size
    _check_reads_back(run, config, tensors, first)
    clip_tokenizer = with_placeholders(fusion, first, run.config.num_queries - 1)
    top = fusion if align else load_tokenizer(run.config, "tokenizer")
    with whole_folder(out) as draft:
        write_shards(draft, tensors)
        write_json(draft / "config.json", config)
        write_json(draft / PROCESSOR, processor_json(run))
        save_tokenizer(top, draft)
        save_tokenizer(clip_tokenizer, draft / CLIP_FOLDER)
    return _notes(run)


def _tensors(run: Run, llm: RunLLM | None, dtype: str | None) -> TensorSource:
    """All tensors under the authors' names, each read when it is written."""
    tree = paths.unflatten(run.params)
    if llm is None:
        ours = ExportedTensors(layouts.ALIGN_LAYOUT, tree)
        chosen = {name: (ours, name) for name in ours.shapes}
        return ChosenTensors(str(run.folder), chosen, dtype)
    ours = ExportedTensors(layouts.VLM_LAYOUT, tree)
    chosen: dict[str, tuple[TensorSource, str]] = {n: (ours, n) for n in ours.shapes}
    chosen |= {LLM_PREFIX + name: (llm.tensors, name) for name in llm.tensors.shapes}
    if run.model.llm.tie_embeddings:
        # Inside their model nothing ties the two: without it the head would be random.
        chosen[f"{LLM_PREFIX}lm_head.weight"] = (
            llm.tensors,
            "model.embed_tokens.weight",
        )
    return ChosenTensors(str(run.folder), chosen, dtype)


def _check_reads_back(
    run: Run, config: Mapping[str, Any], tensors: TensorSource, first_query_id: int
) -> None:
    """ExportError unless config.json means the run's model and the tensors fit it."""
    if run.config.stage == "align":
        again = towers.align_config(config, first_query_id)
        layout, kind = layouts.ALIGN_LAYOUT, AlignModel
    else:
        again = towers.vlm_config(config, first_query_id)
        family = config["llm_config"]["model_type"]
        layout, kind = layouts.vlm_layout(family), VLM
    unlike = [
        f"{tower}.{name}: {ours[name]!r} in the run, {theirs[name]!r} there"
        for tower, ours, theirs in _towers(run.model, again, run.config.stage)
        for name in ours
        if ours[name] != theirs[name]
    ]
    if unlike:
        raise ExportError(
            f"{run.folder}: the published code would build another model, since it "
            "derives the fusion decoder from the vision tower and has no field for the "
            "rest; only models of that kind can be exported to it:\n  "
            + "\n  ".join(unlike)
        )
    ImportedTensors(layout, tensors, parameter_shapes(kind, again), dtype="float32")


def _towers(
    ours: ModelConfig, theirs: ModelConfig, stage: str
) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Each tower's fields in both, without what a run chooses for itself."""
    names = ("vision", "fusion", "text" if stage == "align" else "llm")
    found = []
    for name in names:
        pair = []
        for model in (ours, theirs):
            tower = getattr(model, name)
            plain = dict.fromkeys(("dtype", "attention", "remat", "unroll", "init_std"))
            blocks = vars(tower.blocks) | plain
            pair.append({**vars(tower), **blocks, "blocks": None})
        for fields in pair:
            # All rows of the file are theirs; a frozen model has no frozen rows.
            fields.pop("num_query_rows", None)
            if name == "llm":
                fields.pop("frozen_id")
        found.append((name, *pair))
    return found


def _notes(run: Run) -> list[str]:
    """What the files of the authors cannot say, and what their code cannot do."""
    config, notes = run.config, []
    size = run.model.vision.image_size
    if size != VIEW_SIZE:
        notes.append(
            f"their image processor makes views of {VIEW_SIZE} pixels and this tower "
            f"takes {size}: their code loads the weights, but give it pixels of yours"
        )
    if config.stage == "align":
        return notes
    window = run.model.llm.blocks.window
    if window is not None:
        notes.append(
            f"transformers {TRANSFORMERS} keeps to the language model's window of "
            f"{window} places with flash attention only (attn_implementation)"
        )
    use = Use(config.data.template, config.inputs)
    if use.template != Use().template:
        notes.append(
            f"the run was trained with the chat format {use.template!r}: prompt it so "
            f"(conv_template), and import it again with --template {use.template}"
        )
    if use.inputs != Use().inputs:
        notes.append(
            "the run was trained without questions in the fusion input: set their "
            f'_qed_replaced_query="", and import it again with --inputs {use.inputs}'
        )
    return notes
