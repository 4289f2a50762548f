"""A TCP proxy on loopback between clients and a server: a network that can be cut, stalled and healed."""

import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Literal

#: Bytes passed on in one piece.
CHUNK = 65536
#: Seconds between two checks whether a waiting connection was cut.
LOOK_EVERY = 0.1

#: Towards which end bytes go.
Direction = Literal["client", "server"]


class _Weather:
    """What the network does to bytes now, shared by all connections."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Let everything pass unchanged."""
        self.stalled: set[Direction] = set()
        #: Seconds that each piece takes, and its variation.
        self.latency, self.jitter = 0.0, 0.0
        self.bytes_per_second = 0.0
        self.slice = CHUNK
        #: Bytes after which a connection is cut; 0 for never.
        self.limit = 0

    def pieces(self, content: bytes) -> Iterator[bytes]:
        """Yield `content` in pieces, each after the time that it takes."""
        for start in range(0, len(content), self.slice):
            piece = content[start : start + self.slice]
            pause = self.latency + random.uniform(-self.jitter, self.jitter)  # noqa: S311  (weather, not secrecy)
            if self.bytes_per_second:
                pause += len(piece) / self.bytes_per_second
            if pause > 0:
                time.sleep(pause)
            yield piece


class TcpProxy:
    """Passes connections to `port` on to the port of 127.0.0.1 that `target()` returns for each.

    It runs in threads of this process. Use it as a context manager, or call `start` and `stop`.
    """

    def __init__(self, target: Callable[[], int]) -> None:
        self._target = target
        self._listener: socket.socket | None = None
        self._port = 0
        self._lock = threading.Lock()
        self._lines: set[_Line] = set()
        #: How many connections were accepted so far.
        self.taken = 0
        self._refusing = False
        self._weather = _Weather()

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
        """Stop listening, and cut all connections."""
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self.cut()
        self.heal()

    # Faults of networks

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

    def stall(self, *towards: Direction) -> None:
        """Pass nothing on, in both directions or only towards one end, until `heal`. Connections stay open, new ones
        too. No byte is lost: TCP repeats what a network loses."""
        self._weather.stalled = set(towards or ("client", "server"))

    def delay(self, seconds: float, jitter: float = 0.0) -> None:
        """Let each piece take `seconds`, give or take `jitter`."""
        self._weather.latency, self._weather.jitter = seconds, jitter

    def throttle(self, bytes_per_second: float) -> None:
        """Let each direction of a connection carry so many bytes a second, in small pieces."""
        self._weather.bytes_per_second = bytes_per_second
        self._weather.slice = max(1, int(bytes_per_second / 20))

    def slice(self, size: int) -> None:
        """Pass everything on in pieces of at most `size` bytes."""
        self._weather.slice = size

    def limit(self, size: int) -> None:
        """Cut each connection, those that are open too, after `size` further bytes in one direction."""
        self._weather.limit = size

    def heal(self) -> None:
        """Pass everything on again, unchanged."""
        self._refusing = False
        self._weather.clear()

    # How it works: two threads for each connection

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            line = _Line(client, self._weather)
            with self._lock:
                self._lines.add(line)
                self.taken += 1
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
    """One client's connection, and the connection to the server that it is passed on to."""

    def __init__(self, client: socket.socket, weather: _Weather) -> None:
        self._client = client
        self._weather = weather
        self._cut = False

    def cut(self) -> None:
        """Reset both connections."""
        self._cut = True

    def serve(self, target: Callable[[], int]) -> None:
        """Pass bytes on until both ends have closed, or one is gone."""
        with self._client as client:
            try:
                self._wait_for_flow("server")
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
        back = threading.Thread(target=self._pass_on, args=[server, client, "client"], name="proxy", daemon=True)
        back.start()
        self._pass_on(client, server, "server")
        back.join()
        if self._cut:
            _reset_on_close(client)
            _reset_on_close(server)

    def _pass_on(self, source: socket.socket, destination: socket.socket, towards: Direction) -> None:
        passed = 0
        try:
            while content := self._receive(source, towards):
                for piece in self._weather.pieces(content):
                    if self._weather.limit:
                        piece = piece[: max(0, self._weather.limit - passed)]
                        passed += len(piece)
                    self._send(destination, piece, towards)
                    if self._weather.limit and passed >= self._weather.limit:
                        raise ConnectionError("cut at its limit")
            destination.shutdown(socket.SHUT_WR)
        except OSError:
            # One end was reset: so is the other.
            self._cut = True

    def _receive(self, end: socket.socket, towards: Direction) -> bytes:
        while True:
            self._wait_for_flow(towards)
            with suppress(TimeoutError):
                return end.recv(CHUNK)

    def _send(self, end: socket.socket, content: bytes, towards: Direction) -> None:
        rest = memoryview(content)
        while rest:
            self._wait_for_flow(towards)
            with suppress(TimeoutError):
                rest = rest[end.send(rest) :]

    def _wait_for_flow(self, towards: Direction) -> None:
        """Wait while the network is stalled. Raises `ConnectionError` once the connection was cut."""
        while towards in self._weather.stalled and not self._cut:
            time.sleep(LOOK_EVERY)
        if self._cut:
            raise ConnectionError("cut")


def _reset_on_close(end: socket.socket) -> None:
    """Make the close a reset, as by a router that forgot the connection."""
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
