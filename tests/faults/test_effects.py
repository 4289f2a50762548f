"""A text leaves the database. Its consumer dies at each point of the way, and the gateway misbehaves in every way.

How many texts there are is counted at the gateway, in its own ledger.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from messaging import consumers, effects
from messaging.models import Effect, InboxMessage
from messaging.retry import RetryPolicy
from messaging.worker import ledger
from messaging.worker.upkeep import Upkeep
from orders import effects as shop_effects
from orders.models import Order, Product, TextMessage
from orders.timeline import timeline_of
from script.services.sms_gateway import SmsGateway
from script.services.sms_gateway_ledger import PASSING, Fault
from tests.faults.shop import CONSUMING, environment, place
from tests.support import failpoints
from tests.support.processes import ProcessStarter, RunningProcess
from tests.support.repeats import repeats
from tests.support.running import IMPATIENT, running_worker
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

State = Effect.State

#: Where the consumer is killed, by the failpoint that does it. At "taken" the gateway tells when.
POINTS = {
    "before the commit": "handled-not-committed",
    "after the commit, before the claim": "committed-effect-not-claimed",
    "after the claim, before the request": "claimed-not-sent",
    "after the gateway took it, before its answer": None,
    "after the answer, before it is noted": "answered-not-noted",
    "after it is noted, before the ack": "committed-not-acked",
}
#: Where nobody can know any more whether it was sent, and how often it was.
DOUBTFUL = {
    "after the claim, before the request": 0,
    "after the gateway took it, before its answer": 1,
    "after the answer, before it is noted": 1,
}


#: For as long as it takes, at once.
QUICKLY = RetryPolicy(max_attempts=1000, first_delay=timedelta(seconds=0.1), max_delay=timedelta(seconds=0.5))


def impatient() -> None:
    """In a process: what was left is taken up soon, and tried again at once."""
    ledger.MARGIN = 0.5
    shop_effects.RETRY = QUICKLY
    effects.registry.put(replace(effects.get("text_message"), retry=QUICKLY))


def without_upkeep() -> None:
    """In a process that is to die: only the handler's thread looks after effects, so that it dies where it shall."""
    Upkeep._run = lambda self: None


@contextmanager
def a_gateway(directory: Path, *, honours_keys: bool, can_be_asked: bool) -> Iterator[SmsGateway]:
    with SmsGateway(directory, honours_keys=honours_keys, can_be_asked=can_be_asked) as gateway:
        yield gateway


@pytest.fixture
def honest(tmp_path: Path) -> Iterator[SmsGateway]:
    """A gateway that sends one text per key."""
    with a_gateway(tmp_path / "gateway", honours_keys=True, can_be_asked=False) as gateway:
        yield gateway


@pytest.fixture
def talkative(tmp_path: Path) -> Iterator[SmsGateway]:
    """One that ignores keys, and can be asked."""
    with a_gateway(tmp_path / "gateway", honours_keys=False, can_be_asked=True) as gateway:
        yield gateway


@pytest.fixture
def careless(tmp_path: Path) -> Iterator[SmsGateway]:
    """One that sends whatever it is asked to, and tells nothing."""
    with a_gateway(tmp_path / "gateway", honours_keys=False, can_be_asked=False) as gateway:
        yield gateway


Run = Callable[..., RunningProcess]


@pytest.fixture
def run_sms(vhost: str, run_process: ProcessStarter) -> Run:
    """Starts a process that sends texts to a gateway, and dies at a failpoint if there is one."""

    def run(gateway: SmsGateway, point: str | None = None, *, timeout: float = 1) -> RunningProcess:
        faults = [without_upkeep, point] if point else []
        environment = failpoints.at(impatient, *faults, LEASE=3, PUBLISH_TIMEOUT=1, POLL_INTERVAL=0.2)
        process = run_process("run_consumer", "sms", **{**environment, **gateway.environment(timeout=timeout)})
        process.wait_for_line(CONSUMING, 30)
        return process

    return run


@pytest.fixture
def survivor(vhost: str, settings: Any, monkeypatch: pytest.MonkeyPatch, isolated: Any) -> Callable[[SmsGateway], Any]:
    """Another worker, to take up what the dead one left: `with survivor(gateway):`."""
    monkeypatch.setattr(ledger, "MARGIN", 0.5)
    isolated(effects, keep=True)
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT}

    def work(gateway: SmsGateway) -> Any:
        for name, value in gateway.environment().items():
            setattr(settings, name, value == "1" if name.endswith("KEYS") else value)
        kind = replace(
            effects.get("text_message"),
            retry=QUICKLY,
            timeout=timedelta(seconds=2),
            ask=shop_effects._ask if gateway.can_be_asked else None,
        )
        effects.registry.put(kind)
        return running_worker(consumers.get("sms"))

    return work


def kill_at(point: str, gateway: SmsGateway, run_sms: Run, product: Product) -> Order:
    """Place an order, and let the process that sends its text die at this point."""
    failpoint = POINTS[point]
    if failpoint is None:
        gateway.misbehave(Fault.ANSWER_LATE, seconds=20)
    process = run_sms(gateway, failpoint, timeout=10 if failpoint is None else 1)
    before = len(gateway.ledger.texts())
    order = place(product)
    if failpoint is None:
        eventually(lambda: len(gateway.ledger.texts()) > before, 30, report=lambda: process.output)
        process.kill()
        gateway.behave()
    else:
        assert failpoints.crashed(process.wait(30)), process.output
    return order


def effect_of(order: Order) -> Effect:
    text = TextMessage.objects.get(order=order)
    return Effect.objects.get(message_id=text.message_id, name="text_message")


def settled(order: Order, state: Effect.State, process: RunningProcess | None = None) -> Effect:
    """The effect of the order's text, once it is in this state and its message is through."""

    def is_settled() -> bool:
        texts = TextMessage.objects.filter(order=order)
        return (
            texts.exists()
            and effect_of(order).state == state
            and InboxMessage.objects.filter(consumer="sms", state=InboxMessage.State.HANDLED).count()
            == Order.objects.count()
        )

    eventually(is_settled, 30, report=lambda: process.output if process else "")
    return effect_of(order)


def step_of(order: Order) -> Any:
    return next(step for step in timeline_of(order).steps if step.name == "text_message")


# --- kill -9 at each point ---------------------------------------------------------------------------------


@pytest.mark.parametrize("point", POINTS)
def test_a_consumer_killed_at_any_point_sends_one_text_by_a_gateway_that_honours_keys(
    honest: SmsGateway, run_sms: Run, survivor: Any, product: Product, point: str
) -> None:
    """F56."""
    for _ in repeats(short=1):
        order = kill_at(point, honest, run_sms, product)
        with survivor(honest):
            effect = settled(order, State.DONE)
        (text,) = honest.ledger.texts(effect.key)
        assert effect.reference == text.id
        assert (text.recipient, text.text) == ("+8613800138000", TextMessage.objects.get(order=order).body)
        assert step_of(order).state == "done"
    assert len(honest.ledger.texts()) == Order.objects.count()
    assert {request.key for request in honest.ledger.requests()} == {effect.key for effect in Effect.objects.all()}


@pytest.mark.parametrize("point", DOUBTFUL)
def test_a_consumer_killed_in_the_middle_sends_one_text_by_a_gateway_that_can_be_asked(
    talkative: SmsGateway, run_sms: Run, survivor: Any, product: Product, point: str
) -> None:
    """F56."""
    for _ in repeats(short=1):
        order = kill_at(point, talkative, run_sms, product)
        with survivor(talkative):
            effect = settled(order, State.DONE)
        (text,) = talkative.ledger.texts(effect.key)
        assert effect.reference == text.id
    assert len(talkative.ledger.texts()) == Order.objects.count()


@pytest.mark.parametrize("point", POINTS)
def test_a_consumer_killed_at_any_point_sends_no_text_twice_by_a_gateway_that_tells_nothing(
    careless: SmsGateway, run_sms: Run, survivor: Any, product: Product, point: str
) -> None:
    """F56. What nobody can know is *unknown*, and says so to operator and shopper."""
    for _ in repeats(short=1):
        order = kill_at(point, careless, run_sms, product)
        with survivor(careless):
            effect = settled(order, State.UNKNOWN if point in DOUBTFUL else State.DONE)
        assert len(careless.ledger.texts(effect.key)) == DOUBTFUL.get(point, 1)
        assert step_of(order).state == effect.state
        if point in DOUBTFUL:
            assert "may have been done or not" in effect.error
    assert len(careless.ledger.requests()) == len(careless.ledger.texts()), "none was sent again blindly"


@pytest.mark.parametrize("point", DOUBTFUL)
def test_what_nobody_knows_is_settled_by_a_person_and_every_order_has_its_one_text(
    careless: SmsGateway, run_sms: Run, survivor: Any, product: Product, point: str
) -> None:
    """F56."""
    order = kill_at(point, careless, run_sms, product)
    with survivor(careless):
        effect = settled(order, State.UNKNOWN)
        texts = careless.ledger.texts(effect.key)  # the person looks into the gateway's log
        verdict = ["--done", "--reference", texts[0].id] if texts else ["--not-done"]
        call_command("messages", "settle", effect.key, *verdict)
        effect = settled(order, State.DONE)
    (text,) = careless.ledger.texts()
    assert effect.reference == text.id
    assert step_of(order).state == "done"


# --- a gateway that misbehaves -----------------------------------------------------------------------------


def test_whatever_a_gateway_that_honours_keys_does_wrong_its_text_goes_out_once(
    honest: SmsGateway, run_sms: Run, product: Product
) -> None:
    """F60."""
    process = run_sms(honest, timeout=0.5)
    for fault in PASSING:
        honest.misbehave(fault, times=2, seconds=1)
        effect = settled(place(product), State.DONE, process)
        requests = [request for request in honest.ledger.requests() if request.key == effect.key]
        assert [request.fault for request in requests][:2] == [fault, fault]
        assert effect.attempts == len(requests)
        assert len(honest.ledger.texts(effect.key)) == 1, fault
    assert len(honest.ledger.texts()) == len(PASSING)


def test_whatever_a_gateway_that_tells_nothing_does_wrong_no_text_goes_out_twice(
    careless: SmsGateway, run_sms: Run, product: Product
) -> None:
    """F60."""
    process = run_sms(careless, timeout=0.5)
    for fault in PASSING:
        careless.misbehave(fault, seconds=1)
        # 429 alone says that it was not sent.
        effect = settled(place(product), State.DONE if fault is Fault.TOO_MANY else State.UNKNOWN, process)
        assert effect.attempts == (2 if fault is Fault.TOO_MANY else 1), fault
    # Upkeep has run more often by now, and so has what was sent late.
    settled(place(product), State.DONE, process)
    eventually(lambda: all(request.status or request.fault for request in careless.ledger.requests()))
    keys = [text.key for text in careless.ledger.texts()]
    assert len(keys) == len(set(keys))
    assert len(careless.ledger.requests()) == len(PASSING) + 2


def test_the_rest_that_a_busy_gateway_asks_for_is_kept(honest: SmsGateway, run_sms: Run, product: Product) -> None:
    """F60."""
    honest.misbehave(Fault.TOO_MANY, times=2, seconds=2)
    process = run_sms(honest)
    settled(place(product), State.DONE, process)

    times = [request.at for request in honest.ledger.requests()]
    assert [request.status for request in honest.ledger.requests()] == [429, 429, 201]
    assert all(later - earlier >= 2 for earlier, later in pairwise(times))


@pytest.mark.parametrize("how", ["gone", "frozen", "failing"])
def test_a_gateway_that_is_down_delays_its_texts_and_nothing_else(
    honest: SmsGateway, run_sms: Run, product: Product, run_process: ProcessStarter, how: str
) -> None:
    """F59."""
    process = run_sms(honest, timeout=0.5)
    others = run_process("run_consumer", "red_packet", **environment())
    others.wait_for_line(CONSUMING, 30)
    match how:
        case "gone":
            honest.kill()
        case "frozen":
            honest.pause()
        case _:
            honest.misbehave(Fault.SERVER_ERROR, times=None)
    orders = [place(product) for _ in repeats(short=5, full=100)]
    eventually(lambda: not Order.objects.filter(red_packet_settled_at=None).exists(), report=lambda: others.output)
    eventually(lambda: Effect.objects.filter(attempts__gte=2).exists(), 30, report=lambda: process.output)
    assert {step_of(order).state for order in orders} <= {"waiting", "delayed"}

    match how:
        case "gone":
            honest.start()
        case "frozen":
            honest.resume()
        case _:
            honest.behave()
    done = Effect.objects.filter(state=State.DONE)
    eventually(lambda: done.count() == len(orders), 60, report=lambda: process.output)
    assert sorted(text.key for text in honest.ledger.texts()) == sorted(each.key for each in Effect.objects.all())
    assert InboxMessage.objects.exclude(state=InboxMessage.State.HANDLED).count() == 0


@pytest.mark.parametrize("fault", [Fault.BAD_REQUEST, Fault.REFUSED])
def test_a_text_that_the_gateway_refuses_is_failed_and_holds_up_no_other(
    honest: SmsGateway, run_sms: Run, product: Product, fault: Fault
) -> None:
    honest.misbehave(fault)
    process = run_sms(honest)
    refused = place(product)
    settled(refused, State.FAILED, process)
    assert step_of(refused).state == "failed"
    settled(place(product), State.DONE, process)
    assert len(honest.ledger.requests()) == 2


def test_texts_wait_for_a_token_to_be_mended(honest: SmsGateway, run_sms: Run, product: Product) -> None:
    honest.misbehave(Fault.UNAUTHORISED, times=None)
    process = run_sms(honest)
    order = place(product)
    eventually(lambda: Effect.objects.filter(attempts__gte=3).exists(), report=lambda: process.output)
    assert effect_of(order).state in Effect.OPEN
    honest.behave()
    settled(order, State.DONE, process)
    assert len(honest.ledger.texts()) == 1


def test_no_log_line_holds_a_number_a_text_or_the_token(honest: SmsGateway, run_sms: Run, product: Product) -> None:
    for fault in (Fault.BAD_REQUEST, Fault.GARBAGE, Fault.CUT_BEFORE):
        honest.misbehave(fault)
    process = run_sms(honest, timeout=0.5)
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
