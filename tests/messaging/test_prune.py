"""Pruning deletes what is finished and old, and nothing that may still be needed."""

from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.utils import timezone

from messaging import database, tasks
from messaging.actions.prune import prune
from messaging.models import DeliveryAttempt, Effect, EffectAttempt, InboxMessage, OutboxMessage
from tests.support.command_line import messages
from tests.support.consuming import a_consumer, an_inbox_row, an_outbox_row, registered
from tests.support.running import at_once

pytestmark = pytest.mark.django_db

OLD = timedelta(days=15)
ANCIENT = timedelta(days=91)
_ids = count()


def outbox_row(age: timedelta = OLD, **changes: Any) -> OutboxMessage:
    then = timezone.now() - age
    facts = {"message_id": f"message-{next(_ids)}", "state": "published", "created_at": then, "published_at": then}
    return an_outbox_row(**facts | changes)


def inbox_row(age: timedelta = ANCIENT, attempts: int = 1, **changes: Any) -> InboxMessage:
    row = an_inbox_row(**{"message_id": f"message-{next(_ids)}", "changed_at": timezone.now() - age, **changes})
    for number in range(1, attempts + 1):
        DeliveryAttempt.objects.create(inbox_message=row, number=number, outcome=DeliveryAttempt.Outcome.HANDLED)
    return row


def _pruned(**options: Any) -> dict[str, int]:
    return prune.run(**options).facts


def _counts(outbox: int, inbox: int, attempts: int, effects: int = 0) -> dict[str, int]:
    return {"outbox": outbox, "inbox": inbox, "attempts": attempts, "effects": effects}


def test_outbox_rows_are_deleted_that_were_published_or_cancelled_long_ago() -> None:
    very_old, now = timedelta(days=5000), timezone.now()
    outbox_row()
    outbox_row(state="cancelled", published_at=None, publish_at=now - OLD)
    kept = [
        outbox_row(timedelta(days=13)),
        outbox_row(published_at=now),
        outbox_row(state="cancelled", published_at=None),
        *(
            outbox_row(very_old, state=state, published_at=None, publish_at=now - very_old)
            for state in ("pending", "unroutable", "failed")
        ),
    ]

    assert _pruned() == _counts(outbox=2, inbox=0, attempts=0)
    assert list(OutboxMessage.objects.order_by("pk")) == kept


def test_inbox_rows_are_deleted_that_were_handled_or_discarded_long_ago() -> None:
    inbox_row(attempts=3)
    inbox_row(state="discarded")
    kept = [
        inbox_row(timedelta(days=89)),
        inbox_row(timedelta(days=89), state="discarded"),
        *(inbox_row(timedelta(days=5000), state=state) for state in ("effects_due", "retrying", "waiting", "dead")),
    ]

    assert _pruned() == _counts(outbox=0, inbox=2, attempts=4)
    assert list(InboxMessage.objects.order_by("pk")) == kept
    assert DeliveryAttempt.objects.count() == len(kept)


@pytest.mark.parametrize("state", Effect.State.values)
def test_a_message_is_kept_while_an_effect_of_it_is_not_done(state: str) -> None:
    row = inbox_row()
    Effect.objects.create(inbox_message=row, consumer="notes", message_id=row.message_id, name="text", state=state)

    done = state == "done"
    assert prune.plan().facts == _pruned() == _counts(outbox=0, inbox=done, attempts=done, effects=done)
    assert Effect.objects.exists() is not done


def test_an_inbox_row_outlives_every_outbox_row_that_could_bring_its_message_again() -> None:
    for state in OutboxMessage.State:
        kept = inbox_row()
        outbox_row(timedelta(days=1), message_id=kept.message_id, state=state)
        outbox_row(ANCIENT, message_id=kept.message_id)

    assert _pruned() == _counts(outbox=len(OutboxMessage.State), inbox=0, attempts=0)


def test_many_rows_are_deleted_in_batches_and_the_kept_ones_between_them_stop_nothing() -> None:
    for number in range(7):
        outbox_row(OLD + timedelta(hours=number))
        kept = inbox_row(ANCIENT + timedelta(hours=number))
        outbox_row(timedelta(), message_id=kept.message_id)
        inbox_row(ANCIENT + timedelta(hours=number))
    same_moment = timezone.now() - OLD
    for _ in range(7):
        outbox_row(created_at=same_moment, published_at=same_moment)

    assert _pruned(batch=2) == _counts(outbox=14, inbox=7, attempts=7)
    assert OutboxMessage.objects.count() == InboxMessage.objects.count() == 7


def test_rows_whose_times_are_the_databases_own_are_deleted_in_one_run_however_many_share_a_moment() -> None:
    for _ in range(7):
        outbox_row()
        inbox_row()
    with connection.cursor() as cursor:  # as SQLite itself writes a time: with three digits
        cursor.execute("UPDATE messaging_outboxmessage SET created_at = '2020-01-01 00:00:00.123'")
        cursor.execute("UPDATE messaging_inboxmessage SET changed_at = '2020-01-01 00:00:00.123'")

    assert _pruned(batch=2) == _counts(outbox=7, inbox=7, attempts=7)


@pytest.mark.parametrize("state", [None, "retrying", "waiting"])
def test_an_event_that_a_consumer_has_still_to_settle_is_kept_however_old_it_is(state: str | None) -> None:
    """Its consumer was away for longer than the outbox remembers; should the broker lose it, it is still missed."""
    row = outbox_row(ANCIENT, expected_consumers=["somebody_gone", "notes"])
    others = outbox_row(ANCIENT, expected_consumers=["note"])
    if state:
        inbox_row(message_id=row.message_id, state=state)

    with registered(a_consumer()):
        assert prune.plan().facts["outbox"] == _pruned()["outbox"] == 1
        assert not OutboxMessage.objects.filter(pk=others.pk).exists()
        InboxMessage.objects.all().delete()
        inbox_row(timedelta(), message_id=row.message_id)
        assert _pruned()["outbox"] == 1


@pytest.mark.django_db(transaction=True)
def test_two_prunes_at_once_share_the_work() -> None:
    for _ in range(40):
        outbox_row()
        inbox_row()

    one, other = at_once(*[partial(_pruned, batch=3)] * 2)

    assert [one[box] + other[box] for box in ("outbox", "inbox", "attempts")] == [40, 40, 40]
    assert not OutboxMessage.objects.exists()
    assert not InboxMessage.objects.exists()


@pytest.mark.only_on("sqlite")
def test_on_sqlite_the_shop_gets_the_lock_for_as_long_as_a_batch_held_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(database.time, "sleep", pauses.append)
    for _ in range(5):
        outbox_row()

    _pruned(batch=2)

    assert len(pauses) == 4  # three pages of the outbox, one of the inbox
    assert all(0 < pause < 5 for pause in pauses)


def test_a_plan_counts_what_a_run_deletes_and_deletes_nothing() -> None:
    # Its outbox row goes in the same run, so the inbox row may go too.
    outbox_row(ANCIENT, message_id=inbox_row(attempts=2).message_id)
    outbox_row(timedelta(), message_id=inbox_row().message_id)

    told = prune.plan().facts

    assert (OutboxMessage.objects.count(), InboxMessage.objects.count()) == (2, 2)
    assert told == _pruned() == _counts(outbox=1, inbox=1, attempts=2)


def test_the_days_are_settings(settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "OUTBOX_RETENTION_DAYS": 0.5, "INBOX_RETENTION_DAYS": 1}
    outbox_row(timedelta(hours=13))
    outbox_row(timedelta(hours=11))
    inbox_row(timedelta(hours=25))
    inbox_row(timedelta(hours=23))

    assert _pruned() == _counts(outbox=1, inbox=1, attempts=1)


def test_the_command_says_what_it_deleted() -> None:
    outbox_row()
    inbox_row(attempts=2)

    assert messages("prune", "--dry-run").out == "Would delete 1 outbox row, 1 inbox row, 2 attempts and 0 effects.\n"
    assert messages("prune", "--batch", "1").out == "Deleted 1 outbox row, 1 inbox row, 2 attempts and 0 effects.\n"
    assert messages("prune").out == "Deleted 0 outbox rows, 0 inbox rows, 0 attempts and 0 effects.\n"
    assert "--batch" in messages("prune", "--batch", "0").err


def test_celery_does_the_same() -> None:
    outbox_row()

    assert tasks.of_actions["prune"]() == {"outbox": 1, "inbox": 0, "attempts": 0, "effects": 0}


def test_the_attempts_of_an_effect_go_with_it_and_are_counted() -> None:
    row = inbox_row()
    effect = Effect.objects.create(
        inbox_message=row, consumer="notes", message_id=row.message_id, name="text", state="done"
    )
    effect.failed_attempts.create(token=uuid4(), number=1, outcome="not done", error="busy")

    assert prune.plan().facts == _pruned() == _counts(outbox=0, inbox=1, attempts=2, effects=1)
    assert not EffectAttempt.objects.exists()
