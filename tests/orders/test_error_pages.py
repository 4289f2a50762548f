"""What a visitor sees when the shop itself fails."""

import time
from collections.abc import Callable

import psycopg
import pytest
from django.db import InterfaceError, InternalError, OperationalError, ProgrammingError, connection, transaction
from django.db.models import QuerySet
from django.test import Client

from orders.models import Product
from orders.views import catalogue


@pytest.fixture
def visitor() -> Client:
    return Client(raise_request_exception=False)


@pytest.mark.parametrize("error", [OperationalError("server closed the connection"), InterfaceError("closed")])
def test_an_unreachable_database_is_answered_by_503_with_retry_after(
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


def _idle_too_long() -> InternalError:
    """What Django makes of PostgreSQL's idle_in_transaction_session_timeout."""
    error = InternalError("terminating connection due to idle-in-transaction timeout")
    error.__cause__ = psycopg.errors.IdleInTransactionSessionTimeout()
    return error


def _after(first: Exception) -> Exception:
    """What Django says of statements behind that error, in the same transaction."""
    error = ProgrammingError("Cannot open a new connection in an atomic block.")
    error.__context__ = first
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (_idle_too_long(), 503),
        (_after(_idle_too_long()), 503),
        (_after(OperationalError("gone")), 503),
        (ProgrammingError("no such column"), 500),
        (_after(ProgrammingError("no such column")), 500),
    ],
)
def test_a_connection_that_the_server_ended_passes_and_a_wrong_statement_does_not(
    visitor: Client, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    monkeypatch.setattr(catalogue.Product.objects, "on_sale", _raise(error))
    assert visitor.get("/p/tea/").status_code == status


@pytest.mark.only_on("postgresql")
@pytest.mark.django_db(transaction=True)
def test_a_request_whose_transaction_was_idle_for_too_long_is_answered_by_503(
    visitor: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def idle_too_long() -> QuerySet[Product]:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET idle_in_transaction_session_timeout = 1")
            time.sleep(0.2)  # the server measures it
            return Product.objects.filter(pk__in=list(Product.objects.values_list("pk", flat=True)))

    monkeypatch.setattr(catalogue.Product.objects, "on_sale", idle_too_long)
    assert visitor.get("/p/tea/").status_code == 503


def _raise(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail
