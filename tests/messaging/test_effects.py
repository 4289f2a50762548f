"""Effects outside the database: written with the handler's work, done after it, never twice unknowingly."""

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connection, connections, transaction
from django.db.models import Q

from messaging import database, effects
from messaging.consumers import Consumer
from messaging.effects import Sending
from messaging.exceptions import NotDone, Reject, RetryLater, UnknownEffect
from messaging.message import Delivery
from messaging.models import DeliveryAttempt, Effect, EffectAttempt, InboxMessage
from messaging.retry import RetryPolicy
from messaging.worker import effect_runner, handling, ledger
from tests.support.consuming import QUICKLY, Noted, a_consumer, a_delivery, look_after, notes, take_note
from tests.support.running import InThread

pytestmark = pytest.mark.django_db(transaction=True)

State = Effect.State
TIMEOUT = timedelta(seconds=0.3)


class Outside:
    """A gateway: it keeps what was done under which key, and answers as it is told."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.calls: list[Sending] = []
        self.asked: list[str] = []
        #: What it raises, one for each call; after that it does its work.
        self.before: list[BaseException] = []
        self.after: list[BaseException] = []

    def send(self, sending: Sending) -> str:
        self.calls.append(sending)
        if self.before:
            raise self.before.pop(0)
        self.done.append(sending.key)
        if self.after:
            raise self.after.pop(0)
        return f"ref-{len(self.done)}"

    def ask(self, sending: Sending) -> str | None:
        self.asked.append(sending.key)
        if self.before:
            raise self.before.pop(0)
        return "asked" if sending.key in self.done else None

    def ring(self, sending: Sending) -> str:
        """As `send`, by another name."""
        return self.send(sending)


@pytest.fixture
def outside() -> Outside:
    return Outside()


Declare = Callable[..., None]


@pytest.fixture(autouse=True)
def a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that remembers no claim of another test."""
    monkeypatch.setattr(ledger, "_unanswered", {})


@pytest.fixture
def declare(outside: Outside) -> Iterator[Declare]:
    """Declares the effect `text`, as the outside's `send`, in the way the test wants."""

    def declared(**options: Any) -> None:
        effects.registry.clear()
        effects.effect("text", **{"timeout": TIMEOUT, "retry": QUICKLY, **options})(outside.send)

    with effects.registry.temporary():
        declared()
        yield declared


def intending(event: Noted, delivery: Delivery) -> None:
    take_note(event, delivery)
    delivery.effect("text", {"to": event.text})


CONSUMER = a_consumer(intending)


def handled(consumer: Consumer = CONSUMER, delivery: Delivery | None = None) -> Effect:
    """The effect that a delivery's handler intended, committed and not begun."""
    assert handling.handle(consumer, delivery or a_delivery()) == "handled"
    return Effect.objects.latest("pk")


def everything_due() -> None:
    """Let the rests and the senders' times be over."""
    Effect.objects.update(send_at=database.in_future(-1))
    Effect.objects.filter(sending_until__isnull=False).update(sending_until=database.in_future(-1))


def carried_out() -> Effect:
    """The effect after one upkeep."""
    everything_due()
    look_after([CONSUMER])
    return Effect.objects.get()


def inbox_state() -> str:
    return InboxMessage.objects.get().state


def attempts_kept() -> list[tuple[int, str, str]]:
    """What is kept of the attempts that did not succeed: number, outcome, error."""
    return list(EffectAttempt.objects.values_list("number", "outcome", "error"))


# --- intending ---------------------------------------------------------------------------------------------


def test_an_effect_is_written_with_the_handlers_work_and_does_not_begin(declare: Declare, outside: Outside) -> None:
    delivery = a_delivery()
    effect = handled(delivery=delivery)
    assert (effect.state, effect.payload, effect.attempts) == ("intended", {"to": "hello"}, 0)
    assert effect.key == f"{delivery.message_id}:notes:text"
    assert inbox_state() == "effects_due"
    assert outside.calls == []


def test_a_failing_handler_intends_no_effect(declare: Declare) -> None:
    def failing(event: Noted, delivery: Delivery) -> None:
        intending(event, delivery)
        raise RuntimeError

    assert handling.handle(a_consumer(failing), a_delivery()) == "retrying"
    assert not Effect.objects.exists()


def test_an_effect_of_a_rolled_back_try_is_not_intended_twice(declare: Declare) -> None:
    tries = []

    def contended(event: Noted, delivery: Delivery) -> None:
        intending(event, delivery)
        tries.append(event)
        if len(tries) == 1:
            raise OperationalError("deadlock detected")

    handled(a_consumer(contended))
    assert Effect.objects.count() == 1


@pytest.mark.parametrize("payload", [{"a": object()}, {"a": float("nan")}, {1, 2}])
def test_a_payload_that_is_no_json_fails_where_it_is_intended(declare: Declare, payload: Any) -> None:
    with pytest.raises(ValueError, match="text"):
        a_delivery().effect("text", payload)


def test_unknown_and_repeated_names_fail_where_they_are_intended(declare: Declare) -> None:
    delivery = a_delivery()
    with pytest.raises(UnknownEffect, match="Registered: text"):
        delivery.effect("fax")
    delivery.effect("text")
    with pytest.raises(ValueError, match="before"):
        delivery.effect("text")


def test_a_name_with_a_colon_is_refused(declare: Declare) -> None:
    with pytest.raises(ImproperlyConfigured, match="':'"):
        effects.effect("text:again")


# --- carrying out ------------------------------------------------------------------------------------------


def test_a_done_effect_closes_the_inbox_row(declare: Declare, outside: Outside) -> None:
    handled()
    effect = carried_out()
    assert (effect.state, effect.reference, effect.attempts) == ("done", "ref-1", 1)
    assert inbox_state() == "handled"
    carried_out()
    assert len(outside.calls) == 1


def test_every_attempt_has_the_same_key(declare: Declare, outside: Outside) -> None:
    outside.before = [NotDone("busy"), RetryLater("later", after=timedelta(hours=1))]
    handled()
    assert carried_out().state == "intended"
    assert inbox_state() == "effects_due"
    assert carried_out().state == "intended"
    assert carried_out().state == "done"
    assert {call.key for call in outside.calls} == {Effect.objects.get().key}
    assert [call.attempt for call in outside.calls] == [1, 2, 3]


def test_retry_later_rests_as_long_as_the_outside_said(declare: Declare, outside: Outside) -> None:
    outside.before = [RetryLater("later", after=timedelta(hours=1))]
    handled()
    look_after([CONSUMER])
    assert Effect.objects.filter(send_at__gt=database.in_future(3500), state="intended").exists()
    assert effect_runner.run_all_due([CONSUMER]) == 0


def test_a_rejected_effect_is_failed(declare: Declare, outside: Outside) -> None:
    outside.before = [Reject("no such number")]
    handled()
    effect = carried_out()
    assert (effect.state, effect.error) == ("failed", "Reject: no such number")
    assert inbox_state() == "handled"


def test_an_effect_that_is_never_done_ends_failed(declare: Declare, outside: Outside) -> None:
    outside.before = [NotDone("down")] * 3
    handled()
    states = [carried_out().state for _ in range(3)]
    assert states == ["intended", "intended", "failed"]


def test_a_doubtful_effect_is_unknown_and_not_sent_again(declare: Declare, outside: Outside) -> None:
    outside.after = [ConnectionResetError("gone")]
    handled()
    effect = carried_out()
    assert (effect.state, effect.error) == ("unknown", "ConnectionResetError: gone")
    carried_out()
    assert len(outside.calls) == 1
    assert inbox_state() == "handled"


def test_a_doubtful_effect_is_sent_again_if_keys_are_honoured(declare: Declare, outside: Outside) -> None:
    declare(honours_keys=True)
    outside.after = [ConnectionResetError("gone")]
    handled()
    assert carried_out().state == "sending"
    assert carried_out().state == "done"
    assert len(set(outside.done)) == 1


def test_whether_keys_are_honoured_may_depend_on_the_configuration(declare: Declare, outside: Outside) -> None:
    honoured = [True]
    declare(honours_keys=lambda: honoured[0])
    outside.after = [ConnectionResetError("gone")]
    handled()
    assert carried_out().state == "sending"
    honoured[0] = False
    assert carried_out().state == "unknown"
    assert len(outside.calls) == 1


def _breaks_its_transaction() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT nothing_of_that_name")
    return True


@pytest.mark.parametrize("say", [lambda: bool(connections.close_all()), _breaks_its_transaction])
def test_honours_keys_may_query_the_database(declare: Declare, outside: Outside, say: Callable[[], bool]) -> None:
    """In the claim's transaction it would: the claim would be repeated for ever, and all effects would wait."""
    declare(honours_keys=True)
    outside.after = [ConnectionResetError("gone")]
    handled()
    assert carried_out().state == "sending"
    declare(honours_keys=say)
    assert carried_out().state == "unknown"
    assert len(outside.calls) == 1


def test_intending_an_effect_after_the_handler_returned_is_an_error(declare: Declare) -> None:
    def late(event: Noted, delivery: Delivery) -> None:
        transaction.on_commit(lambda: delivery.effect("text", {"to": "whoever"}))

    declare()
    assert handling.handle(a_consumer(late), a_delivery()) == "handled"
    assert not Effect.objects.exists()
    assert "intended after the handler had returned" in DeliveryAttempt.objects.get().error


@pytest.mark.parametrize("error", [IndexError(), SystemExit(1)], ids=lambda error: type(error).__name__)
def test_a_failing_honours_keys_means_no(declare: Declare, outside: Outside, error: BaseException) -> None:
    def say() -> bool:
        raise error

    declare(honours_keys=say)
    outside.after = [ConnectionResetError("gone")]
    handled()
    assert carried_out().state == "unknown"
    assert len(outside.calls) == 1


def test_a_doubtful_effect_is_asked_for_if_possible(declare: Declare, outside: Outside) -> None:
    declare(ask=outside.ask)
    outside.after = [ConnectionResetError("gone")]
    handled()
    carried_out()
    effect = carried_out()
    assert (effect.state, effect.reference) == ("done", "asked")
    assert len(outside.calls) == 1


def test_a_doubtful_effect_that_was_not_done_is_sent(declare: Declare, outside: Outside) -> None:
    declare(ask=outside.ask)
    outside.before = [ConnectionResetError("gone")]
    handled()
    carried_out()
    assert carried_out().state == "done"
    assert len(outside.done) == 1


def test_a_doubtful_effect_without_an_answer_ends_unknown(declare: Declare, outside: Outside) -> None:
    declare(ask=outside.ask)
    outside.after = [ConnectionResetError("gone")]
    handled()
    carried_out()
    outside.before = [TimeoutError("no answer")] * 2
    assert carried_out().state == "sending"
    assert carried_out().state == "unknown"
    assert len(outside.done) == 1


def test_a_refusal_does_not_settle_an_earlier_doubt(declare: Declare, outside: Outside) -> None:
    declare(honours_keys=True)
    outside.after = [ConnectionResetError("gone")]
    outside.before = []
    handled()
    carried_out()
    outside.before = [NotDone("busy"), Reject("not now, never")]
    assert carried_out().state == "sending"
    assert carried_out().state == "unknown"


def test_an_answer_that_does_not_come_in_time_is_not_waited_for(declare: Declare, outside: Outside) -> None:
    came = threading.Event()

    def silent(sending: Sending) -> str:
        came.wait(20)
        return "late"

    effects.registry.clear()
    effects.effect("text", timeout=timedelta(seconds=1), retry=QUICKLY)(silent)
    handled()
    began = time.monotonic()
    effect = carried_out()
    assert time.monotonic() - began < 10
    assert (effect.state, effect.error) == ("unknown", "TimeoutError: no answer within 1 s")
    came.set()


# --- processes that die ------------------------------------------------------------------------------------


def test_an_effect_whose_process_died_before_it_began_is_sent_by_the_upkeep(declare: Declare, outside: Outside) -> None:
    handled()
    assert carried_out().state == "done"


def leave_the_next_commit_unanswered(*, arrives: bool) -> None:
    """Let the connection end at the next commit, after it was made or before."""
    here: Any = connections["default"]

    def commit() -> None:
        del here.commit
        here.commit() if arrives else here.rollback()
        raise OperationalError("server closed the connection unexpectedly")

    here.commit = commit


@pytest.mark.parametrize("arrives", [True, False], ids=["made", "not made"])
@pytest.mark.parametrize("meanwhile", [False, True], ids=["at once", "given up by another process meanwhile"])
def test_an_effect_whose_claim_got_no_answer_is_sent(
    declare: Declare, outside: Outside, arrives: bool, meanwhile: bool
) -> None:
    handled()
    leave_the_next_commit_unanswered(arrives=arrives)
    with pytest.raises(OperationalError):
        ledger.claim(Q(), 10)
    assert Effect.objects.get().state == ("sending" if arrives else "intended")
    if meanwhile and arrives:
        mine = dict(ledger._unanswered)
        ledger._unanswered.clear()
        everything_due()
        assert ledger.claim(Q(), 10) == []
        assert (Effect.objects.get().state, inbox_state()) == ("unknown", "handled")
        ledger._unanswered.update(mine)

    done = InboxMessage.objects.create(consumer="notes", message_id="another", state="handled")
    taken = ledger.claim(Q(), 10)
    effect = Effect.objects.get()
    assert [(each.row.attempts, each.doubtful) for each in taken] == [(1, False)]
    assert (effect.state, effect.attempts, effect.error, effect.failure_group) == ("sending", 1, "", "")
    assert effect.inbox_message.state == "effects_due"
    done.refresh_from_db()
    assert done.state == "handled"
    done.delete()

    ledger.note(effect_runner.carry_out(taken))
    effect.refresh_from_db()
    assert (effect.state, effect.attempts, effect.error, len(outside.calls)) == ("done", 1, "", 1)
    assert inbox_state() == "handled"
    assert attempts_kept() == []
    assert bool(ledger._unanswered) is not arrives  # a commit may become visible later


@pytest.mark.parametrize("meanwhile", [False, True], ids=["sending", "given up by another process meanwhile"])
def test_an_effect_whose_claim_becomes_visible_later_is_sent(
    declare: Declare, outside: Outside, meanwhile: bool
) -> None:
    handled()
    leave_the_next_commit_unanswered(arrives=True)
    with pytest.raises(OperationalError):
        ledger.claim(Q(), 10)
    visible = Effect.objects.values("state", "token", "attempts", "sending_until").get()
    Effect.objects.update(state="intended", token=None, attempts=0, sending_until=None)
    assert ledger.claim(Q(message_id="another"), 10) == []  # nothing to see yet

    Effect.objects.update(**visible)
    if meanwhile:
        Effect.objects.update(state="unknown", error="given up")
        InboxMessage.objects.update(state="handled")
    effect = carried_out()
    assert (effect.state, effect.attempts, effect.error, len(outside.calls)) == ("done", 1, "", 1)
    assert inbox_state() == "handled"
    assert ledger._unanswered == {}


def test_a_claim_without_an_answer_is_forgotten_after_the_time_of_its_effects(
    declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled()
    leave_the_next_commit_unanswered(arrives=False)
    with pytest.raises(OperationalError):
        ledger.claim(Q(), 10)
    ledger.claim(Q(), 10)
    assert ledger._unanswered
    later = time.monotonic() + TIMEOUT.total_seconds() + ledger.MARGIN
    monkeypatch.setattr(time, "monotonic", lambda: later)
    ledger.claim(Q(), 10)
    assert ledger._unanswered == {}


def test_a_doubtful_effect_whose_claim_got_no_answer_stays_doubtful(declare: Declare, outside: Outside) -> None:
    declare(honours_keys=True)
    outside.after = [ConnectionResetError("gone")]
    handled()
    assert carried_out().state == "sending"
    everything_due()
    leave_the_next_commit_unanswered(arrives=True)
    with pytest.raises(OperationalError):
        ledger.claim(Q(), 10)
    declare(honours_keys=False)  # by now
    assert carried_out().state == "unknown"
    assert len(outside.calls) == 1


@pytest.mark.parametrize("honours_keys", [False, True])
def test_an_effect_that_is_being_sent_is_taken_by_no_other_process(declare: Declare, honours_keys: bool) -> None:
    declare(honours_keys=honours_keys, timeout=timedelta(hours=1))
    handled()
    assert ledger.claim(Q(), 10)
    assert ledger.claim(Q(), 10) == []
    assert Effect.objects.get().state == "sending"


def test_an_effect_whose_process_died_meanwhile_is_unknown(declare: Declare, outside: Outside) -> None:
    handled()
    assert ledger.claim(Q(), 10)
    assert effect_runner.run_all_due([CONSUMER]) == 0  # it may still live
    assert carried_out().state == "unknown"
    assert inbox_state() == "handled"
    assert outside.calls == []


def test_an_effect_whose_process_died_meanwhile_is_sent_again_if_keys_are_honoured(
    declare: Declare, outside: Outside
) -> None:
    declare(honours_keys=True)
    handled()
    assert ledger.claim(Q(), 10)
    assert carried_out().state == "done"


def test_a_late_answer_counts_if_the_effect_is_unknown(declare: Declare, outside: Outside) -> None:
    handled()
    results = effect_runner.carry_out(ledger.claim(Q(), 10))
    assert carried_out().state == "unknown"
    ledger.note(results)
    assert Effect.objects.get().state == "done"


def test_a_late_answer_does_not_overwrite_another_result(declare: Declare, outside: Outside) -> None:
    declare(honours_keys=True)
    handled()
    late = effect_runner.carry_out(ledger.claim(Q(), 10))
    outside.before = [Reject("no")]
    assert carried_out().state == "unknown"  # it was in doubt
    ledger.note(late)
    assert Effect.objects.get().state == "unknown"


def test_two_upkeeps_send_it_once(declare: Declare, outside: Outside) -> None:
    declare(timeout=timedelta(seconds=20))  # what is not begun in half of that is given back, and taken once more
    for _ in range(10):
        handled()
    both = [InThread(lambda: effect_runner.run_all_due([CONSUMER]), "upkeep") for _ in range(2)]
    assert sum(each.join() for each in both) == 10
    assert sorted(outside.done) == sorted(set(outside.done))


def test_the_result_of_an_effect_outlives_a_failing_database(
    declare: Declare, outside: Outside, database_kind: str
) -> None:
    """The text is out, and this process alone knows: were it to forget, a person would have to find out."""
    handled()
    broken = threading.Event()
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA busy_timeout = 1" if database_kind == "sqlite" else "SELECT pg_backend_pid()")
        (backend,) = cursor.fetchone()

    def break_it() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            if database_kind == "sqlite":
                cursor.execute("UPDATE messaging_effect SET name = name")
                broken.set()
                time.sleep(0.5)  # the lock is held for longer than the upkeep waits for it
            else:
                cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [backend])
                broken.set()

    breaking: list[InThread] = []

    def send(sending: Sending) -> str:
        breaking.append(InThread(break_it, "breaking"))
        assert broken.wait(15)
        return outside.send(sending)

    effects.registry.clear()
    effects.effect("text", timeout=timedelta(seconds=20))(send)
    try:
        assert effect_runner.run_all_due([CONSUMER]) == 1
    finally:
        breaking[0].join()
        connection.close()
    assert Effect.objects.get().state == "done"
    assert len(outside.done) == 1


def test_a_kind_that_this_code_does_not_know_is_left_to_code_that_does(declare: Declare) -> None:
    handled()
    effects.registry.clear()
    assert carried_out().state == "intended"


def test_the_effects_of_one_message_close_its_row_together(declare: Declare, outside: Outside) -> None:
    effects.effect("call", timeout=TIMEOUT, retry=QUICKLY)(outside.ring)

    def both(event: Noted, delivery: Delivery) -> None:
        delivery.effect("text")
        delivery.effect("call")

    handled(a_consumer(both))
    first, second = ledger.claim(Q(), 10)
    ledger.note(effect_runner.carry_out([first]))
    assert inbox_state() == "effects_due"
    ledger.note(effect_runner.carry_out([second]))
    assert inbox_state() == "handled"


def test_two_processes_that_note_the_last_two_effects_close_the_row(declare: Declare, outside: Outside) -> None:
    effects.effect("call", timeout=TIMEOUT, retry=QUICKLY)(outside.ring)

    def both(event: Noted, delivery: Delivery) -> None:
        delivery.effect("text")
        delivery.effect("call")

    for _ in range(10):
        handled(a_consumer(both))
        results = [effect_runner.carry_out([claimed]) for claimed in ledger.claim(Q(), 10)]
        race = [InThread(lambda result=result: ledger.note(result), "note") for result in results]
        for each in race:
            each.join()
    assert set(InboxMessage.objects.values_list("state", flat=True)) == {"handled"}


# --- batches -----------------------------------------------------------------------------------------------


def test_the_effects_of_a_batch_run_in_parallel(declare: Declare, outside: Outside) -> None:
    together = threading.Barrier(4, timeout=10)

    def meeting(sending: Sending) -> str:
        together.wait()
        return "met"

    effects.registry.clear()
    effects.effect("text", timeout=timedelta(seconds=15), retry=RetryPolicy())(meeting)
    deliveries = [a_delivery() for _ in range(4)]
    assert handling.handle_together(a_consumer(intending, batch=4), deliveries) == ["handled"] * 4
    assert effect_runner.run_all_due([CONSUMER]) == 4
    assert set(Effect.objects.values_list("state", flat=True)) == {"done"}
    assert notes() == 4


# --- in time or not at all ---------------------------------------------------------------------------------


def test_no_effect_begins_after_others_may_take_it_for_abandoned(
    declare: Declare, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that does not answer, and more effects than are under way at a time."""
    monkeypatch.setattr(ledger, "MARGIN", 0.3)
    released = threading.Event()
    states: list[str] = []

    def silent(sending: Sending) -> None:
        states.append(Effect.objects.get(message_id=sending.message_id).state)
        released.wait(20)

    effects.registry.clear()
    effects.effect("text", timeout=TIMEOUT, retry=QUICKLY)(silent)
    for _ in range(2 * effect_runner.PARALLEL + 1):
        handled()
    slow = InThread(lambda: look_after([CONSUMER]), "slow")
    while slow.thread.is_alive():
        look_after([CONSUMER])
    slow.join()
    released.set()

    assert set(Effect.objects.values_list("state", flat=True)) == {"unknown"}
    assert states == ["sending"] * Effect.objects.count()


@pytest.mark.parametrize("honours_keys", [False, True])
def test_a_process_frozen_after_a_claim_begins_nothing(
    declare: Declare, outside: Outside, monkeypatch: pytest.MonkeyPatch, honours_keys: bool
) -> None:
    declare(honours_keys=honours_keys)
    handled()
    now = time.monotonic
    claimed = ledger.claim(Q(), 10)
    monkeypatch.setattr(effect_runner.time, "monotonic", lambda: now() + 60)
    ledger.note(effect_runner.carry_out(claimed))
    assert outside.calls == []
    assert Effect.objects.get().state == "intended"


def test_a_doubtful_effect_that_did_not_begin_stays_doubtful(
    declare: Declare, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(honours_keys=True)
    handled()
    assert ledger.claim(Q(), 10)
    everything_due()
    now = time.monotonic
    claimed = ledger.claim(Q(), 10)
    monkeypatch.setattr(effect_runner.time, "monotonic", lambda: now() + 60)
    ledger.note(effect_runner.carry_out(claimed))
    assert outside.calls == []
    assert Effect.objects.get().state == "sending"


def test_asking_and_repeating_share_one_timeout(declare: Declare, outside: Outside) -> None:
    def hesitant(sending: Sending) -> None:
        time.sleep(sending.timeout / 4)

    declare(ask=hesitant)
    handled()
    assert ledger.claim(Q(), 10)
    carried_out()
    assert outside.calls[0].timeout <= TIMEOUT.total_seconds() * 3 / 4


# --- what is kept of attempts ------------------------------------------------------------------------------


def test_a_first_success_is_one_row_and_no_more(declare: Declare, outside: Outside) -> None:
    handled()
    assert carried_out().state == "done"
    assert attempts_kept() == []


def test_each_attempt_that_failed_is_kept_with_what_the_outside_answered(declare: Declare, outside: Outside) -> None:
    outside.before = [RetryLater("busy", after=timedelta(0)), NotDone("full"), Reject("no such number")]
    handled()
    for _ in range(3):
        effect = carried_out()
    assert effect.state == "failed"
    assert attempts_kept() == [
        (1, "not done", "RetryLater: busy"),
        (2, "not done", "NotDone: full"),
        (3, "failed", "Reject: no such number"),
    ]


def test_doubts_are_kept_where_a_repetition_succeeds(declare: Declare, outside: Outside) -> None:
    declare(honours_keys=True)
    outside.after = [ConnectionError("the gateway answered 500")]
    handled()
    carried_out()
    assert carried_out().state == "done"
    assert attempts_kept() == [(1, "doubtful", "ConnectionError: the gateway answered 500")]


@pytest.mark.parametrize(("honours_keys", "outcome"), [(False, "unknown"), (True, "doubtful")])
def test_an_attempt_whose_process_died_is_kept(
    declare: Declare, outside: Outside, honours_keys: bool, outcome: str
) -> None:
    declare(honours_keys=honours_keys)
    handled()
    ledger.claim(Q(), 1)
    carried_out()
    assert attempts_kept() == [(1, outcome, ledger._NO_ANSWER)]


def test_results_that_are_noted_twice_are_kept_once(declare: Declare, outside: Outside) -> None:
    """The connection may be lost after the commit: then nobody knows whether it was noted."""
    outside.before = [NotDone("full")]
    handled()
    results = effect_runner.carry_out(ledger.claim(Q(), 1))
    for _ in range(2):
        ledger.note(results)
    assert attempts_kept() == [(1, "not done", "NotDone: full")]


def test_failures_of_one_kind_have_one_group_and_a_success_has_none(declare: Declare, outside: Outside) -> None:
    outside.before = [NotDone("code 17"), NotDone("code 18")]
    handled()
    first = carried_out().failure_group
    second = carried_out().failure_group
    assert first == second != ""
    assert carried_out().failure_group == ""


# --- what functions return -----------------------------------------------------------------------------------


class Odd:
    def __str__(self) -> str:
        raise SystemExit

    __repr__ = __str__


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (4711, "4711"), (UUID(int=1), "00000000-0000-0000-0000-000000000001"), (1.5, "1.5"), (Decimal("1.50"), "1.50"),
        (True, "True"), (["a"], "['a']"), ({"id": 1}, "{'id': 1}"), (b"ab", "ab"), (b"\xff", "\ufffd"), (None, ""),
        ("\ud800", "?"), ("a\x00b", "a\ufffdb"), ("x" * 300, "x" * 255), (Odd(), "(an Odd whose text cannot be made)"),
        pytest.param(10**5000, "(an int whose text cannot be made)", id="huge"),
    ],
)  # fmt: skip
def test_any_returned_value_means_done(declare: Declare, answer: Any, kept: str) -> None:
    declare()
    effects.effect("odd", honours_keys=True, retry=QUICKLY)(lambda sending: answer)

    def both(event: Noted, delivery: Delivery) -> None:
        delivery.effect("odd")
        delivery.effect("text", {"to": event.text})

    handled(a_consumer(both))
    everything_due()
    look_after([CONSUMER])

    assert dict(Effect.objects.values_list("name", "reference")) == {"odd": kept, "text": "ref-1"}
    assert set(Effect.objects.values_list("state", flat=True)) == {State.DONE}


async def never_awaited(*given: Any) -> str:
    return "ref"


def test_a_returned_coroutine_is_no_answer_and_is_not_repeated(declare: Declare) -> None:
    effects.registry.clear()
    effects.effect("text", retry=QUICKLY)(lambda sending: never_awaited(sending))
    handled()

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = carried_out()

    assert found.state == State.UNKNOWN
    assert "NotRun" in found.error


@pytest.mark.parametrize("answer", [True, False, 0, "", [], {"id": 1}, 1.5, Odd()])
def test_an_ambiguous_answer_of_ask_leaves_the_effect_doubtful(declare: Declare, outside: Outside, answer: Any) -> None:
    declare(ask=lambda sending: answer)
    outside.after = [RuntimeError("lost")]
    handled()
    carried_out()

    assert carried_out().state == State.SENDING
    assert len(outside.calls) == 1


@pytest.mark.parametrize("answer", ["ref", 17, UUID(int=1)])
def test_a_reference_from_ask_makes_the_effect_done(declare: Declare, outside: Outside, answer: Any) -> None:
    declare(ask=lambda sending: answer)
    outside.after = [RuntimeError("lost")]
    handled()
    carried_out()

    assert carried_out().reference == str(answer)
    assert len(outside.calls) == 1


@pytest.mark.parametrize("answer", ["yes", 1, None, [], Odd(), SystemExit])
def test_an_odd_answer_of_honours_keys_means_no(declare: Declare, outside: Outside, answer: Any) -> None:
    def honours() -> Any:
        if answer is SystemExit:
            raise SystemExit
        return answer

    declare(honours_keys=honours)
    outside.after = [RuntimeError("lost")]
    handled()

    assert carried_out().state == State.UNKNOWN
    assert len(outside.calls) == 1


@pytest.mark.parametrize("after", [5, 5.5, None, "soon", float("nan"), timedelta.max, timedelta(-1)])
def test_a_bad_rest_leaves_the_effect_not_done(declare: Declare, outside: Outside, after: Any) -> None:
    outside.before = [RetryLater("busy", after=after)]
    handled()

    assert carried_out().state == State.INTENDED


@pytest.mark.parametrize("payload", [[1], "x", {1: "a"}, {"a": [{2: "b"}]}, {"a": float("nan")}, {"a": object()}])
def test_a_payload_that_would_be_read_as_another_is_refused(declare: Declare, payload: Any) -> None:
    with pytest.raises(ValueError, match="payload of effect 'text'"):
        a_delivery().effect("text", payload)


def test_a_payload_is_what_it_was_when_it_was_intended(declare: Declare) -> None:
    payload = {"to": ("a", "b")}
    delivery = a_delivery()
    delivery.effect("text", payload)
    payload["to"] = ("c",)

    assert delivery.intended[0].payload == {"to": ["a", "b"]}


@pytest.mark.parametrize("wrong", [{"timeout": 5}, {"timeout": timedelta(0)}, {"timeout": timedelta.max}, {"retry": 3}])
def test_options_of_the_wrong_kind_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ImproperlyConfigured, match=next(iter(wrong))):
        effects.effect("text", **wrong)
