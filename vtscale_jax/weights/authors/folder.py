"""The authors' checkpoint folders, opened: what the model is, and how it was used.

    config.json   *.safetensors (or *.bin)   preprocessor_config.json
    tokenizer…    the language model's             clip/   the CLIP tokenizer

`length_que_end` N_l and `length_que_end_short` N_s are our M and N: both count the
⟨eos⟩, so N_l − 1 tokens `<|placeholder_qed_i|>` stand before it (spec: sequences). What
in config.json is not understood is an error, since it might change the computation.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from vtscale_jax.tokens import QueryLayout, Tokenizer
from vtscale_jax.views import CLIP_MEAN, CLIP_STD
from vtscale_jax.vlm import ModelConfig
from vtscale_jax.weights.authors import towers
from vtscale_jax.weights.files.tensors import TensorSource, read_json
from vtscale_jax.weights.pretrained import (
    DEFAULT_PATTERNS,
    Pretrained,
    folder_tokenizer,
)
from vtscale_jax.weights.tokenizer_files import placeholder_ids

Json = Mapping[str, Any]

ALIGN_TYPE = "modeling_image_hd_multi_query_clip"
VLM_TYPE = "modeling_query_adapt_clip_llm"
VISION_TYPE = "clip_vision_hd"
FUSION_NAME = "img_multi_que_clip_fusion_linear"
CLIP_FOLDER = "clip"
PROCESSOR = "preprocessor_config.json"
# What is fetched of a repository that may be one of the authors'.
PATTERNS = (*DEFAULT_PATTERNS, f"{CLIP_FOLDER}/*")

# Fields of their constructors that change the model; none of the published ones has.
UNUSED_FIELDS = ("replace_imgque_encoder_by_encoder_with_layer", "imgque_vocab_size")
# The other fields of their constructors.
ALIGN_FIELDS = (
    *("base_name_or_path", "initializer_factor", "logit_scale_init_value"),
    *("text_config", "vision_config", "imgque_config", "hidden_size"),
    *("projection_dim", "vocab_size", "num_hidden_layers", "max_position_embeddings"),
    *("length_que_end", "length_que_end_short", "append_special_padding"),
    *("enable_local_merge", "enable_token_crlf"),
    *("vembed_merge_kernel_size", "vembed_merge_stride"),
)
VLM_FIELDS = (
    *("imgque_model_name_or_path", "llm_model_name_or_path", "imgque_config"),
    *("llm_config", "fusion_name", "hidden_size", "enable_que_end"),
    *("length_que_end", "length_que_end_short", "append_special_padding"),
    *UNUSED_FIELDS,
)
TOWER_FIELDS = (
    *("hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers"),
    *("num_attention_heads", "hidden_act", "layer_norm_eps", "attention_dropout"),
    *("dropout", "initializer_range", "initializer_factor"),
)
TEXT_FIELDS = (*TOWER_FIELDS, "vocab_size", "max_position_embeddings")
FLAGS = (
    *("enable_local_merge", "enable_token_crlf"),
    *("vembed_merge_kernel_size", "vembed_merge_stride"),
)
VISION_FIELDS = (
    *(*TOWER_FIELDS, "num_channels", "image_size", "patch_size"),
    *(*FLAGS, "vembed_hidden_size"),
)
# What every config of transformers may hold; it says nothing of this computation.
COMMON_FIELDS = frozenset(
    """
    _attn_implementation_autoset _name_or_path add_cross_attention architectures
    attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id
    chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size
    eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id id2label is_decoder is_encoder_decoder
    label2id length_penalty max_length min_length model_type no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix problem_type pruned_heads
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype
    torchscript transformers_version typical_p use_bfloat16 use_cache
    """.split()
)


class AuthorsFolderError(ValueError):
    """A folder of the authors' that lacks a part, or says what is not computed here."""


class AuthorsFolder(NamedTuple):
    """A checkpoint of the authors', opened but not read.

    `stage` is "align" or "finetune". `model` has all rows of the fusion table; those
    from `first_query_id` on are queries, of which M − 1 are used. `pad_row` is the row
    that stands for every placeholder where they have none of their own
    (`append_special_padding` False), else None.
    """

    where: Path
    stage: str
    config: Json
    model: ModelConfig
    num_queries: int
    num_followup_queries: int
    first_query_id: int
    pad_row: int | None
    max_local_views: int
    tensors: TensorSource
    fusion_tokenizer: PreTrainedTokenizerBase


def is_authors(config: Json) -> bool:
    """Whether a config.json is of a checkpoint of the authors'."""
    return config.get("model_type") in (ALIGN_TYPE, VLM_TYPE)


def open_authors(
    found: Pretrained,
    *,
    num_followup_queries: int | None = None,
    max_local_views: int | None = None,
) -> AuthorsFolder:
    """The checkpoint that `pretrained.open_pretrained(…, files=PATTERNS)` has found.

    The two options stand for what the folder does not say, or says wrongly. Raises
    AuthorsFolderError, naming file and field, and as the readers of its parts do.
    """
    where = Path(found.where)
    folder = where if where.is_dir() else where.parent
    # generation_config.json lies beside config.json; it is no part of it.
    config = {k: v for k, v in found.config.items() if k != "generation_config"}
    stage = "finetune" if config["model_type"] == VLM_TYPE else "align"
    clip = _checked(config, str(folder / "config.json"))
    layout = _layout(config, stage, num_followup_queries, folder)
    tokenizer = fusion_tokenizer(folder, stage)
    table = towers.fusion_config(clip, 1)
    rows = table.vocab_size + table.num_query_rows
    first, pad_row = _query_rows(config, layout, tokenizer, rows, folder)
    if stage == "align":
        model = towers.align_config(clip, first)
    else:
        model = towers.vlm_config({**config, "imgque_config": clip}, first)
    return AuthorsFolder(
        folder,
        stage,
        config,
        model,
        layout.num_queries,
        int(layout.num_followup_queries or 0),
        first,
        pad_row,
        _max_local_views(folder, max_local_views),
        found.tensors,
        tokenizer,
    )


def fusion_tokenizer(folder: Path, stage: str) -> PreTrainedTokenizerBase:
    """The CLIP tokenizer: in clip/, or of an align checkpoint perhaps at the top."""
    inner = folder / CLIP_FOLDER
    if not inner.is_dir() and stage == "align":
        inner = folder
    if not inner.is_dir():
        raise AuthorsFolderError(
            f"{folder}: got no folder {CLIP_FOLDER}/, expected the tokenizer of the "
            "fusion decoder in it; copy it there from where the checkpoint is from"
        )
    return folder_tokenizer(inner)


def _checked(config: Json, file: str) -> dict[str, Any]:
    """The stage-1 part of a config.json, once all of it is known to be computed here.

    The merge flags may stand beside `vision_config` too, where the reference reads them
    (quirk 5); both places must then say the same.
    """
    clip = config
    if config["model_type"] == VLM_TYPE:
        _only(config, VLM_FIELDS, file)
        _same(config.get("fusion_name"), FUSION_NAME, f"{file}: fusion_name")
        _same(config.get("enable_que_end", True), True, f"{file}: enable_que_end")
        for field in UNUSED_FIELDS:
            _same(config.get(field), None, f"{file}: {field}")
        for field in ("imgque_config", "llm_config"):
            if not isinstance(config.get(field), Mapping):
                raise AuthorsFolderError(
                    f"{file}: {field}: got {config.get(field)!r}, expected the nested "
                    "config; a config.json that only names other models cannot be read"
                )
        llm = config["llm_config"]
        if "hidden_size" in config and "hidden_size" in llm:
            _same(config["hidden_size"], llm["hidden_size"], f"{file}: hidden_size")
        clip, file = config["imgque_config"], f"{file}: imgque_config"
        _same(clip.get("model_type"), ALIGN_TYPE, f"{file}.model_type")
    _only(clip, ALIGN_FIELDS, file)
    vision = dict(clip.get("vision_config") or {})
    where = f"{file}.vision_config"
    _only(vision, VISION_FIELDS, where)
    _only(clip.get("text_config") or {}, TEXT_FIELDS, f"{file}.text_config")
    for flag in FLAGS:
        if flag in clip:
            _same(vision.setdefault(flag, clip[flag]), clip[flag], f"{where}.{flag}")
    tower = towers.vision_config(vision)
    width = tower.blocks.width
    _same(
        vision.get("vembed_hidden_size") or width, width, f"{where}.vembed_hidden_size"
    )
    _same(clip.get("hidden_size", width), width, f"{file}.hidden_size")
    own, derived = clip.get("imgque_config") or {}, towers.fusion_fields(clip)
    heads = derived["num_attention_heads"]
    fixed = {
        **{name: value for name, value in derived.items() if name != "vocab_size"},
        "num_key_value_heads": heads,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "hidden_act": "silu",
    }
    for field, value in fixed.items():
        if own.get(field) is not None:
            _same(own[field], value, f"{file}.imgque_config.{field}")
    return {**clip, "vision_config": vision}


def _only(config: Json, known: tuple[str, ...], where: str) -> None:
    said = {name for name, value in config.items() if value is not None}
    unknown = sorted(said - COMMON_FIELDS - set(known))
    if unknown:
        raise AuthorsFolderError(
            f"{where}: got the fields {', '.join(unknown)}, which the published code "
            "does not have and which may change what the model computes; expected none "
            "of them. If they have no part in it, remove them from config.json"
        )


def _same(found: Any, expected: Any, where: str) -> None:
    if found != expected:
        raise AuthorsFolderError(
            f"{where}: got {found!r}, expected {expected!r}; nothing else is computed "
            "here (nor by the published code when it reads this file)"
        )


def _layout(
    config: Json, stage: str, num_followup_queries: int | None, folder: Path
) -> QueryLayout:
    """M and N; ValueError where the file has none that could have been used."""
    # The defaults of their constructors.
    first = config.get("length_que_end", 8 if stage == "finetune" else None)
    later = config.get("length_que_end_short")
    later = later if num_followup_queries is None else num_followup_queries
    for field, value in (("length_que_end", first), ("length_que_end_short", later)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise AuthorsFolderError(
                f"{folder / 'config.json'}: {field}: got {value!r}, expected a whole "
                "number of vision tokens, 1 or more (the published code needs it too); "
                "write it into config.json"
                + (", or give --num_followup_queries" if "short" in field else "")
            )
    if later > first:
        raise AuthorsFolderError(
            f"{folder / 'config.json'}: length_que_end_short: got {later} with "
            f"length_que_end {first}, expected at most that, which the published code "
            f"asserts (its '1_8' can only be 1 and 1); give --num_followup_queries "
            f"{min(8, first)}, or mend config.json"
        )
    return QueryLayout(first, later)


def _query_rows(
    config: Json,
    layout: QueryLayout,
    tokenizer: PreTrainedTokenizerBase,
    rows: int,
    folder: Path,
) -> tuple[int, int | None]:
    """Where the queries begin in the fusion table of `rows` rows, and the row that they
    all share, if they do."""
    if not config.get("append_special_padding", False):
        # Every placeholder is the pad token, which is ⟨eos⟩ unless another was set.
        used = cast(Tokenizer, tokenizer)
        pad, eos = used.pad_token_id, used.eos_token_id
        shared = eos if pad is None else pad
        if shared is None or not shared < rows:
            raise AuthorsFolderError(
                f"{folder / CLIP_FOLDER}: the tokenizer's pad and ⟨eos⟩ ids are {pad} "
                f"and {eos}, expected one within the {rows} rows of the fusion table"
            )
        return rows, shared
    ids = placeholder_ids(tokenizer)
    # The authors' parser adds the tokens where the saved tokenizer lacks them.
    first = ids[0] if ids else max(tokenizer.get_vocab().values()) + 1
    if first + layout.num_queries - 1 > rows:
        raise AuthorsFolderError(
            f"{folder / 'config.json'}: length_que_end: got {layout.num_queries}, "
            f"whose {layout.num_queries - 1} placeholders would have ids from {first} "
            f"on, but the fusion table has {rows} rows; take the clip/ tokenizer and "
            "the config.json that belong to the weights"
        )
    return first, None


def _max_local_views(folder: Path, given: int | None) -> int:
    """`num_crops` of the image processor, whose pixels must be normalised as ours."""
    file = folder / PROCESSOR
    processor = read_json(file) if file.is_file() else {}
    for field, ours in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)):
        theirs = processor.get(field)
        if theirs is not None and not np.allclose(theirs, ours, rtol=0, atol=1e-6):
            raise AuthorsFolderError(
                f"{file}: {field}: got {theirs}, expected {list(ours)}, which is "
                "CLIP's and the only one that is computed here"
            )
    views = processor.get("num_crops") if given is None else given
    if isinstance(views, bool) or not isinstance(views, int) or views < 1:
        raise AuthorsFolderError(
            f"{file}: num_crops: got {views!r}, expected the number of local views "
            "that the checkpoint was trained with; copy the file from where the "
            "checkpoint is from, or give it: --max_local_views 9"
        )
    return views
