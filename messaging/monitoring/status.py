"""Status: the state of broker, outbox, inbox and effects, and what is wrong. Cheap however large the tables are: each
count uses an index, and stops at COUNTED."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Q, QuerySet
from django.db.models.functions import Now

from messaging import consumers, database
from messaging.broker.connection import Connection, opened
from messaging.broker.management_http import ManagementUnavailable
from messaging.broker.queue_answers import CURE
from messaging.exceptions import BrokerSilent, BrokerUnavailable
from messaging.history.effect_trouble import EffectTrouble
from messaging.models import Effect, InboxMessage, OutboxMessage
from messaging.topology import existing, permissions
from messaging.topology.existing import Queue

#: Rows that are counted at most.
COUNTED = 10_000
#: Seconds after which an unpublished message is wrong: longer than a lease and a reconnect.
OVERDUE = 60.0


@dataclass(frozen=True, slots=True)
class Count:
    """How many, up to COUNTED."""

    number: int

    def __str__(self) -> str:
        return f"over {COUNTED}" if self.number > COUNTED else str(self.number)

    def __bool__(self) -> bool:
        return self.number > 0


@dataclass(slots=True, kw_only=True)
class Broker:
    """The broker: what it is and whether it takes messages."""

    #: Empty if it cannot be reached; then `unreachable` says why.
    server: str = ""
    unreachable: str = ""
    #: It accepted the connection, and did not answer in time.
    silent: bool = False
    #: Alarms that block publishers; empty: none; None: not known.
    alarms: str | None = None
    how: str = ""
    #: Says that this account has no permission there; empty if it has one.
    without_rights: str = ""
    #: Of this project's.
    queues: list[Queue] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Boxes:
    """What is not finished in outbox, inbox and ledger."""

    pending: Count
    unroutable: Count
    failed: Count
    #: When the oldest row that waits to be published was written, and the time now, both by the database's clock.
    oldest: datetime | None
    now: datetime
    #: A message has been due for too long without an attempt to publish it; or with attempts.
    overdue: bool
    unconfirmed: bool
    retrying: Count
    waiting: Count
    dead: Count
    #: Messages whose handler has failed again and again for longer than OVERDUE.
    failing_for_long: Count
    #: Effects, by what is wrong with them.
    effects: dict[EffectTrouble, Count]

    @property
    def oldest_age(self) -> timedelta | None:
        """How long the oldest row has waited to be published."""
        return max(self.now - self.oldest, timedelta(0)) if self.oldest else None


@dataclass(slots=True, kw_only=True)
class Status:
    """All of it, and what is wrong in sentences, worst first."""

    broker: Broker
    boxes: Boxes
    wrong: list[str]


def look() -> Status:
    """Look at broker and database. An unreachable broker is part of the answer; an unreachable database raises."""
    unfinished, there = boxes(), broker()
    return Status(broker=there, boxes=unfinished, wrong=[*wrong_at(there), *wrong_in(unfinished)])


def broker() -> Broker:
    """Look at the broker, on a connection of its own. It takes some seconds if the broker does not answer."""
    try:
        with opened("status") as connection:
            found = _seen(connection)
            found.without_rights = permissions.without_any_permission(connection)
            return found
    except BrokerUnavailable as error:
        return Broker(unreachable=str(error), silent=isinstance(error, BrokerSilent))


def _seen(connection: Connection) -> Broker:
    """Return what the management API shows; where there is none, what AMQP does."""
    try:
        seen, own = existing.Existing(connection), set(existing.own_queue_names())
        queues = [queue for queue in seen.queues() if queue.name in own]
        alarms, how = seen.alarms(), seen.how
        return Broker(server=seen.server(), alarms=alarms, how=how, queues=existing.counted_now(connection, queues))
    except ManagementUnavailable as error:
        return Broker(
            server=connection.server,
            # AMQP tells of an alarm only once it has blocked this connection.
            alarms="publishers wait" if connection.blocked else None,
            how=f"By AMQP alone, which shows only what waits in our own queues: {error}.",
            queues=existing.own_queues(connection),
        )


def boxes() -> Boxes:
    """Count what is not finished in outbox, inbox and ledger."""
    outbox, inbox = OutboxMessage.State, InboxMessage.State
    sent, received = OutboxMessage.objects, InboxMessage.objects
    # One index holds the rows that wait, whatever their state.
    waiting = sent.filter(state__in=[outbox.PENDING, outbox.UNROUTABLE])
    free = Q(lease_until=None) | Q(lease_until__lt=Now())
    with database.atomic():
        long_ago = database.in_future(-OVERDUE)
        due = waiting.filter(free, publish_at__lt=long_ago).order_by("publish_at", "id")
        # Not after the first attempt: that of a retry, which was written earlier, comes late.
        unconfirmed = waiting.filter(state=outbox.PENDING, publish_attempts__gt=1, created_at__lt=long_ago)
        failing = received.filter(~Q(reason=""), state=inbox.RETRYING, received_at__lt=long_ago)
        return Boxes(
            **_by_state(OutboxMessage, outbox.PENDING, outbox.UNROUTABLE, outbox.FAILED),
            **_by_state(InboxMessage, inbox.RETRYING, inbox.WAITING, inbox.DEAD),
            oldest=_oldest(),
            now=database.now(),
            overdue=due.values_list("pk", flat=True).first() is not None,
            unconfirmed=unconfirmed.exists(),
            failing_for_long=counted(failing),
            effects={trouble: counted(Effect.objects.filter(trouble.which)) for trouble in EffectTrouble},
        )


def _oldest() -> datetime | None:
    found = [
        OutboxMessage.objects.filter(state=state).order_by("created_at").values_list("created_at", flat=True).first()
        for state in (OutboxMessage.State.PENDING, OutboxMessage.State.UNROUTABLE)
    ]
    return min((each for each in found if each is not None), default=None)


def _by_state(box: type[OutboxMessage] | type[InboxMessage], *states: str) -> dict[str, Any]:
    """Count the rows in each of these states, by one statement."""
    some = (
        f"(SELECT COUNT(*) FROM (SELECT 1 FROM {box._meta.db_table} WHERE state = %s LIMIT {COUNTED + 1}) AS counted)"  # noqa: S608  (constants only)
    )
    with database.connection().cursor() as cursor:
        cursor.execute(f"SELECT {', '.join([some] * len(states))}", states)
        return {str(state): Count(number) for state, number in zip(states, cursor.fetchone(), strict=True)}


def counted(rows: QuerySet[Any]) -> Count:
    """Count rows, up to COUNTED."""
    return Count(rows.order_by()[: COUNTED + 1].count())


def wrong_at(broker: Broker) -> list[str]:
    """Say what is wrong with the broker and this project's queues."""
    if broker.unreachable:
        return [f"RabbitMQ cannot be reached: {broker.unreachable}"]
    wrong = [broker.without_rights] if broker.without_rights else []
    if broker.alarms:
        wrong.append(f"RabbitMQ blocks publishers: {broker.alarms}")
    there = {queue.name: queue for queue in broker.queues}
    consumed = {each.queue: each.name for each in consumers.registered()}
    names = [*consumed, *sorted(set(there) - set(consumed))]
    return [*wrong, *filter(None, (_wrong_with(name, there.get(name), consumed.get(name, "")) for name in names))]


def _wrong_with(name: str, queue: Queue | None, consumer: str) -> str:
    """Say what is wrong with a queue, of this consumer if one is named; empty if nothing is."""
    if queue is None:
        return f"queue {name} is missing: `manage.py mq topology declare`"
    if queue.silent:
        return f"queue {name} exists but does not answer ({queue.silent.rstrip('.')}): {CURE}"
    if consumer and queue.type == "stream":
        return (
            f"queue {name} is a stream, from which consumer {consumer} misses what comes while it does not run: give "
            "it another queue, or delete the stream"
        )
    if queue.consumers == 0 and (consumer or queue.ready):
        cure = f": `manage.py run_consumer {consumer}`" if consumer else ""
        return f"queue {name} has no consumer (waiting messages: {queue.ready or 0}){cure}"
    return ""


def wrong_in(boxes: Boxes) -> list[str]:
    """Say what is wrong in outbox, inbox and ledger."""
    listing = "`manage.py messages list"
    wrong = []
    if boxes.overdue:
        wrong.append("messages in the outbox have been due for over a minute: does a relay run?")
    elif boxes.unconfirmed:
        wrong.append(
            f"RabbitMQ has not confirmed for over a minute what was sent to it: {listing} --state pending` says why"
        )
    cures = {
        EffectTrouble.UNKNOWN: f"{listing} --state unknown`, then settle",
        EffectTrouble.FAILED: f"{listing} --groups` says why, then settle",
        EffectTrouble.FAILING: f"{listing} --groups` says why",
        EffectTrouble.OVERDUE: "do their consumers run and keep up? `manage.py messages reconcile` names them",
    }
    found = [
        ("refused by RabbitMQ", boxes.failed, f"{listing} --state failed`"),
        ("unroutable", boxes.unroutable, f"{listing} --state unroutable`"),
        ("dead", boxes.dead, f"{listing} --groups`, then replay or discard"),
        ("failing for over a minute", boxes.failing_for_long, f"{listing} --state retrying` says why"),
        *((f"effects that {trouble.words}", boxes.effects[trouble], cure) for trouble, cure in cures.items()),
    ]
    return [*wrong, *(f"{what}: {count}; {cure}" for what, count, cure in found if count)]
