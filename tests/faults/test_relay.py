"""The process that publishes dies, freezes or has company: between claim, publish, confirm and mark, and around the
commit."""

import re
import threading
from contextlib import ExitStack, suppress
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connections, transaction

from messaging import outbox
from messaging.models import OutboxMessage
from messaging.relay import leases
from orders.models import Document, Order, Product, TextMessage
from script.shopper import Shopper, UnexpectedPage
from tests.faults.shop import (
    assert_everything_arrives_once,
    declare_queues,
    environment,
    place,
    shop_at_work,
)
from tests.support import failpoints
from tests.support.amqp import queue_length
from tests.support.processes import ProcessStarter, RunningProcess, WebProcess
from tests.support.repeats import repeats
from tests.support.running import InThread, running_relay
from tests.support.waiting import eventually

State = OutboxMessage.State

#: Another relay takes over within a test's patience; a busy broker has all the time to confirm that a lease allows.
SOON = {"LEASE": 2, "PUBLISH_TIMEOUT": 0.9, "POLL_INTERVAL": 0.1}


def relay(run_process: ProcessStarter, *faults: str, **messaging: Any) -> RunningProcess:
    return run_process("run_relay", **environment(*faults, **{**SOON, **messaging}))


@pytest.fixture(autouse=True)
def impatience(request: pytest.FixtureRequest, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test itself runs is as impatient as the processes are."""
    if "vhost" in request.fixturenames:
        request.getfixturevalue("vhost")
    failpoints.lower(settings, monkeypatch, **SOON)


# --- The relay dies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("point", "published"), [("claimed-not-published", False), ("confirmed-not-marked", True)])
def test_rows_of_a_killed_relay_are_published_when_its_lease_ends_and_copies_are_recognised(
    point: str, published: bool, vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    """F34, and F33 in `run_relay`."""
    declare_queues()
    for _ in repeats(short=1):
        place(product)
        assert failpoints.crashed(relay(run_process, point).wait())
    assert not OutboxMessage.objects.exclude(state=State.PENDING, publish_attempts=0).exists()
    by_the_killed = queue_length(vhost, "orders.sms")
    assert bool(by_the_killed) is published

    with running_relay():
        eventually(lambda: not OutboxMessage.objects.exclude(state=State.PUBLISHED).exists())
    assert queue_length(vhost, "orders.sms") == by_the_killed + Order.objects.count()
    assert_everything_arrives_once()


# --- Company -----------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_five_relays_share_the_work_and_disturb_neither_each_other_nor_the_shop(
    vhost: str, product: Product, settings: Any
) -> None:
    """F35."""
    # However slow the machine is, no lease ends before its row is marked.
    settings.MESSAGING = {**settings.MESSAGING, "LEASE": 60}
    count = len(repeats(short=20, full=1000))
    with ExitStack() as stack:
        relays = [stack.enter_context(running_relay()) for _ in range(2)]
        shoppers = [InThread(lambda: [place(product) for _ in range(count)], "shopper") for _ in range(2)]
        eventually(lambda: sum(relay.published for relay in relays) >= 5, 60)
        relays += [stack.enter_context(running_relay()) for _ in range(3)]
        for shopper in shoppers:
            shopper.join(600)
        assert_everything_arrives_once()
    assert Order.objects.count() == 2 * count


@pytest.mark.parametrize(("function", "copies"), [("claim", 1), ("write", 2)], ids=["claimed", "confirmed"])
def test_a_relay_frozen_past_its_lease_overwrites_nothing_when_it_goes_on(
    function: str, copies: int, vhost: str, product: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F36. It does not publish rows then: their messages may have been cancelled."""
    real, frozen, may_go_on = getattr(leases, function), threading.Event(), threading.Event()

    def freeze_once(*arguments: Any) -> Any:
        """After a claim that found something, or before a mark."""
        found = real(*arguments) if function == "claim" else arguments[0]
        if found and not frozen.is_set():
            frozen.set()
            assert may_go_on.wait(60)
        return found if function == "claim" else real(*arguments)

    monkeypatch.setattr(leases, function, freeze_once)
    declare_queues()
    place(product)
    with running_relay():
        assert frozen.wait(15)
        with running_relay():
            eventually(lambda: not OutboxMessage.objects.exclude(state=State.PUBLISHED).exists())
        before = OutboxMessage.objects.values().get()
        may_go_on.set()
        # Before it ends it marks its rows.
    assert OutboxMessage.objects.values().get() == before
    # A busy broker may not have answered in time.
    unanswered = before["publish_attempts"] - 1
    assert copies <= queue_length(vhost, "orders.sms") <= copies + unanswered
    assert_everything_arrives_once()


# --- The web process, around the commit --------------------------------------------------------------------


def test_a_web_process_killed_before_the_commit_leaves_nothing(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    """F38, before."""
    declare_queues()
    web = run_process.web(**environment("order-not-committed", **SOON))
    for number in repeats(short=1):
        buy_while_it_dies(web, product, dead=number + 1)

    assert_nothing_was_ordered(product)
    # No lock is left behind.
    place(product)
    assert_everything_arrives_once()
    assert queue_length(vhost, "orders.sms") == 0


@pytest.mark.parametrize(
    "point", [pytest.param("committed-not-handed-over", marks=pytest.mark.both_databases), "confirmed-not-marked"]
)
def test_a_web_process_killed_after_the_commit_loses_no_event_and_doubles_none(
    point: str, vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    """F38, after the commit: the visitor saw an error, and the order exists. F33: on the relay's thread of a worker."""
    declare_queues()
    web = run_process.web(**environment(point, **SOON))
    for number in repeats(short=1):
        buy_while_it_dies(web, product, dead=number + 1)
    assert not OutboxMessage.objects.filter(state=State.PUBLISHED).exists()

    web.kill()
    assert Order.objects.count() == len(repeats(short=1))
    assert_everything_arrives_once()


@pytest.mark.django_db(transaction=True)
def test_an_order_whose_transaction_fails_after_the_outbox_leaves_nothing(
    product: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F39."""

    def add_and_fail(*events: Any, **options: Any) -> None:
        outbox.add(*events, **options)
        raise ZeroDivisionError

    monkeypatch.setattr("orders.services.outbox", SimpleNamespace(add=add_and_fail))
    with pytest.raises(ZeroDivisionError):
        place(product)
    assert_nothing_was_ordered(product)


def assert_nothing_was_ordered(product: Product) -> None:
    stock = product.stock
    product.refresh_from_db()
    assert product.stock == stock
    for model in (Order, Document, OutboxMessage):
        assert not model.objects.exists()


def buy_while_it_dies(web: WebProcess, product: Product, *, dead: int) -> None:
    """Place an order at a web process whose worker dies of it, the `dead`th to do so, and wait for the next worker."""
    shopper = Shopper(web.url, timeout=10)
    checkout = eventually(lambda: _checkout(shopper, product), 20)
    with suppress(OSError, UnexpectedPage):
        shopper.place_order(checkout)
    eventually(lambda: len(re.findall("was sent SIGKILL", web.output)) == dead, 20, report=lambda: web.output)


def _checkout(shopper: Shopper, product: Product) -> Any:
    with suppress(OSError, UnexpectedPage):
        return shopper.fill_cart(product.slug)


# --- Slow transactions -------------------------------------------------------------------------------------


@pytest.mark.only_on("postgresql")
def test_a_long_transaction_that_holds_a_low_id_is_neither_skipped_nor_waited_for(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    """F40. On SQLite there is one writer, and so no such thing."""
    other = Product.objects.create(sku="CUP", slug="cup", name="Cup", price=9, stock=9, weight_grams=300)
    added, may_commit = threading.Event(), threading.Event()

    def order_slowly() -> None:
        try:
            with transaction.atomic():
                place(other)
                added.set()
                assert may_commit.wait(60)
        finally:
            connections.close_all()

    slow = threading.Thread(target=order_slowly)
    slow.start()
    assert added.wait(10)
    with shop_at_work():
        try:
            quick = [place(product) for _ in range(5)]
            eventually(lambda: TextMessage.objects.filter(order__in=quick).count() == 5)
            # Several looks of the relay later, too.
            last = place(product)
            eventually(lambda: TextMessage.objects.filter(order=last).exists())
        finally:
            may_commit.set()
            slow.join(30)
        late = Order.objects.get(lines__product=other)
        assert OutboxMessage.objects.get(subject=late.number).pk < OutboxMessage.objects.get(subject=last.number).pk
        eventually(lambda: TextMessage.objects.filter(order=late).exists())
    assert_everything_arrives_once()
