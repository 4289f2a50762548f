"""What a story is: entries in the order of their times, and whether more is to come."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum


class Kind(StrEnum):
    """What an entry tells. Of entries of the same moment the earlier kind comes first."""

    # What a person did; cancelled and discarded rows say it themselves.
    REPLAYED = "replayed"
    HASTENED = "hastened"
    RECONCILED = "reconciled"
    SETTLED = "settled"

    WRITTEN = "written"
    PUBLISHED = "published"
    #: From another application's publisher: no outbox row tells of it.
    RECEIVED = "received"
    HANDLED = "handled"
    ATTEMPT_FAILED = "attempt failed"
    REJECTED = "rejected"
    CRASHED = "crashed"
    DEAD = "dead"
    DISCARDED = "discarded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTENDED = "intended"
    #: Surely not done this time, and tried again.
    EFFECT_NOT_DONE = "effect not done"
    #: Perhaps done this time; sent again with the same key, or asked for.
    EFFECT_DOUBTFUL = "effect doubtful"
    EFFECT_DONE_LATE = "effect done late"
    EFFECT_DONE = "effect done"
    EFFECT_FAILED = "effect failed"
    EFFECT_UNKNOWN = "effect unknown"
    # Still open: what everybody waits for.
    PENDING = "pending"
    UNROUTABLE = "unroutable"
    UNHANDLED = "unhandled"
    WAITING = "waiting"
    EFFECT_DUE = "effect due"
    EFFECT_SENDING = "effect sending"


OPEN = frozenset({Kind.PENDING, Kind.UNROUTABLE, Kind.UNHANDLED, Kind.WAITING, Kind.EFFECT_DUE, Kind.EFFECT_SENDING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a story, with the row that it was read from (one of `outbox_id`, `inbox_id`, `effect_id` and
    `action_id`).

    `at` is when it happened by the database's clock, None for what is open. `due` is when an open one may go on.
    `gap` is the time since the entry before, never negative, None where either has no time. `effect` is the name of
    one, `origin` why an outbox row was written, `actor` the person.
    """

    kind: Kind
    message_id: str
    type: str = ""
    attempt: int = 0
    consumer: str = ""
    at: datetime | None = None
    due: datetime | None = None
    gap: timedelta | None = None
    duration: timedelta | None = None
    detail: str = ""
    effect: str = ""
    origin: str = ""
    actor: str = ""
    outbox_id: int | None = None
    inbox_id: int | None = None
    effect_id: int | None = None
    action_id: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether this is still to happen."""
        return self.kind in OPEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What happened, in order, and then what is open. `truncated`: older rows than are read at most were left out."""

    entries: tuple[Entry, ...]
    truncated: bool = False

    @property
    def message_ids(self) -> list[str]:
        """The messages it is about, each once, in the order they appear."""
        return list(dict.fromkeys(entry.message_id for entry in self.entries))
