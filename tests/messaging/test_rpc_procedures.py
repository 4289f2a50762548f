"""Procedures are declared once, and get arguments of the types they are annotated with."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from pydantic import BaseModel, Field, ValidationError

from messaging import procedures, rpc
from messaging.exceptions import BodyTooLarge
from messaging.procedures import Procedure
from messaging.rpc import procedure


@pytest.fixture(autouse=True)
def _only_what_the_test_declares(isolated: Any) -> None:
    isolated(procedures)


@pytest.fixture
def quote() -> Procedure:
    @procedure("shipping.quote")
    def shipping_quote(weight_grams: int, destination: str = "CN") -> str:
        return f"{weight_grams} g to {destination}"

    return procedures.get("shipping.quote")


def test_its_requests_come_by_a_queue_of_its_name_or_the_one_it_gives(quote: Procedure) -> None:
    procedure("fib", queue="rpc_queue")(lambda: None)

    assert quote.queue == procedures.request_queue("shipping.quote") == "rpc.shipping.quote"
    assert procedures.get("fib").queue == procedures.request_queue("fib") == "rpc_queue"


def test_an_object_holds_keyword_arguments_and_any_other_value_is_the_one_argument(quote: Procedure) -> None:
    assert quote.run(quote.bind({"weight_grams": 1200, "destination": "JP"})) == "1200 g to JP"
    assert quote.run(quote.bind(30)) == "30 g to CN"


def test_arguments_that_do_not_fit_are_refused_before_it_runs(quote: Procedure) -> None:
    one = {"weight_grams": 1}
    for payload in ({}, {"weight_grams": "heavy"}, {**one, "unknown": 2}, {**one, "self": 2}, [1, 2], None, "x"):
        with pytest.raises(ValidationError):
            quote.bind(payload)


def test_an_error_of_its_own_is_not_taken_for_bad_arguments() -> None:
    @procedure("broken")
    def broken(number: int) -> int:
        raise ValueError(number)

    arguments = procedures.get("broken").bind(3)
    with pytest.raises(ValueError, match="3"):
        procedures.get("broken").run(arguments)


def test_two_procedures_cannot_share_a_name_or_a_queue(quote: Procedure) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"shipping\.quote"):
        procedure("shipping.quote")(lambda: None)
    with pytest.raises(ImproperlyConfigured, match=r"rpc\.shipping\.quote"):
        procedure("another", queue="rpc.shipping.quote")(lambda: None)


@pytest.mark.parametrize("name", ["", ".quote", "a b", "x" * 201, "reply.quote"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ImproperlyConfigured):
        procedure(name)


@pytest.mark.parametrize("queue", ["amq.mine", "rpc.reply.mine", "x" * 256])
def test_a_bad_queue_is_refused(queue: str) -> None:
    with pytest.raises(ImproperlyConfigured):
        procedure("quote", queue=queue)


def test_its_timeout_is_its_own_or_the_projects_and_above_zero(quote: Procedure, settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "PROCEDURE_TIMEOUT": 7}
    procedure("slow", timeout=timedelta(minutes=2))(lambda: None)

    assert (quote.seconds, procedures.get("slow").seconds) == (7, 120)
    with pytest.raises(ImproperlyConfigured, match="timeout"):
        procedure("hasty", timeout=timedelta(0))


def test_a_plain_queue_is_asked_for_by_true_and_by_no_text() -> None:
    with pytest.raises(ImproperlyConfigured, match="plain_queue is True or False, not 'no'"):
        procedure("hello", plain_queue="no")  # type: ignore[arg-type]


def test_a_request_that_is_too_large_is_not_even_sent() -> None:
    with pytest.raises(BodyTooLarge):
        rpc.call("double", {"number": "1" * 2_000_000}, timeout=30)


class Parcel(BaseModel):
    weight: int
    fragile: bool = Field(default=False, exclude=True)


def test_a_value_that_pydantic_would_leave_out_is_refused_at_the_call() -> None:
    with pytest.raises(ValueError, match="field fragile in it has exclude=True"):
        rpc.call("quote", {"parcels": [Parcel(weight=1), Parcel(weight=2, fragile=True)]}, timeout=30)
