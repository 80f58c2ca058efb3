"""Paths: trees into paths and back, ordered rules, partition, and the content hash."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from vtscale_jax import paths


class Pair(NamedTuple):
    left: int
    right: int


@pytest.fixture
def tree():
    return {
        "llm": {"norm": {"scale": np.ones(3, np.float32)}, "embed": np.zeros((2, 3))},
        "fusion": {"queries": np.arange(4, dtype=np.int32)},
    }


def same(a, b):
    """Whether two trees have the same structure and bit-equal leaves."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_flatten_names_every_leaf(tree):
    flat = paths.flatten(tree)
    assert set(flat) == {"llm/norm/scale", "llm/embed", "fusion/queries"}
    assert flat["llm/embed"] is tree["llm"]["embed"]


def test_unflatten_undoes_flatten(tree):
    back = paths.unflatten(paths.flatten(tree))
    assert same(back, tree)
    back["llm"]["embed"] = back["llm"]["embed"] + 1
    assert not same(back, tree)


def test_sequences_and_fields_have_paths():
    flat = paths.flatten({"a": [10, Pair(left=20, right=30)], "n": None, "e": {}})
    assert flat == {"a/0": 10, "a/1/left": 20, "a/1/right": 30}


def test_is_leaf_keeps_a_container_whole():
    is_pair = lambda node: isinstance(node, Pair)  # noqa: E731
    assert paths.flatten({"a": Pair(1, 2)}, is_leaf=is_pair) == {"a": Pair(1, 2)}


@pytest.mark.parametrize(
    "bad, message",
    [
        (np.ones(2), "single leaf"),
        ({"a/b": 1}, "'a/b'"),
        ({"a": {"": 1}}, "non-empty keys"),
    ],
)
def test_flatten_refuses(bad, message):
    with pytest.raises(ValueError, match=message):
        paths.flatten(bad)


@pytest.mark.parametrize("order", [["a", "a/b"], ["a/b", "a"], ["a", "a/b/c"]])
def test_unflatten_refuses_a_leaf_above_a_leaf(order):
    with pytest.raises(ValueError, match="below it at 'a/b"):
        paths.unflatten(dict.fromkeys(order, 1))


@pytest.mark.parametrize("path", ["", "a//b", "/a", "a/"])
def test_unflatten_refuses_empty_parts(path):
    with pytest.raises(ValueError, match="non-empty parts"):
        paths.unflatten({path: 1})


def test_unflatten_does_not_enter_leaves():
    # A dictionary given as a leaf is no container: nothing may be written into it.
    leaf = {"b": 1}
    with pytest.raises(ValueError, match="below it"):
        paths.unflatten({"a": leaf, "a/c": 2})
    assert leaf == {"b": 1}


def test_match_takes_the_first_full_match():
    rules = [("llm/embed", 0), ("llm/.*", 1), (".*", 2)]
    assert paths.match("llm/embed", rules) == 0
    # Not a full match of the first rule, so the second decides.
    assert paths.match("llm/embedding", rules) == 1
    assert paths.match("vision/llm/embed", rules) == 2
    assert paths.match("llm/embed", list(reversed(rules))) == 2


def test_match_names_the_uncovered_path():
    with pytest.raises(ValueError, match=r"'fusion/queries'.*llm/\.\*.*add a rule"):
        paths.match("fusion/queries", [("llm/.*", True)])


@pytest.mark.parametrize(
    "select", [lambda path: path.startswith("llm/"), [("llm/.*", True), (".*", False)]]
)
def test_partition_and_merge(tree, select):
    selected, rest = paths.partition(tree, select)
    # Not even empty containers of the other side are left.
    assert set(selected) == {"llm"} and set(rest) == {"fusion"}
    assert same(paths.merge(selected, rest), tree)
    assert same(paths.merge(rest, selected), tree)


def test_partition_lists_every_uncovered_path(tree):
    with pytest.raises(ValueError, match=r"llm/embed.*llm/norm/scale"):
        paths.partition(tree, [("fusion/.*", True)])


def test_merge_refuses_overlap(tree):
    with pytest.raises(ValueError, match=r"\['llm/embed'\] in both trees"):
        paths.merge(tree, {"llm": {"embed": np.zeros(1)}})
    with pytest.raises(ValueError, match="leaf at 'llm/embed'"):
        paths.merge(tree, {"llm": {"embed": {"table": np.zeros(1)}}})


def test_content_hash_does_not_depend_on_order_layout_or_device(tree):
    embed = np.asarray([[1.0, 2.0], [3.0, 4.0]], np.float32)
    digest = paths.content_hash({"a": embed, "b": embed.T})
    transposed = np.asarray(embed.T, order="C").T
    assert not transposed.flags.c_contiguous
    assert paths.content_hash({"b": embed.T, "a": transposed}) == digest
    assert paths.content_hash({"a": embed.astype(">f4"), "b": embed.T}) == digest
    assert paths.content_hash({"a": jnp.asarray(embed), "b": embed.T}) == digest


def test_content_hash_does_not_depend_on_sharding():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    x = np.arange(16, dtype=np.float32)
    sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
    assert len(sharded.sharding.device_set) == 8
    assert paths.content_hash({"x": sharded}) == paths.content_hash({"x": x})


def test_content_hash_is_pinned():
    # Manifests and checkpoints keep this value: changing it orphans them.
    tree = {"a": {"b": np.arange(3, dtype=np.int32)}, "c": np.float32(0.5)}
    assert paths.content_hash(tree) == (
        "ceac9c454e460fca9b1a145ea2197ec8644610de34379c223596f5a6f4b5a0d2"
    )


@pytest.mark.parametrize(
    "other",
    [
        {"a": {"x": np.zeros((2, 3), np.float32)}},
        {"b": np.zeros((2, 3), np.float32)},
        {"a": np.zeros((3, 2), np.float32)},
        {"a": np.zeros((2, 3), np.int32)},
        {"a": -np.zeros((2, 3), np.float32)},
        {"a": np.zeros((2, 3), np.float32), "b": np.zeros(0, np.float32)},
    ],
    ids=["nesting", "path", "shape", "dtype", "bits", "empty-leaf"],
)
def test_content_hash_sees_every_difference(other):
    digest = paths.content_hash({"a": np.zeros((2, 3), np.float32)})
    assert paths.content_hash(other) != digest
    assert len(digest) == 64


def test_content_hash_reads_bfloat16():
    x = jnp.asarray([1.0, 2.0], jnp.bfloat16)
    assert paths.content_hash({"x": x}) == paths.content_hash({"x": np.asarray(x)})
    assert paths.content_hash({"x": x}) != paths.content_hash({"x": np.float16([1, 2])})


@pytest.mark.parametrize(
    "leaf",
    [
        3,
        "text",
        np.asarray(["text"]),
        np.asarray([None]),
        jax.ShapeDtypeStruct((2,), np.float32),
        lambda: jax.random.key(0),
    ],
    ids=["int", "str", "text", "object", "shape", "key"],
)
def test_content_hash_refuses_what_has_no_bytes(leaf):
    leaf = leaf() if callable(leaf) else leaf
    with pytest.raises(ValueError, match=r"w/x: got .*expected an array of numbers"):
        paths.content_hash({"w": {"x": leaf}})


def test_save_writes_leaves_by_path_for_everyone_to_read(tmp_path):
    file = tmp_path / "weights.safetensors"
    tree = {"a": {"b": jnp.asarray([1.0, 1 + 2**-20])}, "c": np.arange(3)}
    paths.save(tree, file)
    back = load_file(file)
    assert {name: x.dtype.name for name, x in back.items()} == {
        "a/b": "float32",
        "c": "float32",
    }
    np.testing.assert_array_equal(back["a/b"], np.float32([1.0, 1 + 2**-20]))
    assert file.stat().st_mode & 0o777 == 0o644
    paths.save(tree, file, np.float16)
    assert load_file(file)["a/b"].dtype == np.float16
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
