"""Tasks for a pool of threads or processes, results in the order of the tasks."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def pooled(
    pool: Executor,
    work: Callable[[Task], Result],
    tasks: Iterable[Task],
    at_once: int,
) -> Iterator[Result]:
    """work(task) of each task by a pool, in the order of the tasks, at most `at_once`
    of them in hand. With one at once none is begun before its predecessor's result was
    taken."""
    waiting: deque[Future[Result]] = deque()
    for task in tasks:
        waiting.append(pool.submit(work, task))
        if len(waiting) >= at_once:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
