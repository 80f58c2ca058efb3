"""A checkpoint folder of the authors' → a run folder of ours.

    RUN/config.json          the model, M and N, where its parts lie
    RUN/weights.safetensors  what a stage trains, in our paths, float32
    RUN/llm/                 the language model as a Hugging Face folder (stage 2)
    RUN/fusion_tokenizer/    the CLIP tokenizer without the placeholder tokens
    RUN/manifest.json        where all this came from, with hashes

The run can be asked, trained from (`weights.init_from`) and exported again. Every row
of the fusion table is kept: of the queries the run uses the first M − 1, and the others
wait behind them for a larger M, or for the export.
"""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from vtscale_jax import settings
from vtscale_jax.assemble import assemble
from vtscale_jax.run_folder import RunFolder, code_version, versions
from vtscale_jax.stages import parameter_shapes
from vtscale_jax.templates import check_template
from vtscale_jax.vlm import VLM, AlignModel
from vtscale_jax.weights import starting
from vtscale_jax.weights.authors.folder import AuthorsFolder
from vtscale_jax.weights.files.fingerprint import tensors_sha256
from vtscale_jax.weights.files.tensor_slices import Index
from vtscale_jax.weights.files.tensors import TensorSource, open_tensors
from vtscale_jax.weights.files.writing import (
    ChosenTensors,
    one_dtype,
    whole_folder,
    write_json,
    write_shards,
    write_tensors,
)
from vtscale_jax.weights.huggingface import families
from vtscale_jax.weights.naming import layouts
from vtscale_jax.weights.naming.names import ImportedTensors
from vtscale_jax.weights.pretrained import (
    TOKENIZER_FILES,
    check_tokenizer,
    open_pretrained,
)
from vtscale_jax.weights.sizes import block_fields, llm_fields
from vtscale_jax.weights.tokenizer_files import save_tokenizer, without_placeholders

LLM_PREFIX = "llm_backbone."
LLM_FOLDER, TOKENIZER_FOLDER = "llm", "fusion_tokenizer"
# What belongs to the language model's tokenizer at the top of the folder.
BESIDE_TOKENIZER = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*"),
    *("merges.txt", "chat_template*", "generation_config.json"),
)


class Use(NamedTuple):
    """How a checkpoint was trained to be used, which its files do not say: chat format,
    and "vqq" (the fusion decoder reads the question) or "vq"."""

    template: str = "llama-2-vision"
    inputs: str = "vqq"


class SharedQueries:
    """A checkpoint without rows for its placeholders (`append_special_padding` False):
    `fusion/queries` are copies of the row that all of them had."""

    def __init__(self, table: TensorSource, pad_row: int, number: int):
        width = table.shapes["fusion/embed"][1]
        self.where = table.where
        self.shapes = {starting.QUERIES: (number, width)}
        self.dtypes = {starting.QUERIES: table.dtypes["fusion/embed"]}
        self._table, self._row, self._number = table, pad_row, number

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """The table of queries, or a part of it."""
        row = self._table.read("fusion/embed", (slice(self._row, self._row + 1),))
        return np.array(np.repeat(row, self._number, axis=0)[index or ()])


def import_authors(folder: AuthorsFolder, out: Path, use: Use | None = None) -> None:
    """Writes the run `out`, whole or not at all.

    One tensor is held at a time, so a checkpoint of any size can be imported. Raises
    ValueError when a tensor or a parameter is left over, when a tokenizer does not
    fit, for an unknown chat format, and when `out` holds something.
    """
    use = use or Use()
    check_template(use.template)
    model = AlignModel if folder.stage == "align" else VLM
    imported = ImportedTensors(
        authors_layout(folder),
        folder.tensors,
        parameter_shapes(model, folder.model),
        dtype=np.float32,
    )
    out = out.absolute()
    with whole_folder(out) as draft:
        weights: dict[str, tuple[TensorSource, str]] = {
            path: (imported, path)
            for path in imported.shapes
            if not path.startswith("llm/")
        }
        if folder.pad_row is not None and folder.num_queries > 1:
            shared = SharedQueries(imported, folder.pad_row, folder.num_queries - 1)
            weights[starting.QUERIES] = (shared, starting.QUERIES)
        file = draft / starting.RUN_WEIGHTS
        write_tensors(file, ChosenTensors(imported.where, weights))
        tokenizer = without_placeholders(folder.fusion_tokenizer)
        save_tokenizer(tokenizer, draft / TOKENIZER_FOLDER)
        found = {"init_from": _origin(folder, open_tensors(file))}
        if folder.stage != "align":
            found["llm"] = _write_llm(folder, imported, draft / LLM_FOLDER, out)
        # With all parts where they are now: what is wrong with them shows here.
        config = ConfigDict(run_config(folder, draft, use))
        settings.question_mode(config)
        assemble(config, settings.model_config(config, "float32").vision)
        written = RunFolder(draft)
        written.write("config.json", run_config(folder, out, use))
        written.write("manifest.json", _manifest(folder, found))


def authors_layout(folder: AuthorsFolder) -> layouts.Layout:
    """The tensor names of a checkpoint, by its stage and language model."""
    if folder.stage == "align":
        return layouts.ALIGN_LAYOUT
    return layouts.vlm_layout(_llm_config(folder)["model_type"])


def _llm_config(folder: AuthorsFolder) -> dict[str, Any]:
    return {"model_type": "llama", **folder.config["llm_config"]}


def run_config(folder: AuthorsFolder, run: Path, use: Use) -> dict[str, Any]:
    """The config.json of the run in `run`: what a config says of a model and of its
    inputs, and nothing of training, since the run was trained elsewhere."""
    model, name = folder.model, run.name
    stage = folder.stage
    vision = {
        field: getattr(model.vision, field)
        for field in (
            *("image_size", "patch_size", "local_merge", "merge_kernel"),
            *("merge_stride", "newline"),
        )
    }
    weights = {"clip": "", "llm": "", "init_from": "", "tokenizer": ""}
    if stage != "align":
        weights |= {"llm": str(run / LLM_FOLDER), "tokenizer": "llm"}
    return {
        "name": name,
        "preset": "paper",
        "stage": stage,
        "made_for": ["paper", stage],
        "inputs": use.inputs,
        "num_queries": folder.num_queries,
        "num_followup_queries": folder.num_followup_queries,
        "query_schedule": [],
        "seed": 0,
        "model": {
            "dtype": "auto",
            "llm_param_dtype": "auto",
            "attention": "auto",
            "remat": "none",
            "unroll": 1,
            "llm_int8": False,
            "vision": {**vision, "blocks": block_fields(model.vision.blocks)},
            "fusion": {
                "vocab_size": model.fusion.vocab_size,
                "frozen_id": model.fusion.frozen_id,
                "blocks": block_fields(model.fusion.blocks),
            },
            "llm": llm_fields(model.llm),
            "text": {
                "vocab_size": model.text.vocab_size,
                "max_length": model.text.max_length,
                "projection_width": model.text.projection_width,
                "blocks": block_fields(model.text.blocks),
            },
        },
        "weights": {**weights, "fusion_tokenizer": str(run / TOKENIZER_FOLDER)},
        "data": {
            "name": "jsonl",
            "max_local_views": folder.max_local_views,
            "template": use.template,
            "require_image": stage == "align",
            "views": "exact",
            "truncate_answers": stage == "align",
        },
    }


def _write_llm(
    folder: AuthorsFolder, imported: ImportedTensors, draft: Path, out: Path
) -> dict[str, str]:
    """The language model as a Hugging Face folder; where it came from."""
    draft.mkdir()
    given = _llm_config(folder)
    chosen = {
        name.removeprefix(LLM_PREFIX): (folder.tensors, name)
        for name in imported.used
        if name.startswith(LLM_PREFIX)
    }
    tensors = ChosenTensors(imported.where, chosen)
    write_shards(draft, tensors)
    config = families.hf_config(folder.model.llm, given, dtype=one_dtype(tensors))
    write_json(draft / "config.json", config)
    for pattern in BESIDE_TOKENIZER:
        for file in sorted(folder.where.glob(pattern)):
            shutil.copy(file, draft / file.name)
    if not any((draft / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(
            f"{folder.where}: got no tokenizer of the language model, expected one of "
            f"{', '.join(TOKENIZER_FILES)} beside config.json; copy it there"
        )
    found = open_pretrained("llm_config", str(draft))
    check_tokenizer(found.tokenizer(), folder.model.llm.vocab_size, str(folder.where))
    where = str(out / LLM_FOLDER)
    return {"source": where, "path": where, "sha256": tensors_sha256(found.tensors)}


def _origin(folder: AuthorsFolder, weights: TensorSource) -> dict[str, str]:
    where = str(folder.where.absolute())
    return {"source": where, "path": where, "sha256": tensors_sha256(weights)}


def _manifest(
    folder: AuthorsFolder, weights: dict[str, dict[str, str]]
) -> dict[str, Any]:
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "code": code_version(),
        "versions": versions(),
        "imported": {"from": str(folder.where.absolute()), "config": folder.config},
        "weights": weights,
        "params_sha256": weights["init_from"]["sha256"],
        "finished": True,
    }
