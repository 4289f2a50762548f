"""Replay: dead messages run again, each with a whole new retry policy, behind the same fence as before.

A row moves from dead to retrying under a condition, and the message goes to its consumer's queue alone, through the
outbox, in one transaction. So of two operators at once one replays, and what was handled is never handled again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from django.db.models import Case, Count, F, Q, QuerySet, Value, When
from django.db.models.functions import Now

from messaging import consumers, database, outbox
from messaging.actions import audit
from messaging.actions.pages import SIZE, pages
from messaging.actions.selection import Wanted
from messaging.logs import get_logger
from messaging.models import Effect, InboxMessage, OutboxMessage

log = get_logger(__name__)

State = InboxMessage.State

#: Share of failures above which a replay stops, unless told otherwise.
MAX_FAILURES = 0.2
#: Replayed messages whose fate must be known before the share of failures says anything.
ENOUGH = 10
#: How long a canary may take to be settled.
CANARY_WAIT = timedelta(seconds=60)
#: Seconds between two looks at what has become of replayed messages.
LOOK_EVERY = 0.2
#: Replayed messages that one look asks about, in turn.
LOOK_AT = 500


class Fate(StrEnum):
    """What a replay does about a message at a consumer."""

    RUNS = "runs"
    #: Nothing: a replay before this one has not begun to be handled.
    REPLAYED = "already replayed"
    #: Nothing: its effects are there.
    DONE = "already handled"
    #: Nothing: it waits for its next attempt, or its turn.
    WAITS = "waits already"
    #: Nothing: no consumer of this name is registered that handles this type.
    NO_HANDLER = "no handler"
    #: Nothing: only the beginning of its body was kept.
    TRUNCATED = "body truncated"
    #: Nothing: a person decided so.
    DISCARDED = "discarded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """So many messages of one type at one consumer, and what a replay does about them."""

    fate: Fate
    consumer: str
    type: str
    count: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a replay would do, by fate, consumer and type."""

    planned: tuple[Planned, ...]

    def count(self, fate: Fate) -> int:
        """Return how many messages have this fate."""
        return sum(each.count for each in self.planned if each.fate is fate)

    @property
    def found(self) -> int:
        """How many messages were asked for, whatever their fate."""
        return sum(each.count for each in self.planned)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How carefully to replay many messages.

    The first `canary` messages go alone, and have `canary_wait` to be settled. `rate` is how many go in a second.
    Where more than the share `max_failures` of those whose fate is known has failed again, no more are replayed: it
    counts how the first attempt after the replay, or an effect of it, ended.
    """

    canary: int = 0
    canary_wait: timedelta = CANARY_WAIT
    rate: float | None = None
    max_failures: float = MAX_FAILURES

    def __post_init__(self) -> None:
        if self.canary < 0 or (self.rate is not None and self.rate <= 0) or not 0 <= self.max_failures <= 1:
            raise ValueError("canary is at least 0, rate above 0, and max_failures a share from 0 to 1")


@dataclass(slots=True, kw_only=True)
class Replayed:
    """What a replay did, and what has become of its messages so far."""

    replayed: int = 0
    #: Somebody else replayed, or discarded, them in the meantime.
    missed: int = 0
    succeeded: int = 0
    failed: int = 0
    #: Why it ended before its time, or in too many failures; empty where it is through and nothing speaks against it.
    stopped: str = ""
    #: Whether that was because the canary was not settled in time.
    timed_out: bool = False
    #: Messages that were to be replayed and were not.
    left: int = 0

    @property
    def ending(self) -> str:
        """What to tell a person of a replay that stopped: why, and what is left. Empty where it did not."""
        if not self.stopped:
            return ""
        why = self.stopped if self.stopped.endswith("?") else f"{self.stopped}."
        if self.left:
            return f"Stopped: {why} {self.left} were not replayed."
        open_ones = self.replayed - self.succeeded - self.failed
        not_known = f"; of {open_ones} the result is not known yet" if open_ones else ""
        return f"Too many failures: {why} All were replayed{not_known}."


def plan(wanted: Wanted) -> Plan:
    """Say what a replay of these messages would do. Writes nothing."""
    rows = InboxMessage.objects.filter(wanted.of_inbox).annotate(
        replayed=Case(
            When(attempts_before__gt=0, attempt=F("attempts_before") + 1, then=Value(True)), default=Value(False)
        )
    )
    groups = rows.values("state", "consumer", "type", "body_truncated", "replayed").annotate(count=Count("pk"))
    counts: Counter[tuple[Fate, str, str]] = Counter()
    for each in groups.order_by():
        handled_here = any(
            consumer.name == each["consumer"] and consumer.wants(each["type"]) for consumer in consumers.registered()
        )
        fate = _fate(each["state"], each["replayed"], handled_here, each["body_truncated"])
        counts[fate, each["consumer"], each["type"]] += each["count"]
    order = list(Fate)
    return Plan(
        tuple(
            Planned(fate=fate, consumer=consumer, type=type, count=count)
            for (fate, consumer, type), count in sorted(
                counts.items(), key=lambda item: (order.index(item[0][0]), -item[1], item[0][1:])
            )
        )
    )


def replay(
    wanted: Wanted,
    *,
    by: str,
    note: str = "",
    pace: Pace | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Replayed:
    """Let the dead ones of these messages run again, the longest known first, and return what came of it.

    `by` is who does it, `note` why, for the audit log. Returns once all are on their way through the outbox, without
    waiting for their handling; a canary alone is waited for. May be stopped and repeated at any time: each message
    is replayed, or not, on its own.
    """
    run = _Run(wanted, by, note, pace or Pace(), should_stop)
    run.go()
    result = run.result
    say = log.warning if result.stopped else log.info
    say("messages.replayed", replayed=result.replayed, missed=result.missed, stopped=result.stopped, left=result.left)
    return result


def why_nothing(wanted: Wanted) -> str:
    """Say, in words, why a replay of these messages that has just ended replayed none: what others have done may
    have changed since it was planned."""
    if wanted.group and Effect.objects.filter(failure_group=wanted.group).exists():
        return f"failure group {wanted.group} is of effects, which `messages settle` has tried again"
    now = plan(wanted)
    told = [f"{now.count(fate)} {fate}" for fate in Fate if fate is not Fate.RUNS and now.count(fate)]
    return ", ".join(told) or "no message like that was dead"


def _fate(state: str, replayed: bool, handled_here: bool, truncated: bool) -> Fate:
    match state:
        case State.HANDLED | State.EFFECTS_DUE:
            return Fate.DONE
        case State.DISCARDED:
            return Fate.DISCARDED
        case State.RETRYING if replayed:
            return Fate.REPLAYED
        case State.RETRYING | State.WAITING:
            return Fate.WAITS
    if not handled_here:
        return Fate.NO_HANDLER
    return Fate.TRUNCATED if truncated else Fate.RUNS


def _runnable(wanted: Wanted) -> QuerySet[InboxMessage]:
    handled_here = Q(pk__in=[])
    for consumer in consumers.registered():
        handled_here |= Q(consumer=consumer.name, type__in=[event.event_type for event in consumer.events])
    return InboxMessage.objects.filter(wanted.of_inbox, handled_here, state=State.DEAD, body_truncated=False)


@dataclass(slots=True)
class _Run:
    """One replay under way."""

    wanted: Wanted
    by: str
    note: str
    pace: Pace
    should_stop: Callable[[], bool]
    result: Replayed = field(default_factory=Replayed)
    #: Attempt that each replayed row expects, of those whose fate is not known yet.
    _open: dict[int, int] = field(default_factory=dict)
    #: When the rate lets the next ones go, by the monotonic clock.
    _due: float = 0.0

    def go(self) -> None:
        # Once, at the start: what dies again meanwhile is not replayed again.
        rows = list(_runnable(self.wanted).order_by("pk").values_list("pk", flat=True))
        if not rows:
            self._nothing_to_do()
            return
        canary, rest = rows[: self.pace.canary], rows[self.pace.canary :]
        for page in self._pages(canary, rest):
            self._send(page)
        self._look()
        if not self.result.stopped and self.result.replayed:
            # The last of them went before the first had failed: it is no success for all that.
            self._too_many_failures(enough=min(ENOUGH, self.result.replayed))
        self.result.left = len(rows) - self.result.replayed - self.result.missed

    def _nothing_to_do(self) -> None:
        """Somebody who asked for what others have done is told so; that is audited like the rest."""
        with database.atomic():
            audit.record(audit.Action.REPLAY, actor=self.by, about=str(self.wanted), note=self.note)

    def _pages(self, canary: Sequence[int], rest: Sequence[int]) -> Iterator[Sequence[int]]:
        """Yield what is to be sent next, for as long as all goes well."""
        yield from pages(canary)
        if canary and rest and not self._canary_is_well():
            return
        for page in pages(rest, self._page_size()):
            if not self._may_go_on():
                return
            yield page

    def _page_size(self) -> int:
        return min(SIZE, max(1, int(self.pace.rate))) if self.pace.rate else SIZE

    def _send(self, page: Sequence[int]) -> None:
        with database.one_of_many():
            dead = InboxMessage.objects.filter(pk__in=page, state=State.DEAD).order_by("pk")
            rows = list(dead.select_for_update())
            # Before what follows from it: so a story tells it.
            audit.record(
                audit.Action.REPLAY,
                actor=self.by,
                about=str(self.wanted),
                message_ids=[row.message_id for row in rows],
                changed=len(rows),
                note=self.note,
            )
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
        self._open.update({row.pk: row.attempt for row in rows})
        self.result.replayed += len(rows)
        self.result.missed += len(page) - len(rows)
        if self.pace.rate:
            # From now on, not from the start: what a slow database held up is not made up for in a burst.
            self._due = time.monotonic() + len(rows) / self.pace.rate

    def _canary_is_well(self) -> bool:
        deadline = time.monotonic() + self.pace.canary_wait.total_seconds()
        while self._open and time.monotonic() < deadline:
            if self.should_stop():
                break
            time.sleep(LOOK_EVERY)
            self._look()
        if self._too_many_failures(enough=1) or self._told_to_stop():
            return False
        if self._open:
            self.result.timed_out = True
            waited_for = InboxMessage.objects.filter(pk__in=self._open).values_list("consumer", flat=True)
            names = " ".join(waited_for.order_by("consumer").distinct())
            self.result.stopped = (
                f"{len(self._open)} of the first {self.pace.canary} had not been handled after "
                f"{self.pace.canary_wait.total_seconds():g} s; is `manage.py run_consumer {names}` running?"
            )
        return not self._open

    def _may_go_on(self) -> bool:
        """Rest as the rate wants, and look at how the others fare."""
        while True:
            self._look()
            if self._too_many_failures(enough=ENOUGH) or self._told_to_stop():
                return False
            left = self._due - time.monotonic()
            if left <= 0:
                return True
            time.sleep(min(left, LOOK_EVERY))

    def _told_to_stop(self) -> bool:
        if self.should_stop():
            self.result.stopped = "told to stop"
            return True
        return False

    def _too_many_failures(self, *, enough: int) -> bool:
        known = self.result.succeeded + self.result.failed
        share = self.result.failed / known if known else 0.0
        if known < enough or share <= self.pace.max_failures:
            return False
        self.result.stopped = (
            f"{self.result.failed} of {known} failed again: {share:.0%}, over the limit of {self.pace.max_failures:.0%}"
        )
        return True

    def _look(self) -> None:
        """See what has become of messages whose fate was open."""
        ids = list(self._open)[:LOOK_AT]
        for pk in ids:  # those come last next time
            self._open[pk] = self._open.pop(pk)
        troubled = set(
            Effect.objects.filter(
                Q(state__in=[Effect.State.FAILED, Effect.State.UNKNOWN]) | ~Q(error=""), inbox_message__in=ids
            )
            .exclude(state=Effect.State.DONE)
            .values_list("inbox_message_id", flat=True)
        )
        for pk, state, attempt in InboxMessage.objects.filter(pk__in=ids).values_list("pk", "state", "attempt"):
            failed = state in {State.DEAD, State.DISCARDED} or attempt > self._open[pk] or pk in troubled
            if failed or state == State.HANDLED:
                del self._open[pk]
                self.result.failed += failed
                self.result.succeeded += not failed
