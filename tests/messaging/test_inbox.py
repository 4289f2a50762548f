"""The inbox row is the fence: the effects of a message at a consumer happen once, whatever is delivered how often."""

import random
import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from django.db import transaction

from messaging import database, testing
from messaging.message import Delivery
from messaging.models import DeliveryAttempt, InboxMessage, OutboxMessage
from messaging.models.failures import failure_group
from messaging.processes import process_name
from messaging.retry import RetryPolicy
from messaging.worker import fence, handling, inbox, running
from messaging.worker.verdict import Verdict
from tests.support.consuming import (
    Noted,
    a_consumer,
    a_delivery,
    a_message,
    an_inbox_row,
    attempts,
    delivery_of,
    note,
    notes,
)
from tests.support.running import InThread

pytestmark = pytest.mark.django_db
#: For copies that are handled at the same time.
committing = pytest.mark.django_db(transaction=True)

CONSUMER = a_consumer()


def fails(event: Noted, delivery: Delivery) -> None:
    note(event.text)
    raise ValueError("not today")


FAILING = a_consumer(fails)


def row() -> InboxMessage:
    return InboxMessage.objects.get()


def next_delivery(delivery: Delivery) -> Delivery:
    """What the retry that was written for a failed delivery brings."""
    return delivery_of(OutboxMessage.objects.get(message_id=delivery.message_id, attempt=delivery.attempt + 1))


def at_once(work: Callable[[], Any], times: int) -> list[Any]:
    """Run this in so many threads, all starting together; their results."""
    start = threading.Barrier(times)
    running = [InThread(lambda: (start.wait(), work())[1], "copy") for _ in range(times)]
    return [each.join() for each in running]


def test_a_message_is_handled_and_its_copies_are_duplicates() -> None:
    delivery = a_delivery()
    verdicts = [handling.handle(CONSUMER, delivery) for _ in range(3)]
    assert verdicts == ["handled", "duplicate", "duplicate"]
    assert notes("hello") == 1
    assert (row().state, row().attempt, row().identified) == ("handled", 1, True)
    [attempt] = attempts()
    assert (attempt.outcome, attempt.process) == ("handled", inbox.process_name())
    assert timedelta(0) < attempt.duration < timedelta(minutes=1)
    assert not DeliveryAttempt.objects.exists(), "a success writes one row"


def test_a_success_says_how_long_its_handler_took_and_of_a_whole_batch_each_has_its_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter([100.0, 112.0, 200.0, 212.0])
    monkeypatch.setattr(running, "time", SimpleNamespace(monotonic=lambda: next(times)))
    assert handling.handle(CONSUMER, a_delivery()) == "handled"
    whole = a_consumer(lambda events, deliveries: None, batch=3, whole_batch=True)
    assert handling.handle_together(whole, [a_delivery() for _ in range(3)]) == ["handled"] * 3
    assert list(InboxMessage.objects.order_by("pk").values_list("milliseconds", flat=True)) == [12_000] + [4_000] * 3


def test_a_second_success_of_a_row_is_kept_beside_the_first() -> None:
    """It should never be. If it is, the history has both."""
    first = database.now() - timedelta(hours=1)
    an_inbox_row(state="retrying", attempt=2, handled_at=first, process="elsewhere", milliseconds=1.0)
    delivery = a_delivery(a_message(id="m-1"), attempt=2, redelivered=True)
    assert handling.handle(CONSUMER, delivery) == "handled"
    assert (row().handled_at, row().process, row().milliseconds) == (first, "elsewhere", 1.0)
    second = DeliveryAttempt.objects.get()
    assert (second.inbox_message, second.number, second.outcome) == (row(), 2, "handled")
    assert (second.process, second.redelivered) == (process_name(), True)
    assert second.duration == timedelta(seconds=delivery.tries.seconds)


def test_the_rows_of_a_batch_are_written_in_one_order_however_its_messages_arrive() -> None:
    """Of two processes with some of the same messages one then waits for the other, and not each for the other."""
    deliveries = [a_delivery(a_message(id=name)) for name in ("c", "a", "b")]
    assert handling.handle_together(a_consumer(batch=3), deliveries) == ["handled"] * 3
    assert list(InboxMessage.objects.order_by("pk").values_list("message_id", flat=True)) == ["a", "b", "c"]


def test_a_batch_of_more_messages_than_a_statement_has_room_for_is_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence, "_ROWS_AT_ONCE", 2)
    assert handling.handle_together(a_consumer(batch=5), [a_delivery() for _ in range(5)]) == ["handled"] * 5
    assert InboxMessage.objects.filter(state="handled", handled_at__isnull=False).count() == notes("hello") == 5


def test_two_consumers_each_handle_a_message() -> None:
    message = a_message()
    for name in ("notes", "copies"):
        assert handling.handle(a_consumer(name=name), a_delivery(message, consumer=name)) == "handled"
    assert notes("hello") == 2


@committing
def test_copies_delivered_at_once_to_many_threads_have_one_effect() -> None:
    delivery = a_delivery()
    verdicts = at_once(lambda: handling.handle(CONSUMER, delivery), 8)
    assert Counter(verdicts) == {Verdict.HANDLED: 1, Verdict.DUPLICATE: 7}
    assert notes("hello") == 1


@committing
def test_copies_that_all_fail_at_once_are_one_failed_attempt_and_one_retry() -> None:
    delivery = a_delivery()
    verdicts = at_once(lambda: handling.handle(FAILING, delivery), 6)
    assert Counter(verdicts) == {Verdict.RETRYING: 1, Verdict.DUPLICATE: 5}
    assert notes() == 0
    assert OutboxMessage.objects.count() == 1
    assert (row().state, row().attempt) == ("retrying", 2)
    assert DeliveryAttempt.objects.count() == 1


@committing
def test_of_many_messages_delivered_often_and_often_failing_each_has_one_effect() -> None:
    dice = random.Random(7)

    def unreliable(event: Noted, delivery: Delivery) -> None:
        note(event.text)
        if dice.random() < 0.5:
            raise ValueError("half of them fail")

    consumer = a_consumer(unreliable, retry=RetryPolicy(max_attempts=60))
    texts = [f"m{number:03}" for number in range(30)]
    waiting = [a_delivery(a_message(text)) for text in texts] * 2
    lock = threading.Lock()

    def work() -> int:
        doubled = 0
        while True:
            with lock:
                if not waiting:
                    return doubled
                delivery = waiting.pop(dice.randrange(len(waiting)))
            if handling.handle(consumer, delivery) is Verdict.RETRYING:
                again = next_delivery(delivery)
                with lock:
                    waiting.extend([again, again, delivery])
                doubled += 1

    assert sum(at_once(work, 4)) > 0
    assert Counter({text: notes(text) for text in texts}) == Counter(texts)
    assert set(InboxMessage.objects.values_list("state", flat=True)) == {"handled"}


def test_a_late_copy_of_the_first_attempt_does_not_run_again_after_the_retry() -> None:
    first = a_delivery()
    assert handling.handle(FAILING, first) == "retrying"
    assert handling.handle(CONSUMER, first) == "duplicate"
    second = next_delivery(first)
    assert second.attempt == 2
    assert handling.handle(CONSUMER, second) == "handled"
    for late in (first, second):
        assert handling.handle(CONSUMER, late) == "duplicate"
        assert handling.handle(FAILING, late) == "duplicate"
    assert notes("hello") == 1
    assert (row().state, row().attempt) == ("handled", 2)


def test_nothing_overwrites_handled() -> None:
    delivery = a_delivery()
    handling.handle(CONSUMER, delivery)
    with transaction.atomic():
        assert inbox.expect_next(delivery, "late") is None
        assert inbox.bury(delivery, "late") is None
        assert inbox.start(delivery) is None
        assert fence.admit(delivery) is None
    assert (row().state, row().reason, row().body) == ("handled", "", None)


def test_the_retry_is_the_same_message_for_this_consumer_alone() -> None:
    headers = {"x-subject": "n-1", "x-request-id": "r", "tenant": "t"}
    message = a_message(headers=headers, correlation_id="c", priority=5)
    testing.deliver(message, FAILING)
    again = OutboxMessage.objects.get()
    assert (again.message_id, again.attempt, again.consumer) == (message.id, 2, "notes")
    assert (again.exchange, again.routing_key) == ("", "tests.notes")
    assert bytes(again.body) == message.body
    assert (again.subject, again.correlation_id, again.priority) == ("n-1", "c", 5)
    assert again.headers == {"tenant": "t", "x-request-id": "r"}


def test_after_its_last_attempt_a_message_is_dead_with_body_reason_and_traceback() -> None:
    delivery = a_delivery()
    for expected in ("retrying", "retrying", "dead"):
        assert handling.handle(FAILING, delivery) == expected
        delivery = next_delivery(delivery) if expected == "retrying" else delivery
    dead = row()
    assert (dead.state, dead.attempt, dead.position) == ("dead", 3, None)
    assert bytes(dead.body or b"") == delivery.message.body
    assert "not today" in dead.reason
    attempts = list(DeliveryAttempt.objects.all())
    assert [(attempt.number, attempt.outcome) for attempt in attempts] == [(1, "failed"), (2, "failed"), (3, "failed")]
    assert "raise ValueError" in attempts[-1].traceback
    assert {attempt.process for attempt in attempts} == {process_name()}
    assert handling.handle(CONSUMER, delivery) == "duplicate"


# --- What kills its process --------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process."""


def dies(monkeypatch: pytest.MonkeyPatch, delivery: Delivery) -> None:
    """One delivery whose process dies after the start was committed, in the handler's transaction."""
    with monkeypatch.context() as patch:
        patch.setattr(handling, "in_transaction", Mock(side_effect=Killed))
        with pytest.raises(Killed):
            handling.handle(CONSUMER, delivery)


def test_a_message_that_kills_its_process_is_counted_and_ends_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    redelivered = a_delivery(redelivered=True)
    for _ in range(handling.CRASH_LIMIT):
        dies(monkeypatch, redelivered)
    assert handling.handle(CONSUMER, redelivered) == "dead"
    assert row().reason == "its handling was started 3 times and never ended: it kills its process"
    assert bytes(row().body or b"") == redelivered.message.body
    crashes = list(DeliveryAttempt.objects.filter(outcome="crashed", redelivered=True))
    assert len(crashes) == handling.CRASH_LIMIT
    assert {(each.duration, each.error, each.traceback) for each in crashes} == {(timedelta(0), "", "")}
    assert notes() == 0


def test_starts_are_counted_for_each_attempt_anew_and_keep_the_reason_of_the_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = a_delivery(redelivered=True)
    for _ in range(2):
        dies(monkeypatch, first)
    assert handling.handle(FAILING, first) == "retrying"
    assert row().starts == 0
    second = delivery_of(OutboxMessage.objects.get(), redelivered=True)
    for _ in range(2):
        dies(monkeypatch, second)
    assert (row().starts, row().reason) == (2, "ValueError: not today")
    assert bytes(row().body or b"") == first.message.body
    assert [handling.handle(CONSUMER, second) for _ in range(2)] == ["handled", "duplicate"]
    assert notes("hello") == 1


# --- What arrives in a bad state ---------------------------------------------------------------------------


def test_a_message_without_an_id_is_handled_and_shown_as_such() -> None:
    delivery = a_delivery(a_message(id=""), identified=False)
    assert handling.handle(CONSUMER, delivery) == "handled"
    assert not row().identified
    assert handling.handle(FAILING, a_delivery(a_message(id=""), identified=False)) == "retrying"
    assert not InboxMessage.objects.filter(identified=True).exists()


@pytest.mark.parametrize("headers", [{"x-attempt": "two"}, {"x-attempt": 0}, {"x-event-version": -1},
                                     {"x-event-version": True}, {"x-event-version": 99}])  # fmt: skip
def test_unreadable_headers_make_a_message_dead(headers: dict[str, Any]) -> None:
    assert testing.deliver(a_message(headers=headers), CONSUMER) == "dead"
    assert (row().headers, row().attempt) == (headers, 1)
    assert row().version == (99 if headers.get("x-event-version") == 99 else 1)
    assert DeliveryAttempt.objects.get().outcome == "rejected"


def test_an_event_that_the_consumer_does_not_handle_is_dead() -> None:
    wrong = a_message(type="test.erased", body=b'{"text": "x"}')
    assert testing.deliver(wrong, CONSUMER) == "dead"
    assert "does not handle test.erased" in row().reason


def test_a_body_over_the_limit_is_dead_and_kept_in_part(settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "MAX_BODY_BYTES": 1024}
    exactly = a_message("x" * (1024 - len(a_message("").body)), id="exactly")
    assert testing.deliver(exactly, FAILING) == "retrying"
    assert testing.deliver(a_message("x" * 2000, id="over"), CONSUMER) == "dead"
    kept = InboxMessage.objects.order_by("pk").values_list("message_id", "body_truncated", "body")
    assert [(*each, len(body)) for *each, body in kept] == [("exactly", False, 1024), ("over", True, 1024)]


def test_a_retry_of_a_body_over_the_limit_brings_all_of_it(settings: Any) -> None:
    class Always(RetryPolicy):
        def delay_after(self, attempt: int, error: BaseException) -> timedelta:
            return timedelta(seconds=1)

    settings.MESSAGING = {**settings.MESSAGING, "MAX_BODY_BYTES": 1024}
    message = a_message("x" * 2000)
    assert testing.deliver(message, a_consumer(note, retry=Always())) == "retrying"
    assert bytes(OutboxMessage.objects.get().body) == message.body


def test_nul_in_headers_can_be_recorded() -> None:
    message = a_message(headers={"x-subject": "s\x00", "k\x00": ["\x00", {"\x00": b"\xff\x00"}]})
    assert testing.deliver(message, FAILING) == "retrying"
    assert bytes(row().body or b"") == message.body


def test_a_message_whose_failure_cannot_be_recorded_is_dead_with_its_body(monkeypatch: pytest.MonkeyPatch) -> None:
    def unstorable(headers: Any) -> Any:
        if headers:
            raise RecursionError("nested too deep")
        return {}

    monkeypatch.setattr(inbox, "storable_headers", unstorable)
    delivery = a_delivery(a_message(body=b"{", headers={"deep": 1}))
    assert [handling.handle(CONSUMER, delivery) for _ in range(2)] == ["dead", "duplicate"]
    assert row().message_id == delivery.message_id
    assert "its failure could not be recorded: RecursionError: nested too deep" in row().reason
    assert bytes(row().body or b"") == delivery.message.body


@pytest.mark.parametrize("text", ["x" * 255, "\U0001f9e7" * 63])
def test_ids_as_long_as_amqp_allows_are_stored(text: str) -> None:
    for app_id in ("", text):  # an id together with an app_id is too long, and becomes a digest
        message = a_message(id=text, correlation_id=text, app_id=app_id, type=text)
        assert testing.deliver(message, CONSUMER) == "dead"
        stored = InboxMessage.objects.get(app_id=app_id)
        assert stored.correlation_id == stored.type == text
        assert (stored.message_id == text) is not bool(app_id)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("There is no order W-B6QP2X.", "There is no order W-PBQWPX."),
        ("GatewayError: 503 after 1.2 s", "GatewayError: 500 after 10.7 s"),
        ("no row 'ann'", "no row 'bob'"),
        ("lost 0193e5a0-1111-7222-8333-444455556666", "lost 0193e5a0-1111-7222-8333-aaaabbbbcccc"),
    ],
)
def test_failures_that_differ_only_in_values_are_one_group(one: str, other: str) -> None:
    assert failure_group("sms", "order.placed", one) == failure_group("sms", "order.placed", other)


def test_failures_of_another_consumer_type_or_kind_are_another_group() -> None:
    failures = {
        ("sms", "order.placed", "GatewayError: 503"),
        ("red_packet", "order.placed", "GatewayError: 503"),
        ("sms", "order.shipped", "GatewayError: 503"),
        ("sms", "order.placed", "GatewayGone: 503"),
        ("sms", "order.placed", "GatewayError: NO_ROUTE"),
    }
    assert len({failure_group(*each) for each in failures}) == len(failures)
