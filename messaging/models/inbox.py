"""The inbox: messages received, with the success of each; and the attempts that failed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from messaging.models.columns import MessageColumns, Row, UTCDateTimeField, by_beginning


class InboxMessage(MessageColumns):
    """One message at one consumer: the fence that makes it take effect once, and its dead letter."""

    class State(models.TextChoices):
        #: Handled, and an effect outside the database is still to be carried out; see Effect.
        EFFECTS_DUE = "effects_due", "effects due"
        HANDLED = "handled", "handled"
        #: Waits for the attempt `attempt`; no other may run.
        RETRYING = "retrying", "retrying"
        #: Waits for earlier messages of its ordering key.
        WAITING = "waiting", "waiting"
        DEAD = "dead", "dead"
        #: Dead, and given up by a person.
        DISCARDED = "discarded", "discarded"

    #: The handler does not run again, unless a person replays a dead message.
    SETTLED = (State.EFFECTS_DUE, State.HANDLED, State.DEAD, State.DISCARDED)

    consumer = models.CharField(max_length=255)
    #: False: the publisher gave no id, so two deliveries of it cannot be told from two messages.
    identified = models.BooleanField(default=True)
    #: Empty for a foreign publisher that sent none.
    type = models.CharField(max_length=255, blank=True)
    app_id = models.CharField(max_length=255, blank=True)

    state = models.CharField(max_length=11, choices=State.choices)
    # `attempt` is the one that is expected (retrying) or was the last one (handled, dead).
    #: Starts of that attempt, committed before the work: more than one means that a process died in it.
    starts = models.PositiveIntegerField(default=0)
    #: Attempts before its last replay: the retry policy counts from there.
    attempts_before = models.PositiveIntegerField(default=0)
    received_at = UTCDateTimeField(db_default=Now())
    changed_at = UTCDateTimeField(db_default=Now())

    #: Why it is dead, why its last attempt failed, or what failed after the commit of its success.
    reason = models.TextField(blank=True)
    #: Shared by failures of the same consumer, type and kind of reason, so that they can be replayed together.
    failure_group = models.CharField(max_length=16, blank=True)
    #: Kept while the message is retrying, waiting or dead: a replay needs them.
    body = models.BinaryField(null=True, blank=True)
    body_truncated = models.BooleanField(default=False)

    # Its success; empty before, and where an earlier version wrote an attempt's row for it. Without defaults, so that a
    # big table gets them in no time, and processes of the earlier version still write rows.
    handled_at = UTCDateTimeField(null=True, blank=True)
    #: host:pid of the process.
    process = models.CharField(max_length=255, null=True, blank=True)  # noqa: DJ001
    #: How long the handler took.
    milliseconds = models.FloatField(null=True, blank=True)

    class Meta(Row.Meta):
        verbose_name = "inbox message"
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["consumer", "message_id"], name="inbox_fence")]
        indexes = [
            models.Index(fields=["received_at"], name="inbox_received"),
            by_beginning("message_id", name="inbox_message_id_begins"),
            by_beginning("subject", name="inbox_subject_begins"),
            models.Index(fields=["state", "changed_at"], name="inbox_state_changed"),
            models.Index(fields=["failure_group"], name="inbox_failure_group", condition=~Q(failure_group="")),
            models.Index(
                fields=["consumer", "ordering_key", "position"], name="inbox_waiting", condition=Q(state="waiting")
            ),
        ]
        permissions = [
            ("replay_message", "Can replay dead messages and publish waiting ones now"),
            ("discard_message", "Can discard dead messages"),
        ]

    def __str__(self) -> str:
        return f"{self.type or 'message'} {self.subject or self.message_id} at {self.consumer}"

    @property
    def success(self) -> DeliveryAttempt | None:
        """The attempt that succeeded, as this row holds it; None if there is none. It has no row of its own."""
        if self.handled_at is None:
            return None
        return DeliveryAttempt(
            inbox_message=self,
            number=self.attempt,
            outcome=DeliveryAttempt.Outcome.HANDLED,
            finished_at=self.handled_at,
            duration=timedelta(milliseconds=self.milliseconds or 0),
            process=self.process or "",
            redelivered=self.starts > 0,
            error=self.reason,
        )


class DeliveryAttempt(Row):
    """One attempt of a handler that did not succeed: when, where, and how it ended.

    Earlier versions wrote one for a success, too. Now it is on the inbox row itself.
    """

    class Outcome(models.TextChoices):
        HANDLED = "handled", "handled"
        FAILED = "failed", "failed"
        REJECTED = "rejected", "rejected"
        #: The process died in it.
        CRASHED = "crashed", "crashed"

    inbox_message = models.ForeignKey(InboxMessage, on_delete=models.CASCADE, related_name="attempts")
    number = models.PositiveIntegerField()
    outcome = models.CharField(max_length=10, choices=Outcome.choices)
    finished_at = UTCDateTimeField(db_default=Now())
    duration = models.DurationField(default=timedelta)
    #: host:pid of the process.
    process = models.CharField(max_length=255, blank=True)
    redelivered = models.BooleanField(default=False)
    error = models.TextField(blank=True)
    traceback = models.TextField(blank=True)

    class Meta(Row.Meta):
        verbose_name = "delivery attempt"
        ordering = ["id"]

    def __str__(self) -> str:
        return f"attempt {self.number}: {self.outcome}"

    @property
    def started_at(self) -> Any:
        """When the attempt began, by the database's clock."""
        return self.finished_at - self.duration
