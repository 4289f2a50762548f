"""Leases: which relay holds which outbox row, and what that relay may write about it.

A lease is a token and a time by the database's clock. A relay's mark counts only while the row has that token: a relay
that was frozen past its lease changes nothing about rows that another relay has claimed.
"""

from __future__ import annotations

import random
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from django.db.models import F, QuerySet

from messaging import database
from messaging.broker.publisher import Outcome, Status
from messaging.exceptions import AccessRefused, NotFound
from messaging.logs import get_logger
from messaging.models import OutboxMessage
from messaging.models.failures import leave_dead
from messaging.relay import statements
from messaging.relay.statements import AnyRow, Row
from messaging.validation.texts import storable_text

log = get_logger(__name__)

#: Longest rest, in seconds, between two attempts to publish a row.
LONGEST_REST = 60
#: Attempts that may follow each other at once: after a lost connection, and after a missing confirm. A restart or a
#: freeze of the broker is over by then.
LOSSES_AT_ONCE = 3
MISSES_AT_ONCE = 1
#: A row's time of its confirm has steps of a millisecond, and is at most LONGEST_BACK seconds before its mark.
#: Reconciling goes through the rows in the order of these times.
LONGEST_BACK = 1.0
#: Rows whose leases one statement ends.
GIVEN_BACK_AT_ONCE = 1000
#: Rows, and bytes of their bodies, that may be handed over in memory. What does not fit waits in the table.
HAND_OVER_LIMIT = 10_000
HAND_OVER_BYTES = 32 * 1024 * 1024
#: Bytes of bodies that one claim takes. The row that exceeds it is included.
CLAIM_BYTES = 16 * 1024 * 1024

State = OutboxMessage.State


@dataclass(frozen=True, slots=True)
class Held:
    """A row whose lease this relay holds, and until when (monotonic) the relay may still begin to publish it."""

    row: AnyRow
    publish_before: float


@dataclass(frozen=True, slots=True)
class Mark:
    """The outcome of a row's publish, and when it came (monotonic). `expected` names the consumers that must receive
    the message."""

    row: AnyRow
    outcome: Outcome
    expected: tuple[str, ...]
    at: float = field(default_factory=time.monotonic)


class HandedOver:
    """Rows that this process wrote with leases for its own relay. The caller holds the relay's lock."""

    def __init__(self) -> None:
        self._rows: deque[Held] = deque()
        self._bytes = 0
        #: Whether the relay takes rows: not while it cannot connect, nor once it has ended.
        self.open = True

    def __len__(self) -> int:
        return len(self._rows)

    def room(self) -> tuple[int, int]:
        """Return how many more rows, and bytes of their bodies, fit."""
        return (HAND_OVER_LIMIT - len(self._rows), HAND_OVER_BYTES - self._bytes) if self.open else (0, 0)

    def add(self, held: Sequence[Held]) -> int:
        """Take the first rows, as many as fit; return how many."""
        fitting = how_many_fit([each.row for each in held], *self.room())
        self._rows.extend(held[:fitting])
        self._bytes += sum(len(each.row.body) for each in held[:fitting])
        return fitting

    def take(self, limit: int) -> list[Held]:
        """Remove up to `limit` rows, oldest first, and return them."""
        taken = [self._rows.popleft() for _ in range(min(limit, len(self._rows)))]
        self._bytes -= sum(len(each.row.body) for each in taken)
        return taken

    def rows(self) -> list[AnyRow]:
        """Return all rows."""
        return [each.row for each in self._rows]


def how_many_fit(rows: Sequence[AnyRow], room: int, room_bytes: int) -> int:
    """Return how many rows, from the first on, fit into so much room."""
    for count, row in enumerate(rows):
        room_bytes -= len(row.body)
        if count >= room or room_bytes < 0:
            return count
    return len(rows)


def claim(limit: int, seconds: float) -> list[Row]:
    """Lease up to `limit` rows that are due and free, oldest first, for `seconds`, and return them.

    Returns fewer if their bodies exceed CLAIM_BYTES. Two relays never get the same row: PostgreSQL skips rows that
    another relay has locked; SQLite has one writer at a time.
    """
    with database.one_statement():
        return statements.lease(limit, CLAIM_BYTES, uuid.uuid4(), seconds)


def is_full(rows: Sequence[AnyRow], limit: int) -> bool:
    """Whether a claim of `limit` that returned these rows has probably left others."""
    return len(rows) >= limit or sum(len(row.body) for row in rows) >= CLAIM_BYTES


def write(marks: Sequence[Mark]) -> None:
    """Write the outcomes of publishes, in one transaction."""
    groups: dict[tuple[uuid.UUID | None, tuple[str, ...]], list[Mark]] = {}
    failures: list[Mark] = []
    for mark in marks:
        if mark.outcome.status is Status.CONFIRMED:
            groups.setdefault((mark.row.lease_token, mark.expected), []).append(mark)
        else:
            failures.append(mark)
    with database.one_statement() if len(groups) == 1 and not failures else database.atomic():
        for (token, expected), alike in groups.items():
            _write_published(alike, token, expected)
        for mark in failures:
            _write_failure(mark)


def give_back(rows: Sequence[AnyRow], rest: float = 0.0, why: str = "") -> bool:
    """End the leases of rows that were not tried, so that any relay takes them: at once, or after `rest` seconds.

    Rows that rest say `why`. Raises nothing; returns False if the database fails: the leases run out.
    """
    if rows:
        try:
            end(rows, rest, why)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".strip()
            log.warning("relay.leases_not_given_back", reason=reason, rows=len(rows))
            return False
    return True


def end(rows: Sequence[AnyRow], rest: float, why: str) -> None:
    """End the leases of `rows`, as `give_back` does, but raise the database's errors."""
    changes = {"publish_at": database.in_future(rest), "last_error": why} if rest else {}
    with database.atomic():
        for token in {row.lease_token for row in rows}:
            ids = [row.pk for row in rows if row.lease_token == token]
            for start in range(0, len(ids), GIVEN_BACK_AT_ONCE):
                _held(ids[start : start + GIVEN_BACK_AT_ONCE], token).update(
                    lease_token=None, lease_until=None, **changes
                )


def _write_published(marks: Sequence[Mark], token: uuid.UUID | None, expected: Sequence[str]) -> None:
    """Mark rows published that share a lease and the same consumers."""
    now = time.monotonic()
    # Rounded towards now, so that no row is published before it was due.
    ids = [(mark.row.pk, int(min(now - mark.at, LONGEST_BACK) * 1000)) for mark in marks]
    statements.mark_published(ids, token, expected)


def _write_failure(mark: Mark) -> None:
    """Write why a row was not published, and when it is tried again, if at all."""
    state, rest = _next_try(mark)
    written = _held([mark.row.pk], mark.row.lease_token).update(
        state=state,
        publish_at=database.in_future(rest),
        publish_attempts=F("publish_attempts") + 1,
        expected_consumers=list(mark.expected),
        last_error=storable_text(mark.outcome.reason),
        lease_token=None,
        lease_until=None,
    )
    if written and state == State.FAILED and mark.row.consumer:
        # This row alone was to bring the message to its consumer again.
        reason = f"its attempt {mark.row.attempt} cannot be sent: {mark.outcome.reason}"
        if leave_dead(OutboxMessage.objects.get(pk=mark.row.pk), reason, kind="cannot be sent"):
            log.error(
                "message.dead", message_id=mark.row.message_id, consumer=mark.row.consumer, reason=storable_text(reason)
            )


def _next_try(mark: Mark) -> tuple[OutboxMessage.State, float]:
    """Return the state of a row that was not published, and the seconds until its next try."""
    rest = _rest(mark.row.publish_attempts)
    match mark.outcome.status:
        case Status.RETURNED:
            return State.UNROUTABLE, rest
        case Status.REFUSED if isinstance(mark.outcome.refusal, NotFound | AccessRefused):
            # An exchange or a permission is missing. That is no fault of the row, which goes through once it is there.
            return State.UNROUTABLE, rest
        case Status.REFUSED | Status.UNSENDABLE:
            return State.FAILED, 0
        case Status.NACKED:
            return State.PENDING, rest
        case _:
            return State.PENDING, _rest_unanswered(mark)


def _rest(times: int) -> float:
    return min(2.0 ** min(times, 10), LONGEST_REST)


def _rest_unanswered(mark: Mark) -> float:
    """Return how long a row rests that the broker did not answer for: at first not at all, as the cause is probably not
    the row."""
    more = mark.row.publish_attempts - (MISSES_AT_ONCE if mark.outcome.late else LOSSES_AT_ONCE)
    if more < 0:
        return 0
    rest = _rest(more)
    if mark.outcome.late:
        # All such rows come due together, at the next full multiple of the rest: if their destination still confirms
        # nothing, that is found out by one of them.
        return rest - time.time() % rest
    # RabbitMQ may close each connection over this row. It is alone once rows that were sent together rest differently.
    return rest * random.uniform(0.5, 1.0)  # noqa: S311  (spreading, not secrecy)


def _held(ids: Sequence[int], token: uuid.UUID | None) -> QuerySet[OutboxMessage]:
    return OutboxMessage.objects.filter(pk__in=ids, lease_token=token)
