"""What a process leases to itself it is handed; what does not fit into its relay's memory is free at once."""

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction

from messaging import outbox
from messaging.models import OutboxMessage
from messaging.relay import leases, relay
from messaging.relay import thread as relay_thread
from messaging.relay.relay import Relay
from tests.support.consuming import Noted

pytestmark = pytest.mark.django_db(transaction=True)

LIMIT = 5


class _Alive:
    def is_alive(self) -> bool:
        return True

    def join(self, timeout: float) -> None: ...


@pytest.fixture
def relay_of_this_process(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """The relay of a long-lived process, with room for few rows; it publishes nothing, as without a broker."""
    settings.MESSAGING = {**settings.MESSAGING, "RELAY_THREAD": True}
    monkeypatch.setattr(relay, "HAND_OVER_LIMIT", LIMIT)
    home: Any = relay_thread._Home()
    home.long_lived, home.relay, home.thread = True, Relay(), _Alive()
    monkeypatch.setattr(relay_thread, "_home", home)
    monkeypatch.setattr(Relay, "_wait", lambda *_: None)
    home.relay._started = True
    return home.relay


def add(count: int, size: int = 1) -> list[OutboxMessage]:
    return outbox.add(*[Noted(text="x" * size) for _ in range(count)])


def leased() -> list[int]:
    return list(OutboxMessage.objects.exclude(lease_token=None).order_by("pk").values_list("pk", flat=True))


def held(by: Relay) -> list[int]:
    return [each.row.pk for each in by._handed]


def test_of_more_events_than_fit_the_first_are_held_and_the_others_free(relay_of_this_process: Relay) -> None:
    with transaction.atomic():
        rows = add(LIMIT + 2)
    assert held(relay_of_this_process) == leased() == [row.pk for row in rows[:LIMIT]]
    assert [row.pk for row in leases.claim(10, 60)] == [row.pk for row in rows[LIMIT:]]


def test_of_more_bytes_than_fit_the_first_rows_are_held(
    relay_of_this_process: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "HAND_OVER_BYTES", 2500)
    with transaction.atomic():
        rows = add(4, size=1000)
    assert held(relay_of_this_process) == leased() == [row.pk for row in rows[:2]]


def test_several_adds_of_one_transaction_share_the_room(relay_of_this_process: Relay) -> None:
    with transaction.atomic():
        rows = [row for _ in range(4) for row in add(2)]
    assert held(relay_of_this_process) == leased() == [row.pk for row in rows[:LIMIT]]


def test_what_a_savepoint_took_back_takes_no_room(relay_of_this_process: Relay) -> None:
    with transaction.atomic():
        first = add(1)
        with transaction.atomic():
            add(LIMIT - 1)
            transaction.set_rollback(True)
        last = add(LIMIT)
    assert held(relay_of_this_process) == leased() == [row.pk for row in [*first, *last[:-1]]]


def test_a_memory_that_is_full_because_the_broker_is_away_leases_nothing_more(relay_of_this_process: Relay) -> None:
    with transaction.atomic():
        first = add(LIMIT)
    with transaction.atomic():
        add(3)
    assert held(relay_of_this_process) == leased() == [row.pk for row in first]


def test_the_relay_claims_at_once_what_was_born_free(relay_of_this_process: Relay) -> None:
    relay_of_this_process._claim_due = time.monotonic() + 3600
    with transaction.atomic():
        add(LIMIT)
    assert relay_of_this_process._claim_due > 0
    with transaction.atomic():
        add(1)
    assert relay_of_this_process._claim_due == 0


def test_what_others_committed_first_left_no_room_for_goes_free_by_the_relay(relay_of_this_process: Relay) -> None:
    with transaction.atomic():
        rows = add(LIMIT)
        relay_of_this_process._handed.extend(relay_of_this_process._held(rows[:2], time.monotonic()))
    assert len(held(relay_of_this_process)) == LIMIT
    relay_of_this_process._claim_due = time.monotonic() + 3600
    relay_of_this_process._turn()
    assert leased() == [row.pk for row in rows[: LIMIT - 2]]
    assert relay_of_this_process._claim_due == 0


def test_what_was_held_for_too_long_goes_free_before_its_lease_ends(relay_of_this_process: Relay) -> None:
    with transaction.atomic():
        [old, young] = add(2)
    relay_of_this_process._handed.clear()
    relay_of_this_process._handed.extend(
        [
            *relay_of_this_process._held([old], time.monotonic() - timedelta(days=1).total_seconds()),
            *relay_of_this_process._held([young], time.monotonic()),
        ]
    )
    assert [each.row.pk for each in relay_of_this_process._take_handed()] == [young.pk]
    relay_of_this_process._turn()
    assert leased() == [young.pk]
