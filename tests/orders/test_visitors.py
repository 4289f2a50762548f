"""Who is asking: a visitor's address, and guests who look their order up."""

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client, RequestFactory

from orders.models import Guess, Order, Product
from orders.visitors import address_of
from tests.orders.shop import text_of

OrderOf = Callable[..., Order]
# Pages: the SQL behind them is tested on both databases where it is written.
pytestmark = pytest.mark.only_on("sqlite")


def find(client: Client, number: str, last_four: str, **extra: Any) -> Any:
    return client.post("/orders/find/", {"number": number, "last_four": last_four}, **extra)


def test_a_guest_finds_an_order_by_number_and_digits(order_of: OrderOf, tea: Product, client: Client) -> None:
    order = order_of(tea)
    response = find(client, order.number.lower(), "８０００")
    assert response.url == f"/orders/{order.number}/"
    assert client.get(response.url).status_code == 200
    assert not Guess.objects.exists()


@pytest.mark.parametrize("typed", ["9123 4567", "+852 9123 4567", "4567"])
def test_a_guest_writes_the_phone_number_as_at_the_checkout(
    order_of: OrderOf, tea: Product, client: Client, typed: str
) -> None:
    order = order_of(tea, destination="HK", phone="+85291234567")
    assert find(client, order.number, typed).status_code == 302
    assert find(client, order.number, "9123 4568").status_code == 200


@pytest.mark.parametrize("number", [None, "W-222222"])
def test_a_wrong_guess_does_not_tell_whether_the_order_exists(
    order_of: OrderOf, tea: Product, client: Client, number: str | None
) -> None:
    response = find(client, number or order_of(tea).number, "1111")
    assert "No order has this number and these digits" in text_of(response)


def test_guessing_the_digits_is_stopped_from_all_addresses_and_then_even_a_right_guess(
    order_of: OrderOf, tea: Product
) -> None:
    number = order_of(tea).number
    for guess in range(5):
        assert find(Client(), number, f"000{guess}", REMOTE_ADDR=f"10.0.0.{guess}").status_code == 200
    response = find(Client(), number, "8000", REMOTE_ADDR="10.0.0.99")
    assert response.status_code == 429
    assert "too many wrong tries" in text_of(response)
    assert "Try again in 15 minutes." in text_of(response)


def test_one_address_cannot_lock_a_guest_out(order_of: OrderOf, tea: Product, client: Client) -> None:
    number = order_of(tea).number
    answers = [find(client, number, f"00{guess:02}", REMOTE_ADDR="10.0.0.1") for guess in range(20)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 15
    assert int(answers[-1].headers["Retry-After"]) in range(800, 901)
    assert find(Client(), number, "8000", REMOTE_ADDR="10.0.0.2").status_code == 302


def test_many_addresses_cannot_lock_out_a_guest_who_knows_the_whole_number(
    order_of: OrderOf, tea: Product, client: Client
) -> None:
    number = order_of(tea).number
    for guess in range(5):
        find(Client(), number, f"000{guess}", REMOTE_ADDR=f"10.0.0.{guess}")
    refused = find(client, number, "8000", REMOTE_ADDR="10.0.0.99")
    assert refused.status_code == 429
    assert "Or enter the whole phone number instead of four digits." in text_of(refused)
    assert find(client, number, "13900139000", REMOTE_ADDR="10.0.0.99").status_code == 200
    assert find(client, number, "+86 138 0013 8０００", REMOTE_ADDR="10.0.0.99").status_code == 302
    for guess in range(5):  # but whole numbers are not tried one after the other
        assert find(client, number, f"1390013900{guess}", REMOTE_ADDR="10.0.0.98").status_code == 200
    assert find(client, number, "13800138000", REMOTE_ADDR="10.0.0.98").status_code == 429


def test_guessing_numbers_is_stopped_by_address(
    order_of: OrderOf, tea: Product, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orders.visitors.MOST_PER_ADDRESS", 7)
    number = order_of(tea).number
    for digit in "2345678":
        find(client, f"W-22222{digit}", "0000")
    assert find(client, number, "8000").status_code == 429
    assert find(client, number, "8000", REMOTE_ADDR="10.0.0.1").status_code == 302


@pytest.mark.parametrize(
    ("proxies", "forwarded", "address"),
    [
        (0, "6.6.6.6", "10.0.0.1"),
        (1, "6.6.6.6", "6.6.6.6"),
        (1, "1.1.1.1, 6.6.6.6", "6.6.6.6"),
        (2, "1.1.1.1, 6.6.6.6, 10.0.0.2", "6.6.6.6"),
        (1, "", "10.0.0.1"),
        (1, " , ", "10.0.0.1"),
        (1, "6.6.6.6:4711", "6.6.6.6"),
        (1, "[2001:db8:1:2:3::4]:4711", "2001:db8:1:2::/64"),
        (1, "2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        (1, "::ffff:6.6.6.6", "6.6.6.6"),
        (1, "x" * 5000, "x" * 60),
    ],
)
def test_a_visitor_is_known_by_the_address_that_our_own_proxy_saw(
    settings: Any, proxies: int, forwarded: str, address: str
) -> None:
    settings.PROXIES = proxies
    request = RequestFactory().get("/", REMOTE_ADDR="10.0.0.1", headers={"X-Forwarded-For": forwarded})
    assert address_of(request) == address
