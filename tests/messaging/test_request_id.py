"""A web request's id travels with its events: whoever reads a consumer's log finds the request that caused the line."""

import logging
from decimal import Decimal
from typing import Any

import pytest
import structlog
from django.db import transaction
from django.test import Client

from messaging import outbox
from messaging.masking import MaskedHandler
from messaging.message import Delivery
from messaging.models import OutboxMessage
from messaging.worker import handling
from messaging.worker.handling import Verdict
from orders import shipping
from orders.models import Product
from tests.orders.shop import Buyer
from tests.support.consuming import Noted, a_consumer, delivery_of

pytestmark = pytest.mark.django_db

log = structlog.get_logger(__name__)


@pytest.fixture
def tea() -> Product:
    return Product.objects.create(sku="TEA", slug="tea", name="Tea", price=Decimal("38.00"), stock=9, weight_grams=250)


@pytest.fixture
def _in_request_7() -> Any:
    with structlog.contextvars.bound_contextvars(request_id="request-7"):
        yield


def written(text: str = "hello") -> OutboxMessage:
    with transaction.atomic():
        [row] = outbox.add(Noted(text=text), subject="W-1")
    return row


def captured() -> Any:
    """The lines logged inside, as structlog would render them: with what is bound to the context."""
    return structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars])


def test_an_order_placed_in_the_shop_carries_the_id_of_its_request(
    client: Client, tea: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping.rpc, "call", lambda *args, **options: {"amount": "12.00", "currency": "CNY"})
    with captured() as lines:
        number = Buyer(client).buy(tea)

    [request_id] = {line["request_id"] for line in lines if line.get("request") == "POST /checkout/"}
    row = OutboxMessage.objects.get(subject=number)
    assert row.headers == {"x-request-id": request_id}


def test_two_requests_have_two_ids(client: Client, tea: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping.rpc, "call", lambda *args, **options: {"amount": "12.00", "currency": "CNY"})
    for _ in range(2):
        Buyer(client).buy(tea)

    ids = {row.headers["x-request-id"] for row in OutboxMessage.objects.all()}
    assert len(ids) == OutboxMessage.objects.count() == 2


def test_an_event_of_no_request_carries_none() -> None:
    assert written().headers == {}


@pytest.mark.usefixtures("_in_request_7")
def test_every_line_of_a_handler_says_which_message_and_which_request_it_is_about() -> None:
    def talks(event: Noted, delivery: Delivery) -> None:
        log.info("working")

    row = written()
    structlog.contextvars.clear_contextvars()
    with captured() as lines:
        handling.handle(a_consumer(talks), delivery_of(row))

    about = {
        "message_id": row.message_id,
        "type": "test.noted",
        "consumer": "notes",
        "attempt": 1,
        "request_id": "request-7",
    }
    assert [line["event"] for line in lines] == ["working", "message.handled"]
    assert all(about.items() <= line.items() for line in lines)


@pytest.mark.usefixtures("_in_request_7")
def test_a_handler_that_logs_as_any_library_does_is_rendered_with_the_same_facts() -> None:
    rendered: list[str] = []

    def talks(event: Noted, delivery: Delivery) -> None:
        record = logging.LogRecord("library", logging.INFO, __file__, 1, "sent %s", ("it",), None)
        [handler] = [each for each in logging.getLogger().handlers if isinstance(each, MaskedHandler)]
        rendered.append(handler.format(record))

    row = written()
    structlog.contextvars.clear_contextvars()
    handling.handle(a_consumer(talks), delivery_of(row))

    for fact in ("sent it", f"message_id={row.message_id}", "consumer=notes", "attempt=1", "request_id=request-7"):
        assert fact in rendered[0]


@pytest.mark.usefixtures("_in_request_7")
def test_a_retry_still_belongs_to_the_request() -> None:
    def fails(event: Noted, delivery: Delivery) -> None:
        raise ValueError("not today")

    row = written()
    structlog.contextvars.clear_contextvars()
    assert handling.handle(a_consumer(fails), delivery_of(row)) == Verdict.RETRYING
    retry = OutboxMessage.objects.get(attempt=2)
    with captured() as lines:
        handling.handle(a_consumer(), delivery_of(retry))

    assert [(line["attempt"], line["request_id"]) for line in lines] == [(2, "request-7")]


@pytest.mark.usefixtures("_in_request_7")
def test_an_event_that_a_handler_adds_belongs_to_the_request_too() -> None:
    def adds(event: Noted, delivery: Delivery) -> None:
        outbox.add(Noted(text="and then"), subject="W-2")

    row = written()
    structlog.contextvars.clear_contextvars()
    handling.handle(a_consumer(adds), delivery_of(row))

    assert OutboxMessage.objects.get(subject="W-2").headers == {"x-request-id": "request-7"}


def test_nothing_of_one_message_is_left_for_the_lines_after_it() -> None:
    handling.handle(a_consumer(), delivery_of(written()))

    assert structlog.contextvars.get_contextvars() == {}
