"""A connection to JAX's coordination service that outlives the service.

When the process that runs the service dies, the C++ client of every other process sees
its connection close and aborts within milliseconds, with a stack trace in place of a
reason. So it connects to this relay in its own process, which passes bytes on and keeps
the client's side open when the other one closes: `watch` then has the time to say who
died. Public switches of jax 0.10 do not offer this (a `missed_heartbeat_callback`
written in Python aborts with std::bad_cast).
"""

import socket
import threading

CHUNK = 1 << 16


class Relay:
    """Passes connections to a port of this host on to `host`:`port`."""

    def __init__(self, host: str, port: int):
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listener]
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        _start(self._accept)

    def close(self) -> None:
        """Closes every connection."""
        for connection in self._open:
            _end(connection)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            self._open.append(client)
            _start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        try:
            service = socket.create_connection(self._target, timeout=10.0)
        except OSError:
            _end(client)  # not there yet: the client tries again
            return
        service.settimeout(None)
        for connection in (client, service):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open.append(service)
        _start(_pass_on, service, client)
        _pass_on(client, service)
        # The client ended: so may the service's side.
        _end(service)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Until either ends; what became of the other one is not this thread's to say."""
    try:
        while data := source.recv(CHUNK):
            target.sendall(data)
    except OSError:
        return


def _end(connection: socket.socket) -> None:
    # Wakes the thread that waits in it, which `close` alone would not.
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it was not connected, or is no more
    connection.close()


def _start(run, *arguments: object) -> None:
    threading.Thread(target=run, args=arguments, name="relay", daemon=True).start()
