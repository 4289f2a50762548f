"""The rows that a process leases to itself are those that it hands to its relay; the others are free at once."""

import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_started
from django.db import transaction

from messaging import outbox
from messaging.models import OutboxMessage
from messaging.relay import leases
from messaging.relay import thread as relay_thread
from messaging.relay.relay import Relay
from tests.support.consuming import Noted

pytestmark = pytest.mark.django_db(transaction=True)

LIMIT = 5


@pytest.fixture
def relay_of_this_process(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """The relay of a long-lived process, with room for few rows; it publishes nothing, as without a broker."""
    settings.MESSAGING = {**settings.MESSAGING, "RELAY_THREAD": True}
    monkeypatch.setattr(leases, "HAND_OVER_LIMIT", LIMIT)
    mine: Any = relay_thread.RelayThread(long_lived=True)
    mine.relay, mine.thread = Relay(), Mock(**{"is_alive.return_value": True})
    monkeypatch.setattr(relay_thread, "_mine", mine)
    monkeypatch.setattr(Relay, "_wait", lambda *_: None)
    mine.relay._started = True
    return mine.relay


def add(count: int, size: int = 1) -> list[OutboxMessage]:
    return outbox.add(*[Noted(text="x" * size) for _ in range(count)])


def leased() -> list[int]:
    return list(OutboxMessage.objects.exclude(lease_token=None).order_by("pk").values_list("pk", flat=True))


def held(by: Relay) -> list[int]:
    return [each.row.pk for each in by._handed._rows]


def test_the_first_events_that_fit_are_handed_over_and_the_others_free(relay_of_this_process: Relay) -> None:
    with transaction.atomic():
        rows = add(LIMIT + 2)
    assert held(relay_of_this_process) == leased() == [row.pk for row in rows[:LIMIT]]
    assert [row.pk for row in leases.claim(10, 60)] == [row.pk for row in rows[LIMIT:]]


def test_the_first_bytes_that_fit_are_handed_over(
    relay_of_this_process: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(Noted(text="x" * 1000).encode())
    monkeypatch.setattr(leases, "HAND_OVER_BYTES", 4 * size)
    with transaction.atomic():
        rows = [*add(1, size=1000), *add(1, size=1000)]
    with transaction.atomic():
        rows += [*add(1, size=1000), *add(3, size=1000)]
        assert leased() == [row.pk for row in rows[:4]], "no lease is given that would end at the commit"
    assert held(relay_of_this_process) == leased() == [row.pk for row in rows[:4]]
    relay_of_this_process._handed.take(LIMIT)
    assert relay_of_this_process.room() == (LIMIT, 4 * size)


def test_several_adds_share_the_room(relay_of_this_process: Relay) -> None:
    with transaction.atomic():
        rows = [row for _ in range(4) for row in add(2)]
        assert leased() == [row.pk for row in rows[:LIMIT]]
    with transaction.atomic():
        add(3)
    assert held(relay_of_this_process) == leased() == [row.pk for row in rows[:LIMIT]]


def test_rows_that_a_savepoint_rolled_back_take_no_room(relay_of_this_process: Relay) -> None:
    with transaction.atomic():
        first = add(1)
        with transaction.atomic():
            add(LIMIT - 1)
            transaction.set_rollback(True)
        last = add(LIMIT)
    assert held(relay_of_this_process) == leased() == [row.pk for row in [*first, *last[:-1]]]


def test_the_relay_claims_free_rows_at_once(relay_of_this_process: Relay) -> None:
    relay_of_this_process._claim_due = time.monotonic() + 3600
    with transaction.atomic():
        add(LIMIT)
    assert relay_of_this_process._claim_due > 0
    with transaction.atomic():
        add(1)
    assert relay_of_this_process._claim_due == 0


def test_rows_for_which_others_left_no_room_go_free_at_once(relay_of_this_process: Relay) -> None:
    with transaction.atomic():
        rows = add(LIMIT)
        relay_of_this_process.hand_over(rows[1:], time.monotonic())
        relay_of_this_process._claim_due = time.monotonic() + 3600
    assert len(held(relay_of_this_process)) == LIMIT
    assert leased() == [rows[0].pk]
    assert relay_of_this_process._claim_due == 0


@pytest.mark.parametrize("is_in_test", [True, False])
def test_a_server_publishes_what_it_commits_unless_it_is_a_live_server_test_cases(
    is_in_test: bool, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "RELAY_THREAD": True}
    monkeypatch.setattr(relay_thread, "_mine", relay_thread.RelayThread())
    if not is_in_test:
        monkeypatch.delattr("django.test.utils._TestState.saved_data")

    request_started.send(WSGIHandler, environ={})

    assert (relay_thread.lease_token() is None) is is_in_test
