"""Reconcile: the database knows which consumer should have received which message. What did not arrive is found, and
sent again.

This closes every hole on the broker's side: a purged or deleted queue, a message removed by hand, a broker that lost
its data. It is cheap however much there is: for each queue it is remembered until when everything has arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from messaging import conf, consumers, database, outbox
from messaging.actions import audit
from messaging.actions.action import pages
from messaging.actions.selection import counted
from messaging.broker.queue_answers import CURE
from messaging.consumers import Consumer
from messaging.exceptions import UnknownConsumer
from messaging.logs import get_logger
from messaging.models import EmptyQueue, OutboxMessage
from messaging.reconcile import empty_queues, lost
from messaging.reconcile.findings import Finding, Trouble
from messaging.reconcile.lost import Comparison
from messaging.reconcile.stuck import doubled, stuck

log = get_logger(__name__)

#: How far back messages that were handled twice are looked for, by default.
LATELY = timedelta(days=1)


@dataclass(slots=True, kw_only=True)
class Report:
    """What was found (of lost messages, up to one more than may be sent again), and how many were sent again."""

    findings: list[Finding] = field(default_factory=list)
    sent_again: int = 0
    #: Consumers whose queue exists and does not answer, and why that is thought.
    unresponsive: dict[str, str] = field(default_factory=dict)
    #: Consumers of which it is not known yet whether something is lost, and why.
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
        return len(self.findings) == self.sent_again and not self.unresponsive


def reconcile(
    *,
    repair: bool,
    by: str,
    names: Collection[str] = (),
    since: timedelta | None = None,
    earlier: bool = False,
    limit: int | None = None,
    lately: timedelta = LATELY,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Find lost, doubled and stuck messages; with `repair` send up to `limit` lost ones again.

    `names` are the consumers to check (all). With `since`, what was published within that time is checked once more.
    With `earlier`, a consumer is also given what was published before it existed, within that time. Messages handled
    twice are looked for among those handled `lately`. Each message is sent to its consumer's queue alone, once per
    RECONCILE_INTERVAL, and audited as done by `by`. Several may run at once. `progress` is told in words how far it has
    come.

    Raises BrokerUnavailable, UnknownConsumer, and ValueError for `earlier` without `since`.
    """
    if earlier and since is None:
        raise ValueError("earlier needs since: how far back")
    concerned = consumers.named(names) if names else consumers.registered()
    if broadcasts := [each.name for each in concerned if each.broadcast]:
        raise UnknownConsumer(f"{broadcasts[0]!r} is a broadcast: what its processes received is not recorded.")
    report = Report()
    progress("Looking at the queues")
    report.unresponsive, seen = empty_queues.look(concerned)
    limit = conf.RECONCILE_LIMIT if limit is None else limit
    for consumer in concerned:
        progress(f"Comparing the messages of {consumer.name}")
        compared = _compare(report, consumer, seen.get(consumer.name), since, limit + 1)
        missing = [*compared.lost, *lost.without_a_carrier(consumer, limit + 1)]
        if earlier and since is not None:
            missing += lost.earlier(consumer, since, limit + 1)
        can_go = [finding for finding in missing if finding.trouble is Trouble.LOST]
        go = can_go[: limit - report.sent_again] if repair else []
        report.sent_again += len(sent := _send_again(consumer, go, by, progress))
        # What has arrived in the meantime, or was sent again by another process, is not lost.
        report.findings += [finding for finding in missing if finding not in go or finding in sent]
        if left := [finding for finding in compared.lost if finding not in go]:
            compared.stop_before(left[0].since)
        if compared.until is not None:
            empty_queues.remember(consumer, compared.until)
    progress("Looking for doubled and stuck messages")
    report.findings += [*doubled(lately), *stuck(concerned)]
    counts = {trouble.value: len(report.of(trouble)) for trouble in Trouble}
    say = log.info if report.is_well else log.warning
    say("messages.reconciled", sent_again=report.sent_again, **counts)
    return report


def _compare(
    report: Report, consumer: Consumer, seen: EmptyQueue | None, since: timedelta | None, limit: int
) -> Comparison:
    """Compare the consumer's messages with its inbox; if that is not possible yet, note why."""
    if consumer.name in report.unresponsive:
        report.undecided[consumer.name] = f"queue {consumer.queue} exists but does not answer: {CURE}"
        return Comparison()
    if seen is None:
        report.undecided[consumer.name] = f"queue {consumer.queue} is not empty"
        return Comparison()
    if seen.empty_at is None:
        wait = empty_queues.patience(consumer).total_seconds()
        report.undecided[consumer.name] = f"queue {consumer.queue} must be seen empty once more, after {wait:g} s"
        return Comparison()
    begin = seen.checked_until
    if since is not None:
        with database.atomic():
            begin = database.now() - since
    compared = lost.compare(consumer, begin, seen.empty_at, limit)
    if compared.still_arriving and compared.lost:
        report.undecided[consumer.name] = f"what was in queue {consumer.queue} is still arriving"
        # What has just arrived is looked at again, too: it is the sign that others are on their way.
        compared.stop_before(min(compared.still_arriving, compared.lost[0].since))
        compared.lost.clear()
    return compared


def _send_again(
    consumer: Consumer, findings: Sequence[Finding], by: str, progress: Callable[[str], None]
) -> list[Finding]:
    """Send these again, unless they arrived or were sent again in the meantime; return those sent."""
    sent: list[Finding] = []
    for page in pages(findings):
        with database.one_of_many():
            database.lock_key("reconcile", consumer.name)
            rows = lost.still_lost(consumer, page)
            outbox.resend(*rows, consumer=consumer.name, queue=consumer.queue, origin=OutboxMessage.Origin.RECONCILE)
            if ids := [row.message_id for row in rows]:
                audit.record(audit.RECONCILE, actor=by, about=f"lost to {consumer.name}", message_ids=ids)
        sent += [finding for finding in page if finding.row in rows]
        progress(f"{len(sent)} of {counted(len(findings), 'message')} sent to {consumer.name} again")
    for finding in sent:
        log.warning("message.sent_again", message_id=finding.message_id, consumer=consumer.name, why=finding.why)
    return sent
