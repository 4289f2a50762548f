"""Reconnecting: the I/O thread of a connection, which connects to one address after the other, for ever."""

from __future__ import annotations

import errno
import itertools
import random
import threading
from collections.abc import Callable
from typing import Any

import pika
from pika.adapters.select_connection import IOLoop
from pika.channel import Channel

from messaging import conf, logs, processes
from messaging.broker.errors import describe, refused_or_lost, unavailable
from messaging.broker.stream import Services
from messaging.broker.wire import PikaConnection, parameters_of
from messaging.exceptions import BrokerRefused, BrokerUnavailable, LimitReached, OperationRefused
from messaging.headers import note_frame_max
from messaging.logs import Throttle, get_logger, quiet_pika
from messaging.validation.addresses import BrokerAddress

log = get_logger(__name__)

quiet_pika()

#: Seconds before the second attempt to connect; doubles up to `RECONNECT_MAX`.
FIRST_RECONNECT_DELAY = 0.2
#: Longest pause while the broker is at a limit: room may come at any moment, and a refused attempt costs it little.
LIMIT_PAUSE = 3.0
#: Seconds after which an open connection counts as stable, and the pauses between attempts start small again.
STABLE_AFTER = 60.0
#: Seconds that closing may take; a dead peer never answers.
CLOSE_TIMEOUT = 1.0
#: System errors of a process without file descriptors or memory: waiting may help.
_USED_UP = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN}


class Attempts:
    """Counts the attempts to connect to any of `addresses` brokers, and logs how they end."""

    def __init__(self, role: str, addresses: int) -> None:
        self._role = role
        self._addresses = addresses
        #: Failures since the broker last did real work.
        self.failures = 0
        #: The latest attempts that ended in a refusal, in a row.
        self._refusals = 0
        #: The last connection was open and ended at a limit, such as one on channels: the next may end at once, too.
        self._ended_at_limit = False
        #: Of the reasons why no attempt has succeeded since the connection was open.
        self._throttle = Throttle()

    @property
    def refused(self) -> bool:
        """Whether every address refused us: waiting will not help."""
        return self._refusals >= self._addresses

    @property
    def all_failed(self) -> bool:
        """Whether every address was tried since the last success."""
        return self.failures >= self._addresses

    def failed(self, error: BrokerUnavailable, *, was_open: bool) -> float:
        """Log a failed attempt, or a lost connection; return the seconds until the next attempt."""
        at_limit = isinstance(error, LimitReached)
        if was_open:
            self._ended_at_limit = at_limit
        if (was_open and not at_limit) or self._throttle.allows(str(error)):
            log.warning("amqp.lost" if was_open else "amqp.unreachable", role=self._role, reason=str(error))
        self._refusals = self._refusals + 1 if isinstance(error, BrokerRefused) else 0
        spread = random.uniform(0.5, 1.0)  # noqa: S311  (spreading, not secrecy)
        pause: float = min(FIRST_RECONNECT_DELAY * 2 ** min(self.failures, 20), conf.RECONNECT_MAX)
        self.failures += 1  # a refusal counts too: `all_failed` must become true
        if self.refused:
            return conf.RECONNECT_REFUSED * (0.5 + spread)
        return min(pause, LIMIT_PAUSE if at_limit else pause) * spread

    def opened(self, after: str) -> None:
        """Log that the connection is open, unless the last one ended at a limit: then only a stable one is logged."""
        self._refusals = 0
        if not self._ended_at_limit:
            self._log_connected(after)

    def stable(self) -> None:
        """Note that the connection has been open for a while: the pauses start small again."""
        self.succeeded()
        if self._ended_at_limit:
            self._ended_at_limit = False
            self._log_connected("")

    def succeeded(self) -> None:
        """Note that the broker did real work: the pauses start small again."""
        self.failures = 0

    def _log_connected(self, after: str) -> None:
        log.info("amqp.connected", role=self._role, **({"after": after} if after else {}))
        self._throttle.reset()


class ReconnectingConnection:
    """What runs on the I/O thread of a `Connection`. Other threads only read its public attributes."""

    def __init__(
        self,
        role: str,
        *,
        on_open: Callable[[], None] = lambda: None,
        on_lost: Callable[[str], None] = lambda _: None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        settings = conf.get()
        self._role = role
        self._on_open = on_open
        self._on_lost = on_lost
        self._on_change = on_change
        self._addresses = itertools.cycle(settings.brokers)
        #: The address of the latest attempt.
        self._address: BrokerAddress = settings.brokers[0]
        self._attempts = Attempts(role, len(settings.brokers))
        self._pika: PikaConnection | None = None
        self._opened = threading.Event()
        self._stopping = False
        #: The timer of the pause before the next attempt to connect.
        self._pause: Any = None
        self._hurried = False
        self._closed = threading.Event()
        self.generation = 0
        self.blocked = False
        #: The broker's product and version, such as "RabbitMQ 3.10.8".
        self.server = ""
        #: The name of the broker's cluster; empty if it does not say.
        self.cluster = ""
        #: The name of this connection, as the broker lists it.
        self.name = f"{settings.app_id} {role} {processes.process_name()}"
        #: Why the latest connection, or attempt to connect, ended; None while it is open.
        self.error: BrokerUnavailable | None = None
        self._ioloop = IOLoop()

    def open_channel(
        self,
        on_open: Callable[[Channel], None],
        on_close: Callable[[Channel, OperationRefused | BrokerUnavailable], None],
    ) -> bool:
        """Open a channel and pass it to `on_open`; `on_close` gets the reason when it ends. I/O thread only.

        Return False if there is no connection, or no channel left on it: `error` says which.
        """

        def opened(channel: Channel) -> None:
            channel.add_on_close_callback(lambda channel, error: on_close(channel, refused_or_lost(error)))
            on_open(channel)

        if self._pika is None or not self._pika.is_open:
            return False
        try:
            self._pika.channel(on_open_callback=opened)
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
                # A frame that pika cannot read raises out of its loop: the connection is lost, the thread goes on.
                log.exception("amqp.io_thread_error", role=self._role)
                self._abandon(describe(error))
        self._ioloop.close()

    def _shorten_pause(self) -> None:
        if self._pause is not None and not self._hurried and not self._attempts.refused:
            self._hurried = True
            self._ioloop.remove_timeout(self._pause)
            self._pause = self._ioloop.call_later(FIRST_RECONNECT_DELAY, self._connect)

    def _connect(self) -> None:
        self._pause, self._hurried = None, False
        if self._stopping:
            return
        try:
            self._address = next(self._addresses)
            self._pika = PikaConnection(
                self._parameters(self._address),
                on_open_callback=self._opened_now,
                on_open_error_callback=self._ended,
                on_close_callback=self._ended,
                custom_ioloop=Services(self._ioloop),
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
            parameters.heartbeat = conf.HEARTBEAT
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
        about = connection.server_properties
        self.server = " ".join(str(about[name]) for name in ("product", "version") if about.get(name))
        note_frame_max(connection.params.frame_max)
        self.cluster = str(about.get("cluster_name") or "")
        connection.add_on_connection_blocked_callback(lambda *_: self._set_blocked(connection, True))
        connection.add_on_connection_unblocked_callback(lambda *_: self._set_blocked(connection, False))
        self._ioloop.call_later(STABLE_AFTER, lambda: self._stable(connection))
        self._attempts.opened(after=str(self.error or ""))
        self.error = None
        self._opened.set()
        self._on_open()
        self._on_change()

    def _set_blocked(self, connection: PikaConnection, blocked: bool) -> None:
        if connection is self._pika:
            self.blocked = blocked
            log.warning("amqp.blocked" if blocked else "amqp.unblocked", role=self._role)
            if blocked:
                self._ioloop.call_later(logs.REPEAT_AFTER, lambda: self._still_blocked(connection))
            self._on_change()

    def _still_blocked(self, connection: PikaConnection) -> None:
        if self.blocked:
            self._set_blocked(connection, True)

    def _stable(self, connection: PikaConnection) -> None:
        if connection is self._pika:
            self._attempts.stable()

    def _ended(self, connection: PikaConnection, error: BaseException) -> None:
        if connection is self._pika:
            self._lost(unavailable(error, self._address))

    def _abandon(self, reason: str) -> None:
        connection, self._pika = self._pika, None
        if connection is None:
            return
        if connection.is_open:
            connection.close(reply_text=reason[:100])
            self._ioloop.call_later(CLOSE_TIMEOUT, connection.drop)
        self._lost(BrokerUnavailable(reason))

    def _lost(self, error: BrokerUnavailable) -> None:
        self._pika = None
        self.error = error
        was_open = self._opened.is_set()
        self._opened.clear()
        if self._stopping:
            self._finish()
            return
        # Scheduled first: whatever a callback below raises, there is a next attempt.
        self._pause = self._ioloop.call_later(self._attempts.failed(error, was_open=was_open), self._connect)
        if was_open:
            self._on_lost(str(error))
        self._on_change()

    def _close(self) -> None:
        if self._pika is not None and self._pika.is_open:
            self._pika.close()
            self._ioloop.call_later(CLOSE_TIMEOUT, self._finish)
        else:
            # pika cannot break off a connection that is still opening (an assertion of its own fails); its socket is
            # closed with the loop.
            self._finish()

    def _finish(self) -> None:
        self._opened.clear()
        self._closed.set()
        self._ioloop.stop()
