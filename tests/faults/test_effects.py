"""A text leaves the database. Its consumer dies at each point of the way, and the gateway misbehaves in every way.

How many texts there are is counted at the gateway, in its own ledger.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from django.core.management import call_command

from messaging import conf, consumers, database, effects
from messaging.models import Effect, InboxMessage
from messaging.retry import RetryPolicy
from messaging.worker import ledger
from messaging.worker.upkeep import Upkeep
from orders import effects as shop_effects
from orders.models import Order, Product, TextMessage
from orders.timeline import timeline_of
from script.services.sms_gateway import SmsGateway
from script.services.sms_gateway_ledger import PASSING, Fault
from tests.faults.shop import CONSUMING, place
from tests.support import failpoints
from tests.support.processes import ProcessStarter, RunningProcess
from tests.support.repeats import repeats
from tests.support.running import IMPATIENT, running_relay, running_worker
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

State = Effect.State

#: Where the consumer is killed, by the failpoint that does it. At None the gateway tells when.
POINTS = {
    "before the commit": "handled-not-committed",
    "after the commit, before the claim": "committed-effect-not-claimed",
    "after the claim, before the request": "claimed-not-sent",
    "after the gateway took it, before its answer": None,
    "after the answer, before it is noted": "answered-not-noted",
    "after it is noted, before the ack": "committed-not-acked",
}
#: Where the database cannot know any more whether it was sent, and how often it was.
DOUBTFUL = {
    "after the claim, before the request": 0,
    "after the gateway took it, before its answer": 1,
    "after the answer, before it is noted": 1,
}

#: For as long as it takes, at once.
QUICKLY = RetryPolicy(max_attempts=1000, first_delay=timedelta(seconds=0.02), max_delay=timedelta(seconds=0.1))


def without_upkeep() -> None:
    """In a process that is to die: only the handler's thread looks after effects, so that it dies at its failpoint."""
    Upkeep._run = lambda self: None


def impatient() -> None:
    """In a process that lives: a text is tried again at once."""
    effects.registry.put(replace(effects.get("text_message"), retry=QUICKLY))


Gateway = Callable[..., SmsGateway]


@pytest.fixture
def gateway(tmp_path: Any, settings: Any, isolated: Any) -> Iterator[Gateway]:
    """Starts a gateway, to which the workers of this test send: `gateway(honours_keys=True)`."""
    isolated(effects, keep=True)
    started: list[SmsGateway] = []

    def start(*, honours_keys: bool = False, can_be_asked: bool = False, timeout: float = 10) -> SmsGateway:
        gateway = SmsGateway(tmp_path / "gateway", honours_keys=honours_keys, can_be_asked=can_be_asked)
        started.append(gateway)
        gateway.start()
        for name, value in gateway.environment(timeout=timeout).items():
            setattr(settings, name, value == "1" if name.endswith("KEYS") else value)
        settings.SMS_GATEWAY_TIMEOUT = timeout
        ask = shop_effects._ask if can_be_asked else None
        kind = effects.get("text_message")
        effects.registry.put(replace(kind, retry=QUICKLY, timeout=timedelta(seconds=timeout), ask=ask))
        return gateway

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def at_work(vhost: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A relay and the shop's consumers on threads of the test: `with at_work():`. What is left is taken up at once."""
    monkeypatch.setattr(ledger, "MARGIN", 0.5)
    monkeypatch.setattr(conf, "POLL_INTERVAL", 0.05)
    monkeypatch.setattr(shop_effects, "RETRY", QUICKLY)
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT}

    @contextmanager
    def work(*names: str) -> Iterator[None]:
        # The effects whose sender is dead need not wait until its time is over.
        Effect.objects.filter(state=State.SENDING).update(sending_until=database.in_future(-1))
        with running_relay(), running_worker(*consumers.named(names or ["sms"])):
            yield

    return work


@pytest.fixture
def kill_at(
    vhost: str, run_process: ProcessStarter, product: Product, at_work: Callable[..., Any]
) -> Callable[[str, SmsGateway], Order]:
    """Places an order, and has the process that sends its text die at this point."""

    def started(gateway: SmsGateway, failpoint: str | None) -> RunningProcess:
        environment = failpoints.at(
            without_upkeep, *([failpoint] if failpoint else []), LEASE=3, PUBLISH_TIMEOUT=1, POLL_INTERVAL=0.2
        )
        # Long enough for the gateway to answer or, if it is not to, for the test to notice and to kill.
        process = run_process("run_consumer", "sms", **{**environment, **gateway.environment(timeout=20)})
        process.wait_for_line(CONSUMING, 30)
        return process

    def kill(point: str, gateway: SmsGateway) -> Order:
        failpoint = POINTS[point]
        process = started(gateway, failpoint)
        if failpoint:
            order = place(product)
            assert failpoints.crashed(process.wait(30)), process.output
            return order
        gateway.misbehave(Fault.ANSWER_LATE, seconds=20)
        before = len(gateway.ledger.texts())
        order = place(product)
        eventually(lambda: len(gateway.ledger.texts()) > before, 30, report=lambda: process.output)
        process.kill()
        gateway.behave()
        return order

    return kill


def effect_of(order: Order) -> Effect:
    text = TextMessage.objects.get(order=order)
    return Effect.objects.get(message_id=text.message_id, name="text_message")


def settled(order: Order, state: Effect.State) -> Effect:
    """The effect of the order's text, once it is in this state and its message is handled."""

    def is_settled() -> bool:
        through = InboxMessage.objects.filter(consumer="sms", state=InboxMessage.State.HANDLED)
        return (
            TextMessage.objects.filter(order=order).exists()
            and effect_of(order).state == state
            and through.count() == Order.objects.count()
        )

    eventually(is_settled, 30)
    return effect_of(order)


def step_of(order: Order) -> Any:
    return next(step for step in timeline_of(order).steps if step.name == "text_message")


# --- kill -9 at each point ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "kind"),
    [
        *((point, "honours_keys") for point in DOUBTFUL),
        # Where it was not sent, and where it was.
        ("after the claim, before the request", "can_be_asked"),
        ("after the answer, before it is noted", "can_be_asked"),
    ],
)
def test_a_consumer_killed_in_the_middle_sends_one_text_by_a_gateway_that_honours_keys_or_can_be_asked(
    gateway: Gateway, kill_at: Any, at_work: Any, point: str, kind: str
) -> None:
    """F56."""
    asked = gateway(**{kind: True})
    for _ in repeats(short=1):
        order = kill_at(point, asked)
        with at_work():
            effect = settled(order, State.DONE)
        (text,) = asked.ledger.texts(effect.key)
        assert effect.reference == text.id
        assert (text.recipient, text.text) == ("+8613800138000", TextMessage.objects.get(order=order).body)
        assert step_of(order).state == "done"
    assert len(asked.ledger.texts()) == Order.objects.count()
    assert {request.key for request in asked.ledger.requests() if request.method == "POST"} <= {
        effect.key for effect in Effect.objects.all()
    }


@pytest.mark.parametrize("point", POINTS)
def test_a_consumer_killed_at_any_point_sends_no_text_twice_and_a_person_settles_what_is_unknown(
    gateway: Gateway, kill_at: Any, at_work: Any, point: str
) -> None:
    """F56, by a gateway that ignores keys and tells nothing. An *unknown* effect is shown to operator and shopper."""
    careless = gateway()
    for _ in repeats(short=1):
        order = kill_at(point, careless)
        with at_work():
            effect = settled(order, State.UNKNOWN if point in DOUBTFUL else State.DONE)
            texts = careless.ledger.texts(effect.key)
            assert len(texts) == DOUBTFUL.get(point, 1)
            assert step_of(order).state == effect.state
            assert len(careless.ledger.requests()) == len(careless.ledger.texts()), "none was sent again blindly"
            if point in DOUBTFUL:
                assert "may have been done or not" in effect.error
                # The person looks into the gateway's log.
                found = ["--done", "--reference", texts[0].id] if texts else ["--not-done"]
                call_command("messages", "settle", effect.key, *found)
                effect = settled(order, State.DONE)
        (text,) = careless.ledger.texts(effect.key)
        assert effect.reference == text.id
        assert step_of(order).state == "done"


# --- a gateway that misbehaves -----------------------------------------------------------------------------


def test_whatever_a_gateway_that_honours_keys_does_wrong_its_text_goes_out_once(
    gateway: Gateway, at_work: Any, product: Product
) -> None:
    """F60."""
    honest = gateway(honours_keys=True, timeout=1)
    with at_work():
        for fault in PASSING:
            honest.misbehave(fault, times=2, seconds=1.2)
            effect = settled(place(product), State.DONE)
            requests = [request for request in honest.ledger.requests() if request.key == effect.key]
            assert [request.fault for request in requests][:2] == [fault, fault]
            assert effect.attempts == len(requests)
            assert len(honest.ledger.texts(effect.key)) == 1, fault
    assert len(honest.ledger.texts()) == len(PASSING)


def test_whatever_a_gateway_that_tells_nothing_does_wrong_no_text_goes_out_twice(
    gateway: Gateway, at_work: Any, product: Product
) -> None:
    """F60."""
    careless = gateway(timeout=1)
    with at_work():
        for fault in PASSING:
            careless.misbehave(fault, seconds=1.2)
            # 429 alone says that it was not sent.
            effect = settled(place(product), State.DONE if fault is Fault.TOO_MANY else State.UNKNOWN)
            assert effect.attempts == (2 if fault is Fault.TOO_MANY else 1), fault
        # Upkeep has run more often by now, and what was sent late has arrived.
        settled(place(product), State.DONE)
        eventually(lambda: all(request.status or request.fault for request in careless.ledger.requests()))
    keys = [text.key for text in careless.ledger.texts()]
    assert len(keys) == len(set(keys))
    assert len(careless.ledger.requests()) == len(PASSING) + 2


def test_the_rest_that_a_busy_gateway_asks_for_is_kept(gateway: Gateway, at_work: Any, product: Product) -> None:
    """F60."""
    honest = gateway(honours_keys=True)
    honest.misbehave(Fault.TOO_MANY, times=2, seconds=1)
    with at_work():
        settled(place(product), State.DONE)

    times = [request.at for request in honest.ledger.requests()]
    assert [request.status for request in honest.ledger.requests()] == [429, 429, 201]
    assert all(later - earlier >= 1 for earlier, later in pairwise(times))


@pytest.mark.parametrize("how", ["gone", "frozen", "failing"])
def test_a_gateway_that_is_down_delays_its_texts_and_nothing_else(
    gateway: Gateway, at_work: Any, product: Product, how: str
) -> None:
    """F59."""
    honest = gateway(honours_keys=True, timeout=0.5)
    down, up = {
        "gone": (honest.kill, honest.start),
        "frozen": (honest.pause, honest.resume),
        "failing": (lambda: honest.misbehave(Fault.SERVER_ERROR, times=None), honest.behave),
    }[how]
    down()
    with at_work("sms", "red_packet"):
        orders = [place(product) for _ in repeats(short=5, full=100)]
        eventually(lambda: not Order.objects.filter(red_packet_settled_at=None).exists())
        eventually(lambda: Effect.objects.filter(attempts__gte=2).exists(), 30)
        assert {step_of(order).state for order in orders} <= {"waiting", "delayed"}
        up()
        eventually(lambda: Effect.objects.filter(state=State.DONE).count() == len(orders), 60)
        eventually(lambda: not InboxMessage.objects.exclude(state=InboxMessage.State.HANDLED).exists())
    assert sorted(text.key for text in honest.ledger.texts()) == sorted(each.key for each in Effect.objects.all())


def test_a_text_that_the_gateway_refuses_is_failed_and_delays_no_other(
    gateway: Gateway, at_work: Any, product: Product
) -> None:
    """F60."""
    honest = gateway(honours_keys=True)
    with at_work():
        for fault in (Fault.BAD_REQUEST, Fault.REFUSED):
            honest.misbehave(fault)
            refused = place(product)
            settled(refused, State.FAILED)
            assert step_of(refused).state == "failed"
            settled(place(product), State.DONE)
    assert len(honest.ledger.requests()) == 4


def test_texts_wait_until_a_wrong_token_is_corrected(gateway: Gateway, at_work: Any, product: Product) -> None:
    """F60."""
    honest = gateway(honours_keys=True)
    honest.misbehave(Fault.UNAUTHORISED, times=None)
    with at_work():
        order = place(product)
        eventually(lambda: Effect.objects.filter(attempts__gte=3).exists())
        assert effect_of(order).state in Effect.OPEN
        honest.behave()
        settled(order, State.DONE)
    assert len(honest.ledger.texts()) == 1


def test_no_log_line_holds_a_number_a_text_or_the_token(
    gateway: Gateway, run_process: ProcessStarter, vhost: str, product: Product
) -> None:
    """F60. The consumer is a process: its log is what an operator reads."""
    honest = gateway(honours_keys=True)
    for fault in (Fault.BAD_REQUEST, Fault.GARBAGE, Fault.CUT_BEFORE):
        honest.misbehave(fault)
    environment = {**failpoints.at(impatient, POLL_INTERVAL=0.1), **honest.environment(timeout=0.5)}
    process = run_process("run_consumer", "sms", **environment)
    process.wait_for_line(CONSUMING, 30)
    orders = [place(product) for _ in range(3)]
    closed = [State.DONE, State.FAILED]
    eventually(
        lambda: Effect.objects.filter(state__in=closed).count() == len(orders), 30, report=lambda: process.output
    )
    process.stop()
    for secret in ("13800138000", "Ann Shopper", honest.token):
        assert secret not in process.output
    for effect in Effect.objects.all():
        assert "13800138000" not in effect.error
