"""The shoppers: orders at a rate, over real HTTP. They press the button again if no answer comes."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from script.shopper import Page, Shopper, UnexpectedPage

#: Shoppers in the shop at a time.
AT_ONCE = 8
#: Seconds that a shopper waits for a page, and goes on trying to order at all.
PAGE_TIMEOUT = 10.0
PATIENCE = 90.0
#: Seconds until a shopper tries again.
PAUSE = 0.5
#: One in so many orders is cancelled again.
CANCELS = 10
#: For each so many orders, one more shopper wants the scarce product; there is enough for every second of them.
HUNTS = 20
#: Only the page of a product that cannot be bought says this.
SOLD_OUT = "It cannot be ordered at the moment."


class Outcome(StrEnum):
    """What a shopper knows at the end."""

    #: The shop led to the order's page.
    PLACED = "placed"
    #: The shop said that nothing was ordered: it is sold out.
    REFUSED = "refused"
    #: The button was pressed, and no answer told the outcome.
    UNKNOWN = "unknown"
    #: The shop never showed a checkout page, however often it was asked.
    GAVE_UP = "gave_up"
    #: The shop's answer made no sense.
    STRANGE = "strange"


@dataclass(slots=True)
class Attempt:
    """One person's attempt to order. Name and phone are unique, so that its order and texts can be found."""

    number: int
    slug: str
    quantity: int
    will_cancel: bool
    outcome: Outcome | None = None
    order_number: str = ""
    #: How often the button was pressed.
    presses: int = 0
    #: The shop said that the order is cancelled.
    told_cancelled: bool = False
    note: str = ""

    @property
    def name(self) -> str:
        return f"Shopper {self.number:06d}"

    @property
    def phone(self) -> str:
        """E.164."""
        return f"+86138{self.number:08d}"


def hunters(orders: int) -> int:
    """Return how many shoppers want the scarce product, besides those of `orders`."""
    return max(2, orders // HUNTS)


def wishes(orders: int) -> list[Attempt]:
    """Return what `orders` people want, with those who want the scarce product spread among them."""
    among = hunters(orders)
    every = (orders + among) // among
    hunting = {every * number for number in range(1, among + 1)}
    return [
        Attempt(number, "scarce", 1, will_cancel=False)
        if number in hunting
        else Attempt(number, "plenty", 1 + number % 3, will_cancel=number % CANCELS == 0)
        for number in range(1, orders + among + 1)
    ]


class Shoppers:
    """All attempts, in threads, spread evenly over some seconds."""

    def __init__(self, url: str, orders: int, seconds: float) -> None:
        self.attempts = wishes(orders)
        self._url = url
        self._gap = seconds / len(self.attempts)
        self._next = itertools.count()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._shop, name="shopper", daemon=True) for _ in range(AT_ONCE)]
        self._began = 0.0

    def start(self) -> None:
        """Let the shoppers begin."""
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let no shopper begin anything new; one that waits for a page still gets it."""
        self._stop.set()

    @property
    def done(self) -> bool:
        """Whether all shoppers are done."""
        return not any(thread.is_alive() for thread in self._threads)

    def outcomes(self) -> Counter[Outcome]:
        """How many attempts ended how, so far."""
        return Counter(attempt.outcome for attempt in self.attempts if attempt.outcome)

    def _shop(self) -> None:
        for index in self._next:
            if index >= len(self.attempts):
                return
            due = self._began + index * self._gap
            if self._stop.wait(max(0.0, due - time.monotonic())):
                return
            _Visit(self._url, self.attempts[index], self._stop).shop()


class _Visit:
    """One attempt from the product's page to the order's, and perhaps to its cancellation."""

    def __init__(self, url: str, attempt: Attempt, stop: threading.Event) -> None:
        self._attempt = attempt
        self._stop = stop
        self._deadline = time.monotonic() + PATIENCE
        # The redirect itself tells the outcome: the page behind it may fail for other reasons.
        self._shopper = Shopper(url, timeout=PAGE_TIMEOUT, follow_redirects=False)

    def shop(self) -> None:
        attempt = self._attempt
        checkout = self._until_answered(self._fill_cart)
        if checkout is None:
            attempt.outcome = Outcome.GAVE_UP
        elif 'name="offer"' not in checkout.text:
            # Nothing in the cart can be bought: the checkout leads back to it.
            sold_out = SOLD_OUT in checkout.text or checkout.url.endswith("/cart/")
            attempt.outcome = Outcome.REFUSED if sold_out else self._strange(checkout)
        else:
            page = self._until_answered(lambda: self._press_button(checkout))
            attempt.outcome = Outcome.UNKNOWN if page is None else self._judge(page)
            if attempt.outcome is Outcome.PLACED and attempt.will_cancel:
                attempt.told_cancelled = self._until_answered(self._cancel) is not None

    def _fill_cart(self) -> Page | None:
        product = self._shopper.get(f"/p/{self._attempt.slug}/")
        if SOLD_OUT in product.text:
            return product
        checkout = self._shopper.fill_cart(self._attempt.slug, self._attempt.quantity)
        return checkout if checkout.status < 500 else None

    def _press_button(self, checkout: Page) -> Page | None:
        self._attempt.presses += 1
        page = self._shopper.press_button(checkout, name=self._attempt.name, phone=self._attempt.phone)
        return page if page.status < 500 else None

    def _cancel(self) -> Page | None:
        path = f"/orders/{self._attempt.order_number}/cancel/"
        page = self._shopper.post(path, self._shopper.get(path))
        return page if page.status == 302 else None

    def _judge(self, page: Page) -> Outcome:
        attempt = self._attempt
        if page.status != 302:
            return self._strange(page)
        if page.order_number:
            attempt.order_number = page.order_number
            return Outcome.PLACED
        # An earlier press, whose answer was lost, may still be in progress.
        return Outcome.REFUSED if attempt.presses == 1 else Outcome.UNKNOWN

    def _strange(self, page: Page) -> Outcome:
        self._attempt.note = f"{page.status} {page.url}: {page.text[:300]}"
        return Outcome.STRANGE

    def _until_answered(self, step: Callable[[], Page | None]) -> Page | None:
        """Repeat the step until the shop answers sensibly. Return None if it did not in time."""
        while time.monotonic() < self._deadline and not self._stop.is_set():
            try:
                if page := step():
                    return page
            except (OSError, UnexpectedPage) as error:
                self._attempt.note = f"{type(error).__name__}: {error}"[:300]
            self._stop.wait(PAUSE)
        return None
