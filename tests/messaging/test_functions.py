"""Functions that a project hands in: what would not run is refused when it is declared, and never counts as done."""

import asyncio
import io
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from functools import partial, wraps
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import ImproperlyConfigured

from messaging import consumers, effects, procedures, testing
from messaging.consumers import consumer
from messaging.effects import effect
from messaging.events import Event
from messaging.exceptions import NotRun
from messaging.models import DeliveryAttempt, InboxMessage
from messaging.retry import RetryPolicy
from messaging.rpc import procedure
from messaging.validation import functions
from tests.support.consuming import QUICKLY, Noted, a_consumer, a_message, notes, take_note


class Upcasted(Event, type="test.upcasted", version=2):
    text: str


@pytest.fixture(autouse=True)
def _only_what_the_test_declares(isolated: Any) -> None:
    isolated(consumers, effects, procedures)


async def asynchronous(*given: Any) -> None: ...


async def asynchronous_generator(*given: Any) -> Any:
    yield 1


def generator(*given: Any) -> Iterator[int]:
    yield 1


class Asynchronous:
    async def __call__(self, *given: Any) -> None: ...


class CanBeCalled:
    def __call__(self, event: Any, delivery: Any) -> None: ...


class Noting:
    def __init__(self, *given: Any) -> None: ...


NEVER_RUN: list[Any] = [
    asynchronous, asynchronous_generator, generator, Asynchronous(), partial(asynchronous), partial(Asynchronous(), 1),
    Noting, 5, lambda: None, lambda *, event, delivery, sending, payload: None,
]  # fmt: skip
ASYNCHRONOUS = NEVER_RUN[:2] + NEVER_RUN[3:6]

DECLARE: list[Callable[[Any], Any]] = [
    consumer("taking", Noted),
    consumer("hearing", Noted, broadcast=True),
    effect("texting"),
    lambda ask: effect("asked", ask=ask)(lambda sending: None),
    Upcasted.upcast(from_version=1),
]


@pytest.mark.parametrize("declare", DECLARE)
def test_a_function_that_would_not_run_is_refused_when_it_is_declared(declare: Callable[[Any], Any]) -> None:
    for function in NEVER_RUN:
        with pytest.raises(ImproperlyConfigured, match="def"):
            declare(function)


def test_a_retry_policy_that_would_not_run_is_refused_when_it_is_declared() -> None:
    class Patient(RetryPolicy):
        async def delay_after(self, attempt: int, error: BaseException) -> Any: ...  # type: ignore[override]

    for declare in (partial(consumer, "taking", Noted), partial(effect, "texting")):
        with pytest.raises(ImproperlyConfigured, match="is an async function"):
            declare(retry=Patient())


@pytest.mark.parametrize("function", ASYNCHRONOUS)
def test_a_procedure_that_would_not_run_is_refused_when_it_is_declared(function: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="async"):
        procedure("asked")(function)


@pytest.mark.parametrize("honours", ["False", 1, None, asynchronous, generator, lambda key: True])
def test_honours_keys_is_a_truth_or_a_function_without_arguments(honours: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="honours_keys"):
        effect("texting", honours_keys=honours)


@pytest.mark.parametrize("declare", [consumer, effect, procedure])
def test_a_declaration_without_a_name_says_how_to_write_it(declare: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="has a name: write @"):
        declare(take_note)(take_note)


def test_every_other_callable_can_be_a_handler() -> None:
    for handler in (take_note, partial(take_note), CanBeCalled(), CanBeCalled().__call__, async_to_sync(asynchronous)):
        consumers.registry.clear()
        consumer("taking", Noted)(handler)
        assert consumers.get("taking").handler is handler


# --- What a function returns ---------------------------------------------------------------------------------


def a_future(*given: Any) -> Any:
    loop = asyncio.new_event_loop()
    loop.close()
    return asyncio.Future(loop=loop)


@wraps(asynchronous)
def decorated(*given: Any) -> Any:
    return asynchronous(*given)


RETURNS_WORK: list[Callable[..., Any]] = [
    decorated, asynchronous_generator, generator, lambda *given: map(str, []),
    lambda *given: [asynchronous(), asynchronous()], a_future, lambda *given: take_note,
    lambda *given: partial(take_note), lambda *given: Future(), lambda *given: [Future()],
    contextmanager(generator), asynccontextmanager(asynchronous_generator),
    lambda *given: {"text": asynchronous()}, lambda *given: [[asynchronous()]], lambda *given: (generator(),),
]  # fmt: skip


@pytest.mark.parametrize("function", RETURNS_WORK)
def test_work_that_a_function_returns_is_closed_and_has_not_run(function: Callable[..., Any]) -> None:
    with warnings.catch_warnings(record=True) as warned:
        work = function()
        with pytest.raises(NotRun):
            functions.require_run(work, "it")
        del work
    assert not warned


@pytest.mark.django_db
def test_a_handler_that_returns_work_has_failed_and_wrote_nothing() -> None:
    def noting(event: Noted, delivery: Any) -> Any:
        take_note(event, delivery)
        return asynchronous()

    assert testing.deliver(a_message(), a_consumer(noting, retry=QUICKLY)) == "retrying"

    assert notes() == 0
    assert "NotRun: the handler returned" in InboxMessage.objects.get().reason
    assert DeliveryAttempt.objects.get().outcome == "failed"


def test_a_handler_may_return_finished_work() -> None:
    for answer in (None, True, 3, "x", [1], {"a": 1}, object(), Mock(), MagicMock(), [MagicMock()], io.StringIO()):
        functions.require_run(answer, "it")


def test_a_started_generator_is_ended() -> None:
    ended = []

    def work() -> Iterator[int]:
        try:
            yield 1
        finally:
            ended.append(True)

    started = work()
    next(started)
    with pytest.raises(NotRun):
        functions.require_run(started, "it")
    assert ended


@pytest.mark.parametrize("answer", [None, [], "x", asynchronous, lambda payload: (each for each in payload)])
def test_an_upcast_that_returns_no_payload_makes_the_message_undecodable(
    answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Upcasted, "_upcasts", {})
    returns = answer if callable(answer) else lambda payload: answer
    Upcasted.upcast(from_version=1)(lambda payload: returns(payload))

    with pytest.raises(ValueError, match="upcast"):
        Upcasted.decode(b'{"text": "x"}', 1)
