"""Effects outside the database: written with the handler's work, done after it, never repeated blindly."""

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connection, connections, transaction
from django.db.models import Q
from django.utils.timezone import now
from structlog.testing import capture_logs

from messaging import database, effects, testing
from messaging.consumers import Consumer
from messaging.effects import Sending
from messaging.exceptions import NotDone, Reject, RetryLater, UnknownEffect
from messaging.message import Delivery
from messaging.models import Effect, EffectAttempt, InboxMessage
from messaging.retry import RetryPolicy
from messaging.worker import effect_runner, handling, ledger
from messaging.worker.database_wait import DatabaseWait
from tests.support.consuming import QUICKLY, Noted, a_consumer, a_delivery, a_message, look_after, notes, take_note
from tests.support.running import InThread

pytestmark = pytest.mark.django_db
#: For what other connections must see, and for connections that end.
committing = pytest.mark.django_db(transaction=True)

State = Effect.State
#: An effect that has not begun when half of this is over is left for later, which a busy machine must not bring about.
TIMEOUT = timedelta(seconds=10)
#: Where the test waits until it is over.
SHORT = timedelta(seconds=1)


class TookIt(ConnectionResetError):
    """The gateway did its work, and its answer was lost."""


TOOK_IT = TookIt("gone")
#: The answer was lost, and perhaps the request.
GONE = ConnectionResetError("gone")


class Outside:
    """A gateway: it keeps what was done under which key, and answers as `script` says."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.calls: list[Sending] = []
        #: What the next calls, of `send` or `ask`, raise. After that they succeed.
        self.script: list[BaseException] = []

    def send(self, sending: Sending) -> str:
        self.calls.append(sending)
        error = self.script.pop(0) if self.script else None
        if error is None or isinstance(error, TookIt):
            self.done.append(sending.key)
        if error:
            raise error
        return f"ref-{len(self.done)}"

    def ask(self, sending: Sending) -> str | None:
        if self.script:
            raise self.script.pop(0)
        return "asked" if sending.key in self.done else None

    def ring(self, sending: Sending) -> str:
        """As `send`, by another name."""
        return self.send(sending)


@pytest.fixture
def outside() -> Outside:
    return Outside()


Declare = Callable[..., None]


@pytest.fixture
def declare(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> Iterator[Declare]:
    """Declares the effect `text`, as the outside's `send`, in the way the test wants."""
    # As in a new process, which remembers no claim of another test.
    monkeypatch.setattr(ledger, "_unanswered", {})

    def declared(send: Any = outside.send, **options: Any) -> None:
        effects.registry.clear()
        effects.effect("text", **{"timeout": TIMEOUT, "retry": QUICKLY, **options})(send)

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

    assert testing.deliver(a_message(), a_consumer(failing)) == "retrying"
    assert not Effect.objects.exists()


def test_a_broadcast_intends_no_effect(declare: Declare) -> None:
    """Each process would carry it out."""
    broadcast = a_consumer(intending, broadcast=True, queue="", fenced=False)
    assert testing.deliver(a_message(), broadcast) == "dropped"
    assert notes() == 0


def test_an_effect_of_a_rolled_back_try_is_not_intended_twice(declare: Declare) -> None:
    tries = []

    def contended(event: Noted, delivery: Delivery) -> None:
        intending(event, delivery)
        tries.append(event)
        if len(tries) == 1:
            raise OperationalError("deadlock detected")

    handled(a_consumer(contended))
    assert Effect.objects.count() == 1


@committing
def test_intending_an_effect_after_the_handler_returned_is_an_error(declare: Declare) -> None:
    def late(event: Noted, delivery: Delivery) -> None:
        transaction.on_commit(lambda: delivery.effect("text", {"to": "anybody"}))

    assert testing.deliver(a_message(), a_consumer(late)) == "handled"
    assert not Effect.objects.exists()
    assert "intended after the handler had returned" in InboxMessage.objects.get().reason


def test_unknown_and_repeated_names_fail_where_they_are_intended(declare: Declare) -> None:
    delivery = a_delivery()
    with pytest.raises(UnknownEffect, match="Registered: text"):
        delivery.effect("fax")
    delivery.effect("text")
    with pytest.raises(ValueError, match="before"):
        delivery.effect("text")


@pytest.mark.parametrize("payload", [[1], {1: "a"}, {"a": [{2: "b"}]}, {"a": float("nan")}, {"a": object()}])
def test_a_payload_that_would_be_read_as_another_is_refused(declare: Declare, payload: Any) -> None:
    with pytest.raises(ValueError, match="payload of effect 'text'"):
        a_delivery().effect("text", payload)


def test_a_payload_is_what_it_was_when_it_was_intended(declare: Declare) -> None:
    payload = {"to": ("a", "b")}
    delivery = a_delivery()
    delivery.effect("text", payload)
    payload["to"] = ("c",)

    assert delivery.intended[0].payload == {"to": ["a", "b"]}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("text:again", {}, "':'"),
        *(("text", {"timeout": wrong}, "timeout") for wrong in (5, timedelta(0), timedelta.max)),
        ("text", {"retry": 3}, "retry"),
    ],
)
def test_names_and_options_of_the_wrong_kind_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=message):
        effects.effect(name, **options)


# --- carrying out ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """What the gateway does, the effect's state after each upkeep, and the attempts that are kept."""

    script: list[BaseException]
    states: list[str]
    kept: list[tuple[int, str, str]]
    done: int = 1
    reference: str = "ref-1"
    options: dict[str, Any] = field(default_factory=dict)


STORIES = {
    "done at once, and not again": Story([], ["done", "done"], []),
    "surely not done, so tried again": Story(
        [NotDone("busy"), RetryLater("later", after="soon"), NotDone("full")],  # type: ignore[arg-type]
        ["intended", "intended", "failed"],
        [(1, "not done", "NotDone: busy"), (2, "not done", "RetryLater: later"), (3, "failed", "NotDone: full")],
        done=0,
        reference="",
    ),
    "not done at first": Story([NotDone("down")], ["intended", "done"], [(1, "not done", "NotDone: down")]),
    "rejected": Story(
        [Reject("no such number")], ["failed", "failed"], [(1, "failed", "Reject: no such number")], 0, ""
    ),
    "doubtful: unknown, and not sent again": Story(
        [TOOK_IT], ["unknown", "unknown"], [(1, "unknown", "TookIt: gone")], reference=""
    ),
    "doubtful: sent again, as keys are honoured": Story(
        [TOOK_IT], ["sending", "done"], [(1, "doubtful", "TookIt: gone")], 2, "ref-2", {"honours_keys": True}
    ),
    "doubtful: a later refusal does not settle it": Story(
        [TOOK_IT, NotDone("busy"), Reject("never")],
        ["sending", "sending", "unknown"],
        [(1, "doubtful", "TookIt: gone"), (2, "doubtful", "NotDone: busy"), (3, "unknown", "Reject: never")],
        reference="",
        options={"honours_keys": True},
    ),
    "doubtful: asked for, and done": Story(
        [TOOK_IT], ["sending", "done"], [(1, "doubtful", "TookIt: gone")], 1, "asked", {"ask": True}
    ),
    "doubtful: asked for, and not done, so sent": Story(
        [GONE], ["sending", "done"], [(1, "doubtful", "ConnectionResetError: gone")], options={"ask": True}
    ),
    "doubtful: asked for without an answer": Story(
        [TOOK_IT, TimeoutError("?"), TimeoutError("?")],
        ["sending", "sending", "unknown"],
        [(1, "doubtful", "TookIt: gone"), (2, "doubtful", "TimeoutError: ?"), (3, "unknown", "TimeoutError: ?")],
        reference="",
        options={"ask": True},
    ),
}


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_the_answers_of_the_outside_decide_what_becomes_of_an_effect(
    declare: Declare, outside: Outside, story: Story
) -> None:
    declare(**({"ask": outside.ask} if "ask" in story.options else story.options))
    outside.script = [*story.script]
    handled()

    for state in story.states:
        effect = carried_out()
        assert effect.state == state
        assert inbox_state() == ("effects_due" if state in Effect.OPEN else "handled")

    assert (attempts_kept(), effect.reference) == (story.kept, story.reference)
    assert outside.done == [effect.key] * story.done
    assert {call.key for call in outside.calls} == {effect.key}
    numbers = [call.attempt for call in outside.calls]
    assert numbers == sorted(set(numbers))


def test_what_was_asked_for_and_surely_not_done_is_not_doubtful_any_more(declare: Declare, outside: Outside) -> None:
    declare(ask=lambda sending: None, timeout=timedelta(seconds=20))
    outside.script = [GONE, NotDone("busy"), Reject("no such number")]
    handled()
    assert [carried_out().state for _ in range(3)] == ["sending", "intended", "failed"]


def test_each_attempt_without_success_is_a_warning_with_its_reason(declare: Declare, outside: Outside) -> None:
    declare(honours_keys=True, timeout=timedelta(seconds=20))
    outside.script = [NotDone("busy"), GONE, Reject("never")]
    handled()
    with capture_logs() as lines:
        for _ in range(3):
            carried_out()
    assert [(line["event"], line["reason"]) for line in lines if line["log_level"] == "warning"] == [
        ("effect.again", "NotDone: busy"),
        ("effect.doubtful", "ConnectionResetError: gone"),
        ("effect.unknown", "Reject: never"),
    ]


def test_retry_later_rests_as_long_as_the_outside_said(declare: Declare, outside: Outside) -> None:
    outside.script = [RetryLater("later", after=timedelta(hours=1))]
    handled()
    look_after([CONSUMER])
    assert Effect.objects.filter(send_at__gt=database.in_future(3500), state="intended").exists()
    assert effect_runner.run_all_due([CONSUMER]) == 0


@pytest.mark.parametrize(("error", "rests_until"), [(NotDone("busy"), {"send_at"}), (GONE, {"sending_until"})])
def test_what_is_tried_again_rests_as_long_as_its_policy_says(
    declare: Declare, outside: Outside, error: Exception, rests_until: set[str]
) -> None:
    hours = timedelta(hours=8)
    declare(honours_keys=True, retry=RetryPolicy(first_delay=hours, max_delay=hours))
    outside.script = [error]
    handled()
    look_after([CONSUMER])
    times = Effect.objects.values("send_at", "sending_until").get()
    assert {name for name, at in times.items() if at and at > now() + timedelta(hours=1)} == rests_until


def test_whether_keys_are_honoured_may_depend_on_the_configuration(declare: Declare, outside: Outside) -> None:
    honoured = [True]
    declare(honours_keys=lambda: honoured[0])
    outside.script = [GONE]
    handled()
    assert carried_out().state == "sending"
    honoured[0] = False
    assert carried_out().state == "unknown"
    assert len(outside.calls) == 1


def _breaks_its_transaction() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT nothing_of_that_name")
    return True


@committing
@pytest.mark.parametrize("say", [lambda: bool(connections.close_all()), _breaks_its_transaction])
def test_honours_keys_may_query_the_database(declare: Declare, outside: Outside, say: Callable[[], bool]) -> None:
    """If it ran in the claim's transaction, the claim would be repeated for ever, and all effects would wait."""
    declare(honours_keys=True)
    outside.script = [GONE]
    handled()
    assert carried_out().state == "sending"
    declare(honours_keys=say)
    assert carried_out().state == "unknown"
    assert len(outside.calls) == 1


def test_an_answer_that_does_not_come_in_time_is_not_waited_for(declare: Declare) -> None:
    came = threading.Event()
    keeps_its_process_alive: list[bool] = []

    def silent(sending: Sending) -> None:
        keeps_its_process_alive.append(not threading.current_thread().daemon)
        came.wait(20)

    declare(silent, timeout=SHORT)
    handled()
    began = time.monotonic()
    effect = carried_out()
    assert time.monotonic() - began < 10
    assert (effect.state, effect.error) == ("unknown", "TimeoutError: no answer within 1 s")
    assert keeps_its_process_alive == [False]
    came.set()


def test_a_kind_that_this_code_does_not_know_is_left_to_code_that_does(declare: Declare) -> None:
    handled()
    effects.registry.clear()
    assert carried_out().state == "intended"


# --- processes that die ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("honours_keys", "state", "outcome"), [(False, "unknown", "unknown"), (True, "done", "doubtful")]
)
def test_an_effect_whose_process_died_is_first_left_alone_and_then_doubtful(
    declare: Declare, outside: Outside, honours_keys: bool, state: str, outcome: str
) -> None:
    declare(honours_keys=honours_keys)
    handled()
    assert ledger.claim(Q(), 10)
    assert ledger.claim(Q(), 10) == []  # the process may still live
    assert Effect.objects.get().state == "sending"
    assert carried_out().state == state
    assert inbox_state() == "handled"
    assert len(outside.calls) == honours_keys
    assert attempts_kept() == [(1, outcome, ledger._NO_ANSWER)]
    effect = Effect.objects.get()
    is_unknown = state == "unknown"
    assert (effect.error == ledger._NO_ANSWER, bool(effect.failure_group)) == (is_unknown, is_unknown)


def leave_the_next_commit_unanswered(*, arrives: bool) -> None:
    """Let the connection end at the next commit of a claim, after it was made or before."""
    here: Any = connections["default"]

    def commit() -> None:
        del here.commit
        here.commit() if arrives else here.rollback()
        raise OperationalError("server closed the connection unexpectedly")

    here.commit = commit
    with pytest.raises(OperationalError):
        ledger.claim(Q(), 10)


@committing
@pytest.mark.parametrize(("arrives", "meanwhile"), [(True, False), (True, True), (False, False)])
def test_an_effect_whose_claim_got_no_answer_is_sent(
    declare: Declare, outside: Outside, arrives: bool, meanwhile: bool
) -> None:
    """With `meanwhile` another process has given the effect up before."""
    handled()
    leave_the_next_commit_unanswered(arrives=arrives)
    assert Effect.objects.get().state == ("sending" if arrives else "intended")
    if meanwhile:
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

    ledger.note(effect_runner.carry_out(taken))
    effect.refresh_from_db()
    assert (effect.state, effect.attempts, effect.error, len(outside.calls)) == ("done", 1, "", 1)
    assert effect.inbox_message.state == "handled"
    assert attempts_kept() == []
    assert bool(ledger._unanswered) is not arrives  # a commit may become visible later


@committing
@pytest.mark.parametrize("meanwhile", [False, True], ids=["sending", "given up by another process meanwhile"])
def test_an_effect_whose_claim_becomes_visible_later_is_sent(
    declare: Declare, outside: Outside, meanwhile: bool
) -> None:
    handled()
    leave_the_next_commit_unanswered(arrives=True)
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


@committing
def test_a_claim_without_an_answer_is_forgotten_after_the_time_of_its_effects(
    declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled()
    leave_the_next_commit_unanswered(arrives=False)
    earlier, later = (time.monotonic() + rest for rest in (ledger.MARGIN, TIMEOUT.total_seconds() + ledger.MARGIN))
    for moment, is_remembered in ((earlier, True), (later, False)):
        monkeypatch.setattr(time, "monotonic", lambda moment=moment: moment)
        ledger.claim(Q(), 10)
        assert bool(ledger._unanswered) is is_remembered


@committing
def test_a_doubtful_effect_whose_claim_got_no_answer_stays_doubtful(declare: Declare, outside: Outside) -> None:
    declare(honours_keys=True)
    outside.script = [GONE]
    handled()
    assert carried_out().state == "sending"
    everything_due()
    leave_the_next_commit_unanswered(arrives=True)
    declare(honours_keys=False)  # by now
    assert carried_out().state == "unknown"
    assert len(outside.calls) == 1


def test_a_late_answer_counts_if_the_effect_is_unknown(declare: Declare) -> None:
    handled()
    results = effect_runner.carry_out(ledger.claim(Q(), 10))
    assert carried_out().state == "unknown"
    ledger.note(results)
    assert Effect.objects.get().state == "done"


def test_a_late_answer_does_not_overwrite_another_result(declare: Declare, outside: Outside) -> None:
    declare(honours_keys=True)
    handled()
    late = effect_runner.carry_out(ledger.claim(Q(), 10))
    outside.script = [Reject("no")]
    assert carried_out().state == "unknown"  # it was in doubt
    ledger.note(late)
    effect = Effect.objects.get()
    assert effect.state == "unknown"
    assert ("done late", f"too late to count: {late[0][1].reference}") in effect.failed_attempts.values_list(
        "outcome", "error"
    )


def test_a_late_failure_is_kept_as_one_even_if_another_attempt_failed_alike(declare: Declare, outside: Outside) -> None:
    declare(honours_keys=True)
    outside.script = [NotDone("busy"), NotDone("busy")]
    handled()
    assert carried_out().state == "intended"
    everything_due()
    late = effect_runner.carry_out(ledger.claim(Q(), 10))
    assert carried_out().state == "done"  # another process took it for abandoned
    ledger.note(late)
    busy = "NotDone: busy"
    assert attempts_kept() == [(1, "not done", busy), (2, "not done", f"too late to count: {busy}")]


def test_a_failure_that_is_reported_again_after_the_next_attempt_began_is_one_failed_attempt(
    declare: Declare, outside: Outside
) -> None:
    """The connection was lost after the commit of its report."""
    declare()
    outside.script = [NotDone("busy")]
    handled()
    failed = effect_runner.carry_out(ledger.claim(Q(), 10))
    ledger.note(failed)
    everything_due()
    assert ledger.claim(Q(), 10)
    ledger.note(failed)
    [attempt] = Effect.objects.get().failed_attempts.all()
    assert attempt.outcome == "not done"
    assert "too late" not in attempt.error


@committing
def test_two_upkeeps_send_each_effect_once(declare: Declare, outside: Outside) -> None:
    declare(timeout=timedelta(seconds=20))  # what is not begun in half of that is given back, and taken once more
    for _ in range(10):
        handled()
    both = [InThread(lambda: effect_runner.run_all_due([CONSUMER]), "upkeep") for _ in range(2)]
    assert sum(each.join() for each in both) == 10
    assert sorted(outside.done) == sorted(set(outside.done))


@committing
def test_the_result_of_an_effect_outlives_a_failing_database(
    declare: Declare, outside: Outside, database_kind: str
) -> None:
    """Only this process knows that the text is out: if it forgot, a person would have to find out."""
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
                time.sleep(0.2)  # the lock is held for longer than the upkeep waits for it
            else:
                cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [backend])
                broken.set()

    breaking: list[InThread] = []

    def send(sending: Sending) -> str:
        breaking.append(InThread(break_it, "breaking"))
        assert broken.wait(15)
        return outside.send(sending)

    declare(send, timeout=timedelta(seconds=20))
    try:
        assert effect_runner.run_all_due([CONSUMER]) == 1
    finally:
        breaking[0].join()
        connection.close()
    assert Effect.objects.get().state == "done"
    assert len(outside.done) == 1


def both(event: Noted, delivery: Delivery) -> None:
    """A handler that intends two effects."""
    delivery.effect("text")
    delivery.effect("call")


def test_the_effects_of_one_message_close_its_row_together(declare: Declare, outside: Outside) -> None:
    effects.effect("call", timeout=TIMEOUT, retry=QUICKLY)(outside.ring)
    handled(a_consumer(both))
    another = InboxMessage.objects.create(consumer="notes", message_id="another", state="effects_due")
    Effect.objects.create(inbox_message=another, consumer="notes", message_id="another", name="text")
    for state in ("effects_due", "handled"):
        [claimed] = ledger.claim(~Q(inbox_message=another), 1)
        ledger.note(effect_runner.carry_out([claimed]))
        assert claimed.row.inbox_message.state == state
    another.refresh_from_db()
    assert another.state == "effects_due"


@committing
def test_two_processes_that_note_the_last_two_effects_close_the_row(declare: Declare, outside: Outside) -> None:
    effects.effect("call", timeout=TIMEOUT, retry=QUICKLY)(outside.ring)
    for _ in range(5):
        handled(a_consumer(both))
        results = [effect_runner.carry_out([claimed]) for claimed in ledger.claim(Q(), 10)]
        race = [InThread(lambda result=result: ledger.note(result), "note") for result in results]
        for each in race:
            each.join()
    assert set(InboxMessage.objects.values_list("state", flat=True)) == {"handled"}


def test_results_that_are_noted_twice_are_kept_once(declare: Declare, outside: Outside) -> None:
    """The connection may be lost at the commit: then the results are noted again."""
    outside.script = [NotDone("full")]
    handled()
    results = effect_runner.carry_out(ledger.claim(Q(), 1))
    for _ in range(2):
        ledger.note(results)
    assert attempts_kept() == [(1, "not done", "NotDone: full")]


def test_failures_of_one_kind_have_one_group_and_a_success_has_none(declare: Declare, outside: Outside) -> None:
    outside.script = [NotDone("code 17"), NotDone("code 18")]
    handled()
    first, second, success = (carried_out().failure_group for _ in range(3))
    assert first == second != ""
    assert success == ""


# --- in time or not at all ---------------------------------------------------------------------------------


def test_the_effects_of_a_batch_run_in_parallel(declare: Declare) -> None:
    together = threading.Barrier(4, timeout=10)
    declare(lambda sending: str(together.wait()), timeout=timedelta(seconds=15))
    deliveries = [a_delivery() for _ in range(4)]
    assert handling.handle_together(a_consumer(intending, batch=4), deliveries) == ["handled"] * 4
    assert effect_runner.run_all_due([CONSUMER]) == 4
    assert set(Effect.objects.values_list("state", flat=True)) == {"done"}
    assert notes() == 4


def test_each_delivery_of_a_whole_batch_intends_its_own_effects(declare: Declare) -> None:
    declare(lambda sending: sending.message_id)

    def handler(events: list[Noted], deliveries: list[Delivery]) -> None:
        for each in deliveries:
            each.effect("text", {"to": each.message_id})

    messages = [a_message(id=f"m-{number}") for number in range(3)]
    assert testing.deliver_together(messages, a_consumer(handler, batch=4, whole_batch=True)) == ["handled"] * 3
    assert set(InboxMessage.objects.values_list("state", flat=True)) == {"effects_due"}
    assert effect_runner.run_all_due([CONSUMER]) == 3
    done = Effect.objects.order_by("pk").values_list("message_id", "reference", "state")
    assert list(done) == [(each.id, each.id, "done") for each in messages]


@committing
@pytest.mark.parametrize("of_one_message", [False, True])
def test_no_more_effects_are_claimed_than_run_at_a_time(
    declare: Declare, monkeypatch: pytest.MonkeyPatch, of_one_message: bool
) -> None:
    """The time of each begins with its claim."""
    monkeypatch.setattr(effect_runner, "PARALLEL", 2)
    claimed: list[int] = []
    names = [f"text-{number}" for number in range(5)]
    for name in names:
        effects.effect(name, timeout=timedelta(seconds=20))(_counting(claimed, name))

    def several(event: Noted, delivery: Delivery) -> None:
        for name in names:
            delivery.effect(name)

    effect = handled(a_consumer(several))
    if of_one_message:
        effect_runner.run_of("notes", [effect.message_id], DatabaseWait("notes", threading.Event()))
    else:
        assert effect_runner.run_all_due([CONSUMER]) == 5
    assert set(Effect.objects.values_list("state", flat=True)) == {"done"}
    assert (len(claimed), max(claimed)) == (5, 2)


def _counting(claimed: list[int], name: str) -> Callable[[Sending], None]:
    def send(sending: Sending) -> None:
        claimed.append(Effect.objects.filter(state="sending").count())

    send.__qualname__ = name
    return send


@committing
def test_no_effect_begins_after_others_may_take_it_for_abandoned(
    declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway does not answer, and there are more effects than run at a time."""
    monkeypatch.setattr(ledger, "MARGIN", 0.3)
    monkeypatch.setattr(effect_runner, "PARALLEL", 2)
    released = threading.Event()
    states: list[str] = []

    def silent(sending: Sending) -> None:
        states.append(Effect.objects.get(message_id=sending.message_id).state)
        released.wait(20)

    declare(silent, timeout=SHORT)
    for _ in range(5):
        handled()
    slow = InThread(lambda: look_after([CONSUMER]), "slow")
    while slow.thread.is_alive():
        look_after([CONSUMER])
    slow.join()
    released.set()

    assert set(Effect.objects.values_list("state", flat=True)) == {"unknown"}
    assert states == ["sending"] * 5


@pytest.mark.parametrize(("claims", "state"), [(1, "intended"), (2, "sending")])
def test_a_process_frozen_after_a_claim_begins_nothing_and_a_doubt_stays_one(
    declare: Declare, outside: Outside, monkeypatch: pytest.MonkeyPatch, claims: int, state: str
) -> None:
    declare(honours_keys=True)
    handled()
    for _ in range(claims):
        everything_due()
        claimed = ledger.claim(Q(), 10)
    now = time.monotonic
    monkeypatch.setattr(effect_runner.time, "monotonic", lambda: now() + 60)
    ledger.note(effect_runner.carry_out(claimed))
    assert outside.calls == []
    assert Effect.objects.get().state == state


def test_asking_and_repeating_share_one_timeout(declare: Declare, outside: Outside) -> None:
    declare(ask=lambda sending: time.sleep(sending.timeout / 4), timeout=SHORT)
    handled()
    assert ledger.claim(Q(), 10)
    carried_out()
    assert outside.calls[0].timeout <= SHORT.total_seconds() * 3 / 4


# --- what functions return ---------------------------------------------------------------------------------


class Odd:
    def __str__(self) -> str:
        raise SystemExit

    __repr__ = __str__


#: What an effect's function returns, and what is kept as its reference.
ANSWERS: list[tuple[Any, str]] = [
    (4711, "4711"), (UUID(int=1), "00000000-0000-0000-0000-000000000001"), (Decimal("1.50"), "1.50"), (True, "True"),
    ({"id": 1}, "{'id': 1}"), (b"ab", "ab"), (b"\xff", "\ufffd"), (None, ""), ("\ud800", "?"), ("a\x00b", "a\ufffdb"),
    ("x" * 300, "x" * 255), (Odd(), "(an Odd whose text cannot be made)"),
    (10**5000, "(an int whose text cannot be made)"), ("ref-1", "ref-1"),
]  # fmt: skip


def test_any_returned_value_means_done(declare: Declare) -> None:
    for number, (answer, _) in enumerate(ANSWERS):
        # As the lambda of each row has the same name, which registering two effects refuses.
        effects.registry.put(effects.EffectKind(name=f"{number:02}", send=lambda _, answer=answer: answer))

    def all_of_them(event: Noted, delivery: Delivery) -> None:
        for number in range(len(ANSWERS)):
            delivery.effect(f"{number:02}")

    handled(a_consumer(all_of_them))
    look_after([CONSUMER])

    assert list(Effect.objects.order_by("name").values_list("reference", flat=True)) == [kept for _, kept in ANSWERS]
    assert set(Effect.objects.values_list("state", flat=True)) == {State.DONE}


async def never_awaited(*given: Any) -> str:
    return "ref"


def test_a_returned_coroutine_is_no_answer_and_is_not_repeated(declare: Declare) -> None:
    declare(lambda sending: never_awaited(sending))
    handled()

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = carried_out()

    assert found.state == State.UNKNOWN
    assert "NotRun" in found.error


def test_a_coroutine_from_ask_is_closed_and_leaves_the_doubt(declare: Declare, outside: Outside) -> None:
    declare(ask=lambda sending: never_awaited(sending), timeout=timedelta(seconds=20))
    outside.script = [GONE]
    handled()
    carried_out()

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = carried_out()

    assert (found.state, len(outside.calls)) == (State.SENDING, 1)
    assert "NotRun" in found.error


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        *((answer, "sending") for answer in (True, 0, "", {"id": 1}, Odd())),
        *((answer, "done") for answer in ("ref", 17, UUID(int=1))),
    ],
)
def test_a_reference_from_ask_makes_the_effect_done_and_an_ambiguous_answer_leaves_the_doubt(
    declare: Declare, outside: Outside, answer: Any, state: str
) -> None:
    declare(ask=lambda sending: answer)
    outside.script = [GONE]
    handled()
    carried_out()

    effect = carried_out()
    assert (effect.state, effect.reference) == (state, str(answer) if state == "done" else "")
    assert len(outside.calls) == 1


@pytest.mark.parametrize("answer", ["yes", 1, None, Odd(), IndexError, SystemExit])
def test_an_odd_answer_of_honours_keys_means_no(declare: Declare, outside: Outside, answer: Any) -> None:
    def honours() -> Any:
        if isinstance(answer, type):
            raise answer
        return answer

    declare(honours_keys=honours)
    outside.script = [GONE]
    handled()

    assert carried_out().state == State.UNKNOWN
    assert len(outside.calls) == 1
