"""Quotes: asked once, never waited for twice, replaced by the flat rate."""

import threading
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from messaging import rpc
from orders import shipping
from orders.models import QuietService
from orders.procedures import shipping_quote
from orders.shipping import FLAT_RATE, get_quote

pytestmark = pytest.mark.django_db


class Service:
    """In the place of the broker: answers, or fails, and counts how often it was asked."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked = 0

    def __call__(self, name: str, payload: Any, *, timeout: float) -> Any:
        self.asked += 1
        assert (name, timeout) == ("shipping.quote", 1.0)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    service = Service({"amount": "12.00", "currency": "CNY"})
    monkeypatch.setattr(shipping.rpc, "call", service)
    return service


def quote() -> shipping.ShippingQuote:
    return get_quote(weight_grams=500, destination="CN")


def test_an_answer_is_the_price(service: Service) -> None:
    assert quote().amount == Decimal("12.00")
    assert not quote().is_flat_rate


@pytest.mark.parametrize(
    "answer",
    [
        rpc.BadReply("<html>"),
        rpc.RemoteError("ValueError", "no"),
        {"amount": "-1", "currency": "CNY"},
        {"amount": "NaN", "currency": "CNY"},
        {"amount": "12.00", "currency": "USD"},
        {"price": 1},
        None,
        "12.00",
    ],
    ids=repr,
)
def test_anything_else_means_the_flat_rate(service: Service, answer: Any) -> None:
    service.answer = answer
    assert quote().amount == FLAT_RATE
    assert quote().is_flat_rate


@pytest.mark.parametrize("silence", [rpc.RpcTimeout("late"), rpc.NoBroker("away"), rpc.ConnectionLost("cut")], ids=repr)
def test_after_a_missing_quote_no_visitor_waits_again(service: Service, silence: Exception) -> None:
    service.answer = silence
    for _ in range(10):
        assert quote().is_flat_rate
    assert service.asked == 1


@pytest.mark.parametrize("refusal", [rpc.NoServer("nobody"), rpc.RemoteError("ValueError", "no")], ids=repr)
def test_after_a_prompt_refusal_the_next_visitor_asks_again(service: Service, refusal: Exception) -> None:
    good, service.answer = service.answer, refusal
    assert quote().is_flat_rate
    service.answer = good
    assert not quote().is_flat_rate


@pytest.mark.django_db(transaction=True)
def test_once_the_rest_is_over_one_visitor_tries_and_the_others_do_not_wait(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, service.answer = service.answer, rpc.RpcTimeout("late")
    quote()
    QuietService.objects.update(until=timezone.now())
    trying, answered = threading.Event(), threading.Event()

    def slow(name: str, payload: Any, *, timeout: float) -> Any:
        trying.set()
        assert answered.wait(60)
        return good

    monkeypatch.setattr(shipping.rpc, "call", slow)
    prices: list[shipping.ShippingQuote] = []
    visitor = threading.Thread(target=lambda: (prices.append(quote()), connection.close()))
    visitor.start()
    assert trying.wait(10)
    assert quote().is_flat_rate
    assert visitor.is_alive(), "the other one waited for the answer, too"
    answered.set()
    visitor.join(10)
    assert not prices[0].is_flat_rate
    assert not quote().is_flat_rate


def test_the_procedure_charges_by_started_kilogram_and_distance() -> None:
    assert shipping_quote(200, "CN") == {"amount": "8.00", "currency": "CNY"}
    assert shipping_quote(1001, "CN") == {"amount": "10.00", "currency": "CNY"}
    assert shipping_quote(1000, "US") == {"amount": "45.00", "currency": "CNY"}


@pytest.mark.parametrize(("weight", "destination"), [(-1, "CN"), (100, "XX"), (100, "")])
def test_the_procedure_refuses_what_it_cannot_price(weight: int, destination: str) -> None:
    with pytest.raises(ValueError):
        shipping_quote(weight, destination)
