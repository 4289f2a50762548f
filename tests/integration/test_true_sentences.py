"""What pages say while something is really broken: only what really happens."""

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from messaging import effects
from messaging.admin.story import lines
from messaging.effects import Sending
from messaging.exceptions import NotDone
from messaging.history import outcome, timeline
from messaging.message import Delivery
from messaging.models import OutboxMessage
from messaging.monitoring import status
from messaging.retry import RetryPolicy
from tests.support.consuming import Noted, a_consumer, registered
from tests.support.network import BrokerNetwork
from tests.support.running import IMPATIENT, add, running_relay, running_worker
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

CONSUMER = a_consumer()


@pytest.fixture(autouse=True)
def impatience(settings: Any) -> Iterator[None]:
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT}
    with registered(CONSUMER):
        yield


def told(subject: str) -> list[str]:
    """The titles of a story's lines."""
    return [line.title for line in lines(timeline.for_subject(subject), unmasked=True)]


def said_of(subject: str) -> list[str]:
    return [fact.words for fact in outcome.of_subjects([subject])[subject]]


def published(subject: str) -> bool:
    return OutboxMessage.objects.filter(subject=subject, state="published").exists()


def test_with_a_frozen_broker_a_message_is_due_and_not_confirmed(network: BrokerNetwork, settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT}
    with running_relay():
        add(Noted(text="before"), subject="W-1")
        eventually(lambda: published("W-1"))
        network.pause()
        add(Noted(text="meanwhile"), subject="W-2")
        due = r"test\.noted: not yet confirmed by RabbitMQ, due for ([1-9]|\d\d)\..*"
        eventually(lambda: re.fullmatch(due, told("W-2")[-1]), report=lambda: told("W-2"))
        assert said_of("W-2") == ["test.noted not published yet"]

        network.resume()
        eventually(lambda: published("W-2"), 30)
    assert told("W-2")[1] == "published, confirmed by RabbitMQ"


def test_with_everything_running_a_story_is_in_the_order_of_time(vhost: str) -> None:
    with running_relay(), running_worker(CONSUMER):
        for number in range(5):
            add(Noted(text="hello"), subject=f"W-{number}")
        eventually(lambda: all(said_of(f"W-{number}") == ["all handled"] for number in range(5)))

    for number in range(5):
        times = [entry.at for entry in timeline.for_subject(f"W-{number}").entries if entry.at]
        assert len(times) == 3
        assert times == sorted(times)


def test_a_message_whose_effect_fails_is_not_said_to_be_all_well(vhost: str, isolated: Any) -> None:
    def refuse(sending: Sending) -> str:
        raise NotDone("the gateway answered 429")

    def texting(event: Noted, delivery: Delivery) -> None:
        delivery.effect("text", {})

    isolated(effects)
    effects.effect("text", retry=RetryPolicy(max_attempts=9, first_delay=timedelta(minutes=5)))(refuse)
    consumer = a_consumer(texting)
    with registered(consumer), running_relay(), running_worker(consumer):
        add(Noted(text="hello"), subject="W-1")
        eventually(
            lambda: said_of("W-1") == ["text of notes failed once, to be tried again"], report=lambda: said_of("W-1")
        )
        wrong = status.look().wrong

    assert wrong == ["effects that failed and are to be tried again: 1; `manage.py messages list --groups` says why"]
    *before, failed, again = told("W-1")
    assert {"notes: handled", "notes: text intended"} < set(before)
    assert failed == "notes: text attempt 1 failed: not done"
    assert again.startswith("notes: text to be tried again in ")
