"""Reconcile: the database knows who should have received what. What did not arrive is named, and sent again.

It closes every hole on the broker's side: a purged or deleted queue, a message removed by hand, a broker that lost its
data. Looking is cheap however much there is: for each queue it is remembered until when all is accounted for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from messaging import conf, consumers, database, outbox
from messaging.models import InboxMessage, OutboxMessage, QueueSighting
from messaging.operations import audit, sightings
from messaging.operations.findings import Finding, Trouble
from messaging.operations.lost import lost, on_their_way, without_a_carrier
from messaging.operations.pages import pages
from messaging.operations.stuck import doubled, stuck

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Report:
    """What was found (of lost messages, up to one more than may be sent again), and how many were sent again."""

    findings: list[Finding] = field(default_factory=list)
    sent_again: int = 0
    #: Lost messages that were left for the next time.
    left: int = 0

    def of(self, trouble: Trouble) -> list[Finding]:
        """Return the findings of one kind."""
        return [finding for finding in self.findings if finding.trouble is trouble]

    @property
    def is_well(self) -> bool:
        """Whether nothing is left that a person should look at."""
        return len(self.findings) == self.sent_again


def reconcile(
    *,
    repair: bool,
    by: str,
    names: Collection[str] = (),
    since: timedelta | None = None,
    earlier: bool = False,
    limit: int | None = None,
) -> Report:
    """Look for lost, doubled and stuck messages; with `repair` send up to `limit` lost ones again.

    `names` are the consumers to look after (all). With `since` what was published within that time is checked once
    more, whatever is accounted for. With `earlier` a consumer is also given what was published before it was there.
    Each is sent to that consumer's queue alone, once per RECONCILE_INTERVAL, and audited as done by `by`.

    Raises BrokerUnavailable, UnknownConsumer.
    """
    concerned = consumers.named(names) if names else consumers.registered()
    sightings.look(concerned)
    ranges = sightings.ranges(concerned, since)
    limit = conf.get().reconcile_limit if limit is None else limit
    missing, coming_since = _first(lost(concerned, ranges, earlier=earlier), limit + 1)
    gone = list(without_a_carrier(concerned))
    report = Report(findings=[*missing, *gone, *doubled(), *stuck(concerned)])
    if repair:
        for page in pages([*missing, *(finding for finding in gone if finding.trouble is Trouble.LOST)][:limit]):
            report.sent_again += _send_again(page, by)
    report.left = len(report.of(Trouble.LOST)) - report.sent_again
    not_there_yet = [finding.since for finding in (missing[limit:] if repair else missing)]
    # In the order of publishing: before the first that is not there yet, all is accounted for.
    sightings.remember(concerned, ranges, min([*coming_since, *not_there_yet], default=None))
    log.info(
        "messages.reconciled",
        lost=len(report.of(Trouble.LOST)),
        sent_again=report.sent_again,
        doubled=len(report.of(Trouble.DOUBLED)),
        stuck=len(report.of(Trouble.STUCK)),
    )
    return report


def _first(findings: Iterator[Finding], number: int) -> tuple[list[Finding], list[datetime]]:
    """Return so many that are lost, and the time of the first that is coming, if there is one before them. After a
    broker lost its data there may be millions of either."""
    missing: list[Finding] = []
    coming_since: list[datetime] = []
    for finding in findings:
        if finding.trouble is Trouble.COMING:
            coming_since = coming_since or [finding.since]
        else:
            missing.append(finding)
            if len(missing) == number:
                break
    return missing, coming_since


def _send_again(findings: Sequence[Finding], by: str) -> int:
    with database.one_of_many():
        # Of two who reconcile at once the second sees what the first has sent.
        queues = {consumers.get(finding.consumer).queue for finding in findings}
        list(QueueSighting.objects.filter(queue__in=queues).order_by("pk").select_for_update())
        coming = set(on_their_way([finding.message_id for finding in findings]))
        mine = [finding for finding in findings if (finding.consumer, finding.message_id) not in coming]
        outbox.write(list(_copies(mine)))
        audit.record(
            audit.Action.RECONCILE,
            actor=by,
            about="lost messages",
            message_ids=[finding.message_id for finding in mine],
            changed=len(mine),
        )
    for finding in mine:
        log.warning("message.sent_again", message_id=finding.message_id, consumer=finding.consumer, why=finding.why)
    return len(mine)


def _copies(findings: Sequence[Finding]) -> Iterator[OutboxMessage]:
    """Yield an outbox row for each: the same message and attempt, for its consumer's queue alone."""
    published = OutboxMessage.objects.in_bulk([finding.outbox_id for finding in findings if finding.outbox_id])
    received = InboxMessage.objects.in_bulk([finding.inbox_id for finding in findings if finding.inbox_id])
    for finding in findings:
        queue = consumers.get(finding.consumer).queue
        if finding.inbox_id is not None:
            yield outbox.again(received[finding.inbox_id], queue, OutboxMessage.Origin.RECONCILE)
        elif finding.outbox_id is not None:
            row = published[finding.outbox_id]
            yield OutboxMessage(
                message_id=row.message_id,
                type=row.type,
                version=row.version,
                subject=row.subject,
                correlation_id=row.correlation_id,
                exchange="",
                routing_key=queue,
                consumer=finding.consumer,
                attempt=row.attempt,
                origin=OutboxMessage.Origin.RECONCILE,
                ordering_key=row.ordering_key,
                position=(row.position or row.pk) if row.ordering_key else None,
                body=row.body,
                headers=row.headers,
            )
