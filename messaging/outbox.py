"""The outbox: an event is written in the transaction it reports, so that both happen or neither."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.asyncio import async_unsafe

from messaging import conf, database
from messaging.consumers import MAX_PRIORITY, exchange_of
from messaging.encoding import checked_body, routing_headers_of, routing_key_of
from messaging.events import Event
from messaging.exceptions import BodyTooLarge, OutsideTransaction
from messaging.headers import fit_headers, headers_to_pass_on, request_headers, size_of
from messaging.message import new_id
from messaging.models import InboxMessage, OutboxMessage
from messaging.models.insert import insert
from messaging.relay import destinations, leases
from messaging.relay import thread as relay_thread
from messaging.routing import MAX_SHORT_STRING
from messaging.validation import callbacks, texts

#: Longest delay of an event. One beyond the calendar could not be stored.
MAX_DELAY = timedelta(days=36_500)


@async_unsafe(
    "outbox.add() writes to the database. In a coroutine put the transaction and outbox.add() into a function, and "
    "write `await sync_to_async(function)(…)`."
)
def add(
    *events: Event,
    subject: str = "",
    correlation_id: str = "",
    ordering_key: str = "",
    priority: int | None = None,
    delay: timedelta | None = None,
    using: str | None = None,
) -> list[OutboxMessage]:
    """Write `events` with the current transaction, in one statement. They are published once it commits.

    `subject` is what they are about (an order number), for people who search. `correlation_id` ties them to
    other messages. `priority`, from 0 to 255, lets them pass those of a lower one in queues that have priorities. With
    `delay` they are published that much later; a negative one means at once.

    Messages with the same `ordering_key` are handled one after the other at each consumer, in the order in which
    their transactions commit; two such transactions therefore wait for each other from here on.

    The outbox is in one database, `messaging.database.alias()` (without a router: "default"). If a transaction of
    another one is open too, say `using="default"` (the outbox's database) if the event reports a change there.

    Raises OutsideTransaction without a transaction to commit with, or if the event may report a change in another
    database; BodyTooLarge over `MAX_BODY_BYTES`; ValueError for anything but an event, and for an argument, routing key
    or header that a database or AMQP would not take, on all databases alike.
    """
    here = database.connection()
    _require_transaction(here)
    _require_own_transaction(here, using)
    subject = texts.checked("subject", subject)
    correlation_id = texts.checked("correlation_id", correlation_id, octets=MAX_SHORT_STRING)
    ordering_key = texts.checked("ordering_key", ordering_key)
    _check_priority(priority)
    _check_delay(delay)
    for event in events:
        if not isinstance(event, Event):
            raise ValueError(f"outbox.add() takes events, each an argument of its own, not {event!r:.60}")
    if ordering_key:
        # The ids of the rows then have the order of the commits.
        database.lock_key("add", ordering_key)
    headers = request_headers()
    rows = [
        OutboxMessage(
            message_id=new_id(),
            type=event.event_type,
            version=event.event_version,
            subject=subject,
            correlation_id=correlation_id,
            exchange=exchange_of(type(event)).name,
            routing_key=routing_key_of(event),
            ordering_key=ordering_key,
            priority=priority,
            body=_checked_body(event),
            headers={**_routing_headers(event), **headers},
        )
        for event in events
    ]
    for row in rows:
        _check_headers_fit(row)
    return write(rows, delay=delay)


def resend(
    *rows: OutboxMessage | InboxMessage,
    consumer: str,
    queue: str,
    origin: OutboxMessage.Origin,
    delay: timedelta | None = None,
    body: bytes | None = None,
) -> list[OutboxMessage]:
    """Write the messages of `rows` once more, to the queue of one consumer alone, each for the attempt of its row.

    `body` is the whole body if the row keeps only its beginning. Raises OutsideTransaction.
    """
    again = []
    for row in rows:
        columns = row.message_columns() | {"headers": headers_to_pass_on(row.headers)}
        if isinstance(row, OutboxMessage):
            columns["position"] = row.place
        again.append(
            OutboxMessage(**columns, routing_key=queue, consumer=consumer, origin=origin, body=body or row.body or b"")
        )
    return write(again, delay=delay)


def write(rows: list[OutboxMessage], *, delay: timedelta | None = None) -> list[OutboxMessage]:
    """Insert `rows` with the current transaction, to be published after it. Raises OutsideTransaction.

    Of a message that is passed on to one consumer, headers that do not fit into a frame of AMQP are left out.
    """
    here = database.connection()
    _require_transaction(here)
    for row in rows:
        if row.consumer and row.headers:
            row.headers = fit_headers(row.headers, destinations.room_for_headers(row))
    if delay is not None and delay > timedelta(0):
        insert(rows, here, publish_at=delay)
        return rows

    token = relay_thread.lease_token()
    if token is None:
        insert(rows, here)
        return rows
    # Born leased to this process: its relay publishes them without a claim. If the process dies first, the lease ends
    # and any relay claims them. Rows that do not fit into the relay's memory are born free.
    handing = _HandingOver(rows, time.monotonic(), before=_waiting_for_commit(here))
    for row in handing.leased:
        row.lease_token = token
    insert(handing.leased, here, lease_until=timedelta(seconds=conf.get().lease))
    insert(rows[len(handing.leased) :], here)
    _at_commit(here, handing)
    return rows


class _HandingOver(callbacks.RaisesNothing):
    """What a transaction hands to this process's relay after its commit: the first of `rows`, as many as fit beside the
    `before` (rows and bytes) of its earlier writes."""

    def __init__(self, rows: Sequence[OutboxMessage], leased_at: float, before: tuple[int, int]) -> None:
        room, room_bytes = relay_thread.room()
        fitting = leases.how_many_fit(rows, room - before[0], room_bytes - before[1])
        self.leased = rows[:fitting]
        self._some_are_free = fitting < len(rows)
        self._leased_at = leased_at
        #: Rows, and bytes of their bodies, that the transaction hands over so far.
        self.total = (before[0] + fitting, before[1] + sum(len(row.body) for row in self.leased))

    def run(self) -> None:
        """Hand them over, and have the relay claim the others."""
        if self.leased:
            relay_thread.hand_over(self.leased, self._leased_at)
        if self._some_are_free:
            relay_thread.wake()


def _waiting_for_commit(here: BaseDatabaseWrapper) -> tuple[int, int]:
    """Return how many rows, and bytes, the transaction will hand over so far; none that a savepoint took back."""
    callbacks, ours = _callbacks(here)
    return callbacks[ours - 1][1].__self__.total if ours else (0, 0)


def _at_commit(here: BaseDatabaseWrapper, handing: _HandingOver) -> None:
    """Register it before the project's callbacks: one of these that fails keeps all later ones from running, and the
    rows would wait until their lease ends."""
    callbacks, ours = _callbacks(here)
    transaction.on_commit(handing.run, using=here.alias, robust=True)
    callbacks.insert(ours, callbacks.pop())


def _callbacks(here: BaseDatabaseWrapper) -> tuple[list[Any], int]:
    """Return the callbacks of the transaction, and how many of them, from the first on, are ours."""
    callbacks: list[Any] = here.run_on_commit
    return callbacks, bisect_left(callbacks, True, key=lambda each: not _is_ours(each[1]))


def _is_ours(callback: Any) -> bool:
    return isinstance(getattr(callback, "__self__", None), _HandingOver)


def _require_transaction(here: BaseDatabaseWrapper) -> None:
    if not database.has_transaction(here):
        raise OutsideTransaction(
            f"outbox.add() must run inside transaction.atomic() of the database {here.alias!r}, together with "
            "the change that the event reports. Otherwise a crash could lose the event, or report a change that was "
            "lost."
        )


def _require_own_transaction(here: BaseDatabaseWrapper, using: str | None) -> None:
    """Raise OutsideTransaction where the event may report a change in a database that the outbox is not in."""
    own = here.alias
    if using == own:
        return
    others = sorted(
        each.alias
        for each in connections.all(initialized_only=True)
        if each.alias != own and database.has_transaction(each)
    )
    if using is not None:
        raise OutsideTransaction(
            f"The outbox is in the database {own!r}, so an event cannot commit together with a change in {using!r}. "
            f"Add the event in a transaction of {own!r}, after the one of {using!r} has committed."
        )
    if others:
        raise OutsideTransaction(
            f"The outbox is in the database {own!r}, and a transaction of {', '.join(map(repr, others))} is open too: "
            "if the event reports a change there, it would be published even where that change is rolled back. "
            f'Add it after that transaction, or, if it reports a change in {own!r}, say outbox.add(..., using="{own}").'
        )


def _checked_body(event: Event) -> bytes:
    body = checked_body(event)
    if len(body) > conf.get().max_body_bytes:
        raise BodyTooLarge(
            f"{event.event_type}: the body has {len(body)} bytes, the limit is {conf.get().max_body_bytes} "
            "(MESSAGING['MAX_BODY_BYTES']). Store the data and send its key."
        )
    return body


def _routing_headers(event: Event) -> dict[str, Any]:
    headers = routing_headers_of(event)
    for name, value in headers.items():
        texts.checked_json(f"{event.event_type}: header {name}", value)
    return headers


def _check_headers_fit(row: OutboxMessage) -> None:
    size, room = size_of(row.headers), destinations.room_for_headers(row)
    if size > room:
        raise ValueError(f"{row.type}: its headers take {size} bytes; AMQP's frame has room for {room}")


def _check_priority(priority: Any) -> None:
    is_number = isinstance(priority, int) and not isinstance(priority, bool)
    if priority is not None and not (is_number and 0 <= priority <= MAX_PRIORITY):
        raise ValueError(f"priority is a whole number from 0 to {MAX_PRIORITY}, not {priority!r:.60}")


def _check_delay(delay: Any) -> None:
    if delay is not None and not (isinstance(delay, timedelta) and delay <= MAX_DELAY):
        raise ValueError(f"delay is a timedelta of at most {MAX_DELAY.days} days, not {delay!r:.60}")
