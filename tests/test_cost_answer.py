"""Operations and bytes of an answer's parts, against XLA's count and by hand."""

import jax
import jax.numpy as jnp
import pytest
from small_shapes import model_config

from configs.base import with_queries
from vtscale_jax import settings
from vtscale_jax.cost import answer
from vtscale_jax.cost.answer import PartCost, Question, first_token, next_token
from vtscale_jax.cost.peak import Peak, stated
from vtscale_jax.devices import GPUS
from vtscale_jax.layers import empty_caches
from vtscale_jax.llm import LLM
from vtscale_jax.stages import get_stage, parameter_shapes
from vtscale_jax.types import FusionInput
from vtscale_jax.vlm import VLM

# XLA also counts norms, softmax, activations and rotary embedding.
TOLERANCE = 0.01
MODEL = model_config(2, unroll=2)
ASKED = Question((64, 96), (2, 3), text_tokens=9, query_slots=24, prompt_tokens=160)


def costs(model=MODEL, asked=ASKED, **bytes_of) -> dict[str, PartCost]:
    parts = first_token(model, asked, bytes_each=4, **bytes_of)
    return {part.name: part for part in parts}


def counted(function, *args) -> float:
    return jax.jit(function).lower(*args).cost_analysis()["flops"]


def ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def test_parts_agree_with_xla():
    params = parameter_shapes(VLM, MODEL)
    part, model = costs(), VLM(MODEL)
    crops = jax.ShapeDtypeStruct((7, 32, 32, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((7, 17, 256), jnp.float32)
    look = counted(
        lambda p, crops: model.apply({"params": p}, crops, method=VLM.look),
        *(params, crops),
    )
    assert part["vision"].flops + part["merge"].flops == pytest.approx(
        look, rel=TOLERANCE
    )
    # Negative control: without the merge it is another number.
    assert part["vision"].flops != pytest.approx(look, rel=2 * TOLERANCE)

    length = ASKED.fusion_tokens(MODEL)
    assert length == 7 * 17 + 9 + 23
    inputs = FusionInput(
        *(jax.ShapeDtypeStruct((0, 1, 1, 3), jnp.float32), ints(7), ints(7)),
        *(ints(1, length), ints(1, length), ints(1, 24)),
    )
    # A cache of as many places: every query with every place, "whole".
    caches = jax.eval_shape(lambda: empty_caches(MODEL.fusion.blocks, 1, length))
    fuse = counted(
        lambda p, *args: model.apply({"params": p}, *args, method=VLM.ask),
        *(params, inputs, tokens, ints(1), caches),
    )
    both = part["fusion"].flops + part["projector"].flops
    assert both == pytest.approx(fuse, rel=TOLERANCE)
    assert part["fusion"].causal_flops != pytest.approx(fuse, rel=2 * TOLERANCE)


@pytest.mark.parametrize("rows", [1, 3])
def test_language_model_agrees_with_xla(rows):
    config = MODEL.llm
    params = parameter_shapes(VLM, MODEL)["llm"]

    def read(number: int, room: int) -> float:
        caches = jax.eval_shape(lambda: empty_caches(config.blocks, rows, room))
        keep = jax.ShapeDtypeStruct((rows, number), bool)
        return counted(
            lambda p, *args: LLM(config).apply({"params": p}, *args, method=LLM.read),
            *(params, ints(rows, number), keep, ints(rows), caches),
        )

    part = costs()
    prompt = read(160, 160)
    ours = rows * (part["prefill"].flops + part["head"].flops)
    assert ours == pytest.approx(prompt, rel=TOLERANCE)
    # Softmax and rotary embedding weigh more where one query meets a long cache.
    one = next_token(MODEL, 159, rows=rows, bytes_each=4)
    assert one.flops == pytest.approx(read(1, 160), rel=2 * TOLERANCE)
    assert next_token(MODEL, 300, rows=rows, bytes_each=4).flops != pytest.approx(
        read(1, 160), rel=2 * TOLERANCE
    )


def paper(num_queries: int = 768):
    config = with_queries(num_queries)("paper,stage=adapt")
    return settings.model_config(config, "bfloat16")


def test_a_token_of_llama_costs_12_95_gflop():
    """Two for each of the blocks' 6.476 billion parameters."""
    blocks = paper().llm.blocks
    assert answer.linear_flops(blocks) == 12_952_010_752
    assert answer.linear_flops(blocks) == 2 * 32 * (4 * 4096**2 + 3 * 4096 * 11008)

    def prefill(tokens: int, field: str) -> int:
        asked = Question((480, 640), (2, 3), 16, 256, tokens)
        part = first_token(paper(), asked, bytes_each=2)[-2]
        assert part.name == "prefill"
        return getattr(part, field)

    # What attention adds: 4·4096 for each pair and layer.
    pair = 32 * 4 * 4096
    for length in (64, 300, 1023):
        more = prefill(length + 1, "causal_flops") - prefill(length, "causal_flops")
        assert more == 12_952_010_752 + (length + 1) * pair
        more = prefill(length + 1, "flops") - prefill(length, "flops")
        assert more == 12_952_010_752 + (2 * length + 1) * pair


def test_bytes_are_weights_and_what_is_handed_on():
    part = costs(llm_bytes=2, pixel_bytes=1)
    shapes = parameter_shapes(get_stage("adapt").model, MODEL)

    def size(tree) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    merge = size(shapes["vision"]["merge"])
    tokens = 7 * 64 * 256
    assert part["vision"].bytes == 4 * (size(shapes["vision"]) - merge + tokens)
    assert part["merge"].bytes == 4 * (merge + tokens)
    assert part["transfer"].bytes == 7 * 32 * 32 * 3
    assert part["transfer"].flops == 0
    table = size(shapes["llm"]["embed"])
    llm = size(shapes["llm"]) - table - size(shapes["llm"]["head"])
    assert part["prefill"].bytes == 2 * llm + 4 * 160 * 2 * 2 * 64  # a head of 64
    assert part["head"].bytes == 2 * 320 * 300
    one = next_token(MODEL, 160, bytes_each=4, llm_bytes=2)
    assert one.bytes == part["prefill"].bytes + part["head"].bytes


def test_least_seconds_is_the_roofline():
    peak = Peak("made up", 100.0, 10.0, 20, 1000, "data sheet")
    assert answer.least_seconds(PartCost("a", 900, 500, 30), peak) == 5.0
    assert answer.least_seconds(PartCost("b", 900, 50, 50), peak) == 3.0
    # What the cache may hold need not come from memory.
    assert answer.least_seconds(PartCost("c", 0, 0, 20), peak) == 0.0
    a100 = stated(GPUS["a100-40gb"])
    token = next_token(paper(), 1000, bytes_each=2)
    # 13.5 GB of weights at 1,555 GB/s: nine milliseconds a token, and no computing.
    assert answer.least_seconds(token, a100) == pytest.approx(8.7e-3, rel=0.05)


def test_views_cost_more_of_a_larger_image():
    small = costs()["views"].flops
    large = costs(asked=ASKED._replace(image=(640, 960)))["views"].flops
    assert large > 3 * small
    # Local canvas 64×96 and global 32×32, no shrinking of the first.
    local = 2 * 3 * 96 * (64 * 2 + 64 * 2) + 2 * 3 * 96 * 64
    total = 2 * 3 * 32 * (64 * 6 * 3 + 32 * 6 * 2) + 2 * 3 * 32 * 32
    assert small == local + total
