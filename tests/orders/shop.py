"""What a shopper does, through Django's test client."""

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connections
from django.test import Client

from messaging.message import Delivery, Message
from orders.cart import Cart
from orders.models import Product

#: Twice the threads of a web process of the demo.
AT_ONCE = 16

FILLED_IN = {"customer_name": "Ann Shopper", "phone": "13800138000", "destination": "CN", "red_packet": ""}


def arrival(message_id: str) -> Delivery:
    """An arrival of some message, for handlers that only want its id."""
    return Delivery(consumer="any", queue="orders.any", message=Message(body=b"{}"), message_id=message_id)


class Buyer:
    """One visitor."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def put_into_cart(self, product: Product, quantity: Any = 1) -> Any:
        return self.client.post(f"/cart/add/{product.slug}/", {"quantity": quantity}, follow=True)

    def cart(self) -> dict[str, int]:
        """How many pieces of which product the cart holds."""
        return {line.product.name: line.wanted for line in Cart(self.client.session).contents().lines}

    def open_checkout(self) -> str:
        """Open the checkout page and return its offer."""
        response = self.client.get("/checkout/")
        assert response.status_code == 200, response.headers
        return offer_in(response)

    def press_place_order(self, offer: str, **typed: str) -> Any:
        """Send the checkout form; the answer is not followed."""
        return self.client.post("/checkout/", {**FILLED_IN, "offer": offer, **typed})

    def buy(self, product: Product, quantity: int = 1, **typed: str) -> str:
        """Buy, and return the order's number."""
        self.put_into_cart(product, quantity)
        response = self.press_place_order(self.open_checkout(), **typed)
        assert response.status_code == 302, text_of(response)
        return number_in(response)


def offer_in(response: Any) -> str:
    found = re.search(r'name="offer" value="([^"]+)"', text_of(response))
    assert found
    return found[1]


def number_in(response: Any) -> str:
    found = re.fullmatch(r"/orders/(W-\w{6})/", response.url)
    assert found, response.url
    return found[1]


def text_of(response: Any) -> str:
    """The page as a reader sees it, without escapes of quotes."""
    text: str = response.content.decode()
    return text.replace("&#x27;", "'").replace("&quot;", '"')


def all_at_once(actions: list[Callable[[], Any]], at_once: int = AT_ONCE) -> list[Any]:
    """Run `actions` in threads that start together; what each returned or raised."""
    gate = threading.Barrier(min(at_once, len(actions)))

    def run(action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:
            return error

    def close() -> None:
        gate.wait(60)
        connections.close_all()

    with ThreadPoolExecutor(gate.parties, initializer=lambda: gate.wait(60) and None) as pool:
        results = list(pool.map(run, actions))
        # Each thread has a connection of its own; an open one would keep the test database from being dropped.
        for closing in [pool.submit(close) for _ in range(gate.parties)]:
            closing.result(60)
    return results


def many_at_once(test: Callable[..., None]) -> Callable[..., None]:
    """For tests with threads, each of which has a connection of its own: locks differ between the databases."""
    return pytest.mark.only_on("sqlite", "postgresql")(pytest.mark.django_db(transaction=True)(test))
