"""Replay: dead messages run again, each with a whole new retry policy, behind the same fence as before.

A row moves from dead to retrying under a condition, and the message goes to its consumer's queue alone, through the
outbox, in one transaction. So of two operators at once one replays, and what was handled is never handled again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from django.db.models import Case, Count, F, Q, QuerySet, Value, When
from django.db.models.functions import Now

from messaging import consumers, outbox
from messaging.actions.action import EVERYTHING, MessageAction, Option, Request, Result
from messaging.actions.replay_run import CANARY_WAIT, MAX_FAILURES, ReplayRun
from messaging.actions.selection import Box, Selection
from messaging.models import Effect, InboxMessage, OutboxMessage

State = InboxMessage.State


class Plan(StrEnum):
    """What a replay does about a message at a consumer: it runs, or why not."""

    RUNS = "runs"
    REPLAYED = "already replayed"
    DONE = "already handled"
    WAITS = "waits already"
    NO_HANDLER = "no handler"
    TRUNCATED = "body truncated"
    DISCARDED = "discarded"


_WORDS = {
    Plan.RUNS: "to run again, each at the consumer where it is dead",
    Plan.REPLAYED: "already replayed, and not begun yet",
    Plan.DONE: "handled: nothing is done",
    Plan.WAITS: "waiting already, for the next attempt or for earlier messages",
    Plan.NO_HANDLER: "without a handler: no consumer of that name handles that type here",
    Plan.TRUNCATED: "with only the beginning of the body kept",
    Plan.DISCARDED: "discarded",
}


class Replay(MessageAction):
    """Lets dead messages run again, the longest known first.

    The first `canary` messages go alone, and have `canary_wait` seconds to be settled. If more than the share
    `max_failures` of those that ended has failed again, no more are replayed: it counts how the first attempt after the
    replay, or an effect of it, ended. Returns once all are on their way through the outbox; only a canary is waited
    for.
    """

    name = "replay"
    label = "Replay"
    past = "replayed"
    permission = "messaging.replay_message"
    help = "let dead messages run again"
    examples = """
examples:
  manage.py messages replay 01985c5e-9d1c-7b3a-8f00-2a1b3c4d5e6f       one message, at every consumer where it is dead
  manage.py messages replay --group 3fa9c1d2e4b5 --dry-run             what would run, what would not, and why
  manage.py messages replay --group 3fa9c1d2e4b5 --canary 5 --rate 20  five first; if they succeed, 20 a second
  manage.py messages replay --consumer sms --since 2h --note "gateway is back"

"""
    options = (
        Option(
            name="canary", help="replay N messages first, and wait until they are settled",
            type=int, metavar="N", default=0,
        ),
        Option(
            name="canary_wait", help=f"seconds to wait for the canary (default {CANARY_WAIT:g})",
            type=float, metavar="SECONDS", default=CANARY_WAIT, low=0.001, high=86_400,
        ),
        Option(
            name="rate", help="replay at most N messages a second (default: no limit)",
            type=float, metavar="N", low=0.001, high=86_400,
        ),
        Option(
            name="max_failures", help=f"stop if more than this share fails again (default {MAX_FAILURES:g})",
            type=float, metavar="SHARE", default=MAX_FAILURES, low=0, high=1,
        ),
    )  # fmt: skip
    meaning = (
        "A dead message runs again at its consumer, with a whole new retry policy. A message that was handled is not "
        "handled again. If two people replay the same message at once, it is replayed once."
    )
    states = {InboxMessage: (State.DEAD,)}
    not_so = "not dead"
    nothing = "no such message is dead"
    needs_bodies = True

    def rows(self, box: Box, selection: Selection, **options: Any) -> QuerySet[Any]:
        handled_here = Q(pk__in=[])
        for consumer in consumers.registered():
            handled_here |= Q(consumer=consumer.name, type__in=[event.event_type for event in consumer.events])
        return super().rows(box, selection).filter(handled_here, body_truncated=False)

    def plan(self, selection: Selection = EVERYTHING, **options: Any) -> Result:
        counts = _counts(selection)
        lines = _by_plan(counts)
        return Result(
            changed=lines[Plan.RUNS],
            lines=[(count, _WORDS[each]) for each, count in lines.items()],
            table=[(each.value, count, consumer, type) for (each, consumer, type), count in counts.items()],
        )

    def do(self, request: Request) -> Result:
        return ReplayRun(self, request, **request.options).go()

    def change(self, rows: Sequence[InboxMessage], words: str, **options: Any) -> None:
        InboxMessage.objects.filter(pk__in=[row.pk for row in rows]).update(
            state=State.RETRYING,
            attempts_before=F("attempt"),
            attempt=F("attempt") + 1,
            starts=0,
            changed_at=Now(),
        )
        for row in rows:
            row.attempt += 1
            queue = consumers.get(row.consumer).queue
            outbox.resend(row, consumer=row.consumer, queue=queue, origin=OutboxMessage.Origin.REPLAY)

    def why_nothing(self, selection: Selection, **options: Any) -> str:
        """Say why no message was replayed: others may have done it since that was planned."""
        if selection.group and Effect.objects.filter(failure_group=selection.group).exists():
            return f"failure group {selection.group} is of effects, which `messages settle` has tried again"
        counts = _by_plan(_counts(selection))
        return ", ".join(f"{count} {each}" for each, count in counts.items() if each is not Plan.RUNS) or self.nothing


replay = Replay()


Counts = dict[tuple[Plan, str, str], int]


def _counts(selection: Selection) -> Counts:
    """Return how many messages there are of each (plan, consumer, type), what runs first, the largest number first."""
    rows = InboxMessage.objects.filter(selection.of(InboxMessage)).annotate(
        replayed=Case(
            When(attempts_before__gt=0, attempt=F("attempts_before") + 1, then=Value(True)), default=Value(False)
        )
    )
    groups = rows.values("state", "consumer", "type", "body_truncated", "replayed").annotate(count=Count("pk"))
    counts: Counter[tuple[Plan, str, str]] = Counter()
    for each in groups.order_by():
        counts[_plan(each), each["consumer"], each["type"]] += each["count"]
    order = list(Plan)
    return dict(sorted(counts.items(), key=lambda item: (order.index(item[0][0]), -item[1], item[0][1:])))


def _by_plan(counts: Counts) -> Counter[Plan]:
    found: Counter[Plan] = Counter()
    for (each, _, _), count in counts.items():
        found[each] += count
    return found


def _plan(group: Mapping[str, Any]) -> Plan:
    match group["state"]:
        case State.HANDLED | State.EFFECTS_DUE:
            return Plan.DONE
        case State.DISCARDED:
            return Plan.DISCARDED
        case State.RETRYING if group["replayed"]:
            return Plan.REPLAYED
        case State.RETRYING | State.WAITING:
            return Plan.WAITS
    if not any(each.name == group["consumer"] and each.wants(group["type"]) for each in consumers.registered()):
        return Plan.NO_HANDLER
    return Plan.TRUNCATED if group["body_truncated"] else Plan.RUNS
