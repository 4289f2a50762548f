"""Reconcile: the database knows who should have received what. What did not arrive is named, and sent again.

It closes every hole on the broker's side: a purged or deleted queue, a message removed by hand, a broker that lost its
data. Looking is cheap however much there is: for each queue it is remembered until when all is accounted for.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from messaging import conf, consumers, database, outbox
from messaging.actions import audit
from messaging.actions.action import pages
from messaging.broker.queue_answers import CURE
from messaging.consumers import Consumer
from messaging.exceptions import UnknownConsumer
from messaging.logs import get_logger
from messaging.models import InboxMessage, OutboxMessage, QueueSighting
from messaging.reconcile import empty_queues as sightings
from messaging.reconcile import lost
from messaging.reconcile.findings import Finding, Trouble
from messaging.reconcile.lost import Account
from messaging.reconcile.stuck import doubled, stuck

log = get_logger(__name__)

#: How far back is looked for messages that were handled twice, unless told otherwise.
LATELY = timedelta(days=1)


@dataclass(slots=True, kw_only=True)
class Report:
    """What was found (of lost messages, up to one more than may be sent again), and how many were sent again."""

    findings: list[Finding] = field(default_factory=list)
    sent_again: int = 0
    #: Consumers whose queue exists and does not answer, and why that is thought.
    silent: dict[str, str] = field(default_factory=dict)
    #: Consumers of which it cannot be said yet whether something is lost, and why.
    undecided: dict[str, str] = field(default_factory=dict)

    def of(self, trouble: Trouble) -> list[Finding]:
        """Return the findings of one kind."""
        return [finding for finding in self.findings if finding.trouble is trouble]

    @property
    def left(self) -> int:
        """How many lost messages were left for the next time."""
        return len(self.of(Trouble.LOST)) - self.sent_again

    @property
    def is_well(self) -> bool:
        """Whether nothing is left that a person should look at."""
        return len(self.findings) == self.sent_again and not self.silent


def reconcile(
    *,
    repair: bool,
    by: str,
    names: Collection[str] = (),
    since: timedelta | None = None,
    earlier: bool = False,
    limit: int | None = None,
    lately: timedelta = LATELY,
) -> Report:
    """Look for lost, doubled and stuck messages; with `repair` send up to `limit` lost ones again.

    `names` are the consumers to look after (all). With `since` what was published within that time is checked once
    more, whatever is accounted for. With `earlier` a consumer is also given what was published before it was there,
    within that time. What was handled twice is looked for among what was handled `lately`. Each message is sent to its
    consumer's queue alone, once per RECONCILE_INTERVAL, and audited as done by `by`. May be called at any time, also
    by several at once.

    Raises BrokerUnavailable, UnknownConsumer, and ValueError for `earlier` without `since`.
    """
    if earlier and since is None:
        raise ValueError("earlier needs since: how far back")
    concerned = consumers.named(names) if names else consumers.registered()
    if broadcasts := [each.name for each in concerned if each.broadcast]:
        raise UnknownConsumer(f"{broadcasts[0]!r} is a broadcast: nobody remembers what its processes got.")
    silent = sightings.silent(concerned)
    seen = sightings.look([each for each in concerned if each.name not in silent])
    limit = conf.get().reconcile_limit if limit is None else limit
    report = Report(silent=silent)
    for consumer in concerned:
        account = _account(report, consumer, seen.get(consumer.name), since, limit + 1)
        missing = [*account.lost, *lost.without_a_carrier(consumer, limit + 1)]
        if earlier and since is not None:
            missing += lost.earlier(consumer, since, limit + 1)
        can_go = [finding for finding in missing if finding.trouble is Trouble.LOST]
        go = can_go[: limit - report.sent_again] if repair else []
        report.sent_again += len(sent := _send_again(consumer, go, by))
        # What has come in the meantime, or was sent by somebody else, is not lost.
        report.findings += [finding for finding in missing if finding not in go or finding in sent]
        if left := [finding for finding in account.lost if finding not in go]:
            account.stop_before(left[0].since)
        if account.until is not None:
            sightings.remember(consumer, account.until)
    report.findings += [*doubled(lately), *stuck(concerned)]
    say = log.info if report.is_well else log.warning
    say(
        "messages.reconciled",
        lost=len(report.of(Trouble.LOST)),
        sent_again=report.sent_again,
        doubled=len(report.of(Trouble.DOUBLED)),
        stuck=len(report.of(Trouble.STUCK)),
    )
    return report


def _account(
    report: Report, consumer: Consumer, seen: QueueSighting | None, since: timedelta | None, limit: int
) -> Account:
    """Return what became of the consumer's messages; where that cannot be said yet, note why."""
    wait = sightings.patience(consumer).total_seconds()
    if consumer.name in report.silent:
        report.undecided[consumer.name] = f"queue {consumer.queue} exists but does not answer: {CURE}"
        return Account()
    if seen is None:
        report.undecided[consumer.name] = f"queue {consumer.queue} is not empty"
        return Account()
    if seen.empty_at is None:
        report.undecided[consumer.name] = f"queue {consumer.queue} must be seen empty once more, after {wait:g} s"
        return Account()
    begin = seen.checked_until
    if since is not None:
        with database.atomic():
            begin = database.now() - since
    account = lost.look_through(consumer, begin, seen.empty_at, limit)
    if account.still_arriving and account.lost:
        report.undecided[consumer.name] = f"what was in queue {consumer.queue} is still arriving"
        account.stop_before(account.lost[0].since)
        account.lost.clear()
    return account


def _send_again(consumer: Consumer, findings: Sequence[Finding], by: str) -> list[Finding]:
    """Send these again, unless they have come, or somebody has sent them, in the meantime; return those sent."""
    sent: list[Finding] = []
    for page in pages(findings):
        with database.one_of_many():
            database.take_turns("reconcile", consumer.name)
            mine = lost.still_lost(consumer, page)
            outbox.resend(
                *_rows(mine), consumer=consumer.name, queue=consumer.queue, origin=OutboxMessage.Origin.RECONCILE
            )
            ids = [finding.message_id for finding in mine]
            if ids:
                audit.record(audit.RECONCILE, actor=by, about=f"lost to {consumer.name}", message_ids=ids)
        sent += mine
    for finding in sent:
        log.warning("message.sent_again", message_id=finding.message_id, consumer=consumer.name, why=finding.why)
    return sent


def _rows(findings: Sequence[Finding]) -> list[OutboxMessage | InboxMessage]:
    """Return what is stored of each message: its inbox row at the consumer, else its outbox row."""
    published = OutboxMessage.objects.in_bulk([finding.outbox_id for finding in findings if finding.outbox_id])
    received = InboxMessage.objects.in_bulk([finding.inbox_id for finding in findings if finding.inbox_id])
    return [
        received[finding.inbox_id] if finding.inbox_id else published[finding.outbox_id]
        for finding in findings
        if finding.inbox_id or finding.outbox_id
    ]
