"""The shop decides by what is written, where a router sends reads to a replica that lags."""

from collections.abc import Iterator

import pytest
from django.contrib.sessions.models import Session
from django.test import Client

from orders import limits
from orders.limits import Limit
from orders.models import Order, Product
from tests.orders.shop import Buyer
from tests.support.replica import empty_replica


@pytest.fixture(autouse=True)
def replica(db: None) -> Iterator[None]:
    """Any read that goes to the replica fails: it has no table."""
    with empty_replica():
        yield


def test_an_order_is_placed_from_a_cart_and_shown(tea: Product, client: Client) -> None:
    number = Buyer(client).buy(tea, 2)
    assert client.get(f"/orders/{number}/").status_code == 200
    assert Order.objects.get(number=number).lines.get().quantity == 2
    tea.refresh_from_db()
    assert tea.stock == 8


def test_wrong_tries_are_counted() -> None:
    for _ in range(2):
        limits.count({"order:W-1": Limit(2)})
    with pytest.raises(limits.TooManyTries):
        limits.count({"order:W-1": Limit(2)})


def test_signing_out_deletes_the_session_in_the_primary_database(admin_client: Client) -> None:
    assert Session.objects.using("default").count() == 1
    admin_client.logout()
    assert Session.objects.using("default").count() == 0
