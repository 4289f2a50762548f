"""An account's rights are read from the broker's answers."""

from typing import Any

import pytest

from messaging.broker.rights import lacks_right, may_read
from messaging.exceptions import AccessRefused, PreconditionFailed, QueueSilent


class Asked:
    """A connection whose broker gives one answer to every question."""

    def __init__(self, answer: Exception) -> None:
        self._answer = answer

    def call(self, method: str, **arguments: Any) -> Any:
        raise self._answer


@pytest.mark.parametrize(
    ("answer", "may"),
    [
        (AccessRefused("ACCESS_REFUSED - read access to queue 'orders.sms' in vhost '/' refused"), False),
        (PreconditionFailed("PRECONDITION_FAILED - invalid arg 'x-priority' for queue 'orders.sms'"), True),
        (QueueSilent("Queue orders.sms exists but does not answer."), True),
    ],
)
def test_an_account_may_read_a_queue_unless_that_is_refused(answer: Exception, may: bool) -> None:
    assert may_read(Asked(answer), "orders.sms") is may  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("refusal", "lacks"),
    [
        (AccessRefused("ACCESS_REFUSED - access to queue 'sms' in vhost '/' refused for user 'shop'"), True),
        (AccessRefused("ACCESS_REFUSED - read access to queue 'sms' in vhost '/' refused for user 'shop'"), True),
        (AccessRefused("ACCESS_REFUSED - queue 'sms' in vhost '/' in exclusive use"), False),
        (PreconditionFailed("PRECONDITION_FAILED - refused for user 'shop'"), False),
        (None, False),
    ],
)
def test_a_missing_right_is_told_from_a_queue_that_another_connection_holds(refusal: Any, lacks: bool) -> None:
    assert lacks_right(refusal) is lacks
