"""Sightings: which queues are empty, and until when it is known that all has arrived.

Empty means that no message is ready. One that some process still holds unacknowledged cannot be seen over AMQP: hence
the age of RECONCILE_AFTER, and if such a one is sent again all the same, it carries the same id and attempt, and the
inbox recognises the copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import F, Q
from django.db.models.functions import Least, Now

from messaging import conf, database, topology
from messaging.broker.connection import Connection
from messaging.consumers import Consumer
from messaging.exceptions import BrokerUnavailable, ChannelClosed
from messaging.models import QueueSighting


@dataclass(frozen=True, slots=True)
class Range:
    """The time of publishing within which a consumer's messages are checked: from (None: ever), and before."""

    begin: datetime | None
    end: datetime

    def covers(self, moment: datetime) -> bool:
        """Whether what was published then is to be checked."""
        return (self.begin is None or moment >= self.begin) and moment < self.end


def look(concerned: Sequence[Consumer]) -> None:
    """Note which queues are empty. Raises BrokerUnavailable."""
    queues = [consumer.queue for consumer in concerned]
    with database.atomic():
        QueueSighting.objects.bulk_create([QueueSighting(queue=queue) for queue in queues], ignore_conflicts=True)
        # Before the look: what is published after this may not be in the queue yet.
        QueueSighting.objects.filter(queue__in=queues).update(looked_at=Now())
    with _connection() as connection:
        empty = [queue for queue in queues if _is_empty(connection, queue)]
    with database.atomic():
        QueueSighting.objects.filter(queue__in=empty).update(empty_at=F("looked_at"))


@contextmanager
def _connection() -> Iterator[Connection]:
    connection = Connection("reconcile").start()
    try:
        while not connection.wait_until_open(0.1):
            if connection.never_reached:
                raise BrokerUnavailable(connection.last_error)
        yield connection
    finally:
        connection.stop()


def _is_empty(connection: Connection, queue: str) -> bool:
    try:
        answer = connection.call("queue_declare", queue=queue, passive=True)
    except ChannelClosed as error:
        # One that is gone took its messages along. Of one that this user may not see nobody knows.
        return error.code == topology.NOT_FOUND
    return not answer.method.message_count


def ranges(concerned: Sequence[Consumer], since: timedelta | None) -> dict[str, Range]:
    """Return what is to be checked for each consumer; nothing for one whose queue was never seen empty."""
    by_queue = {consumer.queue: consumer.name for consumer in concerned}
    sightings = QueueSighting.objects.filter(queue__in=by_queue, empty_at__isnull=False).annotate(
        end=Least("empty_at", database.in_future(-conf.get().reconcile_after)),
        begin=F("checked_until") if since is None else database.in_future(-since.total_seconds()),
    )
    with database.atomic():
        return {by_queue[each.queue]: Range(each.begin, each.end) for each in sightings}


def remember(concerned: Sequence[Consumer], ranges: Mapping[str, Range], lost_since: datetime | None) -> None:
    """Note until when all is accounted for: up to the first message that is lost still, published at `lost_since`."""
    for consumer in concerned:
        if consumer.name not in ranges:
            continue
        end = ranges[consumer.name].end
        until = min(end, lost_since or end)
        later = Q(checked_until=None) | Q(checked_until__lt=until)
        with database.atomic():
            QueueSighting.objects.filter(later, queue=consumer.queue).update(checked_until=until)
