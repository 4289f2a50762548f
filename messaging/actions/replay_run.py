"""A replay under way: a canary first, no more in a second than asked for, and an end where too many fail again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from django.db.models import Q

from messaging.actions import action
from messaging.actions.action import MessageAction, Request, Result, pages
from messaging.logs import get_logger
from messaging.models import Effect, InboxMessage

log = get_logger(__name__)

State = InboxMessage.State

#: Share of failures above which a replay stops, by default.
MAX_FAILURES = 0.2
#: Replayed messages that must have ended before the share of failures says anything.
ENOUGH = 10
#: Seconds that a canary may take to be settled, by default.
CANARY_WAIT = 60.0
#: Seconds between two looks at how replayed messages have ended.
LOOK_EVERY = 0.2
#: Replayed messages that one look asks about, in turn.
LOOK_AT = 500


@dataclass(slots=True)
class ReplayRun:
    """One replay under way. `canary`, `canary_wait`, `rate` and `max_failures` are the options of `Replay`."""

    replay: MessageAction
    request: Request
    canary: int
    canary_wait: float
    rate: float | None
    max_failures: float

    #: Messages to replay.
    total: int = 0
    replayed: int = 0
    #: Another operator replayed or discarded them in the meantime.
    missed: int = 0
    succeeded: int = 0
    failed: int = 0
    #: Messages that were to be replayed and were not.
    left: int = 0
    #: Why it ended early, or in too many failures; empty if all is well.
    stopped: str = ""
    #: The canary was not settled in time.
    timed_out: bool = False
    #: Attempt that each replayed row expects, of those that have not ended.
    _open: dict[int, int] = field(default_factory=dict)
    #: When the rate lets the next ones go, by the monotonic clock.
    _due: float = 0.0

    def go(self) -> Result:
        """Replay, page by page; return what came of it so far."""
        # Once, at the start: what dies again meanwhile is not replayed again.
        rows = list(self.replay.rows(InboxMessage, self.request.selection).order_by("pk").values_list("pk", flat=True))
        self.total = len(rows)
        for page in self._pages(rows[: self.canary], rows[self.canary :]):
            self._send(page)
        if not self.replayed:
            self.replay.record_nothing(self.request)
        self._look()
        if not self.stopped:
            # The last of them went before the first had failed: it is no success for all that.
            self._too_many_failures(enough=min(ENOUGH, self.replayed))
        self.left = self.total - self.replayed - self.missed
        return self._result()

    def _result(self) -> Result:
        named = len(self.request.selection.inbox_rows)
        rest = named - self.replayed - self.left if named else self.missed
        told = f"{self.replayed} replayed. So far {self.succeeded} handled, {self.failed} failed again."
        names = ("replayed", "missed", "succeeded", "failed", "stopped", "timed_out", "left")
        facts = {name: getattr(self, name) for name in names}
        say = log.warning if self.stopped else log.info
        say("messages.replayed", **facts)
        return Result(
            changed=self.replayed,
            text=f"{told} {rest} left alone." if rest else told if self.replayed else "",
            facts=facts,
            is_partial=rest > 0 or self.failed > 0 or not self.replayed,
            stopped=self._ending(),
            timed_out=self.timed_out,
        )

    def _ending(self) -> str:
        """Return what to tell a person of a replay that stopped: why, and what is left. Empty where it did not."""
        if not self.stopped:
            return ""
        why = self.stopped if self.stopped.endswith("?") else f"{self.stopped}."
        if self.left:
            return f"Stopped: {why} {self.left} were not replayed."
        open_ones = self.replayed - self.succeeded - self.failed
        not_known = f"; of {open_ones} the result is not known yet" if open_ones else ""
        return f"Too many failures: {why} All were replayed{not_known}."

    def _pages(self, canary: Sequence[int], rest: Sequence[int]) -> Iterator[Sequence[int]]:
        """Yield what is to be sent next, for as long as all goes well."""
        yield from pages(canary)
        if canary and rest and not self._canary_is_well():
            return
        size = min(action.SIZE, max(1, int(self.rate))) if self.rate else action.SIZE
        for page in pages(rest, size):
            if not self._may_go_on():
                return
            yield page

    def _send(self, page: Sequence[int]) -> None:
        rows = self.replay.change_page(InboxMessage, page, self.request)
        self._open.update({row.pk: row.attempt for row in rows})
        self.replayed += len(rows)
        self.missed += len(page) - len(rows)
        if self.rate:
            # From now on, not from the start: the time that a slow database took is not made up for in a burst.
            self._due = time.monotonic() + len(rows) / self.rate

    def _canary_is_well(self) -> bool:
        deadline = time.monotonic() + self.canary_wait
        while self._open and time.monotonic() < deadline and not self.request.should_stop():
            time.sleep(LOOK_EVERY)
            self._look()
        if self._must_stop(enough=1):
            return False
        if self._open:
            self.timed_out = True
            waited_for = InboxMessage.objects.filter(pk__in=self._open).values_list("consumer", flat=True)
            names = " ".join(waited_for.order_by("consumer").distinct())
            self.stopped = (
                f"{len(self._open)} of the first {self.canary} had not been handled after {self.canary_wait:g} s; "
                f"is `manage.py run_consumer {names}` running?"
            )
        return not self._open

    def _may_go_on(self) -> bool:
        """Wait as the rate asks for, and look at how the others have ended."""
        while True:
            self._look()
            if self._must_stop(enough=ENOUGH):
                return False
            left = self._due - time.monotonic()
            if left <= 0:
                return True
            time.sleep(min(left, LOOK_EVERY))

    def _must_stop(self, *, enough: int) -> bool:
        if not self._too_many_failures(enough=enough) and self.request.should_stop():
            self.stopped = "told to stop"
        return bool(self.stopped)

    def _too_many_failures(self, *, enough: int) -> bool:
        ended = self.succeeded + self.failed
        share = self.failed / ended if ended else 0.0
        if ended >= enough and share > self.max_failures:
            self.stopped = (
                f"{self.failed} of {ended} failed again: {share:.0%}, over the limit of {self.max_failures:.0%}"
            )
        return bool(self.stopped)

    def _look(self) -> None:
        """See how messages that were open have ended."""
        ids = list(self._open)[:LOOK_AT]
        for pk in ids:  # those come last next time
            self._open[pk] = self._open.pop(pk)
        in_trouble = Q(state__in=[Effect.State.FAILED, Effect.State.UNKNOWN]) | ~Q(error="")
        effects = Effect.objects.filter(in_trouble, inbox_message__in=ids).exclude(state=Effect.State.DONE)
        troubled = set(effects.values_list("inbox_message_id", flat=True))
        for pk, state, attempt in InboxMessage.objects.filter(pk__in=ids).values_list("pk", "state", "attempt"):
            failed = state in {State.DEAD, State.DISCARDED} or attempt > self._open[pk] or pk in troubled
            if failed or state == State.HANDLED:
                del self._open[pk]
                self.failed += failed
                self.succeeded += not failed
        self.request.progress(
            f"{self.replayed} of {self.total} replayed: {self.succeeded} handled, {self.failed} failed again"
        )
