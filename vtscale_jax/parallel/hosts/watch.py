"""A thread in every process that hears from the others, also while JAX hangs.

Each process tells process 0 every second where it is, and process 0 answers, over the
connections of `preflight`. A connection that closes, or is silent for too long, is a
process that died: every other one then ends with a message that names it, since a
collective of JAX would wait for it for ever. The same connections carry what the
processes agree on (`meetings`, `stopping`), so that no step has to wait for a message.

This does not go through JAX's coordination service: it ends with process 0, and takes
the others with it before they could say why.
"""

import os
import selectors
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from vtscale_jax.parallel.hosts.lines import LineError, Lines
from vtscale_jax.parallel.hosts.preflight import who

LOST_CODE = 75  # EX_TEMPFAIL: the same command may do better
FAILED_CODE = 1
GRACE_S = 2.0  # for a process to end by its own error when others failed too
MAX_TEXT = 2000
AGAIN = (
    "Start the same command again on all hosts: it continues from the last checkpoint."
)

Message = dict[str, Any]


def end_process(code: int, message: str) -> None:
    """Writes `message` to stderr and ends this process, whatever its threads do."""
    # Not sys.stderr: the main thread may be inside it. What was printed before must
    # still come out, unless nobody reads it.
    flush = threading.Thread(target=sys.stdout.flush, daemon=True)
    flush.start()
    flush.join(1.0)
    kind = "error: " if code else ""
    os.write(2, f"\n{kind}{message}\n".encode(errors="replace"))
    os._exit(code)


class Watch:
    """The thread and what it knows.

    `links` are the connections of this process by peer: process 0 has one to each other
    process, which have one to process 0. Handlers (`on`, `on_first`) are called from
    the thread, or from who calls `to_first` on process 0, with `lock` held.
    """

    def __init__(
        self,
        index: int,
        names: tuple[str, ...],
        links: dict[int, Lines],
        *,
        peer_timeout_s: float,
        end: Callable[[int, str], None] = end_process,
    ):
        self.index, self.names = index, names
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.leaving = False  # the main thread is on its way out, by itself
        self.gone = threading.Event()  # another one went since, without a good-bye
        self._links, self._timeout_s, self._end = dict(links), peer_timeout_s, end
        self._beat_s = min(1.0, peer_timeout_s / 5)
        now = time.monotonic()
        self._at = ("start-up", now)
        self._seen: dict[int, tuple[str, float]] = dict.fromkeys(
            range(len(names)), ("start-up", now)
        )
        self._heard = dict.fromkeys(links, now)
        self._said_bye: set[int] = set()
        self._handlers: dict[str, Callable[[Message], None]] = {}
        self._first_handlers: dict[str, Callable[[int, Message], None]] = {}
        self._kept: dict[str, list[tuple[int, Message]]] = defaultdict(list)
        self._ending: tuple[float, int, str] | None = None
        self._closed = False
        self.on("failed", self._others_failed)
        self.on("lost", lambda message: self._end(LOST_CODE, str(message["text"])))
        self.on_first("failed", lambda _, message: self.to_all(message))
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    # What the main thread calls.

    def reached(self, phase: str) -> None:
        """Says where this process is; the thread passes it on."""
        self._at = (phase, time.monotonic())

    def failed(self, text: str, code: int = FAILED_CODE) -> None:
        """Tells all others that this process ends by itself, so that they end too:
        with status 0 when its own is 0, as after a signal during start-up."""
        with self.lock:
            self.leaving = True
            message = {
                "kind": "failed",
                "process": self.index,
                "at": self._at[0],
                "text": text[:MAX_TEXT],
                "code": code,
            }
            self.to_first(message)

    def close(self) -> None:
        """Ends the thread; a process that goes away is no loss from here on."""
        self.leaving = True
        for index in list(self._links):
            self._send(index, {"kind": "bye"})
        self._closed = True
        self._thread.join(2.0)
        for link in self._links.values():
            link.close()

    # What agreements are made of.

    def on(self, kind: str, handler: Callable[[Message], None]) -> None:
        """`handler` gets messages of this kind that process 0 sends to all."""
        with self.lock:
            self._handlers[kind] = handler
            for _, message in self._kept.pop(f"all:{kind}", []):
                handler(message)

    def on_first(self, kind: str, handler: Callable[[int, Message], None]) -> None:
        """On process 0 `handler` gets (from whom, message) of what is sent to it."""
        with self.lock:
            self._first_handlers[kind] = handler
            for index, message in self._kept.pop(f"first:{kind}", []):
                handler(index, message)

    def to_first(self, message: Message) -> None:
        """Sends a message to process 0, also from process 0 itself."""
        if self.index == 0:
            with self.lock:
                self._first_hears(0, message)
        else:
            self._send(0, message)

    def to_all(self, message: Message) -> None:
        """From process 0: sends a message to every process, itself too."""
        with self.lock:
            for index in list(self._links):
                self._send(index, message)
            self._hears(message)

    def last_seen(self, index: int) -> tuple[str, float]:
        """On process 0: where a process is, and for how many seconds."""
        phase, since = self._at if index == 0 else self._seen[index]
        return phase, time.monotonic() - since

    # The thread.

    def _run(self) -> None:
        try:
            self._watch()
        except Exception as error:  # without it nobody would notice a death
            self._end(FAILED_CODE, f"the watch over other processes broke: {error!r}")

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for index, link in self._links.items():
                selector.register(link.socket, selectors.EVENT_READ, index)
            last = beaten = time.monotonic()
            while not self._closed:
                events = selector.select(self._beat_s / 4)
                now = time.monotonic()
                # A process that was itself stopped for a while heard nobody.
                if now - last > 2 * self._beat_s:
                    asleep = now - last
                    self._heard = {i: t + asleep for i, t in self._heard.items()}
                last = now
                for key, _ in events:
                    self._receive(key.data, selector)
                if now - beaten >= self._beat_s:
                    beaten = now
                    phase, since = self._at
                    beat = {"kind": "beat", "at": phase, "for": now - since}
                    for index in list(self._links):
                        self._send(index, beat)
                self._check(now)

    def _receive(self, index: int, selector: selectors.BaseSelector) -> None:
        link = self._links[index]
        try:
            messages = link.receive()
        except (OSError, LineError):
            messages = None
        if messages is None:
            selector.unregister(link.socket)
            link.close()
            with self.lock:
                del self._links[index]
                self._heard.pop(index, None)
                self._lost(index, "is gone: its connection closed")
            return
        self._heard[index] = time.monotonic()
        with self.lock:
            for message in messages:
                if message.get("kind") == "beat":
                    since = time.monotonic() - float(message["for"])
                    self._seen[index] = (str(message["at"]), since)
                elif message.get("kind") == "bye":
                    self._said_bye.add(index)
                elif self.index == 0:
                    self._first_hears(index, message)
                else:
                    self._hears(message)

    def _check(self, now: float) -> None:
        for index, heard in list(self._heard.items()):
            if now - heard > self._timeout_s:
                del self._heard[index]
                with self.lock:
                    self._lost(index, f"stopped responding {now - heard:.0f} s ago")
        if self._ending is not None and now > self._ending[0] and not self.leaving:
            self._end(*self._ending[1:])
        if self.index == 0 and "clock" in self._first_handlers:
            with self.lock:
                self._first_handlers["clock"](0, {})

    def _lost(self, index: int, how: str) -> None:
        if index in self._said_bye:
            return
        if self.leaving or self._ending is not None:
            self.gone.set()
            return
        phase, _ = self._seen[index]
        text = (
            f"{who(self.names, index)} {how}, last seen at '{phase}'; this process "
            f"cannot go on without it. {AGAIN}"
        )
        if self.index == 0:
            self.to_all({"kind": "lost", "text": text})
        else:
            self._end(LOST_CODE, text)

    def _others_failed(self, message: Message) -> None:
        index = int(message["process"])
        if index == self.index or self.leaving or self._ending is not None:
            return
        name, place = who(self.names, index), message["at"]
        code = FAILED_CODE if message["code"] else 0
        how = "with an error" if code else "with status 0"
        text = f"{name} ended {how} at '{place}', so this process ends too."
        if code:
            text += f" The error there:\n{message['text']}"
        self._ending = (time.monotonic() + GRACE_S, code, text)

    def _first_hears(self, index: int, message: Message) -> None:
        kind = str(message.get("kind"))
        if kind in self._first_handlers:
            self._first_handlers[kind](index, message)
        else:
            self._kept[f"first:{kind}"].append((index, message))

    def _hears(self, message: Message) -> None:
        kind = str(message.get("kind"))
        if kind in self._handlers:
            self._handlers[kind](message)
        else:
            self._kept[f"all:{kind}"].append((0, message))

    def _send(self, index: int, message: Message) -> None:
        link = self._links.get(index)
        if link is None:
            return
        try:
            link.send(message)
        except OSError:
            return  # its end, or its silence, is what `_receive` and `_check` see
