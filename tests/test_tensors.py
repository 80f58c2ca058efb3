"""Tensors of files: parts of them, types, shards and their index, damaged files."""

import json
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from vtscale_jax.weights.files import tensors
from vtscale_jax.weights.files.tensors import (
    ArrayTensors,
    SafetensorsFiles,
    TensorFileError,
    TensorSource,
    open_tensors,
)

INDEX = tensors.SAFETENSORS_INDEX
PARTS = [
    None,
    (),
    (slice(1, 3),),
    (slice(None), slice(2, 5)),
    (slice(3, 5), slice(0, 1), slice(1, 3)),
    (slice(2, 2), slice(None), slice(0, 1)),
    (slice(-2, None), slice(-3, -1)),
]


def random(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def same_bits(one, other):
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.tobytes() == other.tobytes()
    )


@pytest.fixture
def sharded(tmp_path):
    """A folder of two shards, their index, and their three tensors."""
    shards = {
        "model-00001-of-00002.safetensors": {"a": random(5, 6, 4), "b": random(3)},
        "model-00002-of-00002.safetensors": {"c": random(2, 2, seed=1)},
    }
    for file, arrays in shards.items():
        save_file(arrays, tmp_path / file)
    write_index(tmp_path, {n: f for f, arrays in shards.items() for n in arrays})
    return tmp_path, {n: x for arrays in shards.values() for n, x in arrays.items()}


def write_index(folder, weight_map, name=INDEX):
    (folder / name).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("block", [1, 100, 2**20])
def test_parts_of_a_tensor_are_those_of_the_array(sharded, monkeypatch, block):
    # Blocks of a row, of a few rows, and of the whole tensor.
    monkeypatch.setattr(tensors, "BLOCK_BYTES", block)
    folder, arrays = sharded
    source = open_tensors(folder)
    assert isinstance(source, TensorSource)
    assert isinstance(ArrayTensors(arrays), TensorSource)
    assert source.shapes == {name: x.shape for name, x in arrays.items()}
    for index in PARTS:
        part = source.read("a", index)
        assert same_bits(part, np.ascontiguousarray(arrays["a"][index or ()])), index
        assert same_bits(part, ArrayTensors(arrays).read("a", index))
        assert part.flags.owndata or part.base.flags.owndata
    # Negative control: a neighbour of the part is told from it.
    assert not same_bits(source.read("a", (slice(1, 3),)), arrays["a"][2:4])
    for bad in [(slice(0, 4, 2),), (slice(None),) * 4]:
        with pytest.raises(ValueError, match="at most one slice of step 1 per axis"):
            source.read("a", bad)


TYPES = [
    *(np.bool_, np.uint8, np.int8, np.int16, np.int32, np.int64),
    *(np.float16, np.float32, np.float64, ml_dtypes.bfloat16),
    *(ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
]


@pytest.mark.parametrize("dtype", TYPES)
def test_types_are_kept_bit_for_bit(tmp_path, dtype):
    bits = np.random.default_rng(0).integers(0, 256, (6, 4, 8), np.uint8)
    if dtype is np.bool_:
        bits &= 1
    # Every bit pattern, NaN with a payload included.
    array = bits.reshape(-1).view(dtype).reshape(6, -1)
    arrays = {
        "x": array,
        "scalar": array[0, :1].reshape(()),
        "none": np.zeros((0, 3), dtype),
    }
    save_file(arrays, tmp_path / "model.safetensors")
    source = open_tensors(tmp_path / "model.safetensors")
    assert source.dtypes["x"] == dtype
    for name, expected in arrays.items():
        assert same_bits(source.read(name), expected), name
    assert same_bits(source.read("x", (slice(1, 2), slice(0, 2))), array[1:2, 0:2])


def raw_file(path, dtype, shape, size):
    """A .safetensors file with one tensor `x`, written by hand."""
    entry = {"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}
    header = json.dumps(entry).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    return path


def test_types_that_numpy_has_not_are_refused_by_name(tmp_path):
    assert open_tensors(raw_file(tmp_path / "ok.safetensors", "F32", [4], 16)).shapes
    file = raw_file(tmp_path / "four.safetensors", "F4", [4], 2)
    with pytest.raises(TensorFileError, match=r"types that cannot be (.|\n)*x: F4"):
        open_tensors(file)


def test_every_cut_of_a_file_is_found_at_opening(tmp_path):
    save_file({"a": random(40), "b": random(3)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    for length in [0, 7, 8, 60, len(whole) // 2, len(whole) - 1]:
        (tmp_path / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(TensorFileError, match=r"model.safetensors: damaged, trunc"):
            open_tensors(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole + b"\0")
    with pytest.raises(TensorFileError, match="damaged"):
        open_tensors(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    source = open_tensors(tmp_path)
    # A file that shrinks while it is in use must not give what lies in memory.
    (tmp_path / "model.safetensors").write_bytes(whole[:-8])
    with pytest.raises(TensorFileError, match="has become shorter"):
        [source.read(name) for name in source.shapes]


def test_an_index_says_which_files_count(sharded):
    folder, arrays = sharded
    # As in repositories that hold the original files beside the converted ones.
    save_file({"a": random(1), "other": random(2)}, folder / "consolidated.safetensors")
    assert set(open_tensors(folder).shapes) == {"a", "b", "c"}
    (folder / INDEX).unlink()
    with pytest.raises(TensorFileError, match=r"a: got it in .* expected it once"):
        open_tensors(folder)
    (folder / "consolidated.safetensors").unlink()
    source = open_tensors(folder)
    assert all(same_bits(source.read(name), x) for name, x in arrays.items())


def test_a_missing_shard_is_named_with_its_tensors(sharded):
    folder, _ = sharded
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(TensorFileError) as caught:
        open_tensors(folder)
    assert "1 of the 2 shards" in str(caught.value)
    assert "model-00001-of-00002.safetensors: should hold a, b" in str(caught.value)


def test_index_and_shards_must_agree(sharded):
    folder, _ = sharded
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    write_index(folder, {"a": one, "b": two, "c": two, "d": one})
    with pytest.raises(TensorFileError) as caught:
        open_tensors(folder)
    assert f"b: in {one}, {two} expected" in str(caught.value)
    assert f"d: in no shard, {one} expected" in str(caught.value)
    # What a shard holds beyond the index is not passed over: the import must place it.
    write_index(folder, {"a": one, "c": two})
    assert set(open_tensors(folder).shapes) == {"a", "b", "c"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1]", "got a JSON list, expected an object"),
        ('{"weight_map"', "no readable JSON file"),
        ("{}", "got no weight_map"),
        ('{"weight_map": {"a": "../up.safetensors"}}', "file in the same folder"),
        ('{"weight_map": {"a": 3}}', "got 3 for a"),
    ],
)
def test_a_damaged_index_is_refused(sharded, text, message):
    folder, _ = sharded
    (folder / INDEX).write_text(text)
    with pytest.raises(TensorFileError, match=message):
        open_tensors(folder)


def test_nothing_to_open_is_an_error(tmp_path):
    for path in [tmp_path, tmp_path / "nowhere", tmp_path / "none.safetensors"]:
        with pytest.raises(TensorFileError, match=r"got no \.safetensors file"):
            open_tensors(path)
    with pytest.raises(TensorFileError, match="got no such file"):
        SafetensorsFiles("here", [tmp_path / "none.safetensors"])
    # Other pickles of a training folder are not weights.
    (tmp_path / "training_args.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(TensorFileError, match=r"got no \.safetensors file"):
        open_tensors(tmp_path)


# In a process of its own: another's freed memory would take new arrays in unseen.
RESIDENT = """
import sys
from pathlib import Path
from vtscale_jax.weights.files.tensors import open_tensors

def resident_bytes():
    with open("/proc/self/status") as file:
        return next(int(x.split()[1]) for x in file if x.startswith("VmRSS")) * 1024

source = open_tensors(Path(sys.argv[1]))
before = resident_bytes()
for name in source.shapes:
    assert source.read(name, (slice(None), slice(5, 6)))[0, 0] == int(name[1:])
    assert source.read(name).shape == (1024, 4096)
print(resident_bytes() - before)
held = [source.read(name) for name in source.shapes]
print(resident_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_nothing_stays_in_memory(tmp_path):
    """Reading every tensor, in whole and in part, leaves no page of the file behind."""
    arrays = {f"t{i}": np.full((1024, 4096), i, np.float32) for i in range(8)}
    save_file(arrays, tmp_path / "model.safetensors")
    size = sum(x.nbytes for x in arrays.values())
    child = [sys.executable, "-c", RESIDENT, str(tmp_path)]
    read, held = map(int, subprocess.check_output(child, text=True).split())
    assert read < size / 4
    assert held > size * 3 / 4  # control: held arrays are seen by the same measure


@pytest.mark.parity
def test_bin_files_through_torch_alone(tmp_path):
    import torch

    shards = {
        "pytorch_model-00001-of-00002.bin": {
            "a": torch.randn(5, 6, 4),
            "h": torch.randn(4, 3).to(torch.bfloat16),
        },
        "pytorch_model-00002-of-00002.bin": {
            "s": torch.tensor(3.0, dtype=torch.float16),
            "n": torch.zeros(0, 3),
            "t": torch.arange(12).reshape(3, 4).T,
        },
    }
    for file, state in shards.items():
        torch.save(state, tmp_path / file)
    torch.save({"lr": 1}, tmp_path / "training_args.bin")
    index = {name: file for file, state in shards.items() for name in state}
    write_index(tmp_path, index, tensors.TORCH_INDEX)
    source = open_tensors(tmp_path)
    assert source.shapes["t"] == (4, 3) and source.shapes["s"] == ()
    assert source.dtypes["h"] == ml_dtypes.bfloat16
    state = shards["pytorch_model-00001-of-00002.bin"]
    for part in PARTS:
        expected = np.ascontiguousarray(state["a"].numpy()[part or ()])
        assert same_bits(source.read("a", part), expected)
    assert np.array_equal(source.read("h"), state["h"].float().numpy())
    assert source.read("s") == 3 and source.read("n").shape == (0, 3)
    assert np.array_equal(source.read("t", (slice(1, 3),)), [[1, 5, 9], [2, 6, 10]])

    # Safetensors are preferred, and a missing shard of either kind is named.
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(TensorFileError, match="should hold s, n, t"):
        open_tensors(tmp_path)
    save_file({"only": random(2)}, tmp_path / "model.safetensors")
    assert set(open_tensors(tmp_path).shapes) == {"only"}


class Planted:
    """A pickle that would run a command when it is loaded without care."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.marker),)


@pytest.mark.parity
def test_bin_files_that_are_no_weights_are_refused(tmp_path):
    import torch

    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": Planted(tmp_path / "ran")}, file)
    with pytest.raises(TensorFileError, match="holding more than tensors"):
        open_tensors(tmp_path)
    assert not (tmp_path / "ran").exists()
    torch.save({"state_dict": {"a": torch.ones(2)}}, file)
    with pytest.raises(TensorFileError, match=r"save model.state_dict\(\) alone"):
        open_tensors(tmp_path)
    torch.save({"a": torch.ones(200)}, file)
    assert open_tensors(tmp_path).shapes == {"a": (200,)}
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(TensorFileError, match="damaged, truncated"):
        open_tensors(tmp_path)
    torch.save({"a": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(TensorFileError, match=r"older than PyTorch 1\.6"):
        open_tensors(tmp_path)


def test_without_torch_a_bin_file_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(TensorFileError, match=r"convert it to safetensors .*pip inst"):
        open_tensors(tmp_path)


def test_bfloat16_goes_to_jax_as_it_is(tmp_path):
    wide = np.asarray(jax.numpy.arange(6, dtype="bfloat16").reshape(2, 3))
    save_file({"a": wide}, tmp_path / "one.safetensors")
    read = open_tensors(tmp_path).read("a")
    assert jax.numpy.asarray(read).dtype == jax.numpy.bfloat16
    assert same_bits(read, wide)
