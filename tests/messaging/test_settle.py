"""A person settles what no program can know: whether an effect outside the database was done."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from django.db.models import Q
from django.utils.timezone import now

from messaging import database, effects
from messaging.actions.selection import Selection
from messaging.actions.settle import Decision, find, settle
from messaging.effects import Sending
from messaging.exceptions import NotDone, Reject
from messaging.history import timeline
from messaging.history.effect_trouble import EffectTrouble
from messaging.models import Effect, EffectAttempt, InboxMessage, OperatorAction
from messaging.worker import effect_runner, ledger
from messaging.worker.database_wait import DatabaseWait
from tests.support.consuming import QUICKLY, a_consumer, an_effect, look_after
from tests.support.running import at_once

pytestmark = pytest.mark.django_db

WHO = "ann@host"
CONSUMER = a_consumer()


@pytest.fixture
def calls() -> Iterator[list[Sending]]:
    """The effect `text`, which does its work; what it was called with."""
    calls: list[Sending] = []

    def send(sending: Sending) -> str:
        calls.append(sending)
        return "ref-1"

    with effects.registry.temporary():
        effects.effect("text", retry=QUICKLY)(send)
        yield calls


def settled(effect: Effect, decision: Decision, **options: Any) -> Effect | None:
    """The effect after it was settled so; None where it could not be."""
    if not settle.run(Selection(effect_rows=[effect.pk]), **{"by": WHO, "decision": decision, **options}).changed:
        return None
    effect.refresh_from_db()
    return effect


@pytest.mark.parametrize("state", ["unknown", "failed"])
def test_done_keeps_what_the_gateway_calls_it_and_who_said_so(calls: list[Sending], state: str) -> None:
    row = an_effect(state, attempts=3, failure_group="f")
    effect = settled(row, Decision.DONE, reference="SM1", note="seen in their log")
    assert effect
    assert (effect.state, effect.reference, effect.failure_group) == ("done", "SM1", "")
    assert (effect.attempts, effect.send_at) == (3, row.send_at)
    assert effect.error == "settled by ann@host: seen in their log"
    assert effect_runner.run_all_due([CONSUMER]) == 0


@pytest.mark.parametrize("state", ["unknown", "failed"])
def test_not_done_is_carried_out_again_with_a_whole_new_retry_policy(calls: list[Sending], state: str) -> None:
    soon = now() + timedelta(hours=1)
    effect = settled(an_effect(state, attempts=3, send_at=soon, sending_until=soon), Decision.NOT_DONE)
    assert effect
    assert (effect.state, effect.attempts, effect.sending_until) == ("intended", 0, None)
    assert InboxMessage.objects.get().state == "effects_due"

    assert effect_runner.run_all_due([CONSUMER]) == 1
    effect.refresh_from_db()
    assert (effect.state, effect.reference) == ("done", "ref-1")
    assert InboxMessage.objects.get().state == "handled"
    assert [call.key for call in calls] == ["m-1:notes:text"]


@pytest.mark.parametrize("state", ["unknown", "intended"])
def test_giving_up_ends_it(calls: list[Sending], state: str) -> None:
    effect = settled(an_effect(state, inbox_state="effects_due"), Decision.GIVE_UP, note="too late")
    assert effect
    assert (effect.state, effect.error) == ("failed", "given up; settled by ann@host: too late")
    assert InboxMessage.objects.get().state == "handled"
    assert effect_runner.run_all_due([CONSUMER]) == 0
    assert calls == []
    assert not effect.failed_attempts.exists(), "there was no answer to keep"


def test_a_failure_that_a_person_gave_up_is_no_trouble_any_more(calls: list[Sending]) -> None:
    effect = settled(an_effect("failed"), Decision.GIVE_UP, note="wrong number")
    assert effect
    assert effect.given_up
    assert not any(Effect.objects.filter(trouble.which).exists() for trouble in EffectTrouble)

    again = settled(effect, Decision.NOT_DONE)
    assert again
    assert not again.given_up
    assert not again.failed_attempts.exists()  # "given up" is no answer of the gateway


@pytest.mark.parametrize("decision", Decision)
def test_what_the_gateway_had_answered_is_still_there(calls: list[Sending], decision: Decision) -> None:
    """Also of an effect that failed before attempts had rows."""
    failed_at = database.in_future(-3600)
    row = an_effect("unknown", attempts=3, error="the gateway answered 500", changed_at=failed_at)
    failed_at = Effect.objects.get().changed_at
    effect = settled(row, decision, note="asked them")
    assert effect
    kept = effect.failed_attempts.get()
    assert (kept.number, kept.outcome, kept.error) == (3, "unknown", "the gateway answered 500")
    assert kept.finished_at == failed_at
    assert "the gateway answered 500" in [entry.detail for entry in timeline.for_message("m-1").entries]


def test_an_answer_that_its_attempt_has_is_not_kept_again(calls: list[Sending]) -> None:
    effect = an_effect("unknown", attempts=3, error="the gateway answered 500")
    facts = {"token": UUID(int=1), "number": 3, "outcome": "unknown", "error": effect.error}
    kept = EffectAttempt.objects.create(effect=effect, **facts)
    assert settled(effect, Decision.GIVE_UP)
    assert EffectAttempt.objects.get() == kept


@pytest.mark.parametrize("state", ["done", "sending", "intended"])
def test_effects_that_are_done_or_being_sent_are_not_settled(calls: list[Sending], state: str) -> None:
    effect = an_effect(state)
    before = Effect.objects.values().get()
    for decision in Decision:
        if (state, decision) != ("intended", Decision.GIVE_UP):
            assert settled(effect, decision) is None
    assert Effect.objects.values().get() == before
    assert not EffectAttempt.objects.exists()


def test_one_effect_is_told_with_its_state_and_several_as_a_number(calls: list[Sending]) -> None:
    one, other = an_effect("unknown"), an_effect("unknown", message_id="m-2")
    result = settle.run(Selection(effect_rows=[one.pk]), by=WHO, decision=Decision.NOT_DONE)
    assert result.text == f"Effect {one.pk} (text of message m-1): intended."
    assert result.facts == {"id": one.pk, "key": "m-1:notes:text", "state": "intended"}

    result = settle.run(Selection(effect_rows=[one.pk, other.pk]), by=WHO, decision=Decision.GIVE_UP)
    assert result.text == "2 effects settled."
    assert OperatorAction.objects.latest("pk").about == f"effect {one.pk}, {other.pk}"


def test_the_other_effects_of_the_message_keep_its_row_open(calls: list[Sending]) -> None:
    effect = an_effect("unknown", inbox_state="effects_due")
    Effect.objects.create(inbox_message=effect.inbox_message, consumer="notes", message_id="m-1", name="call")
    settled(effect, Decision.DONE)
    assert InboxMessage.objects.get().state == "effects_due"


def test_each_step_of_an_effect_and_its_message_has_its_time(calls: list[Sending]) -> None:
    """By it old rows are pruned, and found by `--since`."""
    effect = an_effect("intended", inbox_state="effects_due")
    rows = [Effect.objects.all(), InboxMessage.objects.all()]

    def changed_by(step: Callable[[], object]) -> tuple[Any, ...]:
        """What this step gave a new time: effect, message."""
        for each in rows:
            each.update(changed_at=database.in_future(-7200))
        step()
        return tuple(each.filter(changed_at__gt=database.in_future(-3600)).exists() for each in rows)

    claimed: list[Any] = []
    assert changed_by(lambda: claimed.extend(ledger.claim(Q(), 1))) == (True, False)
    assert changed_by(lambda: ledger.note(effect_runner.carry_out(claimed))) == (True, True)
    Effect.objects.update(state="sending", sending_until=database.in_future(-1))
    InboxMessage.objects.update(state="effects_due")
    assert changed_by(lambda: ledger.claim(Q(), 1)) == (True, True)
    assert changed_by(lambda: settled(effect, Decision.NOT_DONE)) == (True, True)
    assert [each.get().state for each in rows] == ["intended", "effects_due"]


@pytest.mark.parametrize(
    ("error", "outcome", "said"), [(None, "done late", "ref-1"), (Reject("no"), "failed", "Reject: no")]
)
def test_a_late_answer_changes_nothing_that_was_settled(
    calls: list[Sending], error: Exception | None, outcome: str, said: str
) -> None:
    def send(sending: Sending) -> str:
        if error:
            raise error
        return "ref-1"

    effects.registry.clear()
    effects.effect("text", retry=QUICKLY)(send)
    effect = an_effect("intended", inbox_state="effects_due")
    results = effect_runner.carry_out(ledger.claim(Q(), 1))
    Effect.objects.update(state="unknown")
    settled(effect, Decision.GIVE_UP)
    ledger.note(results)
    effect.refresh_from_db()
    assert effect.state == "failed"
    # What became of it after all is recorded.
    late = effect.failed_attempts.get()
    assert (late.outcome, late.error) == (outcome, f"too late to count: {said}")


@pytest.mark.django_db(transaction=True)
def test_two_who_settle_it_at_once_settle_it_once(calls: list[Sending]) -> None:
    effect = an_effect("unknown")
    decisions = [Decision.DONE, Decision.NOT_DONE] * 2
    said = [done is not None for done in at_once(*(partial(settled, effect, decision) for decision in decisions))]
    effect.refresh_from_db()
    # The first alone counts, as each decision leads out of *unknown*.
    assert said.count(True) == 1
    assert effect.state in {"done", "intended"}


def test_it_fails_again_where_it_cannot_be_done(calls: list[Sending]) -> None:
    def busy(sending: Sending) -> str:
        raise NotDone("busy")

    effect = settled(an_effect("failed"), Decision.NOT_DONE)
    assert effect
    effects.registry.clear()
    effects.effect("text", retry=QUICKLY)(busy)
    look_after([CONSUMER])
    effect.refresh_from_db()
    assert (effect.state, effect.attempts) == ("intended", 1)


def test_an_effect_is_found_by_its_id_and_by_its_key() -> None:
    effect = an_effect("unknown", message_id="a:b", name="te-xt")
    for other in ({"message_id": "b"}, {"consumer": "copies"}):
        an_effect("unknown", **{"message_id": "a:b", "name": "te-xt", **other})
    Effect.objects.create(inbox_message=effect.inbox_message, consumer="notes", message_id="a:b", name="call")
    assert find(str(effect.pk)) == find(effect.key) == effect
    for name in ("0", "", "a:b", "a:b:notes:fax", "9" * 5000, "²"):
        assert find(name) is None, name


def test_the_effects_of_other_messages_stay_as_they_are(calls: list[Sending]) -> None:
    effect = an_effect("unknown")
    other = an_effect("unknown", message_id="m-2")
    assert settled(effect, Decision.NOT_DONE)
    other.refresh_from_db()
    assert (other.state, other.inbox_message.state) == ("unknown", "handled")


def test_the_effects_of_one_message_at_one_consumer_are_claimed_and_no_others(calls: list[Sending]) -> None:
    wanted = an_effect("intended")
    an_effect("intended", message_id="m-2")
    an_effect("intended", consumer="copies")
    effect_runner.run_of("notes", ["m-1"], DatabaseWait("notes", threading.Event()))
    assert [each.key for each in calls] == [wanted.key]
