"""What the broker's refusals are told as: a limit is no refusal, and its own words reach whoever reads."""

import pytest
from pika import exceptions

from messaging.broker.refusals import describe, is_limit, is_refusal, says_limit
from messaging.exceptions import ChannelClosed
from messaging.validation.addresses import broker_address

HERE = broker_address("amqp://shop:secret@mq.example/v")


def at_log_in(code: int, text: str) -> BaseException:
    """As pika tells of a connection that the broker closed while it was opened."""
    return exceptions.ProbableAccessDeniedError(repr(exceptions.ConnectionClosedByBroker(code, text)))


def later(code: int, text: str) -> BaseException:
    return exceptions.ConnectionClosedByBroker(code, text)


#: As RabbitMQ 3.10 and 4 write them; those of 3.10 are asked of a real one in tests/integration/test_limits.py.
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
def test_a_limit_is_told_in_the_brokers_words_and_is_no_refusal(closed: type[BaseException], words: str) -> None:
    error = closed(530, f"NOT_ALLOWED - {words}")
    assert (is_limit(error), is_refusal(error)) == (True, False)
    assert describe(error, HERE) == f"the broker is at a limit: {words} (mq.example:5672)"


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
def test_what_waiting_cannot_heal_is_a_refusal_in_the_brokers_words(text: str, said: str) -> None:
    error = at_log_in(530, text)
    assert (is_limit(error), is_refusal(error)) == (False, True)
    assert describe(error) == said


def test_a_virtual_host_that_is_down_is_waited_for() -> None:
    error = at_log_in(541, "INTERNAL_ERROR - access to vhost 'v' refused for user 'shop': vhost 'v' is down")
    assert (is_limit(error), is_refusal(error)) == (False, False)
    assert "vhost 'v' is down" in describe(error)
    assert "rabbitmqctl restart_vhost" in describe(error)


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
def test_guest_from_another_machine_is_told_that_rabbitmq_lets_it_in_from_its_own_only(
    user: str, host: str, told: bool
) -> None:
    text = "ConnectionClosedByBroker: (403) 'ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN.'"
    error = exceptions.ProbableAuthenticationError(text)
    said = describe(error, broker_address(f"amqp://{user}:secret@{host}/v"))
    assert said.startswith("the broker refused the user name or the password")
    assert ("lets guest in only from its own machine" in said) is told
    assert f"({host}:5672)" in said
    assert "secret" not in said


def test_too_many_of_a_kind_is_told_apart_from_what_differs() -> None:
    assert says_limit(
        ChannelClosed(406, "PRECONDITION_FAILED - cannot declare queue 'q': queue limit in vhost 'v' (1) is reached")
    )
    assert not says_limit(ChannelClosed(406, "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'limit'"))
