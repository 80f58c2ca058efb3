"""Tiny config.json files of every family, and weights for them with nothing left at
its initial value. Sizes are all different, and heads are grouped."""

import numpy as np

LENGTH = 524
PAIRS = 8  # of rotated channels in a head of 16

SIZES = {
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1 + 0.05 * i for i in range(PAIRS)],
    "long_factor": [1.5 + 0.7 * i for i in range(PAIRS)],
}

# In the older and in the newer spelling of the rotary embedding, as files come.
CASES = {
    "llama": {"model_type": "llama", **SIZES},
    "llama3": {
        **{"model_type": "llama", **SIZES, "tie_word_embeddings": True},
        "rope_theta": 5000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "linear": {
        **{"model_type": "llama", **SIZES},
        "rope_scaling": {"type": "linear", "factor": 2.5},
    },
    "yarn": {
        **{"model_type": "llama", **SIZES, "head_dim": 24},
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 20000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    },
    "mistral": {
        **{"model_type": "mistral", **SIZES},
        **{"head_dim": 24, "sliding_window": 37, "rope_theta": 1e6},
    },
    "qwen2": {
        **{"model_type": "qwen2", **SIZES, "tie_word_embeddings": True},
        **{"rope_theta": 1e6, "use_sliding_window": False, "sliding_window": 37},
    },
    "qwen2-window": {
        **{"model_type": "qwen2", **SIZES, "use_sliding_window": True},
        **{"sliding_window": 50, "max_window_layers": 0},
    },
    "phi3-short": {
        **{"model_type": "phi3", **SIZES, "rope_scaling": LONGROPE},
        "original_max_position_embeddings": 1024,
    },
    "phi3-long": {
        **{"model_type": "phi3", **SIZES, "rope_scaling": LONGROPE},
        **{"original_max_position_embeddings": 256, "sliding_window": 61},
    },
    "phi3-partial": {
        **{"model_type": "phi3", **SIZES, "partial_rotary_factor": 0.75},
        **{"tie_word_embeddings": True, "num_key_value_heads": 4},
    },
}


def weights(shapes, seed=0):
    """Random tensors by name: activations stay of order one, attention is not flat, and
    gains and biases are far from 1 and 0."""
    rng = np.random.default_rng(seed)
    made = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        draw = rng.normal(size=shape)
        if "norm" in name and name.endswith(("weight", "scale")):
            draw = 1 + 0.3 * draw
        elif name == "model.embed_tokens.weight" and "lm_head.weight" not in shapes:
            draw /= np.sqrt(shape[1])  # it is the output head too
        elif len(shape) == 1 or "embed" in name:
            draw = 0.5 * draw
        else:
            fan_in = np.prod(shape[1:])
            attention = any(part in name for part in ("q_proj", "k_proj", "qkv"))
            draw *= (1.5 if attention else 0.7) / np.sqrt(fan_in)
        made[name] = draw.astype(np.float32)
    return made


def rows(vocab_size, seed=1):
    """Ids `[2, LENGTH]` and which of them are kept: the second row is padded."""
    ids = np.random.default_rng(seed).integers(3, vocab_size, (2, LENGTH))
    keep = np.arange(LENGTH) < np.array([[LENGTH], [LENGTH - 101]])
    return np.where(keep, ids, 0).astype(np.int32), keep
