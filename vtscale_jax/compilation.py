"""Compiling: programs kept between runs, and a clock for what it costs."""

import hashlib
import os
import platform
import time

import jax

from vtscale_jax.machine import processor_lines
from vtscale_jax.weights.fetch import cache_folder


def keep_compiled() -> None:
    """Compiled programs are kept between runs, unless the user has set where.

    Those for CPUs hold instructions of the processor that they were made on, so each
    kind of processor has a folder of its own.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = cache_folder() / "compiled" / _processor()
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _processor() -> str:
    """A name for this machine's kind of processor and what it can do."""
    said = processor_lines("flags", "model name")
    text = "\n".join([platform.processor(), *said])
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class CompileClock:
    """Seconds that JAX has spent on tracing and compiling since this was made, and the
    number of `programs` compiled (or read from those kept)."""

    def __init__(self) -> None:
        self.seconds, self.programs = 0.0, 0
        self._covered: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def close(self) -> None:
        """Ends listening; the numbers stay."""
        jax.monitoring.unregister_event_duration_listener(self._add)

    def _add(self, event: str, duration_secs: float, **_: str | int) -> None:
        """An event that has just ended; those within it came before, and count once."""
        if not event.startswith("/jax/core/compile/"):
            return
        self.programs += event.endswith("/backend_compile_duration")
        end = time.perf_counter()
        start = end - duration_secs
        while self._covered and self._covered[-1][0] >= start:
            inner = self._covered.pop()
            self.seconds -= inner[1] - inner[0]
        if self._covered:
            start = max(start, self._covered[-1][1])
        self._covered.append((start, end))
        self.seconds += end - start
