"""Private queue: the deliveries of an exchange to this process alone, for as long as it listens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pika
from pika.channel import Channel

from messaging.broker.connection import Connection
from messaging.broker.subscription import Arrival, Subscription
from messaging.routing import Binding

#: Said outright: a virtual host may have another kind for its default, and no other can be exclusive.
ARGUMENTS = {"x-queue-type": "classic"}


class PrivateQueue(Subscription):
    """A queue that the broker names, that nobody else may use, and that goes with its channel or connection.

    `bindings` say what it gets; the queue that they name is of no account. Opened again it is another queue: what was
    published in between did not come here. An exchange that is not there ends it, as a deleted queue does.
    """

    def __init__(
        self,
        connection: Connection,
        bindings: Sequence[Binding],
        *,
        prefetch: int,
        on_arrival: Callable[[Arrival], None],
        on_ended: Callable[[str], None],
        auto_ack: bool = False,
    ) -> None:
        super().__init__(connection, "", prefetch=prefetch, on_arrival=on_arrival, on_ended=on_ended, auto_ack=auto_ack)
        self._bindings = bindings

    def bind_again(self) -> None:
        """Ask for the bindings once more, which were lost if an exchange was deleted and declared anew: nobody else may
        bind this queue. Returns at once."""
        self._connection.call_soon(self._bind_again)

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def _bind_again(self) -> None:
        if self.consuming and self._channel is not None and self._channel.is_open:
            self._bind(self._channel)

    def _begin(self, channel: Channel) -> None:
        self.queue = ""
        channel.queue_declare(
            "", exclusive=True, auto_delete=True, arguments=ARGUMENTS, callback=partial(self._declared, channel)
        )

    def _declared(self, channel: Channel, answer: pika.frame.Method) -> None:
        if not self.active:
            channel.close()  # cancelled meanwhile
            return
        self.queue = answer.method.queue
        # The broker does one after the other: it consumes once all are bound.
        self._bind(channel)
        super()._begin(channel)

    def _bind(self, channel: Channel) -> None:
        for binding in self._bindings:
            channel.queue_bind(self.queue, binding.exchange, binding.key, arguments=dict(binding.arguments))
