"""Sightings: when a consumer's queue was seen empty, and until when it is known that all has arrived.

Empty means that no message is ready to be delivered. One look proves nothing: what a process holds unacknowledged
cannot be seen over AMQP, and RabbitMQ says 0 of a quorum queue, too, whose leader does not answer within a quarter of a
second (so `rabbit_quorum_queue:stat`). Therefore a sighting counts only once it is as old as a consumer may take for
one message, and only while the queue is empty then again: what was in it has been delivered, and whoever got it has had
the time to leave an inbox row.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta

from django.db.models import Q

from messaging import conf, database
from messaging.broker.connection import Connection, opened
from messaging.broker.queue_answers import ask_queues, is_missing
from messaging.consumers import Consumer
from messaging.exceptions import OperationRefused
from messaging.logs import get_logger
from messaging.models import QueueSighting
from messaging.topology import desired

log = get_logger(__name__)

#: Looks at a queue that is not empty, and the seconds between them: a busy one is empty for moments only.
LOOKS = 5
PAUSE = 0.1
#: Sightings that are kept while they are too young to count, at most about.
KEPT = 4


def silent(concerned: Sequence[Consumer]) -> dict[str, str]:
    """Return, by consumer, why its queue counts as existing without answering: what it holds cannot be judged.

    Raises BrokerUnavailable.
    """
    quorum = {each.queue for each in concerned if desired.queue_arguments(each)["x-queue-type"] == "quorum"}
    with opened("reconcile") as connection:
        answers = ask_queues(connection, [each.queue for each in concerned], quorum=quorum)
    return {each.name: answers[each.queue].silent for each in concerned if answers[each.queue].silent}


def look(concerned: Sequence[Consumer]) -> dict[str, QueueSighting]:
    """Note which queues are empty; return, by consumer, what is known of those that are. One that does not exist is
    empty. Raises BrokerUnavailable."""
    with opened("reconcile") as connection:
        # The time first: what is published after it may not be in the queue yet.
        looks = [(consumer, _now(), _is_empty(connection, consumer.queue)) for consumer in concerned]
    return {consumer.name: _note(consumer, seen_at) for consumer, seen_at, empty in looks if empty}


def patience(consumer: Consumer) -> timedelta:
    """Return how long the consumer may take for one message before that is missed."""
    settings = conf.get()
    own = consumer.timeout.total_seconds() + settings.handler_grace if consumer.timeout else 0.0
    return timedelta(seconds=max(settings.reconcile_after, own))


def remember(consumer: Consumer, until: datetime) -> None:
    """Note that all that was published for the consumer before then is accounted for."""
    later = Q(checked_until=None) | Q(checked_until__lt=until)
    with database.atomic():
        QueueSighting.objects.filter(later, queue=consumer.queue).update(checked_until=until)


def _note(consumer: Consumer, seen_at: datetime) -> QueueSighting:
    """Note that the queue was empty at `seen_at` or soon after; let the newest sighting count that is old enough."""
    wait = patience(consumer)
    with database.atomic():
        QueueSighting.objects.bulk_create([QueueSighting(queue=consumer.queue)], ignore_conflicts=True)
        known = QueueSighting.objects.select_for_update().get(queue=consumer.queue)
        seen = [datetime.fromisoformat(text) for text in known.young]
        known.empty_at = max((at for at in seen if at <= seen_at - wait), default=known.empty_at)
        seen = [at for at in seen if known.empty_at is None or at > known.empty_at]
        if not seen or seen[-1] <= seen_at - wait / KEPT:
            seen.append(seen_at)
        known.young = [at.isoformat() for at in seen]
        known.save(update_fields=["empty_at", "young"])
    return known


def _now() -> datetime:
    with database.atomic():
        return database.now()


def _is_empty(connection: Connection, queue: str) -> bool:
    for left in reversed(range(LOOKS)):
        try:
            answer = connection.call("queue_declare", queue=queue, passive=True)
        except OperationRefused as error:
            # One that is gone took its messages along. One whose node is down is not found either, but RabbitMQ says
            # so; of one that this user may not see nobody knows.
            gone = is_missing(error)
            if not gone:
                log.warning("reconcile.queue_not_seen", queue=queue, reason=str(error))
            return gone
        if not answer.messages:
            return True
        if left:
            time.sleep(PAUSE)
    return False
