"""The laws that hold for every message, judged from the tables alone.

script/chaos applies them to the real product once it is at rest, and the model of tests/faults after each of its steps.
To be imported once Django is set up.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from django.db import connection, models

from messaging.models import DeliveryAttempt, Effect, InboxMessage, OutboxMessage

#: A message at a consumer: (consumer, message id).
Where = tuple[str, str]
Row = dict[str, Any]

Out = OutboxMessage.State
In = InboxMessage.State


class Tables:
    """The rows of outbox, inbox, delivery attempts and effects. Each table is read at a moment of its own."""

    def __init__(self) -> None:
        # Before the inbox: of each attempt the message is then there.
        attempts = read_rows(DeliveryAttempt, "inbox_message_id", "outcome")
        self.outbox = read_rows(
            OutboxMessage,
            "id", "message_id", "consumer", "type", "subject", "state", "attempt", "origin", "publish_attempts",
            "last_error",
        )  # fmt: skip
        self.rows_of: defaultdict[str, list[Row]] = defaultdict(list)
        for row in self.outbox:
            self.rows_of[row["message_id"]].append(row)
        inbox = read_rows(InboxMessage, "id", "consumer", "message_id", "state", "attempt", "handled_at")
        self.inbox: dict[Where, Row] = {(row["consumer"], row["message_id"]): row for row in inbox}
        wheres = {row["id"]: (row["consumer"], row["message_id"]) for row in inbox}
        #: The outcomes of each message's delivery attempts.
        self.outcomes: defaultdict[Where, Counter[str]] = defaultdict(Counter)
        for row in attempts:
            self.outcomes[wheres[row["inbox_message_id"]]][row["outcome"]] += 1
        for where, row in self.inbox.items():
            # Its first success, which has no row of its own.
            self.outcomes[where][DeliveryAttempt.Outcome.HANDLED] += row["handled_at"] is not None
        self.effects = read_rows(Effect, "id", "consumer", "message_id", "name", "state", "attempts")

    def to_publish(self) -> list[Row]:
        """Return the outbox rows that a relay still has to publish."""
        return [row for row in self.outbox if row["state"] in {Out.PENDING, Out.UNROUTABLE}]

    def moving(self) -> dict[str, int]:
        """Return the number of rows that will change by themselves, by kind; empty at rest."""
        due = sum(row["state"] == In.EFFECTS_DUE for row in self.inbox.values())
        counts = {"to be published": len(self.to_publish()), "effects due": due}
        return {what: count for what, count in counts.items() if count}

    def is_settled(self, where: Where) -> bool:
        """Return whether the consumer has handled the message, or a person or the retry policy gave it up."""
        return where in self.inbox and self.inbox[where]["state"] in InboxMessage.SETTLED

    def unsettled(self) -> list[Where]:
        """Return the received messages that are neither handled nor given up."""
        return [where for where in self.inbox if not self.is_settled(where)]

    def handled_without_a_run(self, runs: Mapping[Where, int], consumers: Iterable[str]) -> list[Where]:
        """Return the messages that count as handled although their handler left nothing behind. A loss."""
        among = set(consumers)
        handled = {In.HANDLED, In.EFFECTS_DUE}
        return [
            where
            for where, row in self.inbox.items()
            if where[0] in among and row["state"] in handled and not runs.get(where)
        ]


def handled_twice(runs: Mapping[Where, int]) -> list[Where]:
    """Return the messages whose handler left its effects behind more than once."""
    return [where for where, count in runs.items() if count > 1]


def read_rows(model: type[models.Model], *columns: str) -> list[Row]:
    """Return every row by id, without Django's querysets: the model reads after every step."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(columns)} FROM {model._meta.db_table} ORDER BY id")  # noqa: S608 (our names)
        return [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]
