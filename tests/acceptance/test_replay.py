"""From a dead letter to its effect, through real processes: replayed from a terminal, handled once."""

import json
import re
from collections import Counter

import pytest

from messaging.models import InboxMessage, OperatorAction, OutboxMessage
from orders.models import Order, Product, RedPacket, TextMessage
from tests.faults.shop import place
from tests.support.missing_orders import make_orders_missing, restore_orders
from tests.support.processes import ProcessStarter, RunningProcess
from tests.support.waiting import eventually

State = InboxMessage.State


def messages(run_process: ProcessStarter, *arguments: str) -> RunningProcess:
    """`manage.py messages …`, ended."""
    process = run_process("messages", *arguments)
    process.wait(60)
    return process


def dead_orders(run_process: ProcessStarter, product: Product, count: int) -> None:
    """Orders whose text and red packet have died, because nobody found the order. The consumers run."""
    for _ in range(count):
        place(product)
    make_orders_missing()
    run_process("run_consumer", "sms", "red_packet")
    eventually(lambda: InboxMessage.objects.filter(state=State.DEAD).count() == 2 * count, 60)


def assert_each_has_its_effects_once(count: int) -> None:
    eventually(lambda: InboxMessage.objects.filter(state=State.HANDLED).count() == 2 * count, 60)
    numbers = Counter(Order.objects.values_list("number", flat=True))
    assert Counter(TextMessage.objects.values_list("order__number", flat=True)) == numbers
    assert Counter(RedPacket.objects.values_list("order__number", flat=True)) == numbers


def test_what_died_is_found_replayed_and_handled_once_when_its_cause_is_mended(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    dead_orders(run_process, product, 6)
    listed = messages(run_process, "list", "--groups", "--json")
    groups = [json.loads(line) for line in listed.lines if line.startswith("{")]
    assert [(each["count"], each["type"]) for each in groups] == [(6, "order.placed")] * 2
    by_consumer = {each["consumer"]: each["group"] for each in groups}

    # Not mended yet: the canary dies again, and the others are spared.
    stopped = messages(run_process, "replay", "--group", by_consumer["sms"], "--canary", "2")
    assert stopped.wait() == 1
    assert "Stopped: 2 of 2 failed again: 100%, over the limit of 20%. 4 were not replayed." in stopped.output
    eventually(lambda: InboxMessage.objects.filter(consumer="sms", state=State.DEAD).count() == 6)
    assert OutboxMessage.objects.filter(origin="replay").count() == 2

    restore_orders()
    planned = messages(run_process, "replay", "--group", by_consumer["sms"], "--dry-run")
    assert "runs\t6\tsms\torder.placed" in planned.output
    assert messages(run_process, "replay", "--group", by_consumer["sms"], "--canary", "2").wait() == 0
    assert messages(run_process, "replay", "--consumer", "red_packet", "--rate", "20").wait() == 0

    assert_each_has_its_effects_once(6)
    again = messages(run_process, "replay", *InboxMessage.objects.values_list("message_id", flat=True).distinct())
    assert again.wait() == 1
    assert "Nothing was done: 12 already handled." in again.output
    changed = OperatorAction.objects.filter(action="replay").values_list("changed", flat=True)
    assert sum(changed) == 2 + 6 + 6


def test_operators_who_replay_the_same_at_once_replay_each_message_once(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    dead_orders(run_process, product, 30)
    restore_orders()

    operators = [run_process("messages", "replay", "--all") for _ in range(3)]

    assert all(operator.wait(60) in {0, 1} for operator in operators)
    told = [re.search(r"^(\d+) replayed\.", operator.output, re.MULTILINE) for operator in operators]
    assert sum(int(found[1]) for found in told if found) == 60
    assert OutboxMessage.objects.filter(origin="replay").count() == 60
    assert_each_has_its_effects_once(30)


@pytest.mark.parametrize("how", ["cancel", "discard"])
def test_what_is_given_up_by_a_person_stays_so(
    vhost: str, run_process: ProcessStarter, product: Product, how: str
) -> None:
    if how == "cancel":
        place(product)
        assert messages(run_process, "cancel", "--all", "--note", "wrong price").wait() == 0
        run_process("run_consumer", "sms", "red_packet").wait_for_line("amqp.connected.*role=consumer")
    else:
        dead_orders(run_process, product, 1)
        restore_orders()
        assert messages(run_process, "discard", "--all").wait() == 0
        assert messages(run_process, "replay", "--all").wait() == 1

    place(product)
    eventually(lambda: TextMessage.objects.count() == RedPacket.objects.count() == 1, 60)
    first = Order.objects.earliest("pk")
    assert not TextMessage.objects.filter(order=first).exists()
    shown = messages(run_process, "show", first.number).output
    assert f"{how}{'l' if how == 'cancel' else ''}ed by " in shown
