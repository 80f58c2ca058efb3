"""Points that all processes reach together, where they may compare values.

Process 0 collects who came and tells all. Who does not come in time is named, with
where it was last seen; processes that wait at different points are told so at once.
"""

import time
from typing import Any

from vtscale_jax.parallel.hosts.preflight import who
from vtscale_jax.parallel.hosts.watch import Message, Watch

ANSWER_S = 15.0  # that process 0 may take to say who is behind
CLOSE = "leaving the run"  # the last meeting; no other may be called so


class Behind(ValueError):
    """Some processes did not reach the point where the others waited."""


class Meetings:
    """The meeting points of one run; made before any message of theirs can come."""

    def __init__(self, watch: Watch):
        self._watch = watch
        self._answers: dict[str, Message] = {}
        # On process 0: values of who came, by point, and until when it waits.
        self._values: dict[str, dict[int, Any]] = {}
        self._until: dict[str, tuple[float, float]] = {}
        watch.on("met", self._met)
        if watch.index == 0:
            watch.on_first("meet", self._came)
            watch.on_first("clock", self._clock)

    def share(self, name: str, value: Any, timeout_s: float) -> list[Any]:
        """The values (JSON) of all processes by process id, once all have come."""
        message = {"kind": "meet", "at": name, "value": value, "timeout_s": timeout_s}
        self._watch.to_first(message)
        until = time.monotonic() + timeout_s + ANSWER_S
        with self._watch.changed:
            while name not in self._answers:
                if not self._watch.changed.wait(max(until - time.monotonic(), 0.0)):
                    first = who(self._watch.names, 0)
                    raise Behind(
                        f"'{name}' waited {timeout_s:.0f} s, and {first} did not say "
                        "who is behind."
                    )
            answer = self._answers.pop(name)
        if "behind" in answer:
            raise Behind(answer["behind"])
        return answer["values"]

    def _met(self, message: Message) -> None:
        self._answers[message["at"]] = message
        if message["at"] == CLOSE and "values" in message:
            # Whoever ends from here on has done its work.
            self._watch.leaving = True
        self._watch.changed.notify_all()

    def _came(self, index: int, message: Message) -> None:
        name, timeout_s = message["at"], float(message["timeout_s"])
        now = time.monotonic()
        values = self._values.setdefault(name, {})
        self._until.setdefault(name, (now + timeout_s, timeout_s))
        values[index] = message["value"]
        count = len(self._watch.names)
        if len(values) == count:
            self._forget(name)
            answer = [values[i] for i in range(count)]
            self._watch.to_all({"kind": "met", "at": name, "values": answer})
        elif sum(map(len, self._values.values())) == count:
            # Every process waits, and not at one point: none will ever go on.
            places = [
                f"{who(self._watch.names, i)} at '{place}'"
                for place, there in sorted(self._values.items())
                for i in there
            ]
            text = f"processes wait for each other at different points: {places}"
            for place in list(self._values):
                self._forget(place)
                self._watch.to_all({"kind": "met", "at": place, "behind": text})

    def _clock(self, index: int, message: Message) -> None:
        for name, (until, timeout_s) in list(self._until.items()):
            if time.monotonic() <= until:
                continue
            missing = set(range(len(self._watch.names))) - self._values[name].keys()
            self._forget(name)
            places = []
            for i in sorted(missing):
                phase, seconds = self._watch.last_seen(i)
                places.append(
                    f"{who(self._watch.names, i)} was last seen at '{phase}', "
                    f"{seconds:.0f} s ago"
                )
            text = (
                f"'{name}' waited {timeout_s:.0f} s for {len(missing)} of "
                f"{len(self._watch.names)} processes: {'; '.join(places)}."
            )
            self._watch.to_all({"kind": "met", "at": name, "behind": text})

    def _forget(self, name: str) -> None:
        del self._values[name], self._until[name]
