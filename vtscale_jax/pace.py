"""How fast a run goes: samples a second, utilisation, waiting for data, compiling.

Utilisation (MFU) is what the model needs for batches of these shapes, counted by
`cost.flops`, over what the devices could do in that time. The frozen language model has
no gradient of its weights, remat's second forward pass is not counted, and attention is
counted causally (`mfu`) or whole (`mfu_whole`, the usual count, which flatters). What
fills a shape up (padding of rows, crops that fill a bucket) counts as work in both, as
is usual; so do the pairs of packed rows' different segments.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import jax

from vtscale_jax.compilation import CompileClock
from vtscale_jax.cost import flops, peak
from vtscale_jax.metrics import Throughput
from vtscale_jax.parallel import host
from vtscale_jax.parallel.plans.plan import measure
from vtscale_jax.prepare import count
from vtscale_jax.program import Program
from vtscale_jax.types import Batch

T = TypeVar("T")


class CompiledStep(NamedTuple):
    """The train step for one shape of batches; `causal` and `whole` are its needed
    operations by the two counts."""

    run: Any
    causal: int
    whole: int


class CompiledSteps:
    """The train steps of a run, one for each shape of its batches. `memory` is what the
    largest of them takes on a device, in bytes, as the compiler says."""

    def __init__(
        self, program: Program, accumulation: int, say: Callable[[str], object] = print
    ) -> None:
        self._program = program
        self._say = say
        self._accumulation = accumulation
        self._found: dict[tuple, CompiledStep] = {}
        self.memory = 0

    def of(self, batch: Batch) -> CompiledStep | None:
        """The step for batches of these shapes; None when it is not compiled yet."""
        return self._found.get(_shapes(batch))

    def compile(self, batch: Batch) -> CompiledStep:
        """Compiles the step for batches of these shapes."""
        program = self._program
        compiled = program.compile(batch)
        needs = measure(program, compiled)
        self.memory = max(self.memory, needs.peak)
        temporaries = needs.gradients + needs.activations
        if jax.default_backend() == "cpu" and temporaries > host.LARGE:
            host.give_back_large_blocks()
            if not host.has_huge_pages():
                self._say(
                    f"A step takes {temporaries / 2**30:.1f} GiB and returns them. On "
                    "Linux it is faster in huge pages: start it with "
                    f"GLIBC_TUNABLES={host.HUGE_PAGES} in the environment."
                )

        def needed(attention: flops.Attention) -> int:
            return flops.step_flops(
                program.stage,
                program.model,
                flops.batch_sizes(batch),
                trainable=count(program.state.params),
                accumulation=self._accumulation,
                attention=attention,
            ).useful

        found = CompiledStep(compiled, needed("causal"), needed("whole"))
        self._found[_shapes(batch)] = found
        return found


def _shapes(batch: Batch) -> tuple:
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


@dataclasses.dataclass
class Spent:
    """What some steps took, in seconds, and what they did."""

    seconds: float = 0.0
    waited: float = 0.0
    samples: int = 0
    causal: int = 0
    whole: int = 0

    def add(self, other: "Spent") -> None:
        """Adds the numbers of `other` to these."""
        for field in dataclasses.fields(self):
            mine, more = getattr(self, field.name), getattr(other, field.name)
            setattr(self, field.name, mine + more)


class Limit(NamedTuple):
    """Operations per second of all devices together, and where the number is from."""

    flops: float
    source: str


def limit(dtype: str) -> Limit:
    """The peak of the devices of this run. CPU devices share the cores of their
    process, so each process counts once."""
    found, source = peak.product_peak(dtype)
    cpu = jax.default_backend() == "cpu"
    number = jax.process_count() if cpu else jax.device_count()
    return Limit(found * number, f"{number} × {source}")


class Pace(contextlib.AbstractContextManager):
    """What goes into the rows of a run's log, from one row to the next.

    The clock starts when the object is made; `paused` time counts for nothing.
    """

    def __init__(
        self,
        limit: Limit,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._limit = limit
        self._clock = clock
        self._compiling = CompileClock()
        self._throughput = Throughput(clock=clock)
        self._now = Spent()
        self._all = Spent()

    def __exit__(self, *exception: object) -> None:
        self._compiling.close()

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """`items` as they come; the time until each one counts as waiting for data, but
        for the first, which is a part of starting."""
        found = iter(items)
        with self.paused():
            first = list(itertools.islice(found, 1))
        yield from first
        while True:
            started = self._clock()
            try:
                item = next(found)
            except StopIteration:
                return
            self._now.waited += self._clock() - started
            yield item

    @contextlib.contextmanager
    def held_up(self) -> Iterator[None]:
        """Time spent inside counts as waiting for data: that of other hosts."""
        started = self._clock()
        yield
        self._now.waited += self._clock() - started

    def paused(self) -> Any:
        """A context in which no time passes here."""
        return self._throughput.paused()

    def did(self, samples: int, step: CompiledStep) -> None:
        """Counts a step over `samples` samples."""
        self._now.samples += samples
        self._now.causal += step.causal
        self._now.whole += step.whole

    def row(self) -> dict[str, float | int]:
        """Numbers of the steps since the last row: samples_per_s (over the last rows),
        mfu, mfu_whole, loader_wait (a share of the time), and how many programs this
        process has compiled since it began."""
        now, self._now = self._now, Spent()
        speed = self._throughput.update(now.samples)
        now.seconds = self._throughput.last_seconds
        self._all.add(now)
        return {"samples_per_s": speed} | self._shares(now)

    def summary(self) -> dict[str, float | int]:
        """The same of all steps that rows were made of, and the seconds they took;
        nothing before the first row."""
        if not self._all.seconds:
            return {}
        return {
            "seconds": self._all.seconds,
            "samples_per_s": self._all.samples / self._all.seconds,
        } | self._shares(self._all)

    def _shares(self, spent: "Spent") -> dict[str, float | int]:
        able = self._limit.flops * spent.seconds
        return {
            "mfu": spent.causal / able,
            "mfu_whole": spent.whole / able,
            "loader_wait": spent.waited / spent.seconds,
            "compiled_programs": self._compiling.programs,
        }
