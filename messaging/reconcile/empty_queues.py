"""When a consumer's queue was seen empty, and until when all that was published for it has arrived.

Empty means that no message is ready for delivery. Seeing that once proves nothing: a passive declaration does not count
unacknowledged messages, and RabbitMQ reports 0 for a quorum queue whose leader does not answer within a quarter of a
second (`rabbit_quorum_queue:stat`). So a queue counts as empty at a time that is at least as long ago as a consumer may
take for one message, and only if it is empty again now: every message that was in it then has been delivered, and its
consumer has had the time to write an inbox row.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta

from django.db.models import Q

from messaging import conf, database
from messaging.broker.connection import opened
from messaging.broker.queue_answers import QueueAnswer, ask_queues, is_missing
from messaging.consumers import Consumer
from messaging.logs import get_logger
from messaging.models import EmptyQueue
from messaging.topology import desired

log = get_logger(__name__)

#: How often a queue that is not empty is asked, and the seconds in between: a busy one is empty for moments only.
TRIES = 5
PAUSE = 0.1
#: About how many times are kept while they are too recent to count.
KEPT = 4


def look(concerned: Sequence[Consumer]) -> tuple[dict[str, str], dict[str, EmptyQueue]]:
    """Note which queues are empty. Return, by consumer, why its queue counts as existing without answering, so that
    what it holds cannot be known; and what is known of those that are empty. A missing one is empty.

    Raises BrokerUnavailable.
    """
    silent: dict[str, str] = {}
    seen: dict[str, EmptyQueue] = {}
    quorum = {each.queue for each in concerned if desired.queue_arguments(each)["x-queue-type"] == "quorum"}
    with opened("reconcile") as connection:
        for left in reversed(range(TRIES)):
            # The time first: what is published after it may not be in the queue yet.
            at = _now()
            answers = ask_queues(connection, [each.queue for each in concerned], quorum=quorum)
            for each in concerned:
                answer = answers[each.queue]
                if answer.silent:
                    silent[each.name] = answer.silent
                elif _is_empty(each.queue, answer):
                    seen[each.name] = note(each, at)
            concerned = [each for each in concerned if answers[each.queue].ready]
            if not concerned:
                break
            if left:
                time.sleep(PAUSE)
    return silent, seen


def _is_empty(queue: str, answer: QueueAnswer) -> bool:
    if answer.refusal is None:
        return not answer.ready
    # A deleted queue took its messages with it. Of one that this account may not see nothing is known.
    if not is_missing(answer.refusal):
        log.warning("reconcile.queue_not_seen", queue=queue, reason=str(answer.refusal))
    return is_missing(answer.refusal)


def patience(consumer: Consumer) -> timedelta:
    """Return how long the consumer may take for one message before that is missed."""
    settings = conf.get()
    own = consumer.timeout.total_seconds() + conf.HANDLER_GRACE if consumer.timeout else 0.0
    return timedelta(seconds=max(settings.reconcile_after, own))


def remember(consumer: Consumer, until: datetime) -> None:
    """Note that all that was published for the consumer before then has arrived, or was sent again."""
    later = Q(checked_until=None) | Q(checked_until__lt=until)
    with database.atomic():
        EmptyQueue.objects.filter(later, queue=consumer.queue).update(checked_until=until)


def note(consumer: Consumer, at: datetime) -> EmptyQueue:
    """Note that the consumer's queue was empty at this time or soon after; let the newest time count that is long
    enough ago."""
    wait = patience(consumer)
    with database.atomic():
        EmptyQueue.objects.bulk_create([EmptyQueue(queue=consumer.queue)], ignore_conflicts=True)
        known = EmptyQueue.objects.select_for_update().get(queue=consumer.queue)
        times = [datetime.fromisoformat(text) for text in known.young]
        known.empty_at = max((each for each in times if each <= at - wait), default=known.empty_at)
        times = [each for each in times if known.empty_at is None or each > known.empty_at]
        if not times or times[-1] <= at - wait / KEPT:
            times.append(at)
        known.young = [each.isoformat() for each in times]
        known.save(update_fields=["empty_at", "young"])
    return known


def _now() -> datetime:
    with database.atomic():
        return database.now()
