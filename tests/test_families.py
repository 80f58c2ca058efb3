"""Families of language models: config.json ↔ ours, names of tensors, and the cache.

Parity with transformers is in test_parity_llm.py; nothing here needs torch.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import CASES, LENGTH, rows, weights

from vtscale_jax import paths
from vtscale_jax.layers import empty_caches
from vtscale_jax.llm import LLM, LLMConfig, unstack
from vtscale_jax.rotary import RopeScaling
from vtscale_jax.weights.authors import towers
from vtscale_jax.weights.files.tensors import ArrayTensors
from vtscale_jax.weights.huggingface import families
from vtscale_jax.weights.naming import layouts, names

LLAMA3_SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LISTS = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}

# Fields of published config.json files, the number of parameters that the hub shows for
# the model, and what we must make of it.
PUBLISHED = {
    "Llama-2-7b": (
        {
            **{"model_type": "llama", "rms_norm_eps": 1e-5, "rope_scaling": None},
            "max_position_embeddings": 4096,
        },
        6_738_415_616,
        {"width": 4096, "num_kv_heads": 32, "rope_theta": 10000.0, "norm_eps": 1e-5},
    ),
    "Llama-3.1-8B": (
        {
            **{"model_type": "llama", "vocab_size": 128256, "rms_norm_eps": 1e-5},
            **{"intermediate_size": 14336, "num_key_value_heads": 8},
            **{"rope_theta": 500000.0, "rope_scaling": LLAMA3_SCALING},
            "max_position_embeddings": 131072,
        },
        8_030_261_248,
        {
            "rope_theta": 500000.0,
            "rope_scaling": RopeScaling("llama3", factor=8.0, original_length=8192),
        },
    ),
    "Vicuna-7b": (
        {"model_type": "llama", "pad_token_id": 0, "max_position_embeddings": 4096},
        6_738_415_616,
        {"norm_eps": 1e-6, "window": None},
    ),
    "SmolLM2-135M": (
        {
            **{"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536},
            **{"num_attention_heads": 9, "num_key_value_heads": 3, "rope_theta": 1e5},
            **{"num_hidden_layers": 30, "vocab_size": 49152, "rms_norm_eps": 1e-5},
            "tie_word_embeddings": True,
        },
        134_515_008,
        {"head_dim": 64, "rope_theta": 1e5},
    ),
    "Mistral-7B-v0.1": (
        {"model_type": "mistral", "rms_norm_eps": 1e-5, "sliding_window": 4096},
        7_241_732_096,
        {"window": 4096, "num_kv_heads": 8, "mlp_width": 14336},
    ),
    "Mistral-7B-v0.2": (
        {"model_type": "mistral", "sliding_window": None, "rope_theta": 1e6},
        7_241_732_096,
        {"window": None, "rope_theta": 1e6},
    ),
    "Qwen2.5-0.5B": (
        {
            **{"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864},
            **{"num_attention_heads": 14, "num_key_value_heads": 2},
            **{"num_hidden_layers": 24, "rope_theta": 1e6, "tie_word_embeddings": True},
            **{"use_sliding_window": False, "sliding_window": 32768},
            "max_window_layers": 24,
        },
        494_032_768,
        {"qkv_bias": True, "window": None, "head_dim": 64},
    ),
    "Qwen2.5-7B": (
        {
            **{"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944},
            **{"num_attention_heads": 28, "num_key_value_heads": 4},
            **{"num_hidden_layers": 28, "vocab_size": 152064},
        },
        7_615_616_512,
        {"qkv_bias": True, "head_dim": 128},
    ),
    "Phi-3-mini-4k": (
        {"model_type": "phi3", "sliding_window": 2047, "rope_scaling": None},
        3_821_079_552,
        {"window": 2047, "head_dim": 96, "norm_eps": 1e-5, "rope_share": 1.0},
    ),
    "Phi-3-mini-128k": (
        {
            **{"model_type": "phi3", "sliding_window": 262144},
            "max_position_embeddings": 131072,
            "rope_scaling": {"type": "su", **LISTS},
        },
        3_821_079_552,
        {
            "rope_scaling": RopeScaling(
                "longrope",
                original_length=4096,
                attention_factor=math.sqrt(1 + math.log(32) / math.log(4096)),
                factors=(1.0,) * 48,
                long_factors=(2.0,) * 48,
            )
        },
    ),
}


def read_all(llm, ids, keep):
    return llm.logits(llm(llm.embed(ids), keep).hidden)


def shapes_of(config: LLMConfig):
    ids = jnp.zeros((1, 1), jnp.int32)
    make = functools.partial(LLM(config).init, method=read_all)
    return jax.eval_shape(make, jax.random.key(0), ids, ids > 0)["params"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(name):
    given, count, expected = PUBLISHED[name]
    config = families.llm_config(given, dtype="bfloat16")
    found = {field: getattr(config.blocks, field) for field in expected}
    assert found == expected
    assert config.blocks.dtype == "bfloat16" and config.frozen_id is None
    shapes = shapes_of(config)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count
    # Every parameter has a name, and the names give every parameter.
    flat = paths.flatten(shapes)
    tree = paths.unflatten(
        {
            path: np.broadcast_to(np.float16(0), leaf.shape)
            for path, leaf in flat.items()
        }
    )
    tensors = names.ExportedTensors(families.llm_layout(given), tree)
    assert sum(map(math.prod, tensors.shapes.values())) == count


@pytest.mark.parametrize("name", CASES)
def test_a_rope_is_the_same_in_either_spelling(name):
    given = CASES[name]
    config = families.llm_config(given)
    old = given.get("rope_scaling") or {}
    new = {**given, "rope_scaling": None}
    inner = {**(given.get("rope_parameters") or old)}
    if "type" in inner:
        inner["rope_type"] = inner.pop("type")
    inner["rope_theta"] = new.pop("rope_theta", inner.get("rope_theta", 10000.0))
    inner["partial_rotary_factor"] = new.pop("partial_rotary_factor", 1.0)
    assert families.llm_config({**new, "rope_parameters": inner}) == config


def test_a_rope_fills_in_what_it_leaves_out():
    def scaling(**given):
        config = {"model_type": "llama", "max_position_embeddings": 8192, **given}
        return families.llm_config(config).blocks.rope_scaling

    yarn = {"rope_type": "yarn", "original_max_position_embeddings": 2048}
    found = scaling(rope_parameters=yarn)  # by 8,192 / 2,048
    assert found.factor == 4 and found.beta_fast == 32 and found.truncate
    assert math.isclose(found.attention_factor, 0.1 * math.log(4) + 1)
    both = {**yarn, "factor": 4.0, "mscale": 2.0, "mscale_all_dim": 0.5}
    expected = (0.2 * math.log(4) + 1) / (0.05 * math.log(4) + 1)
    assert math.isclose(scaling(rope_parameters=both).attention_factor, expected)
    given = {**both, "attention_factor": 1.5}
    assert scaling(rope_parameters=given).attention_factor == 1.5
    # The outer field is believed; without either, the model's length.
    outer = scaling(rope_parameters=yarn, original_max_position_embeddings=4096)
    assert outer.original_length == 4096 and outer.factor == 2
    short = {"rope_type": "llama3", **{**LLAMA3_SCALING}}
    del short["original_max_position_embeddings"]
    assert scaling(rope_scaling=short).original_length == 8192
    # Phi-3's first files say yarn and mean longrope; a Llama's yarn is yarn.
    phi3 = {"model_type": "phi3", "rope_scaling": {"type": "yarn", **LISTS}}
    assert families.llm_config(phi3).blocks.rope_scaling.kind == "longrope"
    # Our own kind, from GGUF files.
    own = {"rope_type": "factors", "factors": [1.5] * 64, "rope_theta": 5e5}
    assert scaling(rope_parameters=own) == RopeScaling("factors", factors=(1.5,) * 64)


@pytest.mark.parametrize(
    "given, window",
    [
        ({"use_sliding_window": False}, None),
        ({"use_sliding_window": True, "max_window_layers": 0}, 512),
        ({"use_sliding_window": True, "max_window_layers": 32}, None),
        ({"use_sliding_window": True, "sliding_window": None}, None),
        # Some layers only, but a window that hides nothing.
        ({"use_sliding_window": True, "sliding_window": 32768}, None),
        ({"use_sliding_window": True, "layer_types": ["sliding_attention"] * 32}, 512),
        ({"use_sliding_window": True, "layer_types": ["full_attention"] * 32}, None),
        ({"use_sliding_window": True, "max_window_layers": 28}, "in 4 of 32 layers"),
        ({"layer_types": ["sliding_attention"] * 32}, "give no window"),
        ({"layer_types": ["full_attention"] * 3}, "got 3 layers"),
        ({"layer_types": ["chunked_attention"] * 32}, "chunked_attention"),
        ({"use_sliding_window": True, "sliding_window": 0}, "sliding_window: got 0"),
    ],
)
def test_windows_of_qwen2(given, window):
    config = {"model_type": "qwen2", "sliding_window": 512, **given}
    if isinstance(window, str):
        with pytest.raises(ValueError, match=window):
            families.llm_config(config)
    else:
        assert families.llm_config(config).blocks.window == window


def test_a_llama_has_no_window():
    """transformers reads none there, though converted Mistrals keep the field."""
    config = families.llm_config({"model_type": "llama", "sliding_window": 4096})
    assert config.blocks.window is None


@pytest.mark.parametrize(
    "given, message",
    [
        ({"model_type": "gemma2"}, r"config\.model_type: got 'gemma2'.*phi3 \(Phi3"),
        (
            {"model_type": None, "architectures": ["X"]},
            r"got None \(architectures \['X",
        ),
        ({"attention_bias": True}, r"config\.attention_bias: got True, expected False"),
        ({"mlp_bias": True}, r"config\.mlp_bias: got True"),
        ({"quantization_config": {"quant_method": "awq"}}, "unquantised checkpoint"),
        ({"hidden_act": "relu6"}, r"config\.hidden_act: activation 'relu6' is unknown"),
        ({"hidden_size": "wide"}, r"config\.hidden_size: got 'wide'"),
        ({"num_hidden_layers": 0}, r"config\.num_hidden_layers: got 0"),
        ({"head_dim": 7}, "7 channels of a head, which is 7; expected an even"),
        ({"partial_rotary_factor": 0.5}, "got 0.5, expected 1"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            r"config\.rope_scaling\.rope_type: got 'dynamic'.*set rope_scaling to null",
        ),
        ({"rope_scaling": {"type": "mrope"}}, "got 'mrope', expected one of"),
        (
            {"rope_scaling": {"type": "linear"}},
            r"config\.rope_scaling\.factor: got None, expected a number, which 'lin",
        ),
        ({"rope_parameters": {"rope_type": "llama3", "factor": "8"}}, "got '8'"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "one rotary embedding per type of layer",
        ),
        (
            {"rope_parameters": {"rope_type": "longrope", **LISTS}},
            "has 48 factors, expected 64, one for each pair",
        ),
        (
            {"rope_parameters": {"rope_type": "factors", "factors": [1.0, 0.0]}},
            "a list of numbers above 0",
        ),
    ],
)
def test_what_is_not_computed_is_refused_by_its_field(given, message):
    with pytest.raises(ValueError, match=message):
        families.llm_config({"model_type": "llama", **given})


def test_only_phi3_rotates_a_part():
    given = {"partial_rotary_factor": 0.75}
    assert (
        families.llm_config({"model_type": "phi3", **given}).blocks.rope_share == 0.75
    )
    with pytest.raises(ValueError, match="which is 29; expected an even number"):
        families.llm_config({"model_type": "phi3", "partial_rotary_factor": 0.31})


@pytest.mark.parametrize("name", CASES)
def test_hf_config_says_the_same_from_any_base(name):
    config = families.llm_config(CASES[name])
    kind = CASES[name]["model_type"]
    bare = {"model_type": kind, "max_position_embeddings": 2048}
    for base in (CASES[name], bare):
        written = families.hf_config(config, base, dtype="bfloat16")
        assert families.llm_config(written) == config
        assert written["architectures"] == [families.FAMILIES[kind].architecture]
        assert written["dtype"] == "bfloat16"
    # What only the source knows is kept, and its way of saying the rest.
    written = families.hf_config(config, CASES[name])
    assert written["eos_token_id"] == 2
    for field in ("rope_scaling", "rope_parameters", "rope_theta"):
        assert written.get(field) == CASES[name].get(field)


def test_hf_config_follows_the_model_not_its_base():
    base = {
        **CASES["mistral"],
        **{"torch_dtype": "float16", "auto_map": {}, "quantization_config": {"a": 1}},
    }
    config = families.llm_config(CASES["mistral"])
    blocks = dataclasses.replace(
        config.blocks,
        window=None,
        num_layers=2,
        rope_scaling=RopeScaling("linear", factor=3.0),
        **{"remat": "full", "stacked": False, "dtype": "bfloat16"},
    )
    config = LLMConfig(77, blocks, tie_embeddings=True, frozen_id=3)
    written = families.hf_config(config, base)
    assert written["torch_dtype"] == "float32" and "dtype" not in written
    assert not {"auto_map", "quantization_config"} & written.keys()
    assert written["vocab_size"] == 77 and written["sliding_window"] is None
    again = families.llm_config(written)
    assert again.blocks.rope_scaling == RopeScaling("linear", factor=3.0)
    assert again.blocks.num_layers == 2 and again.tie_embeddings

    windowed = dataclasses.replace(blocks, window=9, rope_scaling=None, qkv_bias=True)
    written = families.hf_config(LLMConfig(77, windowed), CASES["qwen2"])
    assert families.llm_config(written).blocks.window == 9


def test_factors_of_a_gguf_file_become_a_kind_that_transformers_has():
    factors = tuple(1.0 + i for i in range(8))
    base = {
        **CASES["llama"],
        "rope_theta": 5e5,
        "rope_parameters": {
            **{"rope_type": "factors", "factors": list(factors), "rope_theta": 5e5}
        },
    }
    config = families.llm_config(base)
    assert config.blocks.rope_scaling.kind == "factors"
    written = families.hf_config(config, base)
    again = families.llm_config(written).blocks
    assert again.rope_theta == 5e5 and again.rope_scaling.attention_factor == 1
    assert again.rope_scaling.kind == "longrope"
    assert again.rope_scaling.factors == again.rope_scaling.long_factors == factors


def test_hf_config_refuses_what_the_family_cannot_say():
    def change(**fields):
        config = families.llm_config(CASES["llama"])
        blocks = dataclasses.replace(config.blocks, **fields)
        return dataclasses.replace(config, blocks=blocks)

    for fields, message in (
        ({"qkv_bias": True}, "qkv_bias: True in the model, False in a llama"),
        ({"window": 5}, "window: 5 in the model, None in a llama"),
        ({"rope_share": 0.5}, "partial_rotary_factor: got 0.5, expected 1"),
        ({"int8": True}, "int8: got True, expected False"),
    ):
        with pytest.raises(ValueError, match=message):
            families.hf_config(change(**fields), CASES["llama"])
    with pytest.raises(ValueError, match="dtype: got 'int8'"):
        families.hf_config(change(), CASES["llama"], dtype="int8")
    with pytest.raises(ValueError, match="model_type: got 'gpt2'"):
        families.hf_config(change(), {"model_type": "gpt2"})


def parameters(name):
    """(config, layout, tensors by their names, our parameters)."""
    config, layout = families.llm_config(CASES[name]), families.llm_layout(CASES[name])
    shapes = shapes_of(config)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    tensors = weights(names.ExportedTensors(layout, zeros).shapes)
    params = names.import_tree(layout, ArrayTensors(tensors), shapes)
    return config, layout, tensors, params


def test_names_of_each_family():
    def block(name):
        _, _, tensors, _ = parameters(name)
        prefix = "model.layers.2."
        return {
            n.removeprefix(prefix): t.shape
            for n, t in tensors.items()
            if n.startswith(prefix + "self_attn") or n.startswith(prefix + "mlp")
        }

    llama = {
        "self_attn.q_proj.weight": (64, 64),
        "self_attn.k_proj.weight": (32, 64),
        "self_attn.v_proj.weight": (32, 64),
        "self_attn.o_proj.weight": (64, 64),
        "mlp.gate_proj.weight": (88, 64),
        "mlp.up_proj.weight": (88, 64),
        "mlp.down_proj.weight": (64, 88),
    }
    assert block("llama") == llama
    biases = {"q_proj": 64, "k_proj": 32, "v_proj": 32}
    biases = {f"self_attn.{name}.bias": (size,) for name, size in biases.items()}
    assert block("qwen2") == llama | biases
    assert block("phi3-long") == {
        "self_attn.qkv_proj.weight": (128, 64),
        "self_attn.o_proj.weight": (64, 64),
        "mlp.gate_up_proj.weight": (176, 64),
        "mlp.down_proj.weight": (64, 88),
    }


def test_fused_projections_are_cut_in_order():
    _, _, tensors, params = parameters("phi3-long")
    fused = tensors["model.layers.1.self_attn.qkv_proj.weight"]
    attn = params["blocks"]["attn"]
    for name, part in (
        ("query", fused[:64]),
        ("key", fused[64:96]),
        ("value", fused[96:]),
    ):
        np.testing.assert_array_equal(attn[name]["kernel"][1], part.T)
    fused = tensors["model.layers.1.mlp.gate_up_proj.weight"]
    np.testing.assert_array_equal(params["blocks"]["gate"]["kernel"][1], fused[:88].T)
    np.testing.assert_array_equal(params["blocks"]["up"]["kernel"][1], fused[88:].T)


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3-long"])
def test_old_files_and_tied_tables(name):
    config, layout, tensors, params = parameters(name)
    targets = shapes_of(config)
    old = {
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(8) for i in (0, 2)
    }
    again = names.import_tree(layout, ArrayTensors({**tensors, **old}), targets)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)
    exported = names.export_tree(layout, params)
    assert exported.keys() == tensors.keys()
    assert all(np.array_equal(exported[n], tensors[n]) for n in tensors)
    if config.tie_embeddings:
        twice = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}
        names.import_tree(layout, ArrayTensors(twice), targets)
        twice["lm_head.weight"] = twice["lm_head.weight"] + 1
        with pytest.raises(ValueError, match=r"lm_head\.weight: got values unlike"):
            names.import_tree(layout, ArrayTensors(twice), targets)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "phi3"])
def test_the_authors_checkpoint_around_any_family(family):
    layout = layouts.vlm_layout(family)
    sources = {rule.source for rule in layout.rules}
    inner = {rule.source for rule in layouts.llm_layout(family).rules}
    assert {f"llm_backbone.{name}" for name in inner} <= sources
    others = {name for name in sources if not name.startswith("llm_backbone.")}
    llama = {rule.source for rule in layouts.VLM_LAYOUT.rules}
    assert others == {name for name in llama if not name.startswith("llm_backbone.")}
    targets = [path for rule in layout.rules for path in rule.targets]
    assert len(targets) == len(set(targets)) and "llm/blocks/gate/kernel" in targets


def test_the_authors_llm_config_keeps_the_row_of_padding():
    assert towers.llm_config({"model_type": "phi3"}).frozen_id == 32000
    given = {"model_type": "qwen2", "pad_token_id": 5}
    config = towers.llm_config(given)
    assert config == dataclasses.replace(families.llm_config(given), frozen_id=5)
    with pytest.raises(ValueError, match=r"imgque_config\.model_type: got 'qwen2'"):
        towers.fusion_config({"imgque_config": {"model_type": "qwen2"}}, 9)


@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "unstacked"])
@pytest.mark.parametrize("name", ["llama3", "mistral", "qwen2-window", "phi3-long"])
def test_reading_in_pieces_equals_one_pass(name, stacked):
    """Two chunks and then single tokens, of two rows that end at different places."""
    config, _, _, params = parameters(name)
    ids, keep = map(jnp.asarray, rows(config.vocab_size))
    whole = jax.jit(
        lambda params: LLM(config).apply({"params": params}, ids, keep, method=read_all)
    )(params)

    blocks = dataclasses.replace(config.blocks, stacked=stacked)
    model = LLM(dataclasses.replace(config, blocks=blocks))
    own = jax.tree.map(jnp.asarray, params if stacked else unstack(dict(params)))

    @jax.jit
    def read(ids, keep, start, caches):
        variables = {"params": own}
        return model.apply(variables, ids, keep, start, caches, method=LLM.read)

    caches = empty_caches(blocks, 2, LENGTH)
    start = jnp.zeros(2, jnp.int32)
    steps = [(0, 300), (300, 520), *((i, i + 1) for i in range(520, LENGTH))]
    for begin, end in steps:
        part = keep[:, begin:end]
        before, after = start, start + part.sum(axis=1)
        logits, caches = read(ids[:, begin:end], part, before, caches)
        for row in range(2):
            if part[row].any():
                expected = whole[row, after[row] - 1]
                np.testing.assert_allclose(logits[row], expected, rtol=0, atol=5e-5)
        start = after
    assert start.tolist() == [LENGTH, LENGTH - 101]
    # Negative control: the last token read at the place before its own.
    logits, _ = read(ids[:, -1:], keep[:, -1:], before - 1, caches)
    assert float(jnp.abs(logits[0] - whole[0, -1]).max()) > 1e-2
