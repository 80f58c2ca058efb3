"""Import onto a mesh: the same bits as on the host, each part read where it is held."""

import gc
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from vtscale_jax import paths
from vtscale_jax.weights.files.tensors import ArrayTensors, open_tensors
from vtscale_jax.weights.naming import names, placing
from vtscale_jax.weights.naming.names import ExportedTensors, Layout, Rule

LAYERS, WIDTH, KEYS, MLP, WORDS = 4, 8, 4, 16, 24
LAYOUT = Layout(
    (
        Rule("embed.weight", ("embed", "queries")),
        Rule(
            "layers.{i}.qkv_proj.weight",
            ("blocks/query/kernel", "blocks/key/kernel", "blocks/value/kernel"),
            "transpose",
        ),
        Rule(
            "layers.{i}.qkv_proj.bias",
            ("blocks/query/bias", "blocks/key/bias", "blocks/value/bias"),
        ),
        Rule(
            "layers.{i}.gate_up_proj.weight",
            ("blocks/gate/kernel", "blocks/up/kernel"),
            "transpose",
        ),
        Rule("layers.{i}.norm.weight", ("blocks/norm/scale",)),
        Rule("patch.weight", ("patch/kernel",), "conv"),
        Rule("token_LF", ("newline",), "squeeze"),
        Rule("scale", ("scale",)),
        Rule("lm_head.weight", ("head",), "transpose"),
    )
)
SHAPES = {
    "embed": (WORDS, WIDTH),
    "queries": (8, WIDTH),
    "blocks/query/kernel": (LAYERS, WIDTH, WIDTH),
    "blocks/key/kernel": (LAYERS, WIDTH, KEYS),
    "blocks/value/kernel": (LAYERS, WIDTH, KEYS),
    "blocks/query/bias": (LAYERS, WIDTH),
    "blocks/key/bias": (LAYERS, KEYS),
    "blocks/value/bias": (LAYERS, KEYS),
    "blocks/gate/kernel": (LAYERS, WIDTH, MLP),
    "blocks/up/kernel": (LAYERS, WIDTH, MLP),
    "blocks/norm/scale": (LAYERS, WIDTH),
    "patch/kernel": (4, 4, 3, WIDTH),
    "newline": (WIDTH,),
    "scale": (),
    "head": (WIDTH, WORDS),
}
TARGETS = paths.unflatten(
    {path: jax.ShapeDtypeStruct(s, np.float32) for path, s in SHAPES.items()}
)
# Column and row parallel, shared out layers, both mesh axes on one axis, replicas.
SPECS = {
    "embed": P("tensor", None),
    "queries": P(None, ("data", "tensor")),
    "blocks/query/kernel": P(None, "data", "tensor"),
    "blocks/key/kernel": P("tensor", None, "data"),
    "blocks/value/kernel": P(("data",), "tensor"),
    "blocks/gate/kernel": P(None, ("data", "tensor")),
    "blocks/up/kernel": P("data", None, "tensor"),
    "blocks/query/bias": P("tensor"),
    "blocks/key/bias": P(None, "tensor"),
    "patch/kernel": P(None, None, None, "tensor"),
    "newline": P("tensor"),
    "head": P("data", "tensor"),
}


def tensors(dtype=np.float32):
    """A checkpoint of the layout, every element its own number."""
    rng = np.random.default_rng(0)
    shapes = {
        "embed.weight": (WORDS + 8, WIDTH),
        "patch.weight": (WIDTH, 3, 4, 4),
        "token_LF": (1, 1, WIDTH),
        "scale": (),
        "lm_head.weight": (WORDS, WIDTH),
    }
    for i in range(LAYERS):
        shapes |= {
            f"layers.{i}.qkv_proj.weight": (WIDTH + 2 * KEYS, WIDTH),
            f"layers.{i}.qkv_proj.bias": (WIDTH + 2 * KEYS,),
            f"layers.{i}.gate_up_proj.weight": (2 * MLP, WIDTH),
            f"layers.{i}.norm.weight": (WIDTH,),
        }
    return {name: np.asarray(rng.normal(size=s), dtype) for name, s in shapes.items()}


class Recorded(ArrayTensors):
    """Arrays that keep account of how much of a tensor each read asks for."""

    def __init__(self, arrays):
        super().__init__(arrays)
        self.reads = []

    def read(self, name, index=None):
        part = super().read(name, index)
        self.reads.append((name, part.size))
        return part


def mesh_of(data, tensor):
    devices = np.array(jax.devices()[: data * tensor]).reshape(data, tensor)
    return jax.sharding.Mesh(devices, ("data", "tensor"))


def shardings_on(mesh):
    return {path: NamedSharding(mesh, SPECS.get(path, P())) for path in SHAPES}


def same_bits(one, other):
    one, other = np.asarray(one), np.asarray(other)
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.tobytes() == other.tobytes()
    )


def test_a_fused_tensor_is_cut_into_rows_and_fused_again():
    theirs = tensors()
    tree = paths.flatten(names.import_tree(LAYOUT, ArrayTensors(theirs), TARGETS))
    assert {path: x.shape for path, x in tree.items()} == SHAPES
    for i in range(LAYERS):
        fused = theirs[f"layers.{i}.qkv_proj.weight"]
        key = fused[WIDTH : WIDTH + KEYS]
        assert np.array_equal(tree["blocks/query/kernel"][i], fused[:WIDTH].T)
        assert np.array_equal(tree["blocks/key/kernel"][i], key.T)
        assert np.array_equal(tree["blocks/value/kernel"][i], fused[-KEYS:].T)
        fused = theirs[f"layers.{i}.gate_up_proj.weight"]
        assert np.array_equal(tree["blocks/gate/kernel"][i], fused[:MLP].T)
        assert np.array_equal(tree["blocks/up/kernel"][i], fused[MLP:].T)
        bias = theirs[f"layers.{i}.qkv_proj.bias"]
        assert np.array_equal(tree["blocks/key/bias"][i], bias[WIDTH : WIDTH + KEYS])

    again = names.export_tree(LAYOUT, paths.unflatten(tree))
    assert again.keys() == theirs.keys()
    assert all(same_bits(again[name], x) for name, x in theirs.items())
    # Negative control: keys and values in each other's place are another file.
    tree["blocks/key/kernel"], tree["blocks/value/kernel"] = (
        tree["blocks/value/kernel"],
        tree["blocks/key/kernel"],
    )
    wrong = names.export_tree(LAYOUT, paths.unflatten(tree))
    assert not all(same_bits(wrong[name], x) for name, x in theirs.items())


def test_a_target_that_the_model_has_not_takes_no_rows():
    theirs = tensors()
    targets = {k: v for k, v in TARGETS.items() if k != "queries"}
    theirs["embed.weight"] = theirs["embed.weight"][:WORDS]
    tree = names.import_tree(LAYOUT, ArrayTensors(theirs), targets)
    assert np.array_equal(tree["embed"], theirs["embed.weight"])
    assert same_bits(names.export_tree(LAYOUT, tree)["embed.weight"], tree["embed"])


def test_exported_tensors_are_made_when_they_are_read():
    theirs = tensors()
    tree = names.import_tree(LAYOUT, ArrayTensors(theirs), TARGETS)
    exported = ExportedTensors(LAYOUT, jax.tree.map(jnp.asarray, tree))
    assert exported.shapes == {name: x.shape for name, x in theirs.items()}
    for name, x in theirs.items():
        assert exported.dtypes[name] == x.dtype and same_bits(exported.read(name), x)
    part = (slice(5, 10), slice(2, 4))
    name = "layers.1.qkv_proj.weight"
    assert same_bits(exported.read(name, part), theirs[name][part].copy())
    # It is a source like any other: import from it gives the tree again.
    again = names.import_tree(LAYOUT, exported, TARGETS)
    assert jax.tree.all(jax.tree.map(same_bits, again, tree))
    tree["blocks"]["key"]["kernel"] = tree["blocks"]["key"]["kernel"].astype("float16")
    with pytest.raises(ValueError, match="different dtypes:\n.*layers.0.qkv_proj.wei"):
        ExportedTensors(LAYOUT, tree)


def test_layouts_that_cannot_hold_are_refused():
    twice = Layout((*LAYOUT.rules, Rule("other", ("head",))))
    with pytest.raises(
        ValueError, match="head is a target of lm_head.weight and of ot"
    ):
        names.import_tree(twice, ArrayTensors({}), TARGETS)
    flat = Layout((Rule("scale", ("scale",), "transpose"),))
    with pytest.raises(ValueError, match=r"scale \(transpose\) cannot be scale \(\)"):
        names.import_tree(flat, ArrayTensors({}), TARGETS)
    unlike = Layout((Rule("a", ("embed", "head")),))
    with pytest.raises(ValueError, match="its cuts are of unlike shapes"):
        names.import_tree(unlike, ArrayTensors({}), TARGETS)


@pytest.mark.parametrize(
    "data, tensor, stored, asked",
    [
        (2, 4, np.float32, None),
        (1, 4, np.float32, None),
        (2, 2, np.float32, None),
        (1, 1, np.float32, None),
        (2, 4, ml_dtypes.bfloat16, None),
        (2, 4, np.float32, "bfloat16"),
        (2, 4, ml_dtypes.bfloat16, "float32"),
        (2, 4, np.float16, jnp.bfloat16),
    ],
)
def test_a_mesh_gets_the_bits_of_the_host(data, tensor, stored, asked):
    theirs = tensors(stored)
    shardings = shardings_on(mesh_of(data, tensor))
    plain = names.import_tree(LAYOUT, ArrayTensors(theirs), TARGETS, dtype=asked)
    placed = names.import_tree(
        LAYOUT, ArrayTensors(theirs), TARGETS, dtype=asked, shardings=shardings
    )
    plain, placed = paths.flatten(plain), paths.flatten(placed)
    assert list(placed) == list(plain) == list(paths.flatten(TARGETS))
    for path, host in plain.items():
        leaf = placed[path]
        assert leaf.dtype == np.dtype(asked or stored)
        assert same_bits(leaf, host), path
        assert leaf.sharding.is_equivalent_to(shardings[path], leaf.ndim), path
        for shard in leaf.addressable_shards:
            assert shard.data.shape == shardings[path].shard_shape(leaf.shape)
            assert same_bits(shard.data, host[shard.index]), path


def test_shardings_may_be_a_tree_and_a_dtype_may_go_by_path():
    theirs, flat = tensors(), shardings_on(mesh_of(2, 4))
    placed = names.import_tree(
        LAYOUT,
        ArrayTensors(theirs),
        TARGETS,
        dtype=lambda path: "bfloat16" if path.endswith("kernel") else None,
        shardings=paths.unflatten(flat),
    )
    for path, leaf in paths.flatten(placed).items():
        wide = not path.endswith("kernel")
        assert leaf.dtype == (np.float32 if wide else ml_dtypes.bfloat16), path


def test_a_mesh_of_explicit_axes_will_do():
    kind = jax.sharding.AxisType.Explicit
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(kind, kind))
    source = ArrayTensors(tensors())
    placed = names.import_tree(LAYOUT, source, TARGETS, shardings=shardings_on(mesh))
    plain = names.import_tree(LAYOUT, source, TARGETS)
    assert jax.tree.all(jax.tree.map(same_bits, placed, plain))


def test_only_the_parts_that_a_device_holds_are_read():
    theirs = tensors()
    source = Recorded(theirs)
    mesh = mesh_of(2, 4)
    names.import_tree(LAYOUT, source, TARGETS, shardings=shardings_on(mesh))
    total = dict.fromkeys(theirs, 0)
    for name, size in source.reads:
        total[name] += size
    # Every element once, although some devices hold the same.
    assert total == {name: x.size for name, x in theirs.items()}
    largest = {name: max(s for n, s in source.reads if n == name) for name in theirs}
    for i in range(LAYERS):
        # Gate: an eighth of half the tensor; up: a quarter of the other half.
        assert largest[f"layers.{i}.gate_up_proj.weight"] == MLP * WIDTH // 4
    assert largest["lm_head.weight"] == theirs["lm_head.weight"].size // 8
    assert largest["patch.weight"] == theirs["patch.weight"].size // 4
    assert largest["embed.weight"] == WORDS * WIDTH // 4
    # Negative control: on one device whole cuts are read.
    source = Recorded(theirs)
    names.import_tree(LAYOUT, source, TARGETS, shardings=shardings_on(mesh_of(1, 1)))
    largest = max(s for n, s in source.reads if n == "lm_head.weight")
    assert largest == theirs["lm_head.weight"].size


def test_layers_are_written_in_place_by_one_program(monkeypatch):
    write, buffers, live = placing._write, [], []

    def watched(whole, piece, layer, **static):
        pointers = [s.data.unsafe_buffer_pointer() for s in whole.addressable_shards]
        written = write(whole, piece, layer, **static)
        live.append(sum(x.nbytes for x in jax.live_arrays()))
        after = [s.data.unsafe_buffer_pointer() for s in written.addressable_shards]
        buffers.append((whole.is_deleted(), pointers == after))
        return written

    monkeypatch.setattr(placing, "_write", watched)
    layers, width = 6, 256
    layout = Layout((Rule("layers.{i}.up.weight", ("up/kernel",), "transpose"),))
    targets = {"up": {"kernel": np.zeros((layers, width, 2 * width), np.float32)}}
    rng = np.random.default_rng(0)
    theirs = {
        f"layers.{i}.up.weight": rng.normal(size=(2 * width, width)).astype("float32")
        for i in range(layers)
    }
    shardings = {"up/kernel": NamedSharding(mesh_of(2, 4), P(None, "data", "tensor"))}
    gc.collect()  # arrays of other tests are not to go meanwhile
    before = sum(x.nbytes for x in jax.live_arrays())
    programs = write._cache_size()
    tree = names.import_tree(layout, ArrayTensors(theirs), targets, shardings=shardings)
    assert same_bits(tree["up"]["kernel"][3], theirs["layers.3.up.weight"].T)
    assert buffers == [(True, True)] * layers
    assert write._cache_size() == programs + 1
    whole, layer = targets["up"]["kernel"].nbytes, theirs["layers.0.up.weight"].nbytes
    assert max(live) - before < whole + 2 * layer
    # Negative control: without donation the old buffer stays beside the new.
    plain = jax.jit(write.__wrapped__, static_argnames=("transform", "mesh", "spec"))
    monkeypatch.setattr(placing, "_write", plain)
    write, buffers, live = plain, [], []
    monkeypatch.setattr(placing, "_write", watched)
    names.import_tree(layout, ArrayTensors(theirs), targets, shardings=shardings)
    assert buffers == [(False, False)] * layers
    assert max(live) - before > 2 * whole


def test_the_narrower_dtype_travels_to_the_device(monkeypatch):
    write, travelled = placing._write, []

    def watched(whole, piece, layer, **static):
        travelled.append(piece.dtype)
        return write(whole, piece, layer, **static)

    monkeypatch.setattr(placing, "_write", watched)
    shardings = shardings_on(mesh_of(1, 1))
    for stored, asked in [("bfloat16", "float32"), ("float32", "bfloat16")]:
        source = ArrayTensors(tensors(np.dtype(stored)))
        names.import_tree(LAYOUT, source, TARGETS, dtype=asked, shardings=shardings)
    assert set(travelled) == {np.dtype("bfloat16")}


def test_given_parameters_are_placed_and_converted_too():
    theirs = tensors()
    norm = np.ones((LAYERS, WIDTH), np.float64)
    rest = {name: x for name, x in theirs.items() if ".norm." not in name}
    shardings = shardings_on(mesh_of(2, 4))
    tree = names.import_tree(
        LAYOUT,
        ArrayTensors(rest),
        TARGETS,
        given={"blocks/norm/scale": norm},
        dtype="bfloat16",
        shardings=shardings,
    )
    leaf = tree["blocks"]["norm"]["scale"]
    assert isinstance(leaf, jax.Array) and leaf.dtype == jnp.bfloat16
    assert leaf.sharding == shardings["blocks/norm/scale"]


class Unread(ArrayTensors):
    def read(self, name, index=None):
        raise AssertionError(f"{name} was read although the checkpoint does not fit")


def test_shardings_that_do_not_fit_are_listed_before_anything_is_read():
    mesh = mesh_of(2, 4)
    shardings = shardings_on(mesh)
    del shardings["scale"]
    shardings["other/kernel"] = NamedSharding(mesh, P())
    shardings["blocks/norm/scale"] = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings["patch/kernel"] = NamedSharding(mesh, P(None, None, "tensor"))
    with pytest.raises(ValueError) as caught:
        names.import_tree(LAYOUT, Unread(tensors()), TARGETS, shardings=shardings)
    text = str(caught.value)
    assert "4 shardings that do not fit" in text
    assert "scale: no sharding for it" in text
    assert "other/kernel: no such parameter" in text
    assert "blocks/norm/scale: got SingleDeviceSharding" in text
    assert "patch/kernel: (4, 4, 3, 8) cannot be laid out as" in text


def test_dtypes_that_cannot_be_made_are_listed_before_anything_is_read():
    theirs = tensors()
    theirs["layers.2.norm.weight"] = theirs["layers.2.norm.weight"].astype(np.float16)
    theirs["scale"] = np.array(3, np.int32)
    with pytest.raises(ValueError) as caught:
        names.import_tree(LAYOUT, Unread(theirs), TARGETS)
    assert "1 dtypes that cannot be made" in str(caught.value)
    assert (
        "blocks/norm/scale: its tensors are float16 and float32; say with `dtype`"
        in (str(caught.value))
    )
    with pytest.raises(
        ValueError, match="scale: int32 in the checkpoint, bfloat16 ask"
    ):
        names.import_tree(LAYOUT, Unread(theirs), TARGETS, dtype="bfloat16")
    mixed = names.import_tree(
        LAYOUT,
        ArrayTensors(theirs),
        TARGETS,
        dtype=lambda path: None if path == "scale" else "float32",
    )
    assert mixed["scale"].dtype == np.int32
    assert mixed["blocks"]["norm"]["scale"].dtype == np.float32
    # JAX would make float32 of it without a word.
    wide, shardings = Unread(tensors(np.float64)), shardings_on(mesh_of(1, 1))
    with pytest.raises(ValueError, match="float64 is not held by JAX as it is set up"):
        names.import_tree(LAYOUT, wide, TARGETS, shardings=shardings)


@pytest.mark.parametrize("on_mesh", [False, True])
def test_values_beyond_the_range_of_a_dtype_are_an_error(on_mesh):
    theirs = tensors()
    theirs["layers.1.norm.weight"][3] = 70000
    theirs["layers.2.norm.weight"][0] = np.nan
    shardings = shardings_on(mesh_of(2, 4)) if on_mesh else None

    def read(dtype):
        return names.import_tree(
            LAYOUT, ArrayTensors(theirs), TARGETS, dtype=dtype, shardings=shardings
        )

    with pytest.raises(ValueError, match=r"layers.1.norm.weight: got 1 values beyond"):
        read(np.float16)
    scale = np.asarray(read("bfloat16")["blocks"]["norm"]["scale"], np.float32)
    assert scale[1, 3] == np.float32(ml_dtypes.bfloat16(70000))
    assert np.isnan(scale[2, 0])


def test_a_tied_copy_is_compared_bit_for_bit(monkeypatch):
    monkeypatch.setattr(names, "BLOCK_BYTES", 64)  # two rows at a time
    layout = Layout(
        (Rule("embed.weight", ("embed",)),),
        duplicates=(("lm_head.weight", "embed.weight"),),
    )
    table = tensors()["lm_head.weight"]
    table[WORDS - 1, 2] = np.nan
    table[0, 0] = 0.0
    targets = {"embed": table}

    def read(head):
        both = ArrayTensors({"embed.weight": table, "lm_head.weight": head})
        return names.import_tree(layout, both, targets)["embed"]

    assert same_bits(read(table.copy()), table)
    payload = table.copy()
    payload.view(np.uint32)[WORDS - 1, 2] ^= 1
    zero = table.copy()
    zero[0, 0] = -0.0
    for other in [payload, zero, table[:-1], table.astype(np.float64)]:
        with pytest.raises(ValueError, match="values unlike those of embed.weight"):
            read(other)


CHILD = """
import json, sys
import jax
process, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", 2, process)
sys.path.insert(0, sys.argv[4])
import numpy as np
import test_placing as t
from pathlib import Path
from vtscale_jax import paths
from vtscale_jax.weights.naming import names
from vtscale_jax.weights.files.tensors import open_tensors

class Counted:
    def __init__(self, source):
        self.source, self.bytes, self.where = source, 0, source.where
        self.shapes, self.dtypes = source.shapes, source.dtypes
    def read(self, name, index=None):
        part = self.source.read(name, index)
        self.bytes += part.nbytes
        return part

mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "tensor"))
kernel = t.NamedSharding(mesh, t.P(None, "data", "tensor"))
targets = {"up": {"kernel": np.zeros((4, 8, 16), np.float32)}}
layout = t.Layout((t.Rule("layers.{i}.up.weight", ("up/kernel",), "transpose"),))
source = Counted(open_tensors(Path(folder)))
tree = names.import_tree(layout, source, targets, shardings={"up/kernel": kernel})
leaf = tree["up"]["kernel"]
plain = names.import_tree(layout, open_tensors(Path(folder)), targets)["up"]["kernel"]
same = all(t.same_bits(s.data, plain[s.index]) for s in leaf.addressable_shards)
held = len(leaf.addressable_shards)
print(json.dumps({"read": source.bytes, "same": same, "held": held}))
"""


def test_a_process_reads_what_its_own_devices_hold(tmp_path):
    """Two processes of four devices: each reads its half of every layer and no more."""
    rng = np.random.default_rng(0)
    theirs = {
        f"layers.{i}.up.weight": rng.normal(size=(16, 8)).astype("float32")
        for i in range(4)
    }
    save_file(theirs, tmp_path / "model.safetensors")
    assert set(open_tensors(tmp_path).shapes) == set(theirs)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    here = str(Path(__file__).parent)
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(process), port, str(tmp_path), here],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for process in range(2)
    ]
    total = sum(x.nbytes for x in theirs.values())
    for child in children:
        out, err = child.communicate(timeout=120)
        assert child.returncode == 0, err[-3000:]
        found = json.loads(out.splitlines()[-1])
        assert found == {"read": total // 2, "same": True, "held": 4}
