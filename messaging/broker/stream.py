"""Stream: the socket of a connection, with fewer system calls than pika makes.

Each system call gives up Python's lock, and each of those that send wakes the broker. pika sends each frame by one of
its own, three for a message, once its loop has come round again; and it reads until there is nothing left to read.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from pika.adapters.utils.nbio_interface import AbstractIOReference, AbstractStreamProtocol, AbstractStreamTransport
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter

#: Bytes that are joined to be sent at most, but for the last frame.
MAX_JOINED = 64 * 1024
#: Bytes that are read at once. pika copies what it has not worked off for each frame, so more would take longer.
READ_AT_ONCE = 4096


class Services(SelectorIOServicesAdapter):  # type: ignore[misc]
    """pika's I/O services on a loop, with a `Stream` for each connection."""

    def create_streaming_connection(
        self,
        protocol_factory: Callable[[], AbstractStreamProtocol],
        sock: socket.socket,
        on_done: Callable[[Any], None],
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> AbstractIOReference:
        """As pika's: `on_done` receives the transport and the protocol, or the error."""
        stream = partial(Stream, protocol_factory, self, sock if ssl_context is None else None)

        def done(result: Any) -> None:
            # pika looks for its connection behind the protocol.
            on_done(result if isinstance(result, BaseException) else (result[0], result[1].protocol))

        return super().create_streaming_connection(stream, sock, done, ssl_context, server_hostname)


class Stream(AbstractStreamProtocol, AbstractStreamTransport):  # type: ignore[misc]
    """Stands between pika's connection and pika's transport: the transport of the one, the protocol of the other.

    What is written is collected until the loop has called what was due, then sent in one piece. `plain` is the socket
    if there is no TLS: it is read here, and takes a piece at once; pika's transport gets what does not fit.
    """

    def __init__(
        self, protocol_factory: Callable[[], AbstractStreamProtocol], services: Services, plain: socket.socket | None
    ) -> None:
        self.protocol = protocol_factory()
        self._services = services
        self._plain = plain
        self._transport: Any = None
        self._pieces: list[bytes] = []
        self._size = 0
        #: Why reading failed.
        self._error: BaseException | None = None

    # --- the protocol of pika's transport ------------------------------------------------------------------

    def connection_made(self, transport: AbstractStreamTransport) -> None:
        """Begin."""
        self._transport = transport
        if self._plain is not None:
            self._services.set_reader(self._plain.fileno(), partial(self._read, self._plain))
        self.protocol.connection_made(self)

    def connection_lost(self, error: BaseException | None) -> None:
        """Pass on that the connection is gone."""
        self.protocol.connection_lost(error or self._error)

    def eof_received(self) -> Any:
        """Pass on that the other end will send nothing more."""
        return self.protocol.eof_received()

    def data_received(self, data: bytes) -> None:
        """Pass on what was read."""
        self.protocol.data_received(data)

    # --- the transport of pika's connection ----------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send `data` soon, after all that was written before."""
        if not self._pieces:
            self._services.call_later(0, self._flush)
        self._pieces.append(data)
        self._size += len(data)
        if self._size >= MAX_JOINED:
            self._flush()

    def abort(self) -> None:
        """Close the connection at once; what is not sent yet is dropped."""
        self._plain = None
        self._pieces.clear()
        self._transport.abort()

    def get_protocol(self) -> AbstractStreamProtocol:
        """Return pika's protocol."""
        return self.protocol

    def get_write_buffer_size(self) -> int:
        """Return how many bytes are not sent yet."""
        waiting: int = self._transport.get_write_buffer_size()
        return self._size + waiting

    def _flush(self) -> None:
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        if self._plain is not None and not self._transport.get_write_buffer_size():
            with suppress(OSError):  # it is full, or broken: pika's transport waits, or reports that
                data = data[self._plain.send(data) :]
        if data:
            self._transport.write(data)

    def _read(self, plain: socket.socket) -> None:
        while self._plain is not None:
            try:
                data = plain.recv(READ_AT_ONCE)
            except BlockingIOError:
                return
            except OSError as error:
                self._fail(error)
                return
            if not data:
                self.protocol.eof_received()
                self.abort()
                return
            try:
                self.protocol.data_received(data)
            except Exception as error:  # a frame that cannot be read
                self._fail(error)
            if len(data) < READ_AT_ONCE:
                return

    def _fail(self, error: Exception) -> None:
        self._error = error
        self.abort()
