"""The ledger: what was written, what was received, each attempt. These rows are the message log."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from messaging.message import MAX_ID_LENGTH


class OutboxMessage(models.Model):
    """A message written with the transaction it reports, and how far it has come on its way to the broker."""

    class State(models.TextChoices):
        PENDING = "pending", "pending"
        PUBLISHED = "published", "published"
        #: Some queue that should have it did not take it. Tried again by itself.
        UNROUTABLE = "unroutable", "unroutable"
        #: The broker refuses this very message. A person has to look.
        FAILED = "failed", "failed"

    #: Not unique: a retry or replay is a new row with the same message id.
    message_id = models.CharField(max_length=MAX_ID_LENGTH)
    type = models.CharField(max_length=255)
    version = models.PositiveIntegerField(default=1)
    subject = models.CharField(max_length=255, blank=True)
    correlation_id = models.CharField(max_length=MAX_ID_LENGTH, blank=True)
    exchange = models.CharField(max_length=255, blank=True)
    routing_key = models.CharField(max_length=255)
    #: The one consumer that a retry or replay is addressed to; empty: whoever is bound.
    consumer = models.CharField(max_length=255, blank=True)
    attempt = models.PositiveIntegerField(default=1)
    body = models.BinaryField()
    headers = models.JSONField(default=dict, blank=True)

    state = models.CharField(max_length=10, choices=State.choices, default=State.PENDING)
    created_at = models.DateTimeField(db_default=Now())
    #: Not before this time: a delay, a retry's rest, or the next try of an unroutable row.
    publish_at = models.DateTimeField(db_default=Now())
    published_at = models.DateTimeField(null=True, blank=True)
    publish_attempts = models.PositiveIntegerField(default=0)
    last_error = models.TextField(blank=True)
    #: Names of the consumers registered for the message when it was published: who must receive it.
    expected_consumers = models.JSONField(default=list, blank=True)

    #: Whose turn it is. A mark counts only while the token is still the marker's own.
    lease_token = models.UUIDField(null=True, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = "outbox message"
        ordering = ["-id"]
        permissions = [("view_payload", "Can see personal and secret values in messages")]
        indexes = [
            models.Index(
                fields=["publish_at", "id"],
                name="outbox_waiting",
                condition=Q(state__in=["pending", "unroutable"]),
            ),
            models.Index(fields=["message_id"], name="outbox_message_id"),
            models.Index(fields=["subject"], name="outbox_subject"),
            models.Index(fields=["state", "created_at"], name="outbox_state_created"),
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.subject or self.message_id}"


class InboxMessage(models.Model):
    """One message at one consumer: the fence that lets its effects happen once, and its dead letter."""

    class State(models.TextChoices):
        HANDLED = "handled", "handled"
        #: Waits for the attempt in `attempt`; no other attempt may run.
        RETRYING = "retrying", "retrying"
        DEAD = "dead", "dead"

    consumer = models.CharField(max_length=255)
    message_id = models.CharField(max_length=MAX_ID_LENGTH)
    #: False: the publisher gave no id, so two deliveries of it cannot be told from two messages.
    identified = models.BooleanField(default=True)
    type = models.CharField(max_length=255, blank=True)
    version = models.PositiveIntegerField(default=1)
    subject = models.CharField(max_length=255, blank=True)
    correlation_id = models.CharField(max_length=MAX_ID_LENGTH, blank=True)
    app_id = models.CharField(max_length=255, blank=True)

    state = models.CharField(max_length=10, choices=State.choices)
    #: The attempt that is expected (retrying) or was the last one (handled, dead).
    attempt = models.PositiveIntegerField(default=1)
    #: Starts of that attempt that were committed before the work: more than one means a process died in it.
    starts = models.PositiveIntegerField(default=0)
    received_at = models.DateTimeField(db_default=Now())
    changed_at = models.DateTimeField(db_default=Now())

    #: Why it is dead, or failed last.
    reason = models.TextField(blank=True)
    #: Kept of a message that is retrying or dead: the replay needs them.
    body = models.BinaryField(null=True, blank=True)
    body_truncated = models.BooleanField(default=False)
    headers = models.JSONField(default=dict, blank=True)

    class Meta:
        verbose_name = "inbox message"
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["consumer", "message_id"], name="inbox_fence")]
        indexes = [
            models.Index(fields=["message_id"], name="inbox_message_id"),
            models.Index(fields=["subject"], name="inbox_subject"),
            models.Index(fields=["state", "changed_at"], name="inbox_state_changed"),
        ]

    def __str__(self) -> str:
        return f"{self.type or 'message'} {self.subject or self.message_id} at {self.consumer}"


class DeliveryAttempt(models.Model):
    """One try of a handler: when, where, how it ended."""

    class Outcome(models.TextChoices):
        HANDLED = "handled", "handled"
        FAILED = "failed", "failed"
        REJECTED = "rejected", "rejected"
        #: The process died in it.
        CRASHED = "crashed", "crashed"

    inbox_message = models.ForeignKey(InboxMessage, on_delete=models.CASCADE, related_name="attempts")
    number = models.PositiveIntegerField()
    outcome = models.CharField(max_length=10, choices=Outcome.choices)
    finished_at = models.DateTimeField(db_default=Now())
    duration = models.DurationField(default=timedelta)
    #: host:pid of the process.
    process = models.CharField(max_length=255, blank=True)
    redelivered = models.BooleanField(default=False)
    error = models.TextField(blank=True)
    traceback = models.TextField(blank=True)

    class Meta:
        verbose_name = "delivery attempt"
        ordering = ["id"]

    def __str__(self) -> str:
        return f"attempt {self.number}: {self.outcome}"

    @property
    def started_at(self) -> Any:
        """When the attempt began, by the database's clock."""
        return self.finished_at - self.duration
