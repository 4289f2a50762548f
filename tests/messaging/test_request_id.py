"""A web request's id travels with its events, so that a consumer's log names the request that caused each line."""

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
from messaging.worker.verdict import Verdict
from orders import shipping
from orders.models import Product
from tests.orders.shop import Buyer
from tests.support.consuming import Noted, a_consumer, delivery_of

#: Nothing here depends on the database.
pytestmark = [pytest.mark.django_db, pytest.mark.only_on("sqlite")]

log = structlog.get_logger(__name__)


@pytest.fixture
def tea() -> Product:
    return Product.objects.create(sku="TEA", slug="tea", name="Tea", price=Decimal("38.00"), stock=9, weight_grams=250)


def written_in_request_7() -> OutboxMessage:
    with structlog.contextvars.bound_contextvars(request_id="request-7"), transaction.atomic():
        [row] = outbox.add(Noted(text="hello"), subject="W-1")
    return row


def captured() -> Any:
    """The lines logged inside, as structlog would render them: with what is bound to the context."""
    return structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars])


def test_each_order_placed_in_the_shop_carries_the_id_of_its_request(
    client: Client, tea: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping.rpc, "call", lambda *args, **options: {"amount": "12.00", "currency": "CNY"})
    ids = set()
    for _ in range(2):
        with captured() as lines:
            number = Buyer(client).buy(tea)
        [request_id] = {line["request_id"] for line in lines if line.get("request") == "POST /checkout/"}
        assert OutboxMessage.objects.get(subject=number).headers == {"x-request-id": request_id}
        ids.add(request_id)
    assert len(ids) == 2


def test_every_line_of_a_handler_names_its_message_and_request_also_those_of_libraries(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, handling.__name__)
    rendered: list[str] = []

    def talks(event: Noted, delivery: Delivery) -> None:
        log.info("working")
        record = logging.LogRecord("library", logging.INFO, __file__, 1, "sent %s", ("it",), None)
        [handler] = [each for each in logging.getLogger().handlers if isinstance(each, MaskedHandler)]
        rendered.append(handler.format(record))

    row = written_in_request_7()
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
    for fact in ("sent it", *(f"{name}={value}" for name, value in about.items())):
        assert fact in rendered[0]
    assert structlog.contextvars.get_contextvars() == {}, "the lines after it are not about it"


def test_a_retry_and_the_events_that_a_handler_adds_belong_to_the_request() -> None:
    def adds_and_fails(event: Noted, delivery: Delivery) -> None:
        if delivery.attempt == 1:
            raise ValueError("not today")
        log.info("adding")
        outbox.add(Noted(text="and then"), subject="W-2")

    consumer = a_consumer(adds_and_fails)
    assert handling.handle(consumer, delivery_of(written_in_request_7())) == Verdict.RETRYING
    with captured() as lines:
        handling.handle(consumer, delivery_of(OutboxMessage.objects.get(attempt=2)))

    assert [(line["attempt"], line["request_id"]) for line in lines if line["event"] == "adding"] == [(2, "request-7")]
    assert OutboxMessage.objects.get(subject="W-2").headers == {"x-request-id": "request-7"}


def test_an_event_outside_a_request_carries_none() -> None:
    with transaction.atomic():
        [row] = outbox.add(Noted(text="hello"))
    assert row.headers == {}
