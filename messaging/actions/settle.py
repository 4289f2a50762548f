"""Settle: a person records the outcome of an effect whose result is unknown, has a failed one tried again, or gives one
up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

from django.db.models import QuerySet

from messaging.actions.action import MessageAction, Option, Request, Result
from messaging.actions.selection import Box, Selection
from messaging.models import Effect
from messaging.validation import texts
from messaging.validation.texts import storable_text
from messaging.worker import ledger
from messaging.worker.ledger import AttemptResult

State = Effect.State


class Decision(StrEnum):
    """What a person says about an effect."""

    DONE = "done"
    NOT_DONE = "not done"
    GIVE_UP = "give up"


#: Which states each decision is for. While an effect is *sending*, a process is carrying it out, and will know.
SETTLES: dict[Decision, tuple[Effect.State, ...]] = {
    Decision.DONE: (State.UNKNOWN, State.FAILED),
    Decision.NOT_DONE: (State.UNKNOWN, State.FAILED),
    Decision.GIVE_UP: (State.UNKNOWN, State.INTENDED, State.FAILED),
}


class Settle(MessageAction):
    """Settles effects: as `decision` says, of those in a state that it is for."""

    name = "settle"
    label = "Settle"
    past = "settled"
    permission = "messaging.settle_effect"
    help = "record the outcome of an effect whose result is unknown"
    examples = """
An effect is unknown if its answer was lost, and the gateway can neither be asked nor recognises repetitions. Look into
the gateway's log, then record what you found.

examples:
  manage.py messages list --state unknown --state failed               list them; the last column is the id
  manage.py messages settle 17 --done --reference SM123                it was sent; the gateway's reference is SM123
  manage.py messages settle 17 --not-done --note "not in their log"    it was not sent: send it again
  manage.py messages settle 17 --give-up                               it is not tried again
  manage.py messages settle --group 3fa9c1d2e4b5 --not-done            all that failed for this reason

"""
    options = (
        Option(
            name="decision",
            help="What is its outcome?",
            choices={
                Decision.DONE: "It was done.",
                Decision.NOT_DONE: "It was certainly not done: carry it out again.",
                Decision.GIVE_UP: "Give up: it is not tried again, and no longer counts as a failure.",
            },
        ),
        Option(name="reference", help="The gateway's reference, if it was done", default=""),
    )
    meaning = "Record the outcome of effects whose result is unknown, have failed ones tried again, or give them up."
    states = {Effect: (State.UNKNOWN, State.FAILED, State.INTENDED)}
    not_so = "in another state meanwhile"
    nothing = "no such effect can be settled in this way"

    def check(self, selection: Selection, **options: Any) -> None:
        super().check(selection, **options)
        reference = options.get("reference", "")
        texts.checked("reference", reference)
        if reference and options["decision"] != Decision.DONE:
            raise ValueError("a reference goes with --done")

    def options_for(self, row: Effect) -> Sequence[Option]:
        """Return what can be said about an effect in its state."""
        decision, reference = self.options
        choices = {each: words for each, words in decision.choices.items() if row.state in SETTLES[Decision(each)]}
        return [replace(decision, choices=choices), *([reference] if Decision.DONE in choices else [])]

    def rows(self, box: Box, selection: Selection, **options: Any) -> QuerySet[Any]:
        found = super().rows(box, selection, **options)
        decision = options.get("decision")
        return found.filter(state__in=SETTLES[Decision(decision)]) if decision else found

    def lock(self, rows: QuerySet[Any]) -> list[Effect]:
        """Lock the effects; first their messages, as a worker does that writes down a result."""
        ledger.lock_messages(rows)
        return super().lock(rows)

    def change(self, rows: Sequence[Effect], words: str, **options: Any) -> None:
        decision = Decision(options["decision"])
        ledger.settle(rows, _result(decision, options["reference"], words))

    def about(self, selection: Selection) -> str:
        """Return the key of a single effect."""
        effect = _only(selection)
        return f"effect {effect.key}" if effect else str(selection)

    def do(self, request: Request) -> Result:
        """Settle; of a single effect, say in which state it is."""
        result = super().do(request)
        if result.changed and (effect := _only(request.selection)):
            result.text = f"Effect {effect.pk} ({effect.name} of message {effect.message_id}): {_told(effect)}."
            result.facts = {"id": effect.pk, "key": effect.key, "state": effect.state}
        return result

    def why_nothing(self, selection: Selection, **options: Any) -> str:
        effect = _only(selection)
        if effect is None:
            return self.nothing
        possible = [decision for decision, states in SETTLES.items() if effect.state in states]
        only = f", only as {' or '.join(possible)}" if possible else ""
        return f"effect {effect.pk} is {_told(effect)}, and cannot be settled as {options['decision']}{only}"


settle = Settle()


def find(name: str) -> Effect | None:
    """Return the effect of that id or key (message id:consumer:name), if there is one."""
    name = storable_text(name)
    if name.isdecimal() and len(name) < 19:
        return Effect.objects.filter(pk=int(name)).first()
    rest, _, effect = name.rpartition(":")
    message_id, _, consumer = rest.rpartition(":")
    return Effect.objects.filter(message_id=message_id, consumer=consumer, name=effect).first()


def _only(selection: Selection) -> Effect | None:
    return Effect.objects.filter(pk__in=selection.effect_rows).first() if len(selection.effect_rows) == 1 else None


def _told(effect: Effect) -> str:
    return f"{effect.state}, {effect.reference}" if effect.reference else effect.state


def _result(decision: Decision, reference: str, words: str) -> AttemptResult:
    match decision:
        case Decision.DONE:
            return AttemptResult(state=State.DONE, reference=reference, error=words)
        case Decision.NOT_DONE:
            return AttemptResult(state=State.INTENDED)
        case Decision.GIVE_UP:
            return AttemptResult(state=State.FAILED, error=f"given up; {words}")
