"""Connection: one AMQP connection on its own I/O thread, which reconnects by itself.

Only one thread may touch pika's objects: here the I/O thread, so that heartbeats never wait for a handler or a
database. Other threads use `call_soon` (no answer) or `call` (one AMQP method and its answer).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from messaging import processes
from messaging.broker.calls import Answer, Calls
from messaging.broker.reconnecting import CLOSE_TIMEOUT, ReconnectingConnection
from messaging.exceptions import BrokerRefused, BrokerUnavailable, ThreadNotStarted

#: Seconds between two checks whether to give up waiting for the first connection.
CHECK_EVERY = 0.1
#: Seconds for which calls that may wait are collected after one has run. Each wake-up of the I/O thread takes the
#: processor from other threads, and what it then sends wakes RabbitMQ.
REST = 0.005


@contextmanager
def opened(role: str) -> Iterator[Connection]:
    """Yield an open connection for a few calls, and close it afterwards.

    Raises as `Connection.reach`.
    """
    connection = Connection(role)
    try:
        connection.start()  # Ctrl-C may come as soon as it connects
        connection.reach()
        yield connection
    finally:
        connection.stop()


class Connection(ReconnectingConnection):
    """An AMQP connection of this process.

    The callbacks run on the I/O thread: `on_open` for each new connection, `on_lost` with the reason when one ends,
    `on_change` whenever `usable` may have changed. `generation` counts the connections, so that a delivery tag of an
    old one can be recognized.
    """

    def __init__(
        self,
        role: str,
        *,
        on_open: Callable[[], None] = lambda: None,
        on_lost: Callable[[str], None] = lambda _: None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(role, on_open=on_open, on_lost=on_lost, on_change=on_change)
        self._calls = Calls(self)
        #: What the I/O thread is to call, with whether it may wait; and whether the thread has been woken for that.
        self._due: deque[tuple[Callable[[], None], bool]] = deque()
        self._woken = False
        #: Whether what may wait is being collected.
        self._resting = False
        #: The name of the I/O thread.
        self.thread_name = f"amqp-{role}"
        self._thread = threading.Thread(target=self._run, name=self.thread_name, daemon=True)

    # --- from any thread -----------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start connecting in the background, for ever. Returns at once.

        Raises ThreadNotStarted if the system lets this process start no thread; it may then be called again.
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
    def usable(self) -> bool:
        """Whether it is open and the broker takes messages: it does not during a memory or disk alarm."""
        return self.is_open and not self.blocked

    @property
    def user(self) -> str:
        """The account of the latest attempt."""
        return self._address.user

    @property
    def last_error(self) -> str:
        """Why the latest connection, or attempt to connect, ended; empty while it is open."""
        return str(self.error or "")

    @property
    def refused(self) -> bool:
        """Whether every address refused us: user, password, vhost or an option are wrong. Waiting will not help."""
        return self._attempts.refused

    @property
    def never_reached(self) -> bool:
        """Whether every address was tried and none has let us in so far; `error` says why."""
        return not self.generation and self._attempts.all_failed

    def wait_until_open(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the connection; return whether it is open."""
        return self._opened.wait(timeout)

    def reach(self, given_up: Callable[[], bool] = lambda: False) -> bool:
        """Wait until it is open for the first time, and return True; False once `given_up` returns True.

        Raises BrokerUnavailable if no address lets us in: BrokerRefused if all refused, BrokerSilent if the last did
        not answer in time, LimitReached if it was at a limit.
        """
        while not self.wait_until_open(CHECK_EVERY):
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

    def call_soon(self, function: Callable[[], None], *, may_wait: bool = False) -> None:
        """Run `function` on the I/O thread, soon, after all that was passed before.

        It is woken once for everything that is passed until it has begun: a wake-up costs more than most functions.
        A function that `may_wait` also runs at once, unless another such function ran less than REST ago: then it runs
        at the end of that time, together with all that has come meanwhile.
        """
        # Before the flags are read: the thread looks for it after it has changed them.
        self._due.append((function, may_wait))
        if not self._woken and not (may_wait and self._resting):
            self._wake()

    def call(self, method: str, **arguments: Any) -> Answer:
        """Call one AMQP method that has an answer, such as `queue_declare`, and return the answer.

        Raises OperationRefused, BrokerUnavailable, BrokerSilent, QueueSilent.
        """
        return self._calls.call(method, arguments)

    def reset(self, reason: str) -> None:
        """Give the present connection up as dead, and make a new one."""
        self.call_soon(lambda: self._abandon(reason))

    def hurry(self) -> None:
        """Cut a pause between two attempts down to `FIRST_RECONNECT_DELAY`, because a caller waits. Not once `refused`:
        the next attempt would be refused as well."""
        self.call_soon(self._shorten_pause)

    def succeeded(self) -> None:
        """Note that the broker did real work: the pauses between attempts start small again."""
        self._attempts.succeeded()

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._woken = True
        self._ioloop.add_callback_threadsafe(self._run_due)

    def _run_due(self) -> None:
        self._woken = False
        try:
            for _ in range(len(self._due)):
                function, may_wait = self._due.popleft()
                if may_wait and not self._resting:
                    self._resting = True
                    self._ioloop.call_later(REST, self._rested)
                function()
        except BaseException:
            if self._due and not self._woken:
                self._wake()
            raise

    def _rested(self) -> None:
        self._resting = False
        if self._due and not self._woken:
            self._wake()  # they are not run here: pika forgets the timers that are due together with one that fails

    def _abandon(self, reason: str) -> None:
        self._rested()  # its timer may have been forgotten
        super()._abandon(reason)

    def _lost(self, error: BrokerUnavailable) -> None:
        self._calls.lost(error)
        super()._lost(error)
