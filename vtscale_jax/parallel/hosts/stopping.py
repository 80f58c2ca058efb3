"""A signal that asks to stop: the run saves and ends with status 0, on all processes.

SIGTERM comes from SLURM, Kubernetes and a TPU's preemption, SIGUSR1 from
`sbatch --signal=USR1@120`. While nothing would be lost (before the first step, after
the last checkpoint) it ends all processes at once; inside the loop all are told to stop
after the same step.

No step waits for a message: `requested` compares numbers until a process got a signal.
Process 0 then asks all where they are; who has answered waits in its next `requested`
for the decision, which is the step after the largest.
"""

import os
import signal
import socket
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Protocol, runtime_checkable

from vtscale_jax.parallel.hosts.preflight import who
from vtscale_jax.parallel.hosts.watch import Message, Watch

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
LEAVE_S = 5.0  # for the main thread to end by itself
AGAIN_S = 0.2  # until it is woken again
START, DONE = "start", "done"
NOT_BEGUN = "no step was done yet, so nothing is lost"
SAVING = "this step is finished, then a checkpoint is saved"


@runtime_checkable
class Watched(Protocol):
    """What `StopRequests` needs of `processes.Processes`; that file imports JAX."""

    @property
    def watch(self) -> Watch | None:
        """The watch over the other processes, if there are any."""


class StopRequests:
    """Handles the signals while its context lasts.

        with StopRequests() as stop, start(about=about) as processes:
            stop.attach(processes)
            for step in ...:
                ...
                if stop.requested(step):
                    save()
                    break
            else:
                stop.leave_at_once("the last checkpoint stands")
                report()

    Handlers that were there before come back at its end. Outside the main thread, where
    Python allows no handlers, only signals of the other processes count.
    """

    def __init__(self) -> None:
        self._watch: Watch | None = None
        self._lock = threading.RLock()
        self._decided = threading.Condition(self._lock)
        self._at: str | int = START  # or DONE, or the last step `requested` let pass
        self._note = NOT_BEGUN
        self._signal = ""  # the first that came here
        self._asked = self._leaving = self._raised = self._closed = False
        self._left = threading.Event()
        self._stop_after: float | None = None
        # On process 0: who got a signal first, and where each process is since then.
        self._cause = ""
        self._reports: dict[int, str | int] = {}
        self._settled = False  # after which step the loops stop is decided once

    def __enter__(self) -> "StopRequests":
        self._old, self._main = {}, threading.main_thread()
        if threading.current_thread() is not self._main:
            return self
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        # Its bytes also come while the main thread is inside XLA, where a handler
        # written in Python has to wait.
        self._old_mouth = signal.set_wakeup_fd(
            self._mouth.fileno(), warn_on_full_buffer=False
        )
        self._old = {n: signal.signal(n, self._handle) for n in SIGNALS}
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._closed = True
        self._left.set()
        if not self._old:
            return
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_mouth)
        self._mouth.close()
        self._listener.join()
        self._ear.close()

    def attach(self, processes: Watched) -> None:
        """From here on a signal to one process stops all of them."""
        self._watch = watch = processes.watch
        if watch is None:
            return
        watch.on("where", self._tell_where)
        watch.on("decided", self._decide)
        if watch.index == 0:
            watch.on_first("stop", self._ask_all)
            watch.on_first("here", self._collect)

    def requested(self, step: int) -> bool:
        """Whether to save and stop after `step`, on all processes alike.

        Call it once after every step, with steps that grow by one. The first call
        begins what a signal must not cut short.
        """
        with self._decided:
            # Once this process said where it is, it goes no further undecided.
            while self._asked and self._stop_after is None:
                self._decided.wait()
            if self._stop_after is not None and step >= self._stop_after:
                return True
            self._at = step
            return False

    def leave_at_once(self, note: str) -> None:
        """All is saved: from here on a signal ends the run at once, and says `note`."""
        with self._lock:
            self._at, self._note = DONE, note
            asked = self._asked or bool(self._signal)
        if asked:  # before the loop could stop for it
            self._stop_now_or_ask()

    # The threads.

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # The thread that listens does the work; it sends a signal here once it has
        # decided to leave.
        if self._leaving and not self._raised:
            self._raised = True
            raise SystemExit(0)

    def _listen(self) -> None:
        while numbers := self._ear.recv(64):
            for number in numbers:
                if number in SIGNALS and not self._leaving:
                    self._came(signal.Signals(number).name)

    def _came(self, name: str) -> None:
        with self._lock:
            again, self._signal = bool(self._signal), self._signal or name
            in_loop = isinstance(self._at, int)
        if again:
            _say(f"{name} again: stopping already, {SAVING}")
            return
        if in_loop:
            _say(f"{name}: {SAVING}")
        self._stop_now_or_ask()

    def _stop_now_or_ask(self) -> None:
        if self._watch is not None:
            if self._asked:
                self._tell_where({})
            else:
                cause = f"{self._signal} on {who(self._watch.names, self._watch.index)}"
                self._watch.to_first({"kind": "stop", "cause": cause})
            return
        with self._decided:
            if isinstance(self._at, int):
                self._stop_after = self._at + 1
                return
        self._leave(self._signal)

    def _tell_where(self, message: Message) -> None:
        with self._lock:
            self._asked, at = True, self._at
        if self._watch is not None:
            self._watch.to_first({"kind": "here", "at": at})

    def _decide(self, message: Message) -> None:
        """What process 0 decided: leave now, stop after a step, or go on to the end."""
        if message["do"] == "leave":
            self._leave(str(message["cause"]))
            return
        with self._decided:
            told = self._signal or self._stop_after is not None
            step = message["step"]
            self._stop_after = float("inf") if step is None else step
            self._decided.notify_all()
        if not told and step is not None:
            _say(f"{message['cause']}: {SAVING}")

    def _ask_all(self, index: int, message: Message) -> None:
        if not self._cause and self._watch is not None:
            self._cause = str(message["cause"])
            self._watch.to_all({"kind": "where"})

    def _collect(self, index: int, message: Message) -> None:
        watch = self._watch
        self._reports[index] = message["at"]
        if watch is None or len(self._reports) < len(watch.names):
            return
        places = list(self._reports.values())
        steps = [place for place in places if isinstance(place, int)]
        decision: Message = {"kind": "decided", "cause": self._cause}
        if START in places or not steps:
            # Without the one that has not begun, no other finished more than a step.
            decision |= {"do": "leave"}
        else:
            if self._settled:
                return
            self._settled = True
            # Who is through with the loop waits for the others to be.
            last = max(steps) + 1 if len(steps) == len(places) else None
            decision |= {"do": "stop", "step": last}
        watch.to_all(decision)

    def _leave(self, cause: str) -> None:
        with self._lock:
            if self._leaving or self._closed:
                return
            self._leaving = True
        if self._watch is not None:
            self._watch.leaving = True
        _say(f"{cause}: ended at once, {self._note}. The same command continues")
        threading.Thread(target=self._end_main, daemon=True).start()

    def _end_main(self) -> None:
        end = time.monotonic() + LEAVE_S
        # It does not listen while it is inside XLA, compiling or waiting for others. A
        # signal that comes just as it goes to sleep does not wake it, so more than one.
        while (left_s := end - time.monotonic()) > 0:
            with self._lock:
                if self._old and not self._closed and not self._raised:
                    signal.pthread_kill(self._main.ident or 0, SIGNALS[0])
            if self._left.wait(min(AGAIN_S, left_s)):
                return
        flush = threading.Thread(target=sys.stdout.flush, daemon=True)
        flush.start()
        flush.join(1.0)
        os._exit(0)


def _say(text: str) -> None:
    # Not by sys.stderr, inside which the main thread may be.
    os.write(2, f"\n{text}.\n".encode(errors="replace"))
