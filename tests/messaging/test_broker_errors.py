"""Broker errors have types: a limit is no refusal, and RabbitMQ's own words reach the reader."""

import pytest
from pika import exceptions

from messaging.broker.errors import describe, refused_or_lost, unavailable
from messaging.broker.reconnecting import LIMIT_PAUSE, Attempts
from messaging.exceptions import (
    AccessRefused,
    BrokerRefused,
    BrokerUnavailable,
    LimitReached,
    MessagingError,
    NotFound,
    ObjectLimitReached,
    OperationRefused,
    PreconditionFailed,
    ResourceLocked,
    Unsupported,
    VhostDown,
)
from messaging.management.errors import broker_refuses
from messaging.validation.addresses import broker_address

HERE = broker_address("amqp://shop:secret@mq.example/v")


def at_log_in(code: int, text: str) -> BaseException:
    """How pika reports a connection that the broker closed during the log-in."""
    return exceptions.ProbableAccessDeniedError(repr(exceptions.ConnectionClosedByBroker(code, text)))


def later(code: int, text: str) -> BaseException:
    return exceptions.ConnectionClosedByBroker(code, text)


#: As RabbitMQ 3.10 and 4 write them; tests/integration/test_limits.py sees those of 3.10 on a real broker.
LIMITS = [
    "access to vhost 'v' refused for user 'shop': connection limit (1) is reached",
    "connection refused for user 'shop': user connection limit (0) is reached",
    "connection refused: node connection limit (2) is reached",
    "number of channels opened for user 'shop' has reached the maximum allowed user limit of (1)",
    "number of channels opened on node 'rabbit@a' has reached the maximum allowed limit of (7)",
    "number of channels opened (8) has reached the negotiated channel_max (8)",
]


@pytest.mark.parametrize("closed", [at_log_in, later])
@pytest.mark.parametrize("words", LIMITS)
def test_a_limit_is_reported_in_the_brokers_words_and_is_no_refusal(closed: type[BaseException], words: str) -> None:
    error = closed(530, f"NOT_ALLOWED - {words}")
    told = unavailable(error, HERE)
    assert (type(told), str(told)) == (LimitReached, f"the broker is at a limit: {words} (mq.example:5672)")


def test_the_end_of_a_limit_is_noticed_soon_however_long_it_lasted() -> None:
    attempts = Attempts("test", 1)
    pauses = [attempts.failed(LimitReached("at a limit"), was_open=False) for _ in range(20)]
    assert max(pauses) <= LIMIT_PAUSE
    assert not attempts.refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("NOT_ALLOWED - vhost v not found", "the broker refused access to the virtual host: vhost v not found"),
        (
            "NOT_ALLOWED - access to vhost 'limit reached' refused for user 'it''s'",
            "the broker refused access to the virtual host: access to vhost 'limit reached' refused for user 'it''s'",
        ),
        ("NOT_ALLOWED - frame_max = 5 is lower", "the broker refused the connection: frame_max = 5 is lower"),
    ],
)
def test_a_refusal_is_reported_in_the_brokers_words(text: str, said: str) -> None:
    error = at_log_in(530, text)
    told = unavailable(error)
    assert (type(told), str(told)) == (BrokerRefused, said)


def test_a_virtual_host_that_is_down_is_waited_for() -> None:
    error = at_log_in(541, "INTERNAL_ERROR - access to vhost 'v' refused for user 'shop': vhost 'v' is down")
    told = unavailable(error)
    assert type(told) is VhostDown
    assert "vhost 'v' is down" in str(told)
    assert "rabbitmqctl restart_vhost" in str(told)


def test_a_broker_that_forbids_transient_queues_is_reported_in_words() -> None:
    """RabbitMQ 4 can be configured so, and then closes the whole connection; its words are those of 4.3."""
    text = "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated.\nIts use is not permitted per"
    assert "neither durable nor exclusive" in describe(later(541, text))


@pytest.mark.parametrize(
    ("user", "host", "told"),
    [
        ("guest", "mq.example", True),
        ("guest", "localhost", False),
        ("guest", "127.0.0.1", False),
        ("guest", "[::1]", False),
        ("shop", "mq.example", False),
    ],
)
def test_guest_from_another_machine_is_told_to_use_another_account(user: str, host: str, told: bool) -> None:
    text = "ConnectionClosedByBroker: (403) 'ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN.'"
    error = exceptions.ProbableAuthenticationError(text)
    said = describe(error, broker_address(f"amqp://{user}:secret@{host}/v"))
    assert said.startswith("the broker refused the user name or the password")
    assert ("lets guest in only from its own machine" in said) is told
    assert f"({host}:5672)" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (403, "ACCESS_REFUSED - read access to queue 'q' in vhost 'v' refused for user 'shop'", AccessRefused),
        (404, "NOT_FOUND - no exchange 'e' in vhost 'v'", NotFound),
        (405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q'", ResourceLocked),
        (406, "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'limit'", PreconditionFailed),
        (
            406,
            "PRECONDITION_FAILED - cannot declare queue 'q': queue limit in vhost 'v' (1) is reached",
            ObjectLimitReached,
        ),
        (540, "NOT_IMPLEMENTED - basic.get not supported by stream queues", Unsupported),
        (311, "CONTENT_TOO_LARGE - too large", OperationRefused),
    ],
)
def test_each_refused_operation_has_its_type(code: int, text: str, kind: type[MessagingError]) -> None:
    for closed in (exceptions.ChannelClosedByBroker, exceptions.ConnectionClosedByBroker):
        told = refused_or_lost(closed(code, text))
        if closed is exceptions.ChannelClosedByBroker or kind is Unsupported:
            assert isinstance(told, OperationRefused)
            assert (type(told), told.text, str(told)) == (kind, text, f"{code} {text}")
            assert told.sentence == text.partition(" - ")[2]
        else:
            assert isinstance(told, BrokerUnavailable)


def test_a_queue_that_another_consumer_has_to_itself_is_no_lack_of_rights() -> None:
    said = str(broker_refuses(AccessRefused("ACCESS_REFUSED - queue 'tasks' in vhost '/' in exclusive use", 403)))
    assert said.endswith("It has a consumer that asked to be its only one: stop that first.")
