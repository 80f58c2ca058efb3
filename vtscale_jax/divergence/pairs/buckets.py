"""Batches of pairs of like length, in a small set of shapes.

A program is compiled for every shape, and padding costs as much as tokens do: pairs
whose padded lengths agree share a batch.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from vtscale_jax.divergence.pairs.schemas import PairsError
from vtscale_jax.divergence.pairs.tokens import TokenPair
from vtscale_jax.stream import padded_length

WINDOW = 1024  # pairs that may wait for others of their lengths


class Bucket(NamedTuple):
    """At most `batch_size` pairs that fit one shape.

    `prefix` and `branch` are the padded lengths. `indices` are the places of the pairs
    in the stream, from 0, and rise.
    """

    prefix: int
    branch: int
    indices: tuple[int, ...]
    pairs: tuple[TokenPair, ...]


def buckets(
    pairs: Iterable[TokenPair],
    batch_size: int,
    *,
    window: int = WINDOW,
    padded: Callable[[int], int] = padded_length,
) -> Iterator[Bucket]:
    """All pairs in batches, each pair once.

    A batch is given as soon as it is full. At most `window` pairs wait for others: then
    the batch of the one that waits longest is given as it is. At the end, so are the
    others, the longest waiting first. So any stream takes bounded memory, and the
    batches depend on the pairs, `batch_size` and `window` alone, not on how many
    machines share them. Raises PairsError for sizes below 1.
    """
    if batch_size < 1 or window < 1:
        raise PairsError(
            f"batch_size is {batch_size} and window {window}, expected at least 1 each"
        )
    return _filled(pairs, batch_size, window, padded)


def _filled(
    pairs: Iterable[TokenPair],
    batch_size: int,
    window: int,
    padded: Callable[[int], int],
) -> Iterator[Bucket]:
    # A dictionary keeps its keys in order of first appearance, and a batch that is
    # given is taken out: the first key is that of the pair that waits longest.
    waiting: dict[tuple[int, int], list[tuple[int, TokenPair]]] = {}
    number = 0
    for index, pair in enumerate(pairs):
        shape = padded(len(pair.prefix)), padded(len(pair.a))
        waiting.setdefault(shape, []).append((index, pair))
        number += 1
        if len(waiting[shape]) < batch_size:
            if number <= window:
                continue
            shape = next(iter(waiting))
        batch = _bucket(shape, waiting.pop(shape))
        number -= len(batch.indices)
        yield batch
    for shape, rest in waiting.items():
        yield _bucket(shape, rest)


def _bucket(shape: tuple[int, int], items: list[tuple[int, TokenPair]]) -> Bucket:
    indices, pairs = zip(*items, strict=True)
    return Bucket(*shape, indices, pairs)
