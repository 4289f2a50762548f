"""The failpoints themselves: a suite that injects faults is worth nothing where they are not injected."""

import pytest

from messaging.models import InboxMessage, OutboxMessage
from tests.support import failpoints
from tests.support.amqp import deliver
from tests.support.processes import ProcessStarter


def outbox_row() -> OutboxMessage:
    """A row that no relay has published, and that tells `sms` of an order there is not."""
    return OutboxMessage.objects.create(
        message_id="m-1",
        type="order.shipped",
        exchange="orders.events",
        routing_key="order.shipped",
        body=b'{"order_number": "W-1", "shipped_at": "2026-01-01T00:00:00Z"}',
    )


@pytest.mark.parametrize("unknown", ["no-such-point", "tests.support.failpoints:no_such_mutant"])
def test_a_fault_that_does_not_exist_is_refused(unknown: str) -> None:
    with pytest.raises(LookupError, match="neither one of"):
        failpoints.at(unknown)


def test_a_failpoint_is_reached_on_the_relays_thread_of_a_consumer_process(
    vhost: str, run_process: ProcessStarter
) -> None:
    outbox_row()

    consumer = run_process("run_consumer", "sms", **failpoints.at("confirmed-not-marked"))

    assert failpoints.crashed(consumer.wait())
    assert OutboxMessage.objects.get().state == "pending"


def test_only_the_nth_time_counts(vhost: str, run_process: ProcessStarter) -> None:
    row = outbox_row()
    assert run_process("run_consumer", "sms", "--burst", RELAY_THREAD="0").wait() == 0
    deliver(vhost, "orders.sms", row)

    burst = run_process("run_consumer", "sms", "--burst", RELAY_THREAD="0", **failpoints.at("committed-not-acked:2"))

    assert burst.wait() == 0
    assert InboxMessage.objects.get().state == "dead"
