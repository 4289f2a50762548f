"""What a shopper does, through Django's test client."""

import re
from typing import Any

from django.test import Client

from messaging.message import Delivery, Message
from orders.cart import Cart
from orders.models import Product

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
