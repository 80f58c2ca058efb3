"""A run of ours → Hugging Face folders, and what has no place in them.

OUT/llm/          the language model, unless it lies in such a folder already
OUT/clip_vision/  CLIPVisionModel (and the image processor's file)
OUT/clip_text/    CLIPTextModelWithProjection (stage align), with its tokenizer
OUT/vtscale_extra.safetensors   every parameter that these have no place for
"""

from pathlib import Path
from typing import Any

from vtscale_jax import paths
from vtscale_jax.assemble import load_tokenizer
from vtscale_jax.views import CLIP_MEAN, CLIP_STD
from vtscale_jax.vision import VisionConfig
from vtscale_jax.weights.authors.folder import PROCESSOR
from vtscale_jax.weights.files.tensors import ArrayTensors
from vtscale_jax.weights.files.writing import (
    ChosenTensors,
    check_free,
    one_dtype,
    whole_folder,
    write_json,
    write_shards,
    write_tensors,
)
from vtscale_jax.weights.huggingface.clip import ALONE, export_clip, hf_clip_config
from vtscale_jax.weights.huggingface.families import hf_config
from vtscale_jax.weights.run_parts import Run, RunLLM, run_llm
from vtscale_jax.weights.tokenizer_files import save_tokenizer

EXTRA = "vtscale_extra.safetensors"
LEGACY_EOS = 2  # with this ⟨eos⟩ transformers reads a text at its largest id


def export_hf(run: Run, out: Path, dtype: str | None = None) -> list[str]:
    """Writes the folder `out`, whole or not at all; what its user should know.

    `dtype` is what floating point tensors become; None keeps what they are. Raises
    ValueError for a tower that transformers does not compute, and as
    `run_parts.run_llm` does.
    """
    check_free(out)
    align = run.config.stage == "align"
    llm = None if align else run_llm(run)
    notes, left = [], dict(run.params)
    with whole_folder(out) as draft:
        if llm is not None and llm.folder is not None and dtype is None:
            notes.append(
                f"llm: not written, it is a Hugging Face folder already: {llm.folder}"
            )
        elif llm is not None:
            _write_llm(run, llm, draft / "llm", dtype)
        _write_tower(run, "vision", left, draft, dtype)
        write_json(draft / "clip_vision" / PROCESSOR, _processor_json(run.model.vision))
        if align:
            _write_tower(run, "text", left, draft, dtype)
            tokenizer = load_tokenizer(run.config, "fusion_tokenizer")
            save_tokenizer(tokenizer, draft / "clip_text")
            if tokenizer.eos_token_id == LEGACY_EOS:
                notes.append(
                    f"clip_text: ⟨eos⟩ has the id {LEGACY_EOS}, for which transformers "
                    "takes text_embeds at a text's largest id: take the projection of "
                    "last_hidden_state at ⟨eos⟩ in their place"
                )
        write_tensors(draft / EXTRA, _chosen(left, dtype))
    listed = "".join(f"\n    {path} {list(leaf.shape)}" for path, leaf in left.items())
    notes.append(
        f"{len(left)} parameters have no place in a CLIP and lie in {EXTRA} under our "
        f"paths:{listed}"
    )
    return notes


def _chosen(leaves: dict[str, Any], dtype: str | None) -> ChosenTensors:
    source = ArrayTensors(leaves, "the run")
    return ChosenTensors(source.where, {n: (source, n) for n in leaves}, dtype)


def _write_tower(
    run: Run, tower: str, left: dict[str, Any], draft: Path, dtype: str | None
) -> None:
    """One tower's folder; what it takes is taken out of `left`."""
    inside = {p: leaf for p, leaf in run.params.items() if p.startswith(f"{tower}/")}
    exported = export_clip(paths.unflatten(inside))
    for path in inside.keys() - set(exported.left_out):
        del left[path]
    tensors = _chosen(exported.tensors, dtype)
    folder = draft / f"clip_{tower}"
    folder.mkdir()
    write_shards(folder, tensors)
    vision, text, base = run.model.vision, None, None
    if tower == "text":
        tokenizer = load_tokenizer(run.config, "fusion_tokenizer")
        base = {
            "model_type": ALONE["text"],
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        vision, text = None, run.model.text
    config = hf_clip_config(vision, text, base, dtype=one_dtype(tensors))
    write_json(folder / "config.json", config)


def _write_llm(run: Run, llm: RunLLM, folder: Path, dtype: str | None) -> None:
    folder.mkdir()
    chosen = {name: (llm.tensors, name) for name in llm.tensors.shapes}
    tensors = ChosenTensors(llm.tensors.where, chosen, dtype)
    write_shards(folder, tensors)
    config = {n: v for n, v in llm.config.items() if n != "generation_config"}
    config = hf_config(run.model.llm, config, dtype=one_dtype(tensors))
    write_json(folder / "config.json", config)
    if "generation_config" in llm.config:
        write_json(folder / "generation_config.json", llm.config["generation_config"])
    save_tokenizer(load_tokenizer(run.config, "tokenizer"), folder)


def _processor_json(vision: VisionConfig) -> dict[str, Any]:
    """What CLIP's image processor makes of an image: one view, cut from its middle."""
    size = vision.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }
