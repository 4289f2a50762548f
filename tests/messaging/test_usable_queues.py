"""Whether a worker consumes a queue that has ended before it began."""

from contextlib import contextmanager
from typing import Any, NoReturn

import pytest

from messaging.broker.queue_answers import QueueAnswer
from messaging.exceptions import LimitReached
from messaging.worker import worker
from messaging.worker.worker import Worker
from tests.support.consuming import a_consumer

pytestmark = pytest.mark.django_db


def is_usable() -> bool:
    here = Worker([a_consumer()])
    here.subscriptions[0].failures = 1
    return list(here._usable(here.subscriptions)) == here.subscriptions


@contextmanager
def _a_connection(role: str) -> Any:
    yield None


def test_a_queue_is_consumed_although_the_broker_has_no_room_to_ask_whether_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(role: str) -> NoReturn:
        raise LimitReached("connection limit (1) is reached")

    monkeypatch.setattr(worker, "opened", full)
    assert is_usable()


@pytest.mark.parametrize("silent", ["", "no answer within 5 s"])
def test_a_queue_that_does_not_answer_is_left_alone(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "opened", _a_connection)
    monkeypatch.setattr(worker, "ask_queues", lambda _, names, **__: dict.fromkeys(names, QueueAnswer(silent=silent)))
    assert is_usable() is not bool(silent)
