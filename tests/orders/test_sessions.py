"""A visitor's session when the database fails at the worst moment: after the order, before the answer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from django.db import InternalError, OperationalError, connection

from orders.models import Order, Product
from tests.orders.shop import Buyer


def read_only() -> InternalError:
    """What Django makes of PostgreSQL's refusal to write."""
    error = InternalError("cannot execute UPDATE in a read-only transaction")
    error.__cause__ = psycopg.errors.ReadOnlySqlTransaction()
    return error


FAILURES = {
    "lost": lambda: OperationalError("terminating connection due to administrator command"),
    "read-only": read_only,
}


@contextmanager
def sessions_not_written(failure: Exception) -> Iterator[None]:
    """Inside, the database fails when a session is about to be written."""

    def fail(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if sql.startswith("UPDATE") and "django_session" in sql:
            raise failure
        return execute(sql, *rest)

    with connection.execute_wrapper(fail):
        yield


@pytest.mark.parametrize("failure", FAILURES)
def test_a_database_that_fails_after_the_order_is_our_fault_and_pressing_again_leads_to_the_order(
    buyer: Buyer, tea: Product, failure: str
) -> None:
    buyer.client.raise_request_exception = False
    buyer.put_into_cart(tea)
    offer = buyer.open_checkout()

    with sessions_not_written(FAILURES[failure]()):
        assert buyer.press_place_order(offer).status_code == 503

    assert buyer.press_place_order(offer).url == f"/orders/{Order.objects.get().number}/"


def test_a_session_that_was_deleted_meanwhile_is_still_told_as_that(buyer: Buyer, tea: Product) -> None:
    buyer.put_into_cart(tea)
    offer = buyer.open_checkout()

    def vanish(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if sql.startswith("UPDATE") and "django_session" in sql:
            buyer.client.session.delete()
        return execute(sql, *rest)

    with connection.execute_wrapper(vanish):
        assert buyer.press_place_order(offer).status_code == 400
