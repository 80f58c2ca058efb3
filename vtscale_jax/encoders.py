"""Who turns the records of a batch into samples: this process, or worker processes.

A worker process reads records, decodes images and tokenizes. It holds the source and
the encoding and nothing else: it imports neither JAX nor the program that started it,
owns no device, and starts in about a second.

A record whose image cannot be read is `Unreadable`, with the reason; whatever else is
wrong with a record is an error that names it.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from loky import ProcessPoolExecutor
from loky.process_executor import BrokenProcessPool

from vtscale_jax.collate import Encoded
from vtscale_jax.encoding import Encoding, SampleError, encode
from vtscale_jax.images import ImageError
from vtscale_jax.tokens import QueryLayout
from vtscale_jax.types import Record

# Settings of glibc's allocator in workers, as of `parallel.host.keep_freed_memory`:
# otherwise it gives the block of each image back and gets the next one page by page,
# and samples come out of a worker at a third of the speed (`benchmarks/loader.py`).
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
    "MALLOC_ARENA_MAX": "1",
}


class WorkersError(RuntimeError):
    """Worker processes that ended before their work was done."""


class Unreadable(NamedTuple):
    """A record without a usable image: its id, and why."""

    id: str
    reason: str


@runtime_checkable
class Records(Protocol):
    """Random access to records."""

    def __getitem__(self, index: int, /) -> Record: ...


@runtime_checkable
class Encoder(Protocol):
    """Records of a source, by index, as samples."""

    def encoded(
        self, indices: Sequence[int], layout: QueryLayout
    ) -> list[Encoded | Unreadable]:
        """In the order of `indices`. SampleError for a record that is wrong."""
        ...

    def close(self) -> None:
        """Ends whatever works for it."""
        ...


class Here:
    """Encodes in the thread that asks."""

    def __init__(self, source: Records, encoding: Encoding):
        self._source = source
        self._encoding = encoding

    def encoded(
        self, indices: Sequence[int], layout: QueryLayout
    ) -> list[Encoded | Unreadable]:
        """See `Encoder`."""
        return [self.one(index, layout) for index in indices]

    def one(self, index: int, layout: QueryLayout) -> Encoded | Unreadable:
        """The sample of record `index`."""
        try:
            record = self._source[index]
        except Exception as error:
            raise SampleError(f"record {index} of the source: {error}") from error
        try:
            return encode(record, self._encoding, layout)
        except SampleError as error:
            if isinstance(error.__cause__, ImageError):
                return Unreadable(record.id, str(error))
            raise

    def close(self) -> None:
        """Nothing is held."""


def readable(
    records: Sequence[Record], encoding: Encoding, layout: QueryLayout
) -> list[Encoded]:
    """The samples of those records whose image can be read; SampleError, with a
    reason, when that is none of them."""
    made = Here(records, encoding).encoded(range(len(records)), layout)
    samples = [one for one in made if isinstance(one, Encoded)]
    reasons = [one.reason for one in made if isinstance(one, Unreadable)]
    if reasons and not samples:
        raise SampleError(
            f"none of the {len(records)} records that were looked at has an image that "
            f"can be read: is data.image_root right? The first one:\n{reasons[0]}"
        )
    return samples


class Workers:
    """Encodes in `number` processes, one record at a time each.

    They start when the first record is asked for. They end by `close`, or with the
    process that started them.
    """

    def __init__(self, source: Records, encoding: Encoding, number: int):
        self._here = Here(source, encoding)
        # loky starts processes that do not import the main module anew (train is one,
        # and brings JAX), and notices those that die.
        self._pool = ProcessPoolExecutor(
            number,
            initializer=_hold,
            initargs=(self._here, os.getpid()),
            env=KEEP_FREED_MEMORY,
        )

    def encoded(
        self, indices: Sequence[int], layout: QueryLayout
    ) -> list[Encoded | Unreadable]:
        """See `Encoder`. WorkersError when a process was ended from outside."""
        try:
            asked = [self._pool.submit(_encode, index, layout) for index in indices]
            return [one.result() for one in asked]
        except BrokenProcessPool as error:
            raise WorkersError(
                "a worker process of the data loader ended before its work was done, "
                f"often for lack of memory ({error}): lower data.num_workers or "
                "data.prefetch and run the same command again; it goes on from the "
                "last checkpoint"
            ) from error

    def ask(self, question: Callable[[], object]) -> object:
        """What `question`, a function of a module, returns in a worker."""
        return self._pool.submit(question).result()

    def close(self) -> None:
        """Ends the processes; what they are at is dropped."""
        self._pool.shutdown(wait=True, kill_workers=True)


# Of a worker process: what it was started for. It is set once, at its start, so that a
# source of a million records is not sent along with each of them.
_held: list[Here] = []


def _hold(here: Here, parent: int) -> None:
    _held[:] = [here]
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """loky's processes do not notice when the one that started them was killed, and
    would wait for ever, with its output held open."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _encode(index: int, layout: QueryLayout) -> Encoded | Unreadable:
    (here,) = _held
    return here.one(index, layout)
