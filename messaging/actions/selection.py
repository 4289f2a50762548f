"""Which rows an operator means: by id, by what they are about, by what went wrong."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

from django.db.models import Q

from messaging import database
from messaging.models import Effect, InboxMessage, OutboxMessage
from messaging.validation.texts import storable_text

#: One of the tables that actions change.
Box = type[OutboxMessage] | type[InboxMessage] | type[Effect]

#: Ids that a description spells out.
NAMED = 3


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a box holds what rows are chosen by. An empty name: it has no such column, and no row is found by it."""

    #: The field of `Selection` that names rows of this box.
    rows: str
    #: When a row was written to the outbox, or changed last elsewhere.
    time: str
    #: The last error.
    reason: str
    group: str
    type: str = "type"
    subject: str = "subject"
    attempt: str = "attempt"


COLUMNS: dict[Box, Columns] = {
    OutboxMessage: Columns("outbox_rows", "created_at", "last_error", ""),
    InboxMessage: Columns("inbox_rows", "changed_at", "reason", "failure_group"),
    Effect: Columns(
        "effect_rows", "changed_at", "error", "failure_group", "name", "inbox_message__subject", "attempts"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which rows; an empty field asks for nothing in particular.

    `type` of an effect is its name. `consumer` finds what the consumer received and what is addressed to it alone (its
    retries), not the events that it receives together with others. `reason` is a part of the error; `group` a failure
    group; `since` how long ago at most they were written to the outbox, or changed last elsewhere. `outbox_rows`,
    `inbox_rows` and `effect_rows` are ids of rows of that box alone.
    """

    message_ids: Collection[str] = ()
    type: str = ""
    consumer: str = ""
    subject: str = ""
    reason: str = ""
    group: str = ""
    since: timedelta | None = None
    outbox_rows: Collection[int] = ()
    inbox_rows: Collection[int] = ()
    effect_rows: Collection[int] = ()

    def __post_init__(self) -> None:
        # A text that no database stores is looked for in the form in which it was stored.
        for name in ("type", "consumer", "subject", "reason", "group"):
            object.__setattr__(self, name, storable_text(getattr(self, name)))
        object.__setattr__(self, "message_ids", [storable_text(each) for each in self.message_ids])

    @classmethod
    def of_rows(cls, box: Box, ids: Collection[int]) -> Selection:
        """Return these rows of one box."""
        chosen: dict[str, Any] = {COLUMNS[box].rows: ids}
        return cls(**chosen)

    @property
    def is_everything(self) -> bool:
        """Whether it asks for nothing in particular."""
        return not any(getattr(self, field.name) for field in fields(self))

    def rows_of(self, box: Box) -> Collection[int]:
        """Return the ids of rows that were named of this box."""
        found: Collection[int] = getattr(self, COLUMNS[box].rows)
        return found

    def may_be_in(self, box: Box) -> bool:
        """Whether rows of this box can be meant: where rows are named, they are those of their box alone."""
        return bool(self.rows_of(box)) or not any(map(self.rows_of, COLUMNS))

    def of(self, box: Box) -> Q:
        """Return the filter for rows of this box."""
        columns = COLUMNS[box]
        if not self.may_be_in(box) or (self.group and not columns.group):
            return Q(pk__in=[])
        asked = {
            "pk__in": self.rows_of(box),
            "message_id__in": self.message_ids,
            columns.type: self.type,
            "consumer": self.consumer,
            columns.subject: self.subject,
            f"{columns.reason}__icontains": self.reason,
            columns.group: self.group,
        }
        found = Q(**{name: value for name, value in asked.items() if value})
        if self.since is not None:
            found &= Q(**{f"{columns.time}__gte": database.in_future(-self.since.total_seconds())})
        return found

    def __str__(self) -> str:
        """In words, as the audit log says it."""
        words = [
            _named("message", self.message_ids),
            *(_named(box._meta.verbose_name, self.rows_of(box)) for box in COLUMNS),
            self.group and f"failure group {self.group}",
            self.type and f"type {self.type}",
            self.consumer and f"consumer {self.consumer}",
            self.subject and f"subject {self.subject}",
            self.reason and f"reason containing {self.reason!r}",
            f"since {self.since} ago" if self.since else "",
        ]
        return ", ".join(word for word in words if word) or "everything"


def counted(number: int, noun: object) -> str:
    """Return a number with its noun, in the plural where that is due."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _named(noun: object, ids: Collection[Any]) -> str:
    if len(ids) > NAMED:
        return counted(len(ids), noun)
    return f"{noun} {', '.join(map(str, ids))}" if ids else ""
