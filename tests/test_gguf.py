"""GGUF models read back: every tensor under its name, every row in its place."""

import math

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader
from gguf_files import (
    EMBED,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    MLP,
    VOCAB,
    Q,
    keys,
    model,
    plainly,
    random_blocks,
    stored_order,
    write,
)

from vtscale_jax.weights import fetch
from vtscale_jax.weights.gguf.file import GGUFError
from vtscale_jax.weights.gguf.model import open_gguf
from vtscale_jax.weights.huggingface.families import llm_config


@pytest.fixture
def written(tmp_path):
    """Writes a model, with changes, and gives the path."""

    def make(arch, tensors=None, change=(), **more):
        stored = model(arch)[0] if tensors is None else tensors
        stored = {k: v for k, v in {**stored, **dict(change)}.items() if v is not None}
        return write(tmp_path / "model.gguf", stored, keys(arch.split("_")[0], **more))

    return make


@pytest.mark.parametrize("arch", ["llama", "llama_biases", "qwen2", "phi3"])
def test_every_tensor_in_its_place(written, arch):
    stored, theirs = model(arch)
    tensors = open_gguf(written(arch, stored)).tensors
    assert tensors.shapes == {name: x.shape for name, x in theirs.items()}
    assert set(tensors.dtypes.values()) == {np.dtype(np.float32)}
    for name, expected in theirs.items():
        np.testing.assert_array_equal(tensors.read(name), expected, err_msg=name)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_only_llama_has_its_rows_reordered(written, arch):
    # Negative control: without the converter's reordering q and k come out wrong,
    # and v does not; for Qwen2 there is none to undo.
    _, theirs = model(arch)
    wrong = {
        f"blk.0.attn_{x}.weight": theirs[f"model.layers.0.self_attn.{x}_proj.weight"]
        for x in "qkv"
    }
    tensors = open_gguf(written(arch, change=wrong)).tensors
    for x in "qkv":
        name = f"model.layers.0.self_attn.{x}_proj.weight"
        same = np.array_equal(tensors.read(name), theirs[name])
        assert same == (arch == "qwen2" or x == "v"), name


INDEXES = [
    (slice(10, 50),),
    (slice(None), slice(32, 96)),
    (slice(64, 128), slice(0, 32)),
    (slice(0, 0), slice(None)),
    (slice(-30, None, 7), slice(1, 2)),
    (),
]


@pytest.mark.parametrize("index", INDEXES, ids=str)
def test_a_part_is_that_part_of_the_whole(written, index):
    kind = Type.Q4_K
    quantised = {
        "blk.0.attn_q.weight": (kind, random_blocks(kind, Q, HIDDEN)),
        "blk.0.ffn_up.weight": (kind, random_blocks(kind, MLP, HIDDEN, seed=1)),
    }
    tensors = open_gguf(written("llama", change=quantised)).tensors
    for name in (
        *(
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.mlp.up_proj.weight",
        ),
        *("model.layers.1.self_attn.q_proj.weight", "model.embed_tokens.weight"),
    ):
        part = tensors.read(name, index)
        np.testing.assert_array_equal(part, tensors.read(name)[index])
        assert part.flags.c_contiguous
    expected = plainly(kind, quantised["blk.0.attn_q.weight"][1])
    found = tensors.read("model.layers.0.self_attn.q_proj.weight")
    np.testing.assert_allclose(stored_order(found, HEADS), expected, rtol=1e-5)


# ---- config --------------------------------------------------------------------------


def test_config_of_llama(written):
    ids = {
        **{"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2},
        **{"tokenizer.ggml.padding_token_id": 0},
    }
    path = written("llama")
    config = open_gguf(path).config
    assert config == {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "rope_theta": 500000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    }
    stored = model("llama", tied=True)[0]
    write(path, stored, [*keys("llama"), *ids.items()])
    config = open_gguf(path).config
    assert config["tie_word_embeddings"]
    assert [config[f"{x}_token_id"] for x in ("bos", "eos", "pad")] == [1, 2, 0]
    # Llama 3: a turn ends with another token than the text.
    turn = {"tokenizer.ggml.eot_token_id": 9, "tokenizer.ggml.eom_token_id": 2}
    write(path, stored, [*keys("llama"), *ids.items(), *turn.items()])
    assert open_gguf(path).config["eos_token_id"] == [2, 9]


def test_config_defaults_and_windows(written):
    # What files leave out has llama.cpp's default.
    bare = {"attention__head_count_kv": None, "rope__freq_base": None}
    stored, _ = model("llama")
    for i in range(LAYERS):
        full = np.zeros((Q, HIDDEN), np.float32)
        stored |= {f"blk.{i}.attn_k.weight": full, f"blk.{i}.attn_v.weight": full}
    config = open_gguf(written("llama", stored, **bare)).config
    assert (config["num_key_value_heads"], config["rope_theta"]) == (HEADS, 10000.0)
    assert "sliding_window" not in config
    path = written("llama", attention__sliding_window=512)
    assert open_gguf(path).config["sliding_window"] == 512
    assert llm_config(open_gguf(path).config).blocks.window == 512
    path = written("qwen2", attention__sliding_window=512)
    assert llm_config(open_gguf(path).config).blocks.window == 512
    assert open_gguf(written("phi3")).config["sliding_window"] is None
    path = written("phi3", attention__sliding_window=2047)
    assert open_gguf(path).config["sliding_window"] == 2047
    assert open_gguf(written("llama_biases")).config["attention_bias"]
    assert "attention_bias" not in open_gguf(written("qwen2")).config


ROPES = [
    ({"rope__scaling__type": "none", "rope__scaling__factor": 3.0}, "default", {}),
    ({"rope__scaling__factor": 1.0}, "default", {}),
    ({"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}, "linear", 4.0),
    ({"rope__scaling__factor": 4.0}, "linear", 4.0),
    ({"rope__scale_linear": 2.0}, "linear", 2.0),
    (
        {
            "rope__scaling__type": "yarn",
            "rope__scaling__factor": 4.0,
            "rope__scaling__original_context_length": 512,
            "rope__scaling__yarn_beta_fast": 16.0,
        },
        "yarn",
        {"factor": 4.0, "original_max_position_embeddings": 512, "beta_fast": 16.0},
    ),
]


@pytest.mark.parametrize("more, kind, expected", ROPES)
def test_config_of_rope_scaling(written, more, kind, expected):
    expected = expected if isinstance(expected, dict) else {"factor": expected}
    rope = open_gguf(written("llama", **more)).config["rope_parameters"]
    assert rope == {"rope_type": kind, "rope_theta": 500000.0, **expected}


def llama3_factors(base, dim, factor, low, high, original):
    """What llama.cpp's converter stores for Llama 3.1, in its own words."""
    factors = []
    for i in range(0, dim, 2):
        wavelength = 2 * math.pi * base ** (i / dim)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parity
def test_stored_factors_are_llama_3s_scaling(written):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    factors = llama3_factors(500000.0, HEAD_DIM, 8.0, 1.0, 4.0, 8192)
    stored = {**model("llama")[0], "rope_freqs.weight": factors}
    opened = open_gguf(written("llama", stored))
    assert "rope_freqs" not in " ".join(opened.tensors.shapes)
    rope = opened.config["rope_parameters"]
    assert rope["rope_type"] == "factors" and rope["rope_theta"] == 500000.0
    assert rope["factors"] == factors.tolist() and len(set(rope["factors"])) > 3
    theirs = LlamaConfig(
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        max_position_embeddings=131072,
        rope_parameters={
            **{"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0},
            **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
            "original_max_position_embeddings": 8192,
        },
    )
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
    plain = rope["rope_theta"] ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    found = plain / np.array(rope["factors"])
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    assert not np.allclose(plain, expected.numpy(), rtol=1e-5)


def longrope(rotary=HEAD_DIM):
    rng = np.random.default_rng(0)
    short, long = rng.uniform(1, 9, (2, rotary // 2)).astype(np.float32)
    tensors = {"rope_factors_long.weight": long, "rope_factors_short.weight": short}
    more = {
        "context_length": 131072,
        "rope__freq_base": 10000.0,
        "rope__dimension_count": rotary,
        "rope__scaling__original_context_length": 4096,
        "rope__scaling__attn_factor": math.sqrt(1 + math.log(32) / math.log(4096)),
    }
    return tensors, more


@pytest.mark.parity
@pytest.mark.parametrize("rotary", [HEAD_DIM, HEAD_DIM * 3 // 4])
def test_long_rope_of_phi3(written, rotary):
    from transformers import Phi3Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    tensors, more = longrope(rotary)
    config = open_gguf(written("phi3", change=tensors, **more)).config
    short, long = (tensors[f"rope_factors_{x}.weight"] for x in ("short", "long"))
    # The authors' config.json, written in the older form.
    theirs = Phi3Config(
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_theta=10000.0,
        partial_rotary_factor=rotary / HEAD_DIM,
        rope_scaling={
            "type": "longrope",
            "short_factor": short.tolist(),
            "long_factor": long.tolist(),
        },
    )
    ours = Phi3Config(**config)
    for length in (4096, 5000):
        expected = ROPE_INIT_FUNCTIONS["longrope"](theirs, "cpu", seq_len=length)
        found = ROPE_INIT_FUNCTIONS["longrope"](ours, "cpu", seq_len=length)
        assert len(found[0]) == rotary // 2
        np.testing.assert_array_equal(found[0].numpy(), expected[0].numpy())
        assert found[1] == pytest.approx(expected[1], rel=1e-6)
    assert config["rope_parameters"]["long_factor"] == long.tolist()
    assert config["original_max_position_embeddings"] == 4096


# ---- what is refused -----------------------------------------------------------------


def expect(path, *words):
    with pytest.raises(GGUFError) as caught:
        open_gguf(path)
    message = str(caught.value)
    assert str(path) in message
    for word in words:
        assert word in message, message


def test_unknown_architecture(written, tmp_path):
    expect(written("gemma3"), "'gemma3'", "llama, qwen2, phi3")
    path = write(tmp_path / "m.gguf", {"w": np.zeros(4, np.float32)})
    expect(path, "'test'", "llama, qwen2, phi3")


REFUSED = [
    ({"expert_count": 8, "expert_used_count": 2}, "llama.expert_count = 8"),
    ({"attn_logit_softcapping": 30.0}, "softcapping"),
    ({"embedding_length": None}, "llama.embedding_length is None"),
    ({"embedding_length": 128}, "token_embd.weight is (96, 256)"),
    ({"attention__head_count": [4, 4]}, "expected one number"),
    ({"attention__head_count": 0}, "positive"),
    (
        {"attention__head_count": 8, "rope__dimension_count": None},
        "has 128 rows, expected 64",
    ),
    ({"attention__value_length": 32}, "two widths"),
    ({"attention__key_length": 32, "rope__dimension_count": 32}, "attn_q.weight"),
    ({"rope__dimension_count": 32}, "rope.dimension_count is 32 of 64"),
    ({"rope__scaling__type": "su", "rope__scaling__factor": 2.0}, "rope scaling 'su'"),
    ({"rope__scaling__type": "longrope"}, "rope scaling 'longrope'"),
    ({"rope__scaling__type": "yarn", "rope__scaling__factor": 2.0}, "original_context"),
    ({"block_count": 1}, "no place in a llama model of 1 layers"),
]


@pytest.mark.parametrize("more, word", REFUSED, ids=lambda x: str(x)[:40])
def test_contradictions_and_what_is_not_understood(written, more, word):
    expect(written("llama", **more), word)


def test_other_refusals(written, tmp_path):
    expect(written("phi3", attention__sliding_window=None), "sliding_window is None")
    expect(written("llama", change={EMBED: None}), "token_embd.weight is missing")
    extra = {"blk.0.attn_q_norm.weight": np.zeros(HEAD_DIM, np.float32)}
    expect(written("llama", change=extra), "blk.0.attn_q_norm.weight")
    wrong = {"rope_freqs.weight": np.ones(7, np.float32)}
    expect(written("llama", change=wrong), "rope_freqs.weight", "(32,)")
    tensors, more = longrope()
    tensors.pop("rope_factors_short.weight")
    expect(written("phi3", change=tensors, **more), "rope_factors_short.weight")
    path = tmp_path / "m.gguf"
    tokens = [("tokenizer.ggml.tokens", [str(i) for i in range(VOCAB - 1)])]
    write(path, model("llama")[0], [*keys("llama"), *tokens])
    expect(path, f"{VOCAB - 1} tokens", f"{VOCAB} rows")
    write(path, model("llama")[0], [*keys("llama"), ("split.count", 3)])
    expect(path, "3 parts", "--merge")
    with pytest.raises(GGUFError, match="lm_heed.*it has model.embed_tokens"):
        open_gguf(written("llama")).tensors.read("lm_heed")


# ---- the real file -------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_path():
    path = fetch.find("smollm2-135m")
    if path is None:
        pytest.skip("run: python -m vtscale_jax.weights fetch smollm2-135m")
    return path


@pytest.mark.real_model
def test_real_file(real_path):
    opened = open_gguf(real_path)
    assert opened.config["rms_norm_eps"] == 1e-5
    assert opened.config["rope_parameters"]["rope_theta"] == 100000.0
    assert opened.config["tie_word_embeddings"]
    assert len(opened.tensors.shapes) == 272
    reader = {tensor.name: tensor for tensor in GGUFReader(real_path).tensors}
    for name, stored, kind in [
        ("model.embed_tokens.weight", EMBED, Type.Q8_0),
        ("model.layers.7.mlp.down_proj.weight", "blk.7.ffn_down.weight", Type.Q4_1),
    ]:
        assert reader[stored].tensor_type == kind
        expected = plainly(kind, reader[stored].data[100:104])
        found = opened.tensors.read(name, (slice(100, 104),))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    stored = plainly(Type.Q4_1, reader["blk.3.attn_k.weight"].data)
    found = opened.tensors.read("model.layers.3.self_attn.k_proj.weight")
    np.testing.assert_allclose(stored_order(found, 3), stored, rtol=1e-6)


@pytest.mark.long  # test_real_model.py has the logits of these rows
@pytest.mark.real_model
@pytest.mark.parity
def test_real_model_makes_sense_only_with_its_rows_put_back(real_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    opened = open_gguf(real_path)
    tokenizer = opened.tokenizer()
    with torch.device("meta"):
        theirs = LlamaForCausalLM(LlamaConfig(**opened.config)).eval()
    tensors = {n: opened.tensors.read(n) for n in opened.tensors.shapes}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    start = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=False
    )

    def answer():
        state = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
        theirs.load_state_dict(state, assign=True)
        # Its frequencies are not in the file, so they are still without memory.
        theirs.model.rotary_emb = type(theirs.model.rotary_emb)(theirs.config)
        ids = list(start)
        for _ in range(9):
            with torch.no_grad():
                ids.append(int(theirs(torch.tensor([ids])).logits[0, -1].argmax()))
        return tokenizer.decode(ids[len(start) :])

    assert answer().startswith("The capital of France is Paris.")
    # Negative control: rows as they lie in the file.
    for name in tensors:
        for part, heads in (("q_proj", 9), ("k_proj", 3)):
            if part in name:
                tensors[name] = stored_order(tensors[name], heads)
    assert "Paris" not in answer()
