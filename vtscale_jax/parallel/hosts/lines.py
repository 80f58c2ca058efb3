"""JSON lines over TCP: what processes of a run say to each other outside of JAX.

One message is one line, an object of JSON of at most `MAX_LINE` bytes; nothing else is
accepted, so that a stranger who knocks at the port is recognised by its first line.
"""

import json
import selectors
import socket
import threading
from typing import Any

MAX_LINE = 1 << 20
SEND_TIMEOUT_S = 20.0


class LineError(ValueError):
    """What came over a connection is not ours: too long, no JSON, no object."""


class Lines:
    """One connection. Any thread may send; only one may receive."""

    def __init__(self, connection: socket.socket, *, max_line: int = MAX_LINE):
        self.socket = connection
        self._max_line = max_line
        self._received = b""
        self._sending = threading.Lock()
        connection.settimeout(SEND_TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: dict[str, Any]) -> None:
        """Sends one message; OSError when the other side is gone or takes nothing."""
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        if len(line) > self._max_line:
            raise LineError(f"a message of {len(line)} bytes is over {self._max_line}")
        with self._sending:
            self.socket.sendall(line)

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that came; None when the other side has closed.

        Waits when nothing has come yet: call it when `selectors` says that it is
        readable. LineError for what is no message, OSError for a broken connection.
        """
        data = self.socket.recv(1 << 16)
        if not data:
            return None
        self._received += data
        *lines, rest = self._received.split(b"\n")
        if max(map(len, (*lines, rest))) > self._max_line:
            raise LineError(f"a line of more than {self._max_line} bytes came")
        self._received = rest
        return [_decoded(line) for line in lines]

    def wait(self, timeout_s: float) -> bool:
        """Whether something can be received, or the end, within `timeout_s` seconds."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            return bool(selector.select(max(timeout_s, 0.0)))

    def close(self) -> None:
        """Closes the connection; what was sent still arrives."""
        self.socket.close()


def _decoded(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LineError(f"{line[:60]!r} is no JSON") from error
    if not isinstance(message, dict):
        raise LineError(f"{line[:60]!r} is no object of JSON")
    return message
