"""Status: one look at everything, what is wrong first. Cheap however large the tables are: each count is led by an
index, and stops at COUNTED."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

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

#: Rows that are counted at most: beyond, how many more there are tells nobody anything new.
COUNTED = 10_000
#: Seconds after which something that nobody publishes is wrong: longer than a lease and a reconnect.
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

    #: Empty where it cannot be reached; then `unreachable` says why.
    server: str = ""
    unreachable: str = ""
    #: Somebody is there, and did not answer in time.
    silent: bool = False
    #: Which alarms keep publishers waiting; empty: none. None: nobody can tell.
    alarms: str | None = None
    how: str = ""
    #: In words that this account may do nothing there; empty where it may.
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
    #: Something has been due for too long, and nobody has tried to publish it; somebody has tried for too long.
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
    """All of it, and in words what is wrong, worst first."""

    broker: Broker
    boxes: Boxes
    wrong: list[str]


def look() -> Status:
    """Look at broker and database. A broker out of reach is part of the answer.

    Raises OperationalError and the like where the database cannot be asked.
    """
    boxes = _boxes()
    broker = _broker()
    return Status(broker=broker, boxes=boxes, wrong=[*_wrong_at(broker), *_wrong_in(boxes)])


def _broker() -> Broker:
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
            alarms="publishers are kept waiting" if connection.blocked else None,
            how=f"By AMQP alone, which shows only what waits in our own queues: {error}.",
            queues=existing.own_queues(connection),
        )


def _boxes() -> Boxes:
    outbox, inbox = OutboxMessage.State, InboxMessage.State
    # All that waits, whatever its state, stands in one index.
    waiting = OutboxMessage.objects.filter(state__in=[outbox.PENDING, outbox.UNROUTABLE])
    free = Q(lease_until=None) | Q(lease_until__lt=Now())
    with database.atomic():
        due = waiting.filter(free, publish_at__lt=database.in_future(-OVERDUE)).order_by("publish_at", "id")
        return Boxes(
            pending=_count(OutboxMessage.objects.filter(state=outbox.PENDING)),
            unroutable=_count(OutboxMessage.objects.filter(state=outbox.UNROUTABLE)),
            failed=_count(OutboxMessage.objects.filter(state=outbox.FAILED)),
            oldest=_oldest(),
            now=database.now(),
            overdue=due.values_list("pk", flat=True).first() is not None,
            # Not by the first try: a retry that was written long ago has its first one late.
            unconfirmed=waiting.filter(
                state=outbox.PENDING, publish_attempts__gt=1, created_at__lt=database.in_future(-OVERDUE)
            ).exists(),
            retrying=_count(InboxMessage.objects.filter(state=inbox.RETRYING)),
            waiting=_count(InboxMessage.objects.filter(state=inbox.WAITING)),
            dead=_count(InboxMessage.objects.filter(state=inbox.DEAD)),
            failing_for_long=_count(
                InboxMessage.objects.filter(
                    ~Q(reason=""), state=inbox.RETRYING, received_at__lt=database.in_future(-OVERDUE)
                )
            ),
            effects={trouble: _count(Effect.objects.filter(trouble.which)) for trouble in EffectTrouble},
        )


def _oldest() -> datetime | None:
    found = [
        OutboxMessage.objects.filter(state=state).order_by("created_at").values_list("created_at", flat=True).first()
        for state in (OutboxMessage.State.PENDING, OutboxMessage.State.UNROUTABLE)
    ]
    return min((each for each in found if each is not None), default=None)


def _count(rows: QuerySet[OutboxMessage] | QuerySet[InboxMessage] | QuerySet[Effect]) -> Count:
    return Count(rows.order_by()[: COUNTED + 1].count())


def _wrong_at(broker: Broker) -> list[str]:
    if broker.unreachable:
        return [f"RabbitMQ cannot be reached: {broker.unreachable}"]
    wrong = [broker.without_rights] if broker.without_rights else []
    if broker.alarms:
        wrong.append(f"RabbitMQ keeps publishers waiting: {broker.alarms}")
    there = {queue.name: queue for queue in broker.queues}
    for consumer in consumers.registered():
        queue = there.get(consumer.queue)
        if queue is None:
            wrong.append(f"queue {consumer.queue} is not there: `manage.py mq topology declare`")
        elif queue.silent:
            wrong.append(f"queue {queue.name} exists but does not answer ({queue.silent.rstrip('.')}): {CURE}")
        elif queue.type == "stream":
            wrong.append(
                f"queue {queue.name} is a stream, from which consumer {consumer.name} misses what comes while it does "
                "not run: give it another queue, or delete the stream"
            )
        elif queue.consumers == 0:
            cure = f"`manage.py run_consumer {consumer.name}`"
            wrong.append(f"nobody consumes {queue.name}, {queue.ready or 0} wait: {cure}")
    others = set(there) - {each.queue for each in consumers.registered()}
    for name in sorted(others):
        if there[name].silent:
            wrong.append(f"queue {name} exists but does not answer ({there[name].silent.rstrip('.')}): {CURE}")
        elif there[name].consumers == 0 and there[name].ready:
            wrong.append(f"nobody consumes {name}, {there[name].ready} wait")
    return wrong


_CURES = {
    EffectTrouble.UNKNOWN: "`manage.py messages list --state unknown`, then settle",
    EffectTrouble.FAILED: "`manage.py messages list --groups` says why, then settle",
    EffectTrouble.FAILING: "`manage.py messages list --groups` says why",
    EffectTrouble.OVERDUE: "do their consumers run, and can they keep up? `manage.py messages reconcile` names them",
}


def _wrong_in(boxes: Boxes) -> list[str]:
    found = [
        ("refused by the broker", boxes.failed, "`manage.py messages list --state failed`"),
        ("unroutable", boxes.unroutable, "`manage.py messages list --state unroutable`"),
        ("dead", boxes.dead, "`manage.py messages list --groups`, then replay or discard"),
        (
            "failing for over a minute",
            boxes.failing_for_long,
            "`manage.py messages list --state retrying` says why",
        ),
        *((f"effects that {trouble.words}", boxes.effects[trouble], _CURES[trouble]) for trouble in EffectTrouble),
    ]
    outbox = [
        (boxes.overdue, "what is in the outbox has been due for over a minute: does a relay run?"),
        (
            boxes.unconfirmed and not boxes.overdue,
            "the broker has not confirmed for over a minute what was sent to it: "
            "`manage.py messages list --state pending` says why",
        ),
    ]
    return [
        *(said for is_so, said in outbox if is_so),
        *(f"{what}: {count}; {cure}" for what, count, cure in found if count),
    ]
