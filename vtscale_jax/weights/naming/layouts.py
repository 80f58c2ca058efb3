"""The layouts there are: every checkpoint's names as tables of rules (`names.Rule`)."""

import re
from collections.abc import Sequence

from vtscale_jax.weights.naming.names import Layout, Rule


def _rules(*rows: tuple[str, str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(source, (target,), how) for source, target, how in rows)


def _under(source: str, target: str, rules: Sequence[Rule]) -> tuple[Rule, ...]:
    return tuple(rule.under(source, target) for rule in rules)


def _linear(theirs: str, ours: str, bias: bool) -> tuple[Rule, ...]:
    weight = Rule(f"{theirs}.weight", (f"{ours}/kernel",), "transpose")
    return (weight, Rule(f"{theirs}.bias", (f"{ours}/bias",)))[: 1 + bias]


def _norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    return _rules(
        (f"{theirs}.weight", f"{ours}/scale", "same"),
        (f"{theirs}.bias", f"{ours}/bias", "same"),
    )


ENCODER_BLOCK = (
    *_norm("layer_norm1", "norm1"),
    *_linear("self_attn.q_proj", "attn/query", bias=True),
    *_linear("self_attn.k_proj", "attn/key", bias=True),
    *_linear("self_attn.v_proj", "attn/value", bias=True),
    *_linear("self_attn.out_proj", "attn/out", bias=True),
    *_norm("layer_norm2", "norm2"),
    *_linear("mlp.fc1", "up", bias=True),
    *_linear("mlp.fc2", "down", bias=True),
)

_QKV = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))


def _qkv(bias: bool) -> tuple[Rule, ...]:
    pairs = [(f"self_attn.{theirs}", f"attn/{ours}") for theirs, ours in _QKV]
    return tuple(rule for pair in pairs for rule in _linear(*pair, bias=bias))


def _decoder_block(qkv: Sequence[Rule], gate_up: Sequence[Rule]) -> tuple[Rule, ...]:
    return (
        Rule("input_layernorm.weight", ("norm1/scale",)),
        *qkv,
        *_linear("self_attn.o_proj", "attn/out", bias=False),
        Rule("post_attention_layernorm.weight", ("norm2/scale",)),
        *gate_up,
        *_linear("mlp.down_proj", "down", bias=False),
    )


_GATE_UP = (
    *_linear("mlp.gate_proj", "gate", bias=False),
    *_linear("mlp.up_proj", "up", bias=False),
)
_FUSED_QKV = Rule(
    "self_attn.qkv_proj.weight",
    tuple(f"attn/{ours}/kernel" for _, ours in _QKV),
    "transpose",
)
_FUSED_GATE_UP = Rule(
    "mlp.gate_up_proj.weight", ("gate/kernel", "up/kernel"), "transpose"
)

# One layer of a language model, by the family's `model_type`.
DECODER_BLOCKS = {
    "llama": _decoder_block(_qkv(bias=False), _GATE_UP),
    "mistral": _decoder_block(_qkv(bias=False), _GATE_UP),
    "qwen2": _decoder_block(_qkv(bias=True), _GATE_UP),
    "phi3": _decoder_block([_FUSED_QKV], [_FUSED_GATE_UP]),
}

# "layrnorm" is how the tensors are spelt.
CLIP_VISION_RULES = (
    *_rules(
        ("embeddings.class_embedding", "class_embed", "same"),
        ("embeddings.patch_embedding.weight", "patch_embed/kernel", "conv"),
        ("embeddings.position_embedding.weight", "pos_embed", "same"),
    ),
    *_norm("pre_layrnorm", "pre_norm"),
    *_under("encoder.layers.{i}.", "blocks/", ENCODER_BLOCK),
)

VISION_RULES = (
    *CLIP_VISION_RULES,
    *_norm("pos_layrnorm", "post_norm"),
    *_rules(
        ("vision_embed_merge.weight", "merge/kernel", "conv"),
        ("token_LF", "newline", "squeeze"),
    ),
)

TEXT_RULES = (
    *_rules(
        ("text_model.embeddings.token_embedding.weight", "embed", "same"),
        ("text_model.embeddings.position_embedding.weight", "pos_embed", "same"),
    ),
    *_under("text_model.encoder.layers.{i}.", "blocks/", ENCODER_BLOCK),
    *_norm("text_model.final_layer_norm", "final_norm"),
    *_linear("text_projection", "projection", bias=False),
)

FUSION_RULES = (
    # Text rows first, then one row per learnable query. Ids stay what they are, so
    # rows that no token uses are kept too, at the end of the queries.
    Rule("embed_tokens.weight", ("embed", "queries")),
    *_under("layers.{i}.", "blocks/", DECODER_BLOCKS["llama"]),
    Rule("norm.weight", ("norm/scale",)),
)

VISION_LAYOUT = Layout(VISION_RULES)

ALIGN_LAYOUT = Layout(
    rules=(
        *_under("clip_model.vision_model.", "vision/", VISION_RULES),
        *_under("clip_model.", "text/", TEXT_RULES),
        *_under("imgque_model.", "fusion/", FUSION_RULES),
        *_linear("imgque_projection", "align/projection", bias=False),
        Rule("logit_scale", ("align/logit_scale",)),
    ),
    # Older files nest the vision tower once more, and still hold CLIP's
    # post_layernorm, whose place a norm of another name has taken.
    renames=(
        (r"clip_model\.vision_model\.vision_model\.", "clip_model.vision_model."),
    ),
    skipped=(r"clip_model\.vision_model\.vision_model\.post_layernorm\.(weight|bias)",),
)


def llm_layout(family: str, prefix: str = "", ours: str = "") -> Layout:
    """A language model of a family (`model_type`), with prefixes before its names in
    the file and before our paths."""
    rules = (
        Rule("model.embed_tokens.weight", ("embed",)),
        *_under("model.layers.{i}.", "blocks/", DECODER_BLOCKS[family]),
        Rule("model.norm.weight", ("norm/scale",)),
        Rule("lm_head.weight", ("head",), "transpose"),
    )
    return Layout(
        _under(prefix, ours, rules),
        # Files of old versions of transformers hold the rotary frequencies.
        skipped=(
            re.escape(prefix) + r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
        ),
        # Where a model ties its embeddings, a file may hold the table twice.
        duplicates=((f"{prefix}lm_head.weight", f"{prefix}model.embed_tokens.weight"),),
    )


def vlm_layout(family: str) -> Layout:
    """The authors' stage-2 checkpoint around a language model of a family."""
    vision = "imgque_backbone.clip_model.vision_model."
    llm = llm_layout(family, "llm_backbone.", "llm/")
    rules = (
        *_under(vision, "vision/", VISION_RULES),
        *_under("imgque_backbone.imgque_model.", "fusion/", FUSION_RULES),
        *_linear("fusion_backbone.imgque_proj", "projector", bias=False),
        *llm.rules,
    )
    return llm._replace(rules=rules)


LLM_LAYOUT = llm_layout("llama")
VLM_LAYOUT = vlm_layout("llama")

# What of a Hugging Face CLIP is asked for: rules, and the names of the same tensors for
# when they are not.
_CLIP_PARTS = {
    "vision": (
        _under("vision_model.", "vision/", CLIP_VISION_RULES),
        r"vision_model\..*",
    ),
    "text": (_under("", "text/", TEXT_RULES), r"(text_model|text_projection)\..*"),
    "logit_scale": ((Rule("logit_scale", ("align/logit_scale",)),), "logit_scale"),
}
# A tower saved alone may stand without its prefix (transformers 5).
_CLIP_ALONE = {
    "clip": (),
    "clip_vision_model": (
        (r"(embeddings|pre_layrnorm|encoder|post_layernorm)\.", r"vision_model.\1."),
    ),
    "clip_text_model": (
        (r"(embeddings|encoder|final_layer_norm)\.", r"text_model.\1."),
    ),
}


def clip_layout(model_type: str, parts: Sequence[str]) -> Layout:
    """A Hugging Face CLIP, or one tower of it, read for some of "vision", "text" and
    "logit_scale"."""
    skipped = [name for part, (_, name) in _CLIP_PARTS.items() if part not in parts]
    return Layout(
        tuple(rule for part in parts for rule in _CLIP_PARTS[part][0]),
        renames=_CLIP_ALONE[model_type],
        skipped=(
            *skipped,
            # Buffers of old versions, and what follows CLIP's own class token: ours
            # has other weights there.
            r"(.*\.)?embeddings\.position_ids",
            r"(vision_model\.)?post_layernorm\.(weight|bias)",
            r"visual_projection\.weight",
        ),
    )


# Our towers as a CLIP. Its norm of the class token is what ours computes there.
CLIP_EXPORT_LAYOUT = Layout(
    (
        *(rule for rules, _ in _CLIP_PARTS.values() for rule in rules),
        *_norm("vision_model.post_layernorm", "vision/post_norm"),
    )
)
