"""Whoever publishes dies, freezes or has company: between claim, publish, confirm and mark, and around the commit."""

import re
import signal
import threading
from contextlib import suppress
from typing import Any

import pytest
from django.db import connections, transaction

from messaging.models import OutboxMessage
from orders.models import Document, Order, Product, TextMessage
from script.services.owned import is_paused
from script.shopper import Shopper, UnexpectedPage
from tests.faults.shop import (
    CONSUMING,
    Shop,
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
from tests.support.running import running_relay
from tests.support.waiting import eventually

State = OutboxMessage.State

#: Another relay takes over within a test's patience.
SOON = {"LEASE": 2, "PUBLISH_TIMEOUT": 0.5, "POLL_INTERVAL": 0.1}


def relay(run_process: ProcessStarter, *faults: str, **messaging: Any) -> RunningProcess:
    return run_process("run_relay", **environment(*faults, **{**SOON, **messaging}))


@pytest.fixture(autouse=True)
def impatience(request: pytest.FixtureRequest, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test itself runs is as impatient as the processes are."""
    if "vhost" in request.fixturenames:
        request.getfixturevalue("vhost")
    failpoints.lower(settings, monkeypatch, **SOON)


# --- The relay dies ----------------------------------------------------------------------------------------


def test_a_relay_killed_between_confirm_and_mark_publishes_again_and_the_copy_is_recognised(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    """F33, in `run_relay`."""
    declare_queues()
    for _ in repeats():
        place(product)
        assert failpoints.crashed(relay(run_process, "confirmed-not-marked").wait())
    assert not OutboxMessage.objects.exclude(state=State.PENDING).exists()

    with running_relay():
        eventually(lambda: not OutboxMessage.objects.exclude(state=State.PUBLISHED).exists())

    assert queue_length(vhost, "orders.sms") >= 2 * Order.objects.count()
    assert_everything_arrives_once()


def test_a_web_process_killed_between_confirm_and_mark_publishes_again_and_the_copy_is_recognised(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    """F33, on the relay's thread in a web worker."""
    declare_queues()
    web = run_process.web(**environment("confirmed-not-marked", **SOON))
    for number in repeats(short=2):
        buy_while_it_dies(web, product, dead=number + 1)
    assert not OutboxMessage.objects.filter(state=State.PUBLISHED).exists()

    web.kill()
    assert_everything_arrives_once()
    assert Order.objects.count() == len(repeats(short=2))


def test_rows_of_a_relay_killed_between_claim_and_publish_are_taken_over_when_its_lease_ends(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    """F34. None of them was published twice: each relay died before it published."""
    declare_queues()
    for _ in repeats():
        place(product)
        assert failpoints.crashed(relay(run_process, "claimed-not-published").wait())
    assert not OutboxMessage.objects.exclude(state=State.PENDING, publish_attempts=0).exists()
    assert queue_length(vhost, "orders.sms") == 0

    with running_relay():
        eventually(lambda: not OutboxMessage.objects.exclude(state=State.PUBLISHED).exists())
    assert queue_length(vhost, "orders.sms") == Order.objects.count()
    assert_everything_arrives_once()


# --- Company -----------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_five_relays_share_the_work_and_disturb_neither_each_other_nor_the_shop(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    """F35."""
    relays = [relay(run_process) for _ in range(2)]
    consumer = run_process("run_consumer", "sms", "red_packet", **environment(**SOON), RELAY_THREAD="0")
    web = run_process.web(**environment(**SOON), RELAY_THREAD="0")
    consumer.wait_for_line(CONSUMING)
    shop = Shop(web, [consumer, *relays], product.slug)
    with shop.shopping(orders_per_second=10):
        shop.bought(10)
        relays += [relay(run_process) for _ in range(3)]
        for each in relays:
            each.wait_for_line("amqp.connected")
        shop.bought(len(repeats(short=20, full=1000)))
    shop.assert_everything_arrives_once()
    shop.assert_unharmed()
    assert not any("database" in line for process in [web, *relays] for line in process.lines)


@pytest.mark.parametrize(("point", "copies"), [("claimed-not-published", 1), ("confirmed-not-marked", 2)])
def test_a_relay_frozen_past_its_lease_overwrites_nothing_when_it_goes_on(
    point: str, copies: int, vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    """F36. What it has not sent by then it does not send: somebody may have cancelled it."""
    declare_queues()
    place(product)
    frozen = relay(run_process, f"{point}=STOP", HEARTBEAT=60)
    eventually(lambda: is_paused(frozen.pid), 30)

    with running_relay():
        eventually(lambda: not OutboxMessage.objects.exclude(state=State.PUBLISHED).exists())
    before = OutboxMessage.objects.values().get()
    frozen.send(signal.SIGCONT)
    # What it holds it marks before it leaves.
    assert frozen.stop() == 0

    assert OutboxMessage.objects.values().get() == before
    # A busy broker may not have answered in time, before the freeze.
    unanswered = frozen.output.count("message.unknown")
    assert before["publish_attempts"] == 1 + unanswered
    assert copies <= queue_length(vhost, "orders.sms") <= copies + unanswered
    assert_everything_arrives_once()


# --- The web process, around the commit --------------------------------------------------------------------


def test_a_web_process_killed_before_the_commit_leaves_nothing(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    """F38, before."""
    stock = product.stock
    declare_queues()
    web = run_process.web(**environment("order-not-committed", **SOON))
    for number in repeats():
        buy_while_it_dies(web, product, dead=number + 1)

    product.refresh_from_db()
    assert product.stock == stock
    assert not Order.objects.exists()
    assert not Document.objects.exists()
    assert not OutboxMessage.objects.exists()
    # Others go on as if nothing had been: no lock is left behind.
    place(product)
    assert_everything_arrives_once()
    assert queue_length(vhost, "orders.sms") == 0


@pytest.mark.both_databases
def test_a_web_process_killed_right_after_the_commit_loses_no_event(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    """F38, after: the visitor saw an error, and the order stands."""
    web = run_process.web(**environment("committed-not-handed-over", **SOON))
    for number in repeats():
        buy_while_it_dies(web, product, dead=number + 1)

    assert Order.objects.count() == len(repeats())
    assert_everything_arrives_once()


def test_an_order_whose_view_fails_behind_the_outbox_leaves_nothing(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    """F39."""
    stock = product.stock
    web = run_process.web(**environment(fail_behind_the_outbox, **SOON))
    shopper = Shopper(web.url)
    with pytest.raises(UnexpectedPage, match="500"):
        shopper.buy(product.slug)

    product.refresh_from_db()
    assert product.stock == stock
    assert not Order.objects.exists()
    assert not OutboxMessage.objects.exists()
    assert web.stop() == 0


def fail_behind_the_outbox() -> None:
    """A mutant: the order's transaction fails when its event is written already."""
    from orders.services import outbox

    add = outbox.add

    def add_and_fail(*events: Any, **options: Any) -> None:
        add(*events, **options)
        raise RuntimeError("the last line of the transaction")

    outbox.add = add_and_fail


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
