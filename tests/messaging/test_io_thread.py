"""The I/O thread of a connection: what others pass to it, and what it sends, in order and with few system calls."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils.nbio_interface import AbstractStreamProtocol

from messaging.broker.connection import Connection
from messaging.broker.stream import MAX_JOINED, Services
from tests.support.waiting import eventually


def fail() -> None:
    raise RuntimeError("of a callback")


@pytest.fixture
def connection(settings: Any) -> Iterator[Connection]:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": ["amqp://127.0.0.1:1/"]}
    running = Connection("test").start()
    yield running
    running.stop()


def test_what_is_passed_to_a_busy_thread_is_called_in_order_although_one_of_it_fails(connection: Connection) -> None:
    called: list[int] = []
    free = threading.Event()

    def hold() -> None:
        free.wait()

    connection.call_soon(partial(called.append, 1))
    connection.call_soon(hold)
    connection.call_soon(partial(called.append, 2))
    connection.call_soon(partial(called.append, 3))
    connection.call_soon(fail)
    connection.call_soon(partial(called.append, 4))
    free.set()

    eventually(lambda: called == [1, 2, 3, 4])


def test_everything_that_fifty_threads_pass_is_called(connection: Connection) -> None:
    called: list[int] = []
    with ThreadPoolExecutor(50) as threads:
        for number in range(5000):
            threads.submit(connection.call_soon, partial(called.append, number))

    eventually(lambda: sorted(called) == list(range(5000)))


def test_what_may_wait_is_called_at_once_and_the_next_of_that_with_what_cannot_wait(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messaging.broker.connection.REST", 60.0)
    called: list[int] = []
    connection.call_soon(partial(called.append, 1), may_wait=True)
    eventually(lambda: called == [1])
    connection.call_soon(partial(called.append, 2), may_wait=True)
    assert not connection._woken
    connection.call_soon(partial(called.append, 3))
    eventually(lambda: called == [1, 2, 3])


def test_what_waited_is_called_once_the_thread_has_rested_although_one_of_it_fails(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messaging.broker.connection.REST", 0.05)
    called: list[int] = []

    for number in range(1, 4):
        connection.call_soon(partial(called.append, number), may_wait=True)
        connection.call_soon(fail, may_wait=True)
        eventually(lambda number=number: called[-1:] == [number])
    eventually(lambda: not connection._resting)
    connection.call_soon(partial(called.append, 4), may_wait=True)
    eventually(lambda: called == [1, 2, 3, 4])


def test_what_waits_is_called_although_a_timer_that_was_due_with_it_failed(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pika then forgets all other timers that are due."""
    monkeypatch.setattr("messaging.broker.connection.REST", 0.05)
    called: list[int] = []

    def both_are_due_together() -> None:
        connection._ioloop.call_later(0.01, fail)
        time.sleep(0.1)  # the I/O thread, until both are due

    connection.call_soon(partial(called.append, 1), may_wait=True)
    connection.call_soon(both_are_due_together)
    eventually(lambda: called == [1])
    connection.call_soon(partial(called.append, 2), may_wait=True)
    eventually(lambda: called == [1, 2])


def test_it_connects_again_although_what_waited_fails_when_the_next_attempt_is_due(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messaging.broker.connection.REST", 0.01)
    monkeypatch.setattr("messaging.broker.reconnecting.FIRST_RECONNECT_DELAY", 0.01)
    monkeypatch.setattr("messaging.conf.RECONNECT_MAX", 0.01)
    for _ in range(200):
        connection.call_soon(fail, may_wait=True)
        time.sleep(0.002)  # for so long that in most runs an attempt to connect is due together with it
    failures = connection._attempts.failures
    eventually(lambda: connection._attempts.failures > failures + 3)


# --- Sending -------------------------------------------------------------------------------------------------


class Protocol(AbstractStreamProtocol):  # type: ignore[misc]
    """What pika's connection is to a transport."""

    transport: Any = None

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.at_end = False
        self.lost: list[BaseException | None] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, error: BaseException | None) -> None:
        self.lost.append(error)

    def eof_received(self) -> None:
        self.at_end = True

    def data_received(self, data: bytes) -> None:
        if data == b"unreadable":
            raise ValueError("it cannot be read")
        self.received.append(data)


class Line:
    """A connected pair of sockets: a loop writes to the one, the test reads from the other."""

    def __init__(self, kind: int) -> None:
        here, self.there = socket.socketpair(socket.AF_UNIX, kind)
        for each in (here, self.there):
            each.setblocking(False)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        self.received: list[bytes] = []
        self._loop = IOLoop()
        self._services = Services(self._loop)
        made: list[Any] = []
        self._services.create_streaming_connection(Protocol, here, lambda result: made.append(result[1]))
        self.until(lambda: bool(made))
        [self.protocol] = made
        self.transport = self.protocol.transport

    def soon(self, function: Callable[[], None]) -> None:
        """Have the loop call `function`."""
        self._loop.add_callback_threadsafe(function)

    def write(self, *pieces: bytes) -> None:
        """Have the loop write all pieces in one of its passes."""

        def write_all() -> None:
            for piece in pieces:
                self.transport.write(piece)

        self.soon(write_all)

    def until(self, done: Callable[[], bool]) -> None:
        """Run the loop, and read, until `done` is true."""

        def look() -> None:
            with suppress(BlockingIOError):
                self.received.append(self.there.recv(1 << 20))
            if done():
                self._loop.stop()
            else:
                self._loop.call_later(0.001, look)

        self._loop.call_later(0, look)
        self._loop.start()

    def close(self) -> None:
        """End both ends, and the loop."""
        if not self.protocol.lost:
            self.transport.abort()
            self.until(lambda: bool(self.protocol.lost))
        self.there.close()
        self._loop.close()


@pytest.fixture
def line() -> Iterator[Callable[[int], Line]]:
    """Makes lines."""
    made: list[Line] = []

    def make(kind: int) -> Line:
        made.append(Line(kind))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_what_is_written_together_is_sent_in_one_piece(line: Callable[[int], Line]) -> None:
    packets = line(socket.SOCK_SEQPACKET)  # each system call is one packet
    packets.write(b"method", b"header", b"body")
    packets.until(lambda: bool(packets.received))
    packets.write(b"later")
    packets.until(lambda: len(packets.received) == 2)

    assert packets.received == [b"methodheaderbody", b"later"]


def test_what_the_socket_does_not_take_at_once_follows_in_order(line: Callable[[int], Line]) -> None:
    stream = line(socket.SOCK_STREAM)
    pieces = [bytes([number % 256]) * 5000 for number in range(100)]
    assert sum(map(len, pieces)) > 2 * MAX_JOINED
    stream.write(*pieces[:90])
    stream.soon(lambda: stream.write(*pieces[90:]))

    stream.until(lambda: sum(map(len, stream.received)) == 500_000)
    assert b"".join(stream.received) == b"".join(pieces)
    assert stream.transport.get_write_buffer_size() == 0


def test_nothing_is_sent_once_the_connection_is_broken_off(line: Callable[[int], Line]) -> None:
    stream = line(socket.SOCK_STREAM)

    def write_and_abort() -> None:
        stream.transport.write(b"too late")
        stream.transport.abort()

    stream.soon(write_and_abort)
    stream.until(lambda: b"" in stream.received)
    assert stream.received == [b""]


# --- Receiving -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4095, 4096, 8192, 10_000])
def test_everything_that_arrives_is_read(line: Callable[[int], Line], size: int) -> None:
    stream = line(socket.SOCK_STREAM)
    for number in range(5):
        sent = bytes([number]) * size
        stream.there.send(sent)
        stream.until(lambda sent=sent: b"".join(stream.protocol.received).endswith(sent))  # type: ignore[misc]

    assert b"".join(stream.protocol.received) == b"".join(bytes([number]) * size for number in range(5))


def test_the_other_ends_end_and_what_cannot_be_read_end_the_connection(line: Callable[[int], Line]) -> None:
    left, garbled = line(socket.SOCK_STREAM), line(socket.SOCK_STREAM)
    left.there.shutdown(socket.SHUT_WR)
    left.until(lambda: bool(left.protocol.lost))
    assert (left.protocol.at_end, left.protocol.lost) == (True, [None])

    garbled.there.send(b"unreadable")
    garbled.until(lambda: bool(garbled.protocol.lost))
    [error] = garbled.protocol.lost
    assert str(error) == "it cannot be read"
