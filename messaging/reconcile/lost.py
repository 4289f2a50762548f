"""Lost messages: published for a consumer and without a trace in its inbox, though its queue was seen empty since.

An outbox row names the consumers that were registered when it was published: a consumer deployed today does not receive
older messages, unless asked to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db.models import Exists, OuterRef, Q, QuerySet, Subquery

from messaging import conf, database
from messaging.consumers import Consumer
from messaging.models import InboxMessage, OutboxMessage
from messaging.reconcile.empty_queues import patience
from messaging.reconcile.findings import Finding, Trouble

#: Rows that are checked at a time.
PAGE = 1000
_BOXES = (OutboxMessage, InboxMessage)


@dataclass(slots=True)
class Comparison:
    """What was published for one consumer, compared with its inbox."""

    #: In the order of publishing.
    lost: list[Finding] = field(default_factory=list)
    #: All that was published before then has arrived, except what is lost.
    until: datetime | None = None
    #: Messages that were in the queue when that was seen empty have arrived only now: a process still has some. When
    #: the first of them was published.
    still_arriving: datetime | None = None

    def stop_before(self, time: datetime) -> None:
        """Note that what was published at this time has not arrived."""
        # A little earlier: SQLite compares times as texts, and its own have fewer digits than ours.
        before = time - timedelta(milliseconds=1)
        self.until = min(self.until or before, before)


def compare(consumer: Consumer, begin: datetime | None, end: datetime, limit: int) -> Comparison:
    """Compare what was published for the consumer from `begin` (None: ever) and before `end`, in pages, until about
    `limit` lost messages are found."""
    result = Comparison(until=end)
    wait = patience(consumer)
    interval = timedelta(seconds=conf.RECONCILE_INTERVAL)
    addressed = OutboxMessage.objects.filter(Q(consumer=consumer.name) | _is_event_of(consumer))
    for page in _pages(addressed, begin, end):
        # Of a first delivery without a fence there is no trace.
        rows = [row for row in page if row.consumer or (consumer.fenced and consumer.name in row.expected_consumers)]
        traces, newest, now = _known(consumer, [row.message_id for row in rows])
        for row in rows:
            trace = traces.get(row.message_id)
            if row.pk < newest.get(row.message_id, row.pk):
                continue  # a newer row brings the message to this consumer
            if not _is_missing(row, trace):
                if trace is not None and trace.received_at > now - wait:
                    result.still_arriving = result.still_arriving or _published_at(row)
            elif (trace is not None and trace.changed_at > now - wait) or (
                row.origin == OutboxMessage.Origin.RECONCILE and _published_at(row) > now - interval
            ):
                # Its start is noted, and its handler may be running; or it was sent again lately.
                result.stop_before(_published_at(row))
            else:
                why = f"published, attempt {row.attempt} has not come, and queue {consumer.queue} was empty since"
                result.lost.append(_lost(consumer, row, why))
        if len(result.lost) >= limit:
            result.stop_before(_published_at(page[-1]))
            break
    return result


def earlier(consumer: Consumer, since: timedelta, limit: int) -> list[Finding]:
    """Return what was published before the consumer existed, not longer ago than `since`, up to `limit` messages."""
    findings: list[Finding] = []
    if not consumer.fenced:
        return findings  # what it has handled since is not known
    with database.atomic():
        end = database.now()
    events = OutboxMessage.objects.filter(_is_event_of(consumer), origin=OutboxMessage.Origin.EVENT)
    for page in _pages(events, end - since, end):
        rows = [
            row
            for row in page
            if consumer.name not in row.expected_consumers
            and consumer.receives(row.type, row.exchange, row.routing_key, row.headers)
        ]
        traces, newest, _ = _known(consumer, [row.message_id for row in rows])
        for row in rows:
            if row.message_id not in traces and row.message_id not in newest:
                findings.append(_lost(consumer, row, "published before this consumer existed"))
        if len(findings) >= limit:
            break
    return findings[:limit]


def without_a_carrier(consumer: Consumer, limit: int) -> Iterator[Finding]:
    """Yield messages that wait for an attempt that no outbox row has brought or will bring. One whose body was not kept
    whole cannot be sent again: it is stuck."""
    with database.atomic():
        rows = list(_without_a_carrier(consumer).order_by("changed_at", "pk")[:limit])
    for row in rows:
        trouble = Trouble.LOST if row.body is not None and not row.body_truncated else Trouble.STUCK
        why = f"attempt {row.attempt} is expected, and nothing brings it"
        yield Finding(trouble, row, why, since=row.changed_at, consumer=row.consumer)


def still_lost(consumer: Consumer, findings: Sequence[Finding]) -> list[OutboxMessage | InboxMessage]:
    """Return the rows, whole, of those whose message has neither arrived nor been sent again in the meantime."""
    traces, newest, _ = _known(consumer, [finding.message_id for finding in findings])
    named = {model: [each.row.pk for each in findings if isinstance(each.row, model)] for model in _BOXES}
    missing = [
        row
        for row in OutboxMessage.objects.filter(pk__in=named[OutboxMessage]).order_by("pk")
        if row.pk >= newest.get(row.message_id, row.pk) and _is_missing(row, traces.get(row.message_id))
    ]
    return [*missing, *_without_a_carrier(consumer).filter(pk__in=named[InboxMessage])]


def _without_a_carrier(consumer: Consumer) -> QuerySet[InboxMessage]:
    carriers = OutboxMessage.objects.filter(
        Q(consumer=consumer.name) | Q(consumer=""), message_id=OuterRef("message_id"), attempt=OuterRef("attempt")
    )
    return InboxMessage.objects.filter(
        ~Exists(carriers),
        consumer=consumer.name,
        state=InboxMessage.State.RETRYING,
        changed_at__lt=database.in_future(-patience(consumer).total_seconds()),
    )


def _is_missing(row: OutboxMessage, trace: InboxMessage | None) -> bool:
    """Whether the attempt that an outbox row brings has left no trace in the inbox."""
    return trace is None or (trace.state == InboxMessage.State.RETRYING and trace.attempt == row.attempt)


def _known(
    consumer: Consumer, message_ids: Collection[str]
) -> tuple[dict[str, InboxMessage], dict[str, int], datetime]:
    """Return the inbox rows of these messages at the consumer, the newest outbox row that brings each to this consumer
    alone, and the time."""
    with database.atomic():
        inbox = InboxMessage.objects.filter(consumer=consumer.name, message_id__in=message_ids)
        traces = {row.message_id: row for row in inbox.defer("body", "headers")}
        addressed = OutboxMessage.objects.filter(consumer=consumer.name, message_id__in=message_ids)
        newest = dict(addressed.order_by("pk").values_list("message_id", "pk"))
        return traces, newest, database.now()


def _is_event_of(consumer: Consumer) -> Q:
    return Q(consumer="", type__in=[event.event_type for event in consumer.events])


def _pages(rows: QuerySet[OutboxMessage], begin: datetime | None, end: datetime) -> Iterator[list[OutboxMessage]]:
    """Yield the published ones of `rows`, in the order of publishing."""
    rows = rows.filter(state=OutboxMessage.State.PUBLISHED, published_at__lt=end).defer("body")
    beyond = Q(published_at__gte=begin) if begin else Q()
    while True:
        with database.atomic():
            page = list(rows.filter(beyond).order_by("published_at", "pk")[:PAGE])
        if page:
            yield page
        if len(page) < PAGE:
            return
        # The database's own value: an equal time that went through Python would not be equal to SQLite's.
        last = Subquery(OutboxMessage.objects.filter(pk=page[-1].pk).values("published_at"))
        # The first condition is for the index: with the alternatives alone it would be read from its beginning.
        beyond = Q(published_at__gte=last) & (Q(published_at__gt=last) | Q(pk__gt=page[-1].pk))


def _published_at(row: OutboxMessage) -> datetime:
    at: datetime = row.published_at or row.created_at
    return at


def _lost(consumer: Consumer, row: OutboxMessage, why: str) -> Finding:
    return Finding(Trouble.LOST, row, why, since=_published_at(row), consumer=consumer.name)
