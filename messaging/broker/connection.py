"""Connection: one AMQP connection on its own I/O thread, which comes back by itself.

pika's objects may be touched by one thread alone. Here that is the I/O thread: heartbeats therefore never wait for
a handler or a database. Everything else reaches it through `call_soon` (fire and forget) or `call` (one AMQP method
and its answer).
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import pika
from pika.adapters.select_connection import IOLoop
from pika.channel import Channel

from messaging import conf, logs, processes
from messaging.broker import header_fields
from messaging.broker.calls import Calls
from messaging.broker.errors import describe, unavailable
from messaging.broker.parameters import parameters_of
from messaging.exceptions import BrokerRefused, BrokerUnavailable, LimitReached, ThreadNotStarted
from messaging.headers import note_frame_max
from messaging.logs import Throttle, get_logger, quiet_pika
from messaging.validation.addresses import BrokerAddress

log = get_logger(__name__)

header_fields.install()
quiet_pika()

#: Seconds before the second attempt to connect; doubles up to `RECONNECT_MAX`.
FIRST_RECONNECT_DELAY = 0.2
#: Longest pause while the broker is at a limit: room may come at any moment, and a refused attempt costs it little.
LIMIT_PAUSE = 3.0
#: Seconds after which an open connection counts as stable, and the pauses start small again.
STABLE_AFTER = 60.0
#: Seconds between two looks at whether an errand's connection will come to anything.
LOOK_EVERY = 0.1
#: What the system says to a process that has no more file descriptors or memory: waiting may help.
_USED_UP = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN}
#: Seconds that closing may take; a dead peer never answers.
CLOSE_TIMEOUT = 1.0


@contextmanager
def opened(role: str) -> Iterator[Connection]:
    """Yield an open connection for a short errand, and close it afterwards.

    Raises as `Connection.reach`.
    """
    connection = Connection(role).start()
    try:
        connection.reach()
        yield connection
    finally:
        connection.stop()


class Connection:
    """An AMQP connection of this process.

    `on_open` is called on the I/O thread with each fresh pika connection, `on_lost` likewise with the reason when
    one ends, `on_change` whenever `usable` may have changed. `generation` grows with each fresh connection, so that
    a delivery tag of an old one can be told.
    """

    def __init__(
        self,
        role: str,
        *,
        on_open: Callable[[pika.SelectConnection], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        settings = conf.get()
        self._role = role
        self._on_open = on_open
        self._on_lost = on_lost
        self._on_change = on_change
        self._addresses = itertools.cycle(settings.brokers)
        self._address_count = len(settings.brokers)
        #: The one that was tried last.
        self._address: BrokerAddress = settings.brokers[0]
        self._pika: pika.SelectConnection | None = None
        self._calls = Calls(self)
        self._failures = 0
        #: How many of the latest attempts, one after the other, ended in a refusal.
        self._refusals = 0
        self._opened = threading.Event()
        self._stopping = False
        #: The timer of the pause before the next attempt to connect.
        self._pausing: Any = None
        self._hurried = False
        self._closed = threading.Event()
        self.generation = 0
        self.blocked = False
        #: What the broker calls itself, such as "RabbitMQ 3.10.8".
        self.server = ""
        #: What its cluster is called; empty where it does not say.
        self.cluster = ""
        #: What this connection calls itself there.
        self.name = f"{settings.app_id} {role} {socket.gethostname()}:{os.getpid()}"
        #: Why the latest connection, or attempt to connect, ended; None while it is open.
        self.error: BrokerUnavailable | None = None
        #: Every address was refused: user, password, vhost or an option of the URL are wrong. Waiting will not help.
        self.refused = False
        #: Why no attempt to connect has succeeded since the connection was open.
        self._throttle = Throttle()
        #: The last connection was open and ended at a limit, such as one on channels: the next may end at once, too.
        self._opened_in_vain = False
        self._ioloop = IOLoop()
        #: Of the I/O thread.
        self.thread_name = f"amqp-{role}"
        self._thread = threading.Thread(target=self._run, name=self.thread_name, daemon=True)

    # --- from any thread -----------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start connecting, in the background and for ever. Returns at once.

        Raises ThreadNotStarted where the system lets this process start no thread; it may then be called again.
        """
        try:
            self._thread.start()
        except RuntimeError as error:
            self.error = ThreadNotStarted(
                f"this process could not start a thread for its connection to the broker ({error})"
            )
            raise self.error from error
        return self

    def stop(self) -> None:
        """Close the connection and end the I/O thread, within `CLOSE_TIMEOUT`."""
        self._stopping = True
        self.call_soon(self._close)
        processes.join(self._thread, CLOSE_TIMEOUT + 0.5)

    @property
    def is_open(self) -> bool:
        """Whether the broker has accepted the connection and it has not ended since."""
        return self._opened.is_set()

    @property
    def last_error(self) -> str:
        """Why the latest connection, or attempt to connect, ended; empty while it is open."""
        return str(self.error or "")

    @property
    def usable(self) -> bool:
        """Whether it is open and the broker takes messages (it does not while a memory or disk alarm lasts)."""
        return self.is_open and not self.blocked

    @property
    def user(self) -> str:
        """The account that it enters the broker with."""
        return self._address.user

    @property
    def never_reached(self) -> bool:
        """Whether every address was tried, and none has let us in so far; `last_error` says why."""
        return not self.generation and self._failures >= self._address_count

    def wait_until_open(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the connection; return whether it is open."""
        return self._opened.wait(timeout)

    def reach(self, given_up: Callable[[], bool] = lambda: False) -> bool:
        """Wait until it is open for the first time, and return True; False once `given_up` says so.

        Raises BrokerUnavailable where no address lets us in: BrokerRefused where all have said no, BrokerSilent where
        the last did not answer in time, LimitReached where it had no room.
        """
        while not self.wait_until_open(LOOK_EVERY):
            if given_up():
                return False
            if self.never_reached:
                raise self.unavailable()
        return True

    def unavailable(self) -> BrokerUnavailable:
        """Return the error that says why the latest attempt to connect failed."""
        kind = type(self.error or BrokerUnavailable())
        if kind is BrokerRefused and not self.refused:
            kind = BrokerUnavailable  # another address may still let us in
        return kind(self.last_error)

    def call_soon(self, function: Callable[[], None]) -> None:
        """Run `function` on the I/O thread, soon."""
        self._ioloop.add_callback_threadsafe(function)

    def call(self, method: str, **arguments: Any) -> Any:
        """Call one AMQP method that has an answer, such as `queue_declare`, and return the answer's method frame.

        Raises OperationRefused where the broker refuses it, BrokerUnavailable where it does not answer.
        """
        return self._calls.call(method, arguments)

    def reset(self, reason: str) -> None:
        """Give the present connection up as dead and make a new one."""
        self.call_soon(lambda: self._abandon(reason))

    def hurry(self) -> None:
        """Cut a present pause between two attempts to connect down to `FIRST_RECONNECT_DELAY`: somebody waits. Not
        so once `refused`: what was refused will be again."""
        self.call_soon(self._shorten_pause)

    def succeeded(self) -> None:
        """Say that the broker did real work: the pauses between attempts to connect start small again."""
        self._failures = 0

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def open_channel(self, on_open: Callable[[Channel], None]) -> bool:
        """Open a channel and hand it to `on_open`; return False where there is no connection, or no channel left on
        it: `error` says which. I/O thread only."""
        if self._pika is None or not self._pika.is_open:
            return False
        try:
            self._pika.channel(on_open_callback=on_open)
        except pika.exceptions.NoFreeChannels as error:
            self.error = unavailable(error, self._address)
            return False
        return True

    def _run(self) -> None:
        self._ioloop.add_callback_threadsafe(self._connect)
        while not self._closed.is_set():
            try:
                self._ioloop.start()
            except Exception as error:
                # A frame that pika cannot read raises out of its loop. The connection is lost, the thread is not.
                log.exception("amqp.io_thread_error", role=self._role)
                self._abandon(describe(error))
        self._ioloop.close()

    def _shorten_pause(self) -> None:
        if self._pausing is not None and not self._hurried and not self.refused:
            self._hurried = True
            self._ioloop.remove_timeout(self._pausing)
            self._pausing = self._ioloop.call_later(FIRST_RECONNECT_DELAY, self._connect)

    def _connect(self) -> None:
        self._pausing, self._hurried = None, False
        if self._stopping:
            return
        try:
            self._address = next(self._addresses)
            self._pika = pika.SelectConnection(
                self._parameters(self._address),
                on_open_callback=self._opened_now,
                on_open_error_callback=self._ended,
                on_close_callback=self._ended,
                custom_ioloop=self._ioloop,
            )
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _USED_UP:
                self._lost(BrokerUnavailable(f"this process is at a limit: {error.strerror}"))
                return
            # TLS contexts fail in constructors, with errors of any kind. The next attempt would fail likewise.
            self._lost(BrokerRefused(f"the address cannot be used: {describe(error, self._address)}"))

    def _parameters(self, address: BrokerAddress) -> pika.ConnectionParameters:
        settings = conf.get()
        parameters = parameters_of(
            address, ca_file=settings.tls_ca_file, cert_file=settings.tls_cert_file, key_file=settings.tls_key_file
        )
        if address.heartbeat is None:
            parameters.heartbeat = settings.heartbeat
        parameters.socket_timeout = settings.connect_timeout
        parameters.stack_timeout = settings.connect_timeout
        parameters.client_properties = {"connection_name": self.name}
        return parameters

    def _opened_now(self, connection: Any) -> None:
        if self._pika is None or connection is not self._pika:
            connection.close()  # given up meanwhile
            return
        self.generation += 1
        self.blocked = False
        self.server = _server(connection.server_properties)
        note_frame_max(connection.params.frame_max)
        self.cluster = str(connection.server_properties.get("cluster_name") or "")
        self._refusals = 0
        self.refused = False
        connection.add_on_connection_blocked_callback(lambda *_: self._set_blocked(connection, True))
        connection.add_on_connection_unblocked_callback(lambda *_: self._set_blocked(connection, False))
        self._ioloop.call_later(STABLE_AFTER, lambda: self._stable(connection))
        if not self._opened_in_vain:
            self._say_connected()
        self.error = None
        self._opened.set()
        if self._on_open:
            self._on_open(connection)
        self._changed()

    def _say_connected(self) -> None:
        log.info("amqp.connected", role=self._role, **({"after": self.last_error} if self.last_error else {}))
        self._throttle.reset()

    def _set_blocked(self, connection: pika.SelectConnection, blocked: bool) -> None:
        if connection is self._pika:
            self.blocked = blocked
            log.warning("amqp.blocked" if blocked else "amqp.unblocked", role=self._role)
            if blocked:
                self._ioloop.call_later(logs.REPEAT_AFTER, lambda: self._still_blocked(connection))
            self._changed()

    def _still_blocked(self, connection: pika.SelectConnection) -> None:
        if connection is self._pika and self.blocked:
            self._set_blocked(connection, True)

    def _stable(self, connection: pika.SelectConnection) -> None:
        if connection is self._pika:
            self.succeeded()
            if self._opened_in_vain:
                self._opened_in_vain = False
                self._say_connected()

    def _ended(self, connection: pika.SelectConnection, error: BaseException) -> None:
        if connection is self._pika:
            self._lost(unavailable(error, self._address))

    def _abandon(self, reason: str) -> None:
        connection, self._pika = self._pika, None
        if connection is None:
            return
        if connection.is_open:
            # A dead peer never answers the close; pika's heartbeat check then drops the socket.
            connection.close(reply_text=reason[:100])
        self._lost(BrokerUnavailable(reason))

    def _lost(self, error: BrokerUnavailable) -> None:
        self._pika = None
        self.error, reason, limited = error, str(error), isinstance(error, LimitReached)
        self._calls.lost(error)
        was_open = self._opened.is_set()
        self._opened.clear()
        if self._stopping:
            self._finish()
            return
        if was_open:
            self._opened_in_vain = limited
        if (was_open and not limited) or self._throttle.allows(reason):
            log.warning("amqp.lost" if was_open else "amqp.unreachable", role=self._role, reason=reason)
        self._refusals = self._refusals + 1 if isinstance(error, BrokerRefused) else 0
        self.refused = self._refusals >= self._address_count
        # First of all: whatever goes wrong in those who are told, there is a next attempt.
        self._pausing = self._ioloop.call_later(self._pause(), self._connect)
        if was_open and self._on_lost:
            self._on_lost(reason)
        self._changed()

    def _pause(self) -> float:
        settings = conf.get()
        spread = random.uniform(0.5, 1.0)  # noqa: S311  (spreading, not secrecy)
        pause: float = min(FIRST_RECONNECT_DELAY * 2 ** min(self._failures, 20), settings.reconnect_max)
        self._failures += 1  # a refusal counts too: who asks whether anybody let us in must not wait for ever
        if self.refused:
            return settings.reconnect_refused * (0.5 + spread)
        if isinstance(self.error, LimitReached):
            pause = min(pause, LIMIT_PAUSE)
        return pause * spread

    def _close(self) -> None:
        if self._pika is not None and self._pika.is_open:
            self._pika.close()
            self._ioloop.call_later(CLOSE_TIMEOUT, self._finish)
        else:
            # pika cannot break off one that is still opening (an assertion of its own fails); its socket goes with it.
            self._finish()

    def _finish(self) -> None:
        self._opened.clear()
        self._closed.set()
        self._ioloop.stop()

    def _changed(self) -> None:
        if self._on_change:
            self._on_change()


def _server(properties: Mapping[str, Any]) -> str:
    return " ".join(str(properties[name]) for name in ("product", "version") if properties.get(name))
