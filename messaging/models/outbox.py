"""The outbox: messages written with the transactions that they report."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from messaging.models.columns import MessageColumns, Row, UTCDateTimeField, by_beginning


class OutboxMessage(MessageColumns):
    """A message written in the transaction that it reports, and how far it has come on its way to the broker."""

    class State(models.TextChoices):
        PENDING = "pending", "pending"
        PUBLISHED = "published", "published"
        #: A queue that must receive it did not take it. It is published again by itself.
        UNROUTABLE = "unroutable", "unroutable"
        #: The broker refuses this message. A person has to act.
        FAILED = "failed", "failed"
        #: A person decided not to publish it.
        CANCELLED = "cancelled", "cancelled"

    class Origin(models.TextChoices):
        """Why the row was written."""

        EVENT = "event", "event"
        RETRY = "retry", "retry"
        #: A person replayed a dead message.
        REPLAY = "replay", "replay"
        #: It was lost, and is sent again.
        RECONCILE = "reconcile", "reconcile"
        #: The earlier messages of its ordering key are settled.
        TURN = "turn", "turn"

    # The message id is not unique here: a retry or replay is a new row with the same message id.
    exchange = models.CharField(max_length=255, blank=True, default="", db_default="")
    routing_key = models.CharField(max_length=255)
    #: The one consumer that a retry or replay is addressed to; empty: every consumer that is bound.
    consumer = models.CharField(max_length=255, blank=True, default="", db_default="")
    origin = models.CharField(max_length=10, choices=Origin.choices, default=Origin.EVENT, db_default=Origin.EVENT)
    body = models.BinaryField()

    state = models.CharField(max_length=10, choices=State.choices, default=State.PENDING, db_default=State.PENDING)
    created_at = UTCDateTimeField(db_default=Now())
    #: Not published before this time: a delay, a retry's pause, or the next attempt of an unroutable row.
    publish_at = UTCDateTimeField(db_default=Now())
    published_at = UTCDateTimeField(null=True, blank=True)
    publish_attempts = models.PositiveIntegerField(default=0, db_default=0)
    last_error = models.TextField(blank=True, default="", db_default="")
    #: Names of the consumers that were registered for the message when it was published, and must receive it.
    expected_consumers = models.JSONField(default=list, db_default=[], blank=True)

    #: The relay that holds the row. Its marks count only while the row has its token.
    lease_token = models.UUIDField(null=True, blank=True)
    lease_until = UTCDateTimeField(null=True, blank=True)

    class Meta(Row.Meta):
        verbose_name = "outbox message"
        ordering = ["-id"]
        permissions = [
            ("view_payload", "Can see personal and secret values in messages"),
            ("cancel_message", "Can cancel messages that wait"),
        ]
        indexes = [
            models.Index(
                fields=["publish_at", "id"], name="outbox_waiting", condition=Q(state__in=["pending", "unroutable"])
            ),
            by_beginning("message_id", name="outbox_message_id_begins"),
            models.Index(fields=["published_at", "id"], name="outbox_published", condition=Q(state="published")),
            by_beginning("subject", name="outbox_subject_begins"),
            models.Index(fields=["state", "created_at"], name="outbox_state_created"),
            models.Index(
                fields=["ordering_key", "id"], name="outbox_ordering", condition=~Q(ordering_key="") & Q(origin="event")
            ),
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.subject or self.message_id}"

    @property
    def place(self) -> int | None:
        """The message's place among those of its ordering key; None without one."""
        return (self.position or self.pk) if self.ordering_key else None
