"""The layouts there are: every checkpoint's names as tables of rules (`names.Rule`)."""

from collections.abc import Sequence

from vtscale_jax.weights.names import Layout, Rule


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

DECODER_BLOCK = (
    Rule("input_layernorm.weight", ("norm1/scale",)),
    *_linear("self_attn.q_proj", "attn/query", bias=False),
    *_linear("self_attn.k_proj", "attn/key", bias=False),
    *_linear("self_attn.v_proj", "attn/value", bias=False),
    *_linear("self_attn.o_proj", "attn/out", bias=False),
    Rule("post_attention_layernorm.weight", ("norm2/scale",)),
    *_linear("mlp.gate_proj", "gate", bias=False),
    *_linear("mlp.up_proj", "up", bias=False),
    *_linear("mlp.down_proj", "down", bias=False),
)

# "layrnorm" is how the tensors are spelt.
VISION_RULES = (
    *_rules(
        ("embeddings.class_embedding", "class_embed", "same"),
        ("embeddings.patch_embedding.weight", "patch_embed/kernel", "conv"),
        ("embeddings.position_embedding.weight", "pos_embed", "same"),
    ),
    *_norm("pre_layrnorm", "pre_norm"),
    *_under("encoder.layers.{i}.", "blocks/", ENCODER_BLOCK),
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
    *_under("layers.{i}.", "blocks/", DECODER_BLOCK),
    Rule("norm.weight", ("norm/scale",)),
)

LLM_RULES = (
    Rule("model.embed_tokens.weight", ("embed",)),
    *_under("model.layers.{i}.", "blocks/", DECODER_BLOCK),
    Rule("model.norm.weight", ("norm/scale",)),
    Rule("lm_head.weight", ("head",), "transpose"),
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

VLM_LAYOUT = Layout(
    rules=(
        *_under("imgque_backbone.clip_model.vision_model.", "vision/", VISION_RULES),
        *_under("imgque_backbone.imgque_model.", "fusion/", FUSION_RULES),
        *_linear("fusion_backbone.imgque_proj", "projector", bias=False),
        *_under("llm_backbone.", "llm/", LLM_RULES),
    ),
    # Where the LLM ties its embeddings, a file may hold the table twice.
    duplicates=(
        ("llm_backbone.lm_head.weight", "llm_backbone.model.embed_tokens.weight"),
    ),
)

LLM_LAYOUT = Layout(
    LLM_RULES, duplicates=(("lm_head.weight", "model.embed_tokens.weight"),)
)
