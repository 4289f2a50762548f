"""A TCP proxy on loopback between clients and a server: the network, to be cut, stalled and healed at will."""

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

#: Bytes passed on at once.
CHUNK = 65536
#: Seconds between two looks at whether a connection that cannot go on was cut meanwhile.
LOOK_EVERY = 0.1


class TcpProxy:
    """Passes what comes to `port` on to the port of 127.0.0.1 that `target()` says; it is asked at each connection.

    It runs in threads of this process. Use it as a context manager, or call `start` and `stop`.
    """

    def __init__(self, target: Callable[[], int]) -> None:
        self._target = target
        self._listener: socket.socket | None = None
        self._port = 0
        self._lock = threading.Lock()
        self._lines: set[_Line] = set()
        self._refusing = False
        # Set while bytes flow.
        self._flowing = threading.Event()
        self._flowing.set()

    def __enter__(self) -> "TcpProxy":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """Where it listens; known once it was started."""
        return self._port

    @property
    def connections(self) -> int:
        """How many connections go through it now."""
        with self._lock:
            return len(self._lines)

    def start(self, port: int = 0) -> None:
        """Listen, on a port of the kernel's choice if none is given."""
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=[self._listener], name="proxy", daemon=True).start()

    def stop(self) -> None:
        """Listen no more, and cut what is connected."""
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self.cut()
        self.heal()

    # What happens to networks

    def cut(self) -> None:
        """Reset every connection; new ones are taken as before."""
        with self._lock:
            lines = list(self._lines)
        for line in lines:
            line.cut()

    def refuse(self) -> None:
        """Reset every connection, and each new one at once, until `heal`."""
        self._refusing = True
        self.cut()

    def stall(self) -> None:
        """Pass nothing on in either direction until `heal`; connections stay open, new ones too. No byte is lost."""
        self._flowing.clear()

    def heal(self) -> None:
        """Pass everything on again."""
        self._refusing = False
        self._flowing.set()

    # How it works: two threads for each connection

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            line = _Line(client, self._flowing)
            with self._lock:
                self._lines.add(line)
            if self._refusing:
                line.cut()
            threading.Thread(target=self._serve, args=[line], name="proxy", daemon=True).start()

    def _serve(self, line: "_Line") -> None:
        try:
            line.serve(self._target)
        finally:
            with self._lock:
                self._lines.discard(line)


class _Line:
    """One client's connection, and the one to the server that it is passed on to."""

    def __init__(self, client: socket.socket, flowing: threading.Event) -> None:
        self._client = client
        self._flowing = flowing
        self._cut = False

    def cut(self) -> None:
        """Have both connections reset."""
        self._cut = True

    def serve(self, target: Callable[[], int]) -> None:
        """Pass bytes on until both ends have said their last, or one of them is gone."""
        with self._client as client:
            try:
                self._wait_for_flow()
                server = socket.create_connection(("127.0.0.1", target()), timeout=5)
            except OSError:
                _reset_on_close(client)
                return
            with server:
                self._join(client, server)

    def _join(self, client: socket.socket, server: socket.socket) -> None:
        for end in (client, server):
            end.settimeout(LOOK_EVERY)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # One direction must not wait for the other: a peer may read nothing before it has written.
        back = threading.Thread(target=self._pass_on, args=[server, client], name="proxy", daemon=True)
        back.start()
        self._pass_on(client, server)
        back.join()
        if self._cut:
            _reset_on_close(client)
            _reset_on_close(server)

    def _pass_on(self, source: socket.socket, destination: socket.socket) -> None:
        try:
            while content := self._receive(source):
                self._send(destination, content)
            destination.shutdown(socket.SHUT_WR)
        except OSError:
            # One end was reset: so is the other.
            self._cut = True

    def _receive(self, end: socket.socket) -> bytes:
        while True:
            self._wait_for_flow()
            with suppress(TimeoutError):
                return end.recv(CHUNK)

    def _send(self, end: socket.socket, content: bytes) -> None:
        rest = memoryview(content)
        while rest:
            self._wait_for_flow()
            with suppress(TimeoutError):
                rest = rest[end.send(rest) :]

    def _wait_for_flow(self) -> None:
        """Wait while the network is stalled. Raises `ConnectionError` once the connection was cut."""
        while not self._flowing.wait(LOOK_EVERY) and not self._cut:
            pass
        if self._cut:
            raise ConnectionError("cut")


def _reset_on_close(end: socket.socket) -> None:
    """Let the close be a reset, as of a router that forgot the connection, and not a polite end."""
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
