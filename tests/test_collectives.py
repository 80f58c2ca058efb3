"""Collectives read from compiled programs: real ones of eight CPU devices with known
answers, and recorded lines of TPU and GPU programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vtscale_jax.parallel.plans.collectives import by_kind, collectives, total_sent
from vtscale_jax.parallel.plans.hlo import ProgramTextError, num_bytes, read_module

ROWS, WIDTH = 64, 128
FLOAT = 4


def mesh(*shape: int) -> Mesh:
    devices = np.array(jax.devices()).reshape(shape)
    return Mesh(devices, ("x", "y")[: len(shape)])


def compiled_text(function, *arrays, on: Mesh, specs, out=None) -> str:
    out = PartitionSpec() if out is None else out
    mapped = jax.shard_map(
        function, mesh=on, in_specs=specs, out_specs=out, check_vma=False
    )
    shapes = [
        jax.ShapeDtypeStruct(array, jnp.float32, sharding=NamedSharding(on, spec))
        for array, spec in zip(arrays, specs, strict=True)
    ]
    return jax.jit(mapped).lower(*shapes).compile().as_text()


SPLIT = PartitionSpec("x")
PART = ROWS // 8 * WIDTH * FLOAT  # what each of eight devices holds


def gathered(x):
    return jax.lax.all_gather(x, "x", tiled=True)


@pytest.mark.parametrize(
    "kind, function, out, sent",
    [
        ("all-reduce", lambda x: jax.lax.psum(x, "x"), None, 2 * PART * 7 // 8),
        ("all-gather", gathered, None, PART * 7),
        (
            "reduce-scatter",
            lambda x: jax.lax.psum_scatter(x, "x", tiled=True),
            SPLIT,
            PART * 7 // 8,
        ),
        (
            "all-to-all",
            lambda x: jax.lax.all_to_all(x, "x", 0, 1, tiled=True),
            SPLIT,
            PART * 7 // 8,
        ),
        (
            "collective-permute",
            lambda x: jax.lax.ppermute(x, "x", [(i, (i + 1) % 8) for i in range(8)]),
            SPLIT,
            PART,
        ),
    ],
)
def test_each_kind(kind, function, out, sent):
    text = compiled_text(
        function,
        (ROWS, WIDTH),
        on=mesh(8),
        specs=(SPLIT,),
        out=out,
    )
    (one,) = collectives(text)
    assert (one.kind, one.group, one.runs, one.sent) == (kind, 8, 1, sent)
    assert by_kind([one]) == {kind: (1, sent)}


def test_loops_multiply():
    """An all-gather in five steps, and in three times five."""

    def five(x):
        def body(total, _):
            # Depends on what is carried, so that it cannot be moved out of the loop.
            return total + gathered(x * total[0, 0]).sum(), None

        start = jnp.ones((1, 1))
        return jax.lax.scan(body, start, length=5)[0]

    def fifteen(x):
        def body(total, _):
            return five(x * total[0, 0]), None

        return jax.lax.scan(body, jnp.ones((1, 1)), length=3)[0]

    for function, runs in ((five, 5), (fifteen, 15)):
        text = compiled_text(function, (ROWS, WIDTH), on=mesh(8), specs=(SPLIT,))
        totals = by_kind(collectives(text))
        assert totals["all-gather"] == (runs, runs * PART * 7)
        # Negative control: a loop that runs once more sends more.
        longer = text.replace(
            '"known_trip_count":{"n":"5"}', '"known_trip_count":{"n":"6"}'
        )
        assert by_kind(collectives(longer))["all-gather"].runs == runs * 6 // 5


def test_groups_of_an_axis():
    """Two by four devices: sums over one axis are sums of that many."""
    for axis, size in (("x", 2), ("y", 4)):
        text = compiled_text(
            functools.partial(jax.lax.psum, axis_name=axis),
            (ROWS, WIDTH),
            on=mesh(2, 4),
            specs=(PartitionSpec(("x", "y")),),
            out=PartitionSpec("y" if axis == "x" else "x"),
        )
        (one,) = collectives(text)
        assert (one.kind, one.group) == ("all-reduce", size)
        assert one.sent == 2 * PART * (size - 1) // size


def test_several_arrays_in_one_instruction():
    def both(x, y):
        return jax.lax.psum((x, y), "x")

    text = compiled_text(
        both,
        (ROWS, WIDTH),
        (ROWS, 2 * WIDTH),
        on=mesh(8),
        specs=(SPLIT, SPLIT),
    )
    assert total_sent(collectives(text)) == 3 * 2 * PART * 7 // 8


def test_the_dearer_branch_counts():
    def update(step, x):
        def rare(x):
            return jax.lax.psum(x, "x")

        return jax.lax.cond(step[0] > 0, rare, lambda x: x, x)

    text = compiled_text(
        update, (8,), (ROWS, WIDTH), on=mesh(8), specs=(SPLIT, SPLIT), out=SPLIT
    )
    assert "conditional(" in text
    (one,) = collectives(text)
    assert one.sent == 2 * PART * 7 // 8


def test_one_device_sends_nothing():
    only = Mesh(np.array(jax.devices()[:1]), ("x",))
    text = compiled_text(
        lambda x: jax.lax.psum(x, "x"), (ROWS, WIDTH), on=only, specs=(SPLIT,)
    )
    assert collectives(text) == ()


@pytest.fixture
def gpu(golden_dir) -> str:
    """As XLA's GPU backend writes: started and awaited, tuples of operands and results,
    groups in each of the three forms."""
    return (golden_dir / "programs" / "gpu.hlo").read_text()


@pytest.fixture
def tpu(golden_dir) -> str:
    """As the TPU backend writes: loops without a count, whose bound the loop around
    them carries; one all-gather in three fusions; exchanges with a neighbour."""
    return (golden_dir / "programs" / "tpu.hlo").read_text()


def test_gpu_programs(gpu):
    part = 16 * 128 * FLOAT
    assert by_kind(collectives(gpu)) == {
        "all-gather": (4, 4 * part * 7),
        "all-reduce": (1, 2 * part * 3 // 4),
        "reduce-scatter": (4, 4 * part * 8 * 7 // 8),
    }


def test_tpu_programs(tpu):
    """Three layers, in each a loop from 0 below 8 in steps of 2."""
    part = 4 * 128 * 2
    assert by_kind(collectives(tpu)) == {
        "all-gather": (3, 3 * part * 15),
        "collective-permute": (12, 12 * part),
    }
    # Negative controls: bounds, steps and channels are read, not guessed.
    more = tpu.replace(
        "%eight = u32[]{:T(128)} constant(8)", "%eight = u32[]{:T(128)} constant(9)"
    )
    assert by_kind(collectives(more))["collective-permute"].runs == 15
    head, tail = tpu.split("ROOT %all-gather.2", 1)
    apart = f"{head}ROOT %all-gather.2{tail.replace('=501', '=502', 1)}"
    assert by_kind(collectives(apart))["all-gather"].runs == 3 + 12


def test_a_loop_that_does_not_count_is_an_error(tpu):
    unknown = tpu.replace("add(%k, %two)", "multiply(%k, %two)")
    with pytest.raises(ProgramTextError, match="%while.1: no known_trip_count"):
        collectives(unknown)
    # One that hands its bound on changed has no constant trip count either.
    changed = tpu.replace("tuple(%i.1, %w.1, %bound.1)", "tuple(%i.1, %w.1, %copy)")
    with pytest.raises(ProgramTextError, match="%while.1"):
        collectives(changed)


def test_metadata_of_a_kernel_has_lines_of_its_own():
    text = """HloModule jit_f, num_partitions=4
%body (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %k = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", attributes={m={
"xprof_metadata":"{\\"block_q\\": 128}"
}}, metadata={op_name="splash"}
  ROOT %y = f32[8]{0} negate(%k)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %y = f32[8]{0} call(%x), to_apply=%body
}
"""
    module = read_module(text)
    assert list(module.computations) == ["body", "main"]
    body = module.computations["body"]
    assert list(body.instructions) == ["x", "k", "y"] and body.root == "y"


def test_text_that_is_no_program(gpu):
    with pytest.raises(ProgramTextError, match="ENTRY.*got 'module @jit_f {'"):
        read_module("module @jit_f {\n}\n")
    with pytest.raises(ProgramTextError, match="in no known form"):
        collectives(gpu.replace("[2,4]<=[8]", "maximal"))
    with pytest.raises(ProgramTextError, match="'f12'"):
        num_bytes("f12[3]")


@pytest.mark.parametrize(
    "text, size",
    [
        ("f32[2,3]{1,0}", 24),
        ("(f32[2,3]{1,0}, /*index=1*/bf16[4]{0:T(8,128)(2,1)S(3)})", 32),
        ("pred[]", 1),
        ("f32[0,5]", 0),
        ("s4[3]", 2),
        ("f8e4m3fn[7]", 7),
        ("token[]", 0),
        ("((f32[2]), (s32[], u8[3]))", 15),
    ],
)
def test_num_bytes(text, size):
    assert num_bytes(text) == size
