"""The four programs of an answer: compiled ahead of time, and the memory they take.

Looking, fusing, reading and writing are jitted where `conversation` calls them. Here
they are lowered for the same shapes, so that those of all M can be compiled at once,
and the compiler asked what they hold.

GPUs and TPUs count their bytes. Where nobody does (a CPU), the compiler's account
stands in: what is passed to one of the programs and its temporaries, beside the
parameters of the others.
"""

import os
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vtscale_jax import generate
from vtscale_jax.conversation import fuse, fusion_input, fusion_room
from vtscale_jax.cost.subject import Subject
from vtscale_jax.layers import empty_caches
from vtscale_jax.stream import CHUNK, padded_length
from vtscale_jax.types import TokenSequence
from vtscale_jax.vlm import look

COUNTED = "counted by the device, up to and with this M"
COMPILED = "arguments and temporaries of the compiled programs"


class Lowering(NamedTuple):
    """One program: `key` tells it from others, `params` are those that it reads, and
    `lower` gives it lowered."""

    key: Hashable
    params: Any
    lower: Callable[[], Any]


def compile_ahead(subject: Subject, most: int) -> int:
    """Compiles the programs of answers of `most` tokens for all M, several at a time;
    the number of programs. Conversations then find them compiled.

    A language model with its layers apart takes long to compile, and a machine has
    more cores than a compiler uses.
    """
    wanted = {
        one.key: one for m in subject.queries for one in programs(subject, m, most)
    }
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        # Tracing holds Python's lock; compiling, which takes most of the time, does
        # not.
        compiling = [
            threads.submit(lowered.compile)
            for lowered in (one.lower() for one in wanted.values())
        ]
        for each in compiling:
            each.result()
    return len(wanted)


def counted_peak() -> int | None:
    """The most bytes that the first device has held since the process began; None
    where it does not count."""
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return None if peak is None else int(peak)


def compiled_peak(subject: Subject, num_queries: int, most: int) -> int:
    """The most bytes that one of the programs of an answer of `most` tokens holds,
    with all parameters of the model beside it."""
    whole = tree_bytes(subject.params)
    return max(
        whole - tree_bytes(one.params) + _program_bytes(one.lower())
        for one in programs(subject, num_queries, most)
    )


def tree_bytes(tree: Any) -> int:
    """Bytes of the leaves of a tree of arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def programs(subject: Subject, num_queries: int, most: int) -> Iterator[Lowering]:
    """Looking, fusing, reading and writing, for the shapes that a conversation has."""
    model, prompt = subject.model, subject.prompt(num_queries)
    views, side = prompt.real.crops, model.vision.image_size
    seen = views * model.vision.tokens_per_crop
    length = prompt.real.fusion_tokens(model) - seen
    names = ("vision", "fusion", "projector")
    seeing = {name: subject.params[name] for name in names}
    crops = jax.ShapeDtypeStruct((views, side, side, 3), subject.encoding.crop_dtype)
    yield Lowering(
        ("look", views), seeing, lambda: look.lower(seeing, crops, config=model)
    )

    def fusing() -> tuple[Any, ...]:
        tokens = jax.eval_shape(lambda *a: look(*a, config=model), seeing, crops)
        row = np.zeros(length, np.int32)
        inputs = fusion_input(views, seen, TokenSequence(row, row))
        slots = np.zeros((1, num_queries), np.int32)
        caches = jax.eval_shape(
            lambda: empty_caches(model.fusion.blocks, 1, fusion_room(seen + length))
        )
        start = jnp.zeros(1, jnp.int32)
        return seeing, inputs._replace(slots=slots), tokens, start, caches

    key = ("fuse", views, padded_length(length), fusion_room(seen + length))
    yield Lowering(
        (*key, num_queries), seeing, lambda: fuse.lower(*fusing(), config=model)
    )

    llm, read = subject.params["llm"], prompt.real.prompt_tokens
    room = padded_length(read + most)
    state = jax.eval_shape(lambda: generate.begin(model.llm, 1, room))
    ids = np.zeros((1, padded_length(read)), np.int32)
    places = np.zeros((1, num_queries), np.int32)
    vectors = jax.ShapeDtypeStruct(
        (1, num_queries, model.llm.blocks.width), model.fusion.blocks.dtype
    )
    same: Any = {"config": model.llm, "eos_ids": (model.llm.vocab_size,)}
    same["sampling"] = generate.GREEDY
    yield Lowering(
        ("read", ids.shape, num_queries, room),
        llm,
        lambda: generate.read.lower(llm, state, ids, ids == 0, vectors, places, **same),
    )
    yield Lowering(
        ("write", room),
        llm,
        lambda: generate.write.lower(llm, state, num_steps=CHUNK, **same),
    )


def _program_bytes(lowered: Any) -> int:
    found = lowered.compile().memory_analysis()
    # Outputs that take the place of arguments are there already.
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes + found.temp_size_in_bytes + new
