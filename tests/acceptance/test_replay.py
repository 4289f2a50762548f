"""From a dead letter to its effect: found, replayed and given up from a terminal, handled once."""

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from messaging.models import InboxMessage, OperatorAction, OutboxMessage
from orders.models import Product
from tests.faults.shop import assert_each_once, declare_queues, place, shop_at_work
from tests.support.missing_orders import make_orders_missing, restore_orders
from tests.support.processes import ProcessStarter
from tests.support.waiting import eventually

State = InboxMessage.State


def messages(*arguments: str) -> str:
    """What `manage.py messages …` prints."""
    out = StringIO()
    call_command("messages", *arguments, stdout=out)
    return out.getvalue()


def refused(*arguments: str) -> str:
    with pytest.raises(CommandError) as error:
        messages(*arguments)
    assert error.value.returncode == 1
    return str(error.value)


def test_what_died_is_found_replayed_and_handled_once_when_its_cause_is_mended(
    vhost: str, product: Product, run_process: ProcessStarter
) -> None:
    dead = InboxMessage.objects.filter(state=State.DEAD)
    declare_queues()
    for _ in range(6):
        place(product)
    make_orders_missing()
    with shop_at_work():
        eventually(lambda: dead.count() == 12, 60)
        groups = [json.loads(line) for line in messages("list", "--groups", "--json").splitlines()]
        assert [(each["count"], each["type"]) for each in groups] == [(6, "order.placed")] * 2
        by_consumer = {each["consumer"]: each["group"] for each in groups}

        # Not mended yet: the canary dies again, and the others are spared.
        assert refused("replay", "--group", by_consumer["sms"], "--canary", "2") == (
            "Stopped: 2 of 2 failed again: 100%, over the limit of 20%. 4 were not replayed."
        )
        eventually(lambda: dead.filter(consumer="sms").count() == 6)
        assert OutboxMessage.objects.filter(origin="replay").count() == 2

        restore_orders()
        assert "runs\t6\tsms\torder.placed" in messages("replay", "--group", by_consumer["sms"], "--dry-run")
        messages("replay", "--group", by_consumer["sms"], "--canary", "2")
        # By a process, as a person or cron runs it.
        replay = run_process("messages", "replay", "--consumer", "red_packet", "--rate", "20", RELAY_THREAD="0")
        assert replay.wait(60) == 0
        assert "6 replayed." in replay.output
        eventually(lambda: InboxMessage.objects.filter(state=State.HANDLED).count() == 12, 60)

    assert_each_once()
    again = refused("replay", *InboxMessage.objects.values_list("message_id", flat=True).distinct())
    assert again == "Nothing was done: 12 already handled."
    changed = OperatorAction.objects.filter(action="replay").values_list("changed", flat=True)
    assert sum(changed) == 2 + 6 + 6
