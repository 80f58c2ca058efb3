"""A countdown to read: in place on a terminal, a line now and then in a log."""

import time
from io import TextIOBase
from typing import TextIO

IN_PLACE_S, IN_LOG_S, QUIET_S = 0.5, 10.0, 1.5


class Countdown:
    """Seconds that are left of `seconds`; what is waited for is written to `out`."""

    def __init__(self, seconds: float, out: TextIO | TextIOBase):
        self.seconds, self._out = seconds, out
        self._deadline = time.monotonic() + seconds
        # Who comes at once need not be announced.
        self._next, self._width = time.monotonic() + min(QUIET_S, seconds / 4), 0

    def left(self) -> float:
        """Seconds that are left, negative once they are over."""
        return self._deadline - time.monotonic()

    def shorten(self, seconds: float) -> None:
        """At most `seconds` are left from the first such call on."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def show(self, what: str) -> None:
        """Writes `what` and the seconds that are left, when it is time to."""
        now = time.monotonic()
        if now < self._next:
            return
        terminal = self._out.isatty()
        self._next = now + (IN_PLACE_S if terminal else IN_LOG_S)
        line = f"{what}: {max(self.left(), 0.0):.0f} s left"
        if terminal:
            self._out.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._out.write(line + "\n")
        self._out.flush()

    def end(self) -> None:
        """Goes to a new line when one was written in place."""
        if self._width:
            self._out.write("\n")
            self._out.flush()
        self._width = 0
