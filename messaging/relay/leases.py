"""Leases: which relay holds which outbox row, and what it may write about it.

A lease is a token and a time by the database's clock. A mark counts only while the token is still the marker's own:
a relay that was frozen past its lease, and whose rows another one has claimed, changes nothing.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db.models import Case, F, Lookup, Q, QuerySet, When
from django.db.models.expressions import Combinable
from django.db.models.functions import Now

from messaging import database
from messaging.broker.publisher import Outcome, Status
from messaging.exceptions import AccessRefused, NotFound
from messaging.logs import get_logger
from messaging.models import OutboxMessage
from messaging.relay.silence import PAUSE
from messaging.validation.texts import storable_text
from messaging.worker import inbox

log = get_logger(__name__)

#: Longest rest, in seconds, between two tries of a row that could not be routed or stored, or got no word.
LONGEST_REST = 60
#: Tries, of whatever end, after which a row is not tried again at once any more: when its connection is lost, and when
#: its confirm does not come in time. A restart or a freeze of the broker is over by then.
LOSSES_AT_ONCE = 3
SILENCES_AT_ONCE = 1

#: What is written of a row that rests untried.
LEFT_ALONE = f"not tried: where it goes, others get no confirm; one of them is tried every {PAUSE:g} s"

#: Seconds to which the moment of a confirm is kept, and for which at most it is put before the time of its mark:
#: reconciling goes through the rows in the order of these moments.
MOMENT = 0.001
LONGEST_BACK = 1.0

#: Rows whose leases one statement ends.
GIVEN_BACK_AT_ONCE = 1000
#: Bytes of bodies that one claim takes, but for its last row.
CLAIM_BYTES = 16 * 1024 * 1024

State = OutboxMessage.State


class _Waits(Lookup):
    """The row waits for the broker, in the very words of the index of such rows: SQLite does not see that parameters
    mean the same. Without `unlikely` it would take an index that has only the state in common, and read and sort all
    that wait for each batch.

    A lookup, and no function: Django writes a function's answer as "… = True", which no index knows.
    """

    prepare_rhs = False

    def as_sql(self, compiler: Any, connection: Any) -> Any:
        state, parameters = self.process_lhs(compiler, connection)
        return f"{state} IN ('pending', 'unroutable')", parameters

    def as_sqlite(self, compiler: Any, connection: Any) -> Any:
        condition, parameters = self.as_sql(compiler, connection)
        return f"unlikely({condition})", parameters


@dataclass(frozen=True, slots=True)
class Mark:
    """What a row's publish came to, and when (monotonic). `expected` are the names of the consumers that must receive
    it."""

    row: OutboxMessage
    outcome: Outcome
    expected: tuple[str, ...]
    at: float = field(default_factory=time.monotonic)


def claim(limit: int, seconds: float) -> list[OutboxMessage]:
    """Lease up to `limit` rows that are due and free, oldest first, for `seconds`, and return them.

    Fewer where their bodies together exceed CLAIM_BYTES: whoever claims holds them all in memory.
    Two relays never get the same row: PostgreSQL skips rows that another one has locked, on SQLite the transaction
    is the only writer. No lock outlives this call.
    """
    token = uuid.uuid4()
    with database.atomic():
        due = OutboxMessage.objects.filter(
            Q(lease_until=None) | Q(lease_until__lte=Now()), _Waits(F("state"), True), publish_at__lte=Now()
        ).order_by("publish_at", "id")
        rows: list[OutboxMessage] = []
        size = 0
        for row in due.select_for_update(skip_locked=True)[:limit].iterator(100):
            rows.append(row)
            size += len(row.body)
            if size >= CLAIM_BYTES:
                break
        if rows:
            OutboxMessage.objects.filter(pk__in=[row.pk for row in rows]).update(
                lease_token=token, lease_until=database.in_future(seconds)
            )
    for row in rows:
        row.lease_token = token
    return rows


def is_full(rows: Sequence[OutboxMessage], limit: int) -> bool:
    """Whether a claim of `limit` that returned these rows has probably left others."""
    return len(rows) >= limit or sum(len(row.body) for row in rows) >= CLAIM_BYTES


def write(marks: Sequence[Mark]) -> None:
    """Write what became of rows, in one transaction."""
    with database.atomic():
        _write_published([mark for mark in marks if mark.outcome.status is Status.CONFIRMED])
        for mark in marks:
            if mark.outcome.status is not Status.CONFIRMED:
                _write_setback(mark)


def give_back(rows: Sequence[OutboxMessage], rest: float = 0.0) -> None:
    """End the leases of rows that were not tried, so that any relay takes them.

    At once, or after so many seconds of `rest`, which a silent destination has; the rows then say so.
    """
    changes: dict[str, Any] = {}
    if rest:
        changes = {"publish_at": database.in_future(rest), "last_error": LEFT_ALONE}
    with database.atomic():
        for token in {row.lease_token for row in rows}:
            ids = [row.pk for row in rows if row.lease_token == token]
            for start in range(0, len(ids), GIVEN_BACK_AT_ONCE):
                _held(ids[start : start + GIVEN_BACK_AT_ONCE], token).update(
                    lease_token=None, lease_until=None, **changes
                )


def _write_published(marks: Sequence[Mark]) -> None:
    """One statement for all that have lease and audience in common."""
    groups: dict[tuple[uuid.UUID | None, tuple[str, ...]], list[Mark]] = {}
    for mark in marks:
        groups.setdefault((mark.row.lease_token, mark.expected), []).append(mark)
    for (token, expected), alike in groups.items():
        _held([mark.row.pk for mark in alike], token).update(
            state=State.PUBLISHED,
            published_at=_confirmed_at(alike),
            publish_attempts=F("publish_attempts") + 1,
            expected_consumers=list(expected),
            last_error="",
            lease_token=None,
            lease_until=None,
        )


def _confirmed_at(marks: Sequence[Mark]) -> Combinable:
    """Return when each of these rows was confirmed, by the database's clock: a mark is written a little later."""
    now = time.monotonic()
    moments: dict[int, list[int]] = {}
    for mark in marks:
        # Rounded towards now: no row was published before it was due.
        moments.setdefault(int(min(now - mark.at, LONGEST_BACK) / MOMENT), []).append(mark.row.pk)
    earlier = [(database.in_future(-steps * MOMENT), ids) for steps, ids in moments.items()]
    if len(earlier) == 1:
        return earlier[0][0]
    return Case(*(When(pk__in=ids, then=moment) for moment, ids in earlier))


def _write_setback(mark: Mark) -> None:
    """Write why a row was not published, and when it is tried again, if ever."""
    state, rest = _verdict(mark)
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
        # It was to bring a message to one consumer again, which waits for it: no other row does.
        reason = f"its attempt {mark.row.attempt} cannot be sent: {mark.outcome.reason}"
        if inbox.leave_dead(mark.row, reason, kind="cannot be sent"):
            log.error(
                "message.dead", message_id=mark.row.message_id, consumer=mark.row.consumer, reason=storable_text(reason)
            )


def _verdict(mark: Mark) -> tuple[OutboxMessage.State, float]:
    """Return the state a setback leads to, and the seconds until the next try."""
    rest = _rest(mark.row.publish_attempts)
    match mark.outcome.status:
        case Status.RETURNED:
            return State.UNROUTABLE, rest
        case Status.REFUSED if isinstance(mark.outcome.refusal, NotFound | AccessRefused):
            # An exchange or a permission is missing: no fault of the row, and it goes through once that is mended.
            return State.UNROUTABLE, rest
        case Status.REFUSED | Status.UNSENDABLE:
            return State.FAILED, 0
        case Status.NACKED:
            return State.PENDING, rest
        case _:
            # The broker's or the network's fault, not the row's: again as soon as there is a connection.
            return State.PENDING, _rest_without_word(mark)


def _rest(times: int) -> float:
    return min(2.0 ** min(times, 10), LONGEST_REST)


def _rest_without_word(mark: Mark) -> float:
    """Return how long a row rests of which the broker said nothing; with luck not at all."""
    more = mark.row.publish_attempts - (SILENCES_AT_ONCE if mark.outcome.late else LOSSES_AT_ONCE)
    if more < 0:
        return 0
    rest = _rest(more)
    if mark.outcome.late:
        # One of its queues may be without a leader, and a batch with such a row costs the whole time that is allowed.
        # Therefore all of them come due together, at the next full rest of the clock.
        return rest - time.time() % rest
    # RabbitMQ may end each connection over it. Those that were sent together part, so that it is alone some time.
    return rest * random.uniform(0.5, 1.0)  # noqa: S311  (spreading, not secrecy)


def _held(ids: Sequence[int], token: uuid.UUID | None) -> QuerySet[OutboxMessage]:
    return OutboxMessage.objects.filter(pk__in=ids, lease_token=token)
