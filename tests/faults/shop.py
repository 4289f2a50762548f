"""A shop at work while something dies: real processes, orders at a rate, and whether everything arrived once."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from messaging import consumers
from messaging.consumers import Consumer
from messaging.models import Effect, InboxMessage, OutboxMessage
from orders.models import Order, Product, TextMessage
from orders.services import Wanted, place_order
from orders.shipping import flat_rate
from script.shopper import Page, Shopper
from tests.support import failpoints, running
from tests.support.processes import ProcessStarter, RunningProcess, WebProcess
from tests.support.repeats import is_full
from tests.support.running import running_relay, running_worker
from tests.support.waiting import eventually

CONSUMING = r"amqp.connected.*role=consumer"
#: Seconds after a fault within which everything has arrived; a full run leaves thousands of orders behind.
PATIENCE = 1200 if is_full() else 60

#: So short that a test sees each deadline pass.
SOON = {
    "LEASE": 3,
    "PUBLISH_TIMEOUT": 1,
    "POLL_INTERVAL": 0.2,
    "DECLARE_INTERVAL": 1,
    "HEARTBEAT": 2,
    "CONNECT_TIMEOUT": 2,
    "RECONNECT_MAX": 1,
    "RECONNECT_REFUSED": 2,
}


def environment(*faults: str | Callable[[], None], **messaging: Any) -> dict[str, str]:
    """The environment of the processes of a fault test."""
    return failpoints.at(*faults, **{**SOON, **messaging})


@dataclass
class Shop:
    """The processes of a shop. `slowest` is the longest that an order has taken, in seconds."""

    web: WebProcess
    consumers: list[RunningProcess]
    slug: str
    numbers: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def processes(self) -> list[RunningProcess]:
        return [self.web, *self.consumers]

    def buy(self, shopper: Shopper | None = None) -> None:
        """Place one order as a visitor does, and note how that went."""
        began = time.monotonic()
        try:
            self.numbers.append((shopper or Shopper(self.web.url)).buy(self.slug))
        except (OSError, AssertionError) as error:
            self.refused.append(repr(error)[:300])
        self.slowest = max(self.slowest, time.monotonic() - began)

    def visitor(self) -> tuple[Shopper, Page]:
        """A visitor who has only to press the button."""
        shopper = Shopper(self.web.url)
        return shopper, shopper.fill_cart(self.slug)

    @contextmanager
    def shopping(self, orders_per_second: float = 5) -> Iterator[None]:
        """Inside, visitors place orders at about this rate."""
        over = threading.Event()

        def go() -> None:
            shopper = Shopper(self.web.url)
            while not over.wait(1 / orders_per_second):
                self.buy(shopper)

        visitors = threading.Thread(target=go, name="visitors")
        visitors.start()
        try:
            yield
        finally:
            over.set()
            visitors.join(60)

    def bought(self, count: int) -> None:
        """Wait until visitors have placed `count` further orders."""
        goal = len(self.numbers) + count
        eventually(lambda: len(self.numbers) >= goal, 60, report=lambda: f"{self.refused}\n{self.web.output}")

    def assert_unharmed(self, slowest: float = 5) -> None:
        """No visitor met an error or waited for the broker, and each process still runs."""
        assert self.refused == []
        assert self.slowest < slowest
        assert all(process.is_alive for process in self.processes)

    def assert_everything_arrives_once(self, within: float = PATIENCE) -> None:
        """Each committed order gets its text and its red packet decided, once; nothing waits, nothing died."""
        eventually(everything_arrived, within, every=0.1, report=lambda: f"{situation()}\n{self._words()}")
        assert len(self.numbers) == Order.objects.count()
        assert_each_once()

    def assert_promises_are_kept(self, within: float = 60) -> None:
        """The same, where a visitor may have seen an error although the order was committed."""
        eventually(everything_arrived, within, every=0.1, report=lambda: f"{situation()}\n{self._words()}")
        committed = set(Order.objects.values_list("number", flat=True))
        assert set(self.numbers) <= committed
        assert_each_once()

    def refuses(self, count: int) -> None:
        """Wait until `count` further orders were refused."""
        goal = len(self.refused) + count
        eventually(lambda: len(self.refused) >= goal, 60, report=lambda: f"{self.web.output}")

    def _words(self) -> str:
        return "\n".join(f"--- {process}\n" + "\n".join(process.lines[-30:]) for process in self.processes)


def assert_calm(*processes: RunningProcess, seconds: float = 3) -> None:
    """For so long no process spins: it has a core for less than a fifth of the time, and logs little."""
    began = time.monotonic()
    before = [(process.cpu_seconds, len(process.lines)) for process in processes]
    eventually(lambda: time.monotonic() - began >= seconds, seconds + 5)
    took = time.monotonic() - began
    for process, (cpu_seconds, lines) in zip(processes, before, strict=True):
        assert process.is_alive
        assert process.cpu_seconds - cpu_seconds < took / 5, f"{process} spins"
        assert len(process.lines) - lines < 3 * took, f"{process} says too much:\n{process.output}"


def open_shop(run_process: ProcessStarter, slug: str, **variables: str) -> Shop:
    """Start a web process and a consumer process, and return when both are at work."""
    settings = {**environment(), **variables}
    consumers = run_process("run_consumer", "sms", "red_packet", **settings)
    web = run_process.web(**settings)
    consumers.wait_for_line(CONSUMING, 30)
    return Shop(web, [consumers], slug)


def place(product: Product) -> Order:
    """Place an order without a web page."""
    return place_order(
        checkout_token=uuid4(),
        wanted=[Wanted(product_id=product.pk, quantity=1)],
        customer_name="Ann Shopper",
        phone="+8613800138000",
        destination="CN",
        shipping=flat_rate(),
    )


def declare_queues() -> None:
    """Make the queues of the shop's consumers, so that messages can wait in them."""
    running.declare_queues(*_consumers())


def assert_everything_arrives_once(within: float = 60) -> None:
    """Let a healthy relay and healthy consumers, on threads of the test, do what is left to do: each committed order
    then has its text and its red packet decided, once; nothing waits, nothing died."""
    with shop_at_work():
        eventually(everything_arrived, within, every=0.1, report=situation)
    assert_each_once()


@contextmanager
def shop_at_work() -> Iterator[None]:
    """Inside, a relay and the shop's consumers run on threads of the test."""
    with running_relay(), running_worker(*_consumers()):
        yield


def _consumers() -> list[Consumer]:
    return consumers.named(["sms", "red_packet"])


def everything_arrived() -> bool:
    """Whether nothing is on its way any more."""
    orders = Order.objects.count()
    return (
        not OutboxMessage.objects.exclude(state=OutboxMessage.State.PUBLISHED).exists()
        and InboxMessage.objects.filter(state=InboxMessage.State.HANDLED).count() == 2 * orders
        and not Effect.objects.filter(state__in=Effect.OPEN).exists()
    )


def assert_each_once() -> None:
    """For each order one text and one decision about its red packet; nothing died, nothing else was handled."""
    numbers = list(Order.objects.values_list("number", flat=True))
    assert Counter(TextMessage.objects.values_list("order__number", flat=True)) == Counter(numbers)
    assert not Order.objects.filter(red_packet_settled_at=None).exists()
    assert InboxMessage.objects.count() == 2 * len(numbers)
    assert not InboxMessage.objects.exclude(state=InboxMessage.State.HANDLED).exists()


def situation() -> str:
    """What is where, for a test that failed."""
    outbox = Counter(OutboxMessage.objects.values_list("state", "last_error"))
    inbox = Counter(InboxMessage.objects.values_list("consumer", "state"))
    return f"orders {Order.objects.count()}, outbox {dict(outbox)}, inbox {dict(inbox)}"
