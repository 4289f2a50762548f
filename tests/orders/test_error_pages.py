"""What a visitor sees when the shop itself fails."""

from collections.abc import Callable

import pytest
from django.db import InterfaceError, OperationalError
from django.test import Client

from orders.views import catalogue


@pytest.fixture
def visitor() -> Client:
    return Client(raise_request_exception=False)


@pytest.mark.parametrize("error", [OperationalError("server closed the connection"), InterfaceError("closed")])
def test_a_database_that_is_away_is_said_with_the_time_to_come_back(
    visitor: Client, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(catalogue.Product.objects, "on_sale", _raise(error))

    page = visitor.get("/p/tea/")

    assert page.status_code == 503
    assert page.headers["Retry-After"] == "5"
    assert "Back in a moment" in page.text
    # Whether an order was placed is not known here: the connection may have been lost after the commit.
    assert "you pay only once" in page.text
    assert "Nothing was charged" not in page.text
    assert "server closed" not in page.text


def test_a_fault_of_our_own_is_none_that_passes(visitor: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue.Product.objects, "on_sale", _raise(ValueError("secret")))

    page = visitor.get("/p/tea/")

    assert page.status_code == 500
    assert "Retry-After" not in page.headers
    assert "Something broke" in page.text
    assert "secret" not in page.text


def _raise(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail
