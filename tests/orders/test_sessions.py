"""A visitor's session when the database fails at the worst moment: after the order, before the answer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import InternalError, OperationalError, connection
from django.utils import timezone

from orders.models import Cart, CartItem, Order, Product
from orders.tasks import CART_KEPT, prune_visits
from project.celery import app
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


def test_a_session_that_was_deleted_since_is_still_answered_by_400(buyer: Buyer, tea: Product) -> None:
    buyer.put_into_cart(tea)
    offer = buyer.open_checkout()

    def vanish(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if sql.startswith("UPDATE") and "django_session" in sql:
            buyer.client.session.delete()
        return execute(sql, *rest)

    with connection.execute_wrapper(vanish):
        assert buyer.press_place_order(offer).status_code == 400


def test_expired_sessions_and_old_carts_are_deleted_and_no_others(buyer: Buyer, tea: Product, pot: Product) -> None:
    buyer.put_into_cart(tea)
    Session.objects.create(session_key="expired", expire_date=timezone.now() - timedelta(seconds=1))
    old = Cart.objects.create(visitor_key="old", changed_at=timezone.now() - CART_KEPT - timedelta(seconds=1))
    CartItem.objects.create(cart=old, product=pot, quantity=1, price=pot.price)

    assert prune_visits() == {"carts": 1}

    assert Session.objects.get().session_key == buyer.client.session.session_key
    assert buyer.cart() == {"Tea": 1}
    assert CartItem.objects.count() == 1


def test_beat_knows_every_task_that_it_asks_for() -> None:
    app.loader.import_default_modules()
    assert {entry["task"] for entry in settings.CELERY_BEAT_SCHEDULE.values()} <= set(app.tasks)
    assert "orders.prune" in {entry["task"] for entry in settings.CELERY_BEAT_SCHEDULE.values()}
