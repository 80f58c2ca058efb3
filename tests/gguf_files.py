"""GGUF files for tests: small random models, and what is in them.

Files are written by the `gguf` library's writer. What reading them should give is
worked out here from the format's documents: dequantising in plain loops over Python
floats, llama.cpp's permutation as two loops.
"""

import struct

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, MLP, LAYERS, VOCAB = 256, 4, 2, 64, 512, 2, 96
Q, KV = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
EMBED = "token_embd.weight"

# ---- dequantising, from the format's documents ---------------------------------------


def f16(block, at):
    return float(struct.unpack_from("<e", block, at)[0])


def q8_0(b):
    return [f16(b, 0) * q for q in struct.unpack_from("<32b", b, 2)]


def nibbles(data):
    return [x & 15 for x in data] + [x >> 4 for x in data]


def q4_0(b):
    return [f16(b, 0) * (q - 8) for q in nibbles(b[2:18])]


def q4_1(b):
    return [f16(b, 0) * q + f16(b, 2) for q in nibbles(b[4:20])]


def fifth_bits(data, count):
    return [(data[i // 8] >> (i % 8) & 1) << 4 for i in range(count)]


def q5_0(b):
    highs, lows = fifth_bits(b[2:6], 32), nibbles(b[6:22])
    return [f16(b, 0) * ((q | h) - 16) for q, h in zip(lows, highs, strict=True)]


def q5_1(b):
    highs, lows = fifth_bits(b[4:8], 32), nibbles(b[8:24])
    return [f16(b, 0) * (q | h) + f16(b, 2) for q, h in zip(lows, highs, strict=True)]


def scale_and_min(j, s):
    """6-bit scale and minimum of sub-block j out of 12 bytes."""
    if j < 4:
        return s[j] & 63, s[j + 4] & 63
    low, high = s[j + 4] & 15, s[j + 4] >> 4
    return low | (s[j - 4] >> 6) << 4, high | (s[j] >> 6) << 4


def k_blocks(b, lows, highs):
    d, dmin, scales = f16(b, 0), f16(b, 2), b[4:16]
    values = []
    for j in range(8):  # sub-blocks of 32: two share 32 bytes, low nibbles first
        scale, minimum = scale_and_min(j, scales)
        for x in range(32):
            q = lows[32 * (j // 2) + x] >> 4 * (j % 2) & 15
            q |= (highs[x] >> j & 1) << 4 if highs else 0
            values.append(d * scale * q - dmin * minimum)
    return values


def q4_k(b):
    return k_blocks(b, b[16:144], None)


def q5_k(b):
    return k_blocks(b, b[48:176], b[16:48])


def q6_k(b):
    lows, highs, d = b[0:128], b[128:192], f16(b, 208)
    scales = struct.unpack_from("<16b", b, 192)
    values = [0.0] * 256
    for half in (0, 1):
        for x in range(32):
            for quarter in range(4):
                low = lows[64 * half + 32 * (quarter % 2) + x]
                q = low >> 4 if quarter >= 2 else low & 15
                q |= (highs[32 * half + x] >> 2 * quarter & 3) << 4
                scale = scales[8 * half + 2 * quarter + x // 16]
                values[128 * half + 32 * quarter + x] = d * scale * (q - 32)
    return values


PLAINLY = {
    **{Type.Q8_0: q8_0, Type.Q4_0: q4_0, Type.Q4_1: q4_1, Type.Q5_0: q5_0},
    **{Type.Q5_1: q5_1, Type.Q4_K: q4_k, Type.Q5_K: q5_k, Type.Q6_K: q6_k},
}
# Where the float16 numbers of a block lie.
HALVES = {
    **{Type.Q8_0: (0,), Type.Q4_0: (0,), Type.Q4_1: (0, 2), Type.Q5_0: (0,)},
    **{Type.Q5_1: (0, 2), Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,)},
}


def random_blocks(kind, rows, width, seed=0):
    """[rows, bytes] of random blocks; only the float16 numbers are made sensible."""
    rng = np.random.default_rng(seed)
    per_block, size = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows, width // per_block, size), dtype=np.uint8)
    for at in HALVES[kind]:
        halves = rng.normal(size=blocks.shape[:2]).astype("<f2")
        blocks[..., at : at + 2] = halves[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def plainly(kind, packed):
    size = GGML_QUANT_SIZES[kind][1]
    rows = [
        np.concatenate([PLAINLY[kind](bytes(b)) for b in row.reshape(-1, size)])
        for row in packed
    ]
    return np.array(rows)


def write(path, tensors, keys=()):
    """A GGUF file. A tensor is an array, or (type, packed rows)."""
    writer = GGUFWriter(path, "test")
    for name, value in keys:
        add(writer, name, value)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, tensor[1], raw_dtype=tensor[0])
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer, name, value):
    if name == "general.architecture":
        writer.kv_data[0].pop(name)
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


# ---- whole models --------------------------------------------------------------------


def stored_order(tensor, heads):
    """Rows as llama.cpp stores them: of a head, j of each half side by side."""
    half = len(tensor) // heads // 2
    rows = []
    for head in range(heads):
        for j in range(half):
            rows += [tensor[2 * half * head + j], tensor[2 * half * head + half + j]]
    return np.stack(rows)


def block_tensors(arch):
    """(name in the file, Hugging Face name, shape, heads if permuted) of one layer."""
    fused = [
        ("attn_qkv.weight", "self_attn.qkv_proj.weight", (Q + 2 * KV, HIDDEN), None),
        ("ffn_up.weight", "mlp.gate_up_proj.weight", (2 * MLP, HIDDEN), None),
    ]
    llama = arch.startswith("llama")
    separate = [
        ("attn_q.weight", "self_attn.q_proj.weight", (Q, HIDDEN), llama and HEADS),
        ("attn_k.weight", "self_attn.k_proj.weight", (KV, HIDDEN), llama and KV_HEADS),
        ("attn_v.weight", "self_attn.v_proj.weight", (KV, HIDDEN), None),
        ("ffn_gate.weight", "mlp.gate_proj.weight", (MLP, HIDDEN), None),
        ("ffn_up.weight", "mlp.up_proj.weight", (MLP, HIDDEN), None),
    ]
    biases = [
        ("attn_q.bias", "self_attn.q_proj.bias", (Q,), llama and HEADS),
        ("attn_k.bias", "self_attn.k_proj.bias", (KV,), llama and KV_HEADS),
        ("attn_v.bias", "self_attn.v_proj.bias", (KV,), None),
    ]
    out_bias = [("attn_output.bias", "self_attn.o_proj.bias", (HIDDEN,), None)]
    return [
        ("attn_norm.weight", "input_layernorm.weight", (HIDDEN,), None),
        ("ffn_norm.weight", "post_attention_layernorm.weight", (HIDDEN,), None),
        ("attn_output.weight", "self_attn.o_proj.weight", (HIDDEN, Q), None),
        ("ffn_down.weight", "mlp.down_proj.weight", (HIDDEN, MLP), None),
        *(fused if arch == "phi3" else separate),
        *(biases if arch in ("qwen2", "llama_biases") else []),
        *(out_bias if arch == "llama_biases" else []),
    ]


def model(arch, tied=False, seed=0):
    """(tensors of the file, tensors in Hugging Face names) of a small random model."""
    rng = np.random.default_rng(seed)
    rows = [
        (EMBED, "model.embed_tokens.weight", (VOCAB, HIDDEN), None),
        ("output_norm.weight", "model.norm.weight", (HIDDEN,), None),
        *([] if tied else [("output.weight", "lm_head.weight", (VOCAB, HIDDEN), None)]),
    ]
    for i in range(LAYERS):
        rows += [
            (f"blk.{i}.{a}", f"model.layers.{i}.{b}", shape, heads)
            for a, b, shape, heads in block_tensors(arch)
        ]
    stored, theirs = {}, {}
    for name, theirs_name, shape, heads in rows:
        theirs[theirs_name] = rng.normal(size=shape).astype(np.float32)
        tensor = theirs[theirs_name]
        stored[name] = stored_order(tensor, heads) if heads else tensor
    return stored, theirs


def keys(arch, **more):
    """Metadata of the small model; `more` has dots as double underscores."""
    found = {
        "block_count": LAYERS,
        "context_length": 2048,
        "embedding_length": HIDDEN,
        "feed_forward_length": MLP,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 500000.0,
        "rope.dimension_count": HEAD_DIM,
    }
    if arch == "phi3":
        found["attention.sliding_window"] = 0
    found |= {name.replace("__", "."): value for name, value in more.items()}
    own = [(f"{arch}.{key}", v) for key, v in found.items() if v is not None]
    return [("general.architecture", arch), *own]
