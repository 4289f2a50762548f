"""The certificate of a chaos run, judged from the database and the gateway's ledger alone.

To be imported once Django is set up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from messaging import consumers
from messaging.models import DeliveryAttempt, Effect, InboxMessage, OutboxMessage
from script.laws import Row, Tables, Where, handled_twice
from script.programs.chaos.naive.models import Handling
from script.programs.chaos.shop_findings import Finding, Shop, Texts, compare_told
from script.programs.chaos.shoppers import Attempt, Outcome
from script.services.sms_gateway import SmsGateway

Inbox = InboxMessage.State
Outbox = OutboxMessage.State


@dataclass(frozen=True)
class Certificate:
    """Counts, and findings, which must all be empty."""

    #: Counts by section.
    counts: Mapping[str, Mapping[str, int]]
    findings: Sequence[Finding]

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found."""
        return not any(finding.found for finding in self.findings)


def still_moving() -> dict[str, int]:
    """Return what will change by itself, by kind; empty at rest. The broker's queues are not looked at."""
    return Tables().moving()


def lost() -> set[Where]:
    """Return the messages that were published and left no trace at a consumer, or not the attempt that it waits for.

    To be asked at rest.
    """
    messages = _Messages()
    return {*messages.lost(), *messages._received(Inbox.RETRYING)}


def judge(
    attempts: Sequence[Attempt],
    gateway: SmsGateway,
    stock_before: Mapping[str, int],
    lost_meanwhile: Sequence[str] = (),
    reconciled_wrongly: Sequence[str] = (),
) -> Certificate:
    """Compare the database and the gateway's ledger with what shoppers were told and what must always be true.

    `lost_meanwhile` names the messages that had to be sent again, `reconciled_wrongly` the mistakes of the command that
    did so.
    """
    ledger = _Messages()
    shop = Shop(stock_before)
    texts = Texts(gateway, shop.orders, ledger.unknown)
    findings = [
        *compare_told(attempts, shop.orders),
        *shop.findings(),
        *ledger.findings({order.number for order in shop.orders}, lost_meanwhile),
        *texts.findings(),
        Finding("reconcile", "what it named and what was lost differ", reconciled_wrongly),
    ]
    outcomes = Counter(attempt.outcome for attempt in attempts)
    counts = {
        "shoppers": {
            "came": len(attempts),
            **{outcome.value: outcomes[outcome] for outcome in Outcome},
            "presses": sum(attempt.presses for attempt in attempts),
        },
        **shop.counts(),
        **ledger.counts(),
        "texts": texts.counts(),
    }
    return Certificate(counts, findings)


class _Messages:
    """Outbox, inbox, delivery attempts and effects."""

    def __init__(self) -> None:
        self.tables = Tables()
        self.events = [row for row in self.tables.outbox if row["origin"] == OutboxMessage.Origin.EVENT]
        #: Ids of messages with an effect that is in doubt.
        self.unknown = {each["message_id"] for each in self._effects(Effect.State.UNKNOWN)}
        #: How often the naive consumer ran, by message.
        self._runs = {("naive", message_id): count for message_id, count in _naive_runs().items()}

    def counts(self) -> dict[str, dict[str, int]]:
        tables = self.tables
        outcomes = sum(tables.outcomes.values(), Counter[str]())
        return {
            "messages": {
                "events": len(self.events),
                "outbox_rows": len(tables.outbox),
                "publish_attempts": sum(row["publish_attempts"] for row in tables.outbox),
                "handled": len(self._received(Inbox.HANDLED)),
            },
            "handlers": {
                "failures": outcomes[DeliveryAttempt.Outcome.FAILED],
                "crashes": outcomes[DeliveryAttempt.Outcome.CRASHED],
            },
            "effects": {
                "intended": len(tables.effects),
                "attempts": sum(effect["attempts"] for effect in tables.effects),
            },
        }

    def findings(self, numbers: set[str], lost_meanwhile: Sequence[str]) -> list[Finding]:
        tables = self.tables
        handled = {where: tried[DeliveryAttempt.Outcome.HANDLED] for where, tried in tables.outcomes.items()}
        twice = handled_twice(handled) + handled_twice(self._runs)
        unasked = sorted({row["subject"] for row in self.events} - numbers)
        failed = [f"{each['name']} of {each['message_id']}" for each in self._effects(Effect.State.FAILED)]
        unhandled = tables.handled_without_a_run(self._runs, ["naive"])
        return [
            Finding("events_missing", "orders without exactly one event", self._without_event(numbers)),
            Finding("events_unasked", "events of orders that were not committed", unasked),
            Finding("lost", "published messages without a trace at a consumer", lost_meanwhile or _words(self.lost())),
            Finding("duplicates", "handled twice", _words(twice)),
            Finding("undone", "counted as handled, and nothing was done", _words(unhandled)),
            Finding("dead", "messages given up", _words(self._received(Inbox.DEAD))),
            Finding("stuck", "neither done nor given up", self._stuck()),
            Finding("effects_failed", "given up", failed),
        ]

    def lost(self) -> list[Where]:
        """Return the published messages without a trace at a consumer that should have them."""
        return [
            (consumer.name, row["message_id"])
            for row in self.events
            if row["state"] == Outbox.PUBLISHED
            for consumer in consumers.registered()
            if consumer.wants(row["type"]) and (consumer.name, row["message_id"]) not in self.tables.inbox
        ]

    def _without_event(self, numbers: set[str]) -> list[str]:
        told = Counter(row["subject"] for row in self.events if row["type"] == "order.placed")
        return sorted(number for number in numbers if told[number] != 1)

    def _stuck(self) -> list[str]:
        unpublished = [row for row in self.tables.outbox if row["state"] != Outbox.PUBLISHED]
        rows = [f"{row['message_id']}: {row['state']} {row['last_error']}".strip() for row in unpublished]
        return rows + [f"{word}, unsettled" for word in _words(self.tables.unsettled())]

    def _received(self, state: str) -> list[Where]:
        return [where for where, row in self.tables.inbox.items() if row["state"] == state]

    def _effects(self, state: str) -> list[Row]:
        return [effect for effect in self.tables.effects if effect["state"] == state]


def _naive_runs() -> Counter[str]:
    return Counter(Handling.objects.values_list("message_id", flat=True))


def _words(messages: Iterable[Where]) -> list[str]:
    return [f"{message_id} at {consumer}" for consumer, message_id in messages]
