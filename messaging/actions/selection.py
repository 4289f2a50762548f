"""Which rows an operator means: by id, by what they are about, by what went wrong. One filter for all operations."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

from django.db.models import Q

from messaging import database
from messaging.validation.texts import storable_text

#: Ids that a description spells out.
NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which rows; an empty field asks for nothing in particular.

    `consumer` finds what it received and what is addressed to it alone (its retries), not what it will get with
    others. `reason` is a piece of what went wrong; `group` a failure group; `since` how long ago at most they were
    written to the outbox, or changed last elsewhere. `outbox_rows`, `inbox_rows` name rows of one box.
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

    def __post_init__(self) -> None:
        # As rows hold texts: what no database stores is asked for in the form in which it was stored.
        for name in ("type", "consumer", "subject", "reason", "group"):
            object.__setattr__(self, name, storable_text(getattr(self, name)))
        object.__setattr__(self, "message_ids", [storable_text(each) for each in self.message_ids])

    @property
    def is_everything(self) -> bool:
        """Whether it asks for nothing in particular."""
        return not any(getattr(self, field.name) for field in fields(self))

    @property
    def of_outbox(self) -> Q:
        """The rows of the outbox."""
        if self.inbox_rows or self.group:
            return Q(pk__in=[])
        return self._filter("created_at", "last_error", pk__in=self.outbox_rows)

    @property
    def of_inbox(self) -> Q:
        """The rows of the inbox."""
        if self.outbox_rows:
            return Q(pk__in=[])
        return self._filter("changed_at", "reason", pk__in=self.inbox_rows, failure_group=self.group)

    @property
    def of_effects(self) -> Q:
        """The effects: `type` is their name, `subject` that of the message they follow from."""
        if self.outbox_rows or self.inbox_rows:
            return Q(pk__in=[])
        return self._filter(
            "changed_at",
            "error",
            type_field="name",
            subject_field="inbox_message__subject",
            failure_group=self.group,
        )

    def __str__(self) -> str:
        """In words, as the audit log says it."""
        words = [
            _named("message", self.message_ids),
            _named("outbox row", self.outbox_rows),
            _named("inbox row", self.inbox_rows),
            self.group and f"failure group {self.group}",
            self.type and f"type {self.type}",
            self.consumer and f"consumer {self.consumer}",
            self.subject and f"subject {self.subject}",
            self.reason and f"reason containing {self.reason!r}",
            f"since {self.since} ago" if self.since else "",
        ]
        return ", ".join(word for word in words if word) or "everything"

    def _filter(
        self,
        time_field: str,
        reason_field: str,
        *,
        type_field: str = "type",
        subject_field: str = "subject",
        **more: Any,
    ) -> Q:
        wanted: dict[str, Any] = {
            "message_id__in": self.message_ids,
            type_field: self.type,
            "consumer": self.consumer,
            subject_field: self.subject,
            f"{reason_field}__icontains": self.reason,
            **more,
        }
        found = Q(**{name: value for name, value in wanted.items() if value})
        if self.since is not None:
            found &= Q(**{f"{time_field}__gte": database.in_future(-self.since.total_seconds())})
        return found


def _named(what: str, ids: Collection[Any]) -> str:
    if not ids:
        return ""
    if len(ids) > NAMED:
        return f"{len(ids)} {what}s"
    return f"{what} {', '.join(map(str, ids))}"
