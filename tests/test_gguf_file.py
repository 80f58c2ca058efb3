"""The GGUF format: every tensor type against plain loops, and damaged files."""

import struct

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader
from gguf.constants import GGML_QUANT_SIZES
from gguf_files import (
    EMBED,
    HIDDEN,
    PLAINLY,
    VOCAB,
    keys,
    model,
    plainly,
    random_blocks,
    write,
)

from vtscale_jax.weights.gguf.file import GGUFError, GGUFFile


@pytest.mark.parametrize("kind", PLAINLY, ids=lambda kind: kind.name)
def test_quantised_type(tmp_path, kind):
    packed = random_blocks(kind, 70, 512)
    file = GGUFFile(write(tmp_path / "t.gguf", {"w": (kind, packed)}))
    found = file.read("w")
    expected = plainly(kind, packed)
    assert found.dtype == np.float32 and found.shape == (70, 512)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    # Rows by slice and by number are the same values.
    np.testing.assert_array_equal(file.read("w", slice(3, 40, 5)), found[3:40:5])
    chosen = np.array([69, 0, 7, 7])
    np.testing.assert_array_equal(file.read("w", chosen), found[chosen])
    # Negative control: one flipped bit of the quantised part is seen.
    packed[5, 150] ^= 1
    other = GGUFFile(write(tmp_path / "u.gguf", {"w": (kind, packed)})).read("w")
    assert not np.allclose(other, expected, rtol=1e-6, atol=1e-6)


def test_quantised_rows_of_many_pieces_and_vectors(tmp_path):
    kind = Type.Q4_0
    packed = random_blocks(kind, 5000, 32)
    tensors = {"w": (kind, packed), "v": (kind, packed[:3].reshape(-1))}
    file = GGUFFile(write(tmp_path / "t.gguf", tensors))
    expected = plainly(kind, packed)
    np.testing.assert_allclose(file.read("w"), expected, rtol=1e-6)
    np.testing.assert_allclose(file.read("v"), expected[:3].reshape(-1), rtol=1e-6)
    np.testing.assert_array_equal(file.read("v", slice(2, 50)), file.read("v")[2:50])


def test_plain_types_keep_their_dtype(tmp_path):
    rng = np.random.default_rng(0)
    f32 = rng.normal(size=(6, 8)).astype(np.float32)
    bf16 = f32.astype(ml_dtypes.bfloat16)
    tensors = {
        "a": f32,
        "b": f32.astype(np.float16),
        "c": (Type.BF16, bf16.view(np.uint8)),
    }
    file = GGUFFile(write(tmp_path / "t.gguf", tensors))
    for name, expected in {"a": f32, "b": f32.astype(np.float16), "c": bf16}.items():
        found = file.read(name)
        assert found.dtype == expected.dtype == file.tensors[name].dtype
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(file.read(name, slice(1, 3)), expected[1:3])
        found[:] = 0  # an array of its own: the file stays as it is
        np.testing.assert_array_equal(file.read(name), expected)


def test_tensors_of_three_axes(tmp_path):
    kind = Type.Q5_K
    packed = random_blocks(kind, 12, 256).reshape(4, 3, -1)
    plain = np.arange(60, dtype=np.float32).reshape(4, 3, 5)
    file = GGUFFile(write(tmp_path / "t.gguf", {"w": (kind, packed), "p": plain}))
    expected = plainly(kind, packed.reshape(12, -1)).reshape(4, 3, 256)
    np.testing.assert_allclose(file.read("w"), expected, rtol=1e-6, atol=1e-6)
    for rows in (slice(1, 3), np.array([3, 1])):
        np.testing.assert_array_equal(file.read("w", rows), file.read("w")[rows])
        np.testing.assert_array_equal(file.read("p", rows), plain[rows])


def test_a_file_that_becomes_shorter(tmp_path):
    path = write(tmp_path / "t.gguf", {"w": np.ones((64, 64), np.float32)})
    file = GGUFFile(path)
    path.write_bytes(path.read_bytes()[:-8192])
    with pytest.raises(GGUFError, match="'w' ends early"):
        file.read("w")


def test_header_as_the_library_reads_it(tmp_path):
    keys = [
        *(("x.bool", True), ("x.int", 7), ("x.float", 0.5), ("x.text", "Ωμέγα ▁")),
        *(
            ("x.texts", ["a", "", "ж"]),
            ("x.ints", [1, -2, 3]),
            ("x.floats", [0.5, 2.0]),
        ),
    ]
    tensors = {"a": np.ones((3, 5, 7), np.float32), "b": np.zeros(4, np.float32)}
    path = write(tmp_path / "t.gguf", tensors, keys)
    file, reader = GGUFFile(path), GGUFReader(path)
    for key, value in keys:
        assert file.metadata[key] == value == reader.fields[key].contents()
    assert list(file.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        ours = file.tensors[tensor.name]
        assert ours.shape == tuple(tensor.shape.tolist())[::-1]
        assert (ours.offset, ours.num_bytes) == (tensor.data_offset, tensor.n_bytes)


@pytest.fixture
def written(tmp_path):
    """Writes a small Llama, with changes, and gives the path."""

    def make(change=()):
        stored = {**model("llama")[0], **dict(change)}
        return write(tmp_path / "model.gguf", stored, keys("llama"))

    return make


def expect(path, *words):
    with pytest.raises(GGUFError) as caught:
        GGUFFile(path)
    message = str(caught.value)
    assert str(path) in message
    for word in words:
        assert word in message, message


def test_truncated_anywhere(written, tmp_path):
    whole = written().read_bytes()
    end_of_header = GGUFFile(tmp_path / "model.gguf").tensors["output.weight"].offset
    short = tmp_path / "short.gguf"
    cuts = [*range(0, 600, 7), *range(600, end_of_header, 331), len(whole) // 2]
    for cut in (*cuts, end_of_header, len(whole) - 1):
        short.write_bytes(whole[:cut])
        word = "truncated or damaged" if cut >= 4 else "no GGUF file"
        expect(short, word, "again" if cut >= 4 else "get it again")
    short.write_bytes(whole)
    assert GGUFFile(short).tensors  # and the whole is fine


def test_wild_numbers_are_refused_at_once(written, tmp_path):
    whole = written().read_bytes()
    bad = tmp_path / "bad.gguf"
    text = whole.index(b"general.architecture")
    name = whole.index(EMBED.encode())
    shape_at = name + len(EMBED) + 4
    for at, layout, value in [
        (8, "<Q", 1 << 60),  # number of tensors
        (16, "<Q", 1 << 60),  # number of keys
        (text - 8, "<Q", 1 << 63),  # length of a key
        (text + 20, "<I", 77),  # type of a value
        (name + len(EMBED), "<I", 1 << 30),  # dimensions
        (shape_at, "<Q", 1 << 62),  # a dimension
        (shape_at, "<Q", 0),
        (shape_at + 20, "<Q", 1 << 50),  # where its bytes lie
        (shape_at + 20, "<Q", 3),
    ]:
        data = bytearray(whole)
        struct.pack_into(layout, data, at, value)
        bad.write_bytes(data)
        expect(bad, "truncated or damaged")
    data = bytearray(whole)
    data[text : text + 2] = b"\xff\xfe"
    bad.write_bytes(data)
    expect(bad, "truncated or damaged", "not UTF-8")
    twice = whole.replace(b"blk.1.attn_q.weight", b"blk.0.attn_q.weight")
    bad.write_bytes(twice)
    expect(bad, "'blk.0.attn_q.weight' is there twice")
    for version, word in (
        (1, "version 1"),
        (0x03000000, "big-endian"),
        (4, "version 4"),
    ):
        data = bytearray(whole)
        struct.pack_into("<I", data, 4, version)
        bad.write_bytes(data)
        expect(bad, word, "version 2 or 3")
    expect(tmp_path / "none.gguf", "no such file")


@pytest.mark.parametrize("kind", [Type.IQ4_NL, Type.Q2_K, Type.F64])
def test_unsupported_type(written, kind):
    size = HIDDEN // GGML_QUANT_SIZES[kind][0] * GGML_QUANT_SIZES[kind][1]
    change = {EMBED: (kind, np.zeros((VOCAB, size), np.uint8))}
    expect(written(change), EMBED, kind.name, "Q4_K", "llama-quantize")


def test_unknown_type_number(written):
    path = written()
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(EMBED.encode()) + len(EMBED) + 20, 999)
    path.write_bytes(data)
    expect(path, EMBED, "999", "Q4_K")
