"""Bugs, each put into the product's own code by wrapping or replacing one function, and the invariant it must break."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from django.db.models import QuerySet
from django.db.models.functions import Now

from messaging import database, outbox
from messaging.actions import prune
from messaging.actions.replay import Replay
from messaging.broker.publisher import ConfirmChannel, InFlight, Outcome, Status
from messaging.broker.subscription import Subscription
from messaging.effects import EffectKind
from messaging.models import InboxMessage, OutboxMessage
from messaging.relay import leases, statements
from messaging.relay.destinations import expected_queues
from messaging.relay.flow import Flow
from messaging.relay.leases import Mark
from messaging.worker import effect_runner, fence, handling, ledger, ordering, running
from messaging.worker.consumer_threads import ConsumerThreads
from messaging.worker.verdict import Verdict


@dataclass(frozen=True)
class Bug:
    """`plant` puts it into the product while the context lasts; `breaks` names the invariants that may show it.

    One that hides takes long to be found: only a full run looks for it.
    """

    name: str
    breaks: frozenset[str]
    plant: Callable[[], AbstractContextManager[None]]
    hides: bool


BUGS: list[Bug] = []


def bug(*breaks: str, hides: bool = False) -> Callable[[Callable[[], Iterator[None]]], Callable[[], Iterator[None]]]:
    """Declare the decorated context manager as a bug that breaks one of these invariants."""

    def register(plant: Callable[[], Iterator[None]]) -> Callable[[], Iterator[None]]:
        BUGS.append(Bug(plant.__name__, frozenset(breaks), contextmanager(plant), hides))
        return plant

    return register


# --- Publishing --------------------------------------------------------------------------------------------


@bug("lost", "stuck", hides=True)
def a_watermark_instead_of_a_state() -> Iterator[None]:
    seen = [0]

    def claim(limit: int, seconds: float) -> list[OutboxMessage]:
        with database.atomic():
            rows = list(OutboxMessage.objects.filter(pk__gt=seen[0], publish_at__lte=Now()).order_by("pk")[:limit])
            OutboxMessage.objects.filter(pk__in=[row.pk for row in rows]).update(
                lease_token=(token := uuid.uuid4()), lease_until=database.in_future(seconds)
            )
        for row in rows:
            row.lease_token = token
            seen[0] = row.pk
        return rows

    with patch.object(leases, "claim", claim):
        yield


@bug("mark", "lost")
def marked_before_it_is_confirmed() -> Iterator[None]:
    send = Flow.send

    def marked_first(flow: Flow, problems: Mapping[str, str], **options: Any) -> None:
        rows = [each.held.row for stream in flow._streams.values() for each in stream.waiting]
        leases.write([Mark(row, Outcome(Status.CONFIRMED), tuple(expected_queues(row))) for row in rows])
        send(flow, problems, **options)

    with patch.object(Flow, "send", marked_first):
        yield


@bug("mark", "lost", hides=True)
def a_returned_message_counts_as_published() -> Iterator[None]:
    with patch.object(ConfirmChannel, "_returned", lambda *_: None):
        yield


@bug("mark", "lost", hides=True)
def a_timeout_counts_as_published() -> Iterator[None]:
    settle = InFlight.settle

    def hopeful(publish: InFlight, outcome: Outcome) -> None:
        settle(publish, Outcome(Status.CONFIRMED) if outcome.status is Status.UNKNOWN else outcome)

    with patch.object(InFlight, "settle", hopeful):
        yield


@bug("mark", hides=True)
def a_refused_row_takes_its_neighbours_along() -> Iterator[None]:
    settle = InFlight.settle

    def all_refused(publish: InFlight, outcome: Outcome) -> None:
        settle(publish, replace(outcome, alone=True))

    with patch.object(InFlight, "settle", all_refused):
        yield


@bug("ghost", hides=True)
def handed_over_before_the_commit() -> Iterator[None]:
    def at_once(function: Callable[[], None], **_: Any) -> None:
        function()

    with patch.object(outbox, "transaction", type("", (), {"on_commit": staticmethod(at_once)})):
        yield


@bug("lease", hides=True)
def a_mark_counts_without_its_lease() -> Iterator[None]:
    def mark_published(ids: Sequence[tuple[int, int]], token: Any, expected: Sequence[str]) -> None:
        rows = OutboxMessage.objects.filter(pk__in=[pk for pk, _ in ids])
        rows.update(state="published", published_at=Now(), expected_consumers=list(expected), lease_token=None)

    with patch.object(leases, "_held", lambda ids, token: OutboxMessage.objects.filter(pk__in=ids)), \
         patch.object(statements, "mark_published", mark_published):  # fmt: skip
        yield


# --- Consuming ---------------------------------------------------------------------------------------------


@bug("ack", "lost")
def acknowledged_before_the_commit() -> Iterator[None]:
    handle = ConsumerThreads._handle

    def hasty(threads: ConsumerThreads, arrival: Any) -> None:
        threads._done([arrival], [(threads._delivery(arrival), Verdict.HANDLED)])
        with patch.object(threads, "_done"):
            handle(threads, arrival)

    with patch.object(ConsumerThreads, "_handle", hasty):
        yield


@bug("twice", "fence", hides=True)
def only_redelivered_messages_are_looked_up() -> Iterator[None]:
    admit = fence.admit

    def trusting(delivery: Any) -> fence.Admitted | None:
        admitted = admit(delivery)
        if admitted is None and not delivery.redelivered:
            row = InboxMessage.objects.get(consumer=delivery.consumer, message_id=delivery.message_id)
            return fence.Admitted(delivery, row.pk, again=True)
        return admitted

    with patch.object(fence, "admit", trusting):
        yield


@bug("twice", "fence", "lost")
def the_inbox_row_is_in_a_transaction_of_its_own() -> Iterator[None]:
    whole = handling.in_transaction

    def split(tries: Any, run: Any) -> Verdict:
        consumer, delivery, event = run.args
        if not consumer.fenced:
            return whole(tries, run)
        with database.atomic():
            admitted = fence.admit(delivery)
        if admitted is None:
            return Verdict.DUPLICATE
        with database.atomic():
            running._call(consumer, [event], [delivery])
            running._finish(consumer, [delivery], [admitted])
        return Verdict.HANDLED

    with patch.object(handling, "in_transaction", split):
        yield


@bug("lost", hides=True)
def the_retry_is_written_after_the_failure() -> Iterator[None]:
    write, failed = outbox.write, handling._failed

    def in_a_second_transaction(*arguments: Any) -> Verdict:
        later: list[Any] = []
        with patch.object(outbox, "write", lambda rows, **options: later.append((rows, options)) or rows):
            verdict = failed(*arguments)
        for rows, options in later:
            with database.atomic():
                write(rows, **options)
        return verdict

    with patch.object(handling, "_failed", in_a_second_transaction):
        yield


@bug("ack", "lost", hides=True)
def a_stale_delivery_tag_is_acknowledged() -> Iterator[None]:
    with (
        patch.object(Subscription, "_channel_of", lambda subscription, _: subscription._channel),
        patch.object(Subscription, "is_current", lambda subscription, _: subscription._channel is not None),
    ):
        yield


@bug("order")
def no_message_waits_for_the_earlier_ones_of_its_key() -> Iterator[None]:
    with patch.object(ordering, "must_wait", lambda *_: False):
        yield


@bug("stuck")
def a_waiting_message_is_not_released() -> Iterator[None]:
    with patch.object(ordering, "release_next", lambda *_: False):
        yield


# --- Effects -----------------------------------------------------------------------------------------------


@bug("effect twice", hides=True)
def a_doubtful_effect_is_sent_again_blindly() -> Iterator[None]:
    with patch.object(EffectKind, "can_repeat", True):
        yield


@bug("effect untrue", "effect twice", hides=True)
def any_error_of_a_gateway_means_that_nothing_was_done() -> Iterator[None]:
    with patch.object(effect_runner, "_doubtful", effect_runner._not_done):
        yield


@bug("effect lost", "stuck")
def intended_effects_are_not_sent() -> Iterator[None]:
    with patch.object(ledger, "claim", lambda *_: []):
        yield


# --- What people do, and housekeeping ----------------------------------------------------------------------


@bug("retention", "lost", hides=True)
def pending_rows_are_pruned_like_published_ones() -> Iterator[None]:
    def old() -> QuerySet[OutboxMessage]:
        return OutboxMessage.objects.filter(created_at__lt=database.in_future(-14 * 86400))

    with patch.object(prune, "_finished_outbox", old):
        yield


@bug("retention", "twice", hides=True)
def the_inbox_forgets_what_can_come_again() -> Iterator[None]:
    def old(_: QuerySet[OutboxMessage]) -> QuerySet[InboxMessage]:
        return InboxMessage.objects.filter(
            state=InboxMessage.State.HANDLED, changed_at__lt=database.in_future(-10 * 86400)
        )

    with patch.object(prune, "_forgettable_inbox", old):
        yield


@bug("fence", "twice", hides=True)
def a_replay_runs_what_was_handled() -> Iterator[None]:
    with patch.object(Replay, "states", {InboxMessage: (InboxMessage.State.HANDLED,)}):
        yield


@bug("stuck", hides=True)
def starts_of_a_handler_are_not_counted() -> Iterator[None]:
    with patch.object(handling, "_count_start", lambda _: None):
        yield
