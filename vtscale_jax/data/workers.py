"""Work for several processes, its results in the order of the tasks.

Processes are started anew ("spawn") and import only what their work needs, never JAX.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from vtscale_jax.pools import pooled

Task = TypeVar("Task")
Result = TypeVar("Result")

AHEAD = 4  # tasks in hand for each process: memory stays flat however many there are


class WorkerError(ValueError):
    """A process that the system ended."""


def in_order(
    work: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Iterator[Result]:
    """work(task) of each task, in the order of the tasks.

    One worker is this process; `work` and tasks are pickled for several. An exception
    of the work is raised here. Raises WorkerError when a process was killed.
    """
    if workers == 1:
        yield from map(work, tasks)
        return
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_prepare_worker
    )
    try:
        yield from pooled(pool, work, tasks, workers * AHEAD)
    except BrokenProcessPool as error:
        raise WorkerError(
            "a worker process was ended from outside, perhaps for want of memory; "
            "with fewer --workers the same command goes on from here."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_worker() -> None:
    # Ctrl-C reaches every process; the first one alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A parent that was killed cannot stop its workers, which would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
