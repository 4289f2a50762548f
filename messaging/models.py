"""The ledger: what was written, what was received, each attempt. These rows are the message log."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from messaging.message import MAX_ID_LENGTH
from messaging.moments import MomentField
from messaging.primary import PrimaryQuerySet


class MessageColumns(models.Model):
    """The columns that belong to the message itself, the same in outbox and inbox."""

    message_id = models.CharField(max_length=MAX_ID_LENGTH)
    type = models.CharField(max_length=255)
    version = models.PositiveIntegerField(default=1)
    subject = models.CharField(max_length=255, blank=True)
    correlation_id = models.CharField(max_length=MAX_ID_LENGTH, blank=True)
    #: Messages with the same key are handled in the order of their transactions; empty: in any order.
    ordering_key = models.CharField(max_length=255, blank=True)
    #: Place of the message among those of its key: the id of its first outbox row, and empty in that row.
    position = models.BigIntegerField(null=True, blank=True)
    #: From 0 to 255, for queues that have priorities; empty: none.
    priority = models.PositiveSmallIntegerField(null=True, blank=True)
    attempt = models.PositiveIntegerField(default=1)
    headers = models.JSONField(default=dict, blank=True)

    class Meta:
        abstract = True

    def message_columns(self) -> dict[str, Any]:
        """Return these columns by name, for another row of the same message."""
        return {field.name: getattr(self, field.name) for field in MessageColumns._meta.fields}


class OutboxMessage(MessageColumns):
    """A message written with the transaction it reports, and how far it has come on its way to the broker."""

    class State(models.TextChoices):
        PENDING = "pending", "pending"
        PUBLISHED = "published", "published"
        #: Some queue that should have it did not take it. Tried again by itself.
        UNROUTABLE = "unroutable", "unroutable"
        #: The broker refuses this very message. A person has to look.
        FAILED = "failed", "failed"
        #: A person decided that it shall not be published.
        CANCELLED = "cancelled", "cancelled"

    class Origin(models.TextChoices):
        """Why the row was written."""

        EVENT = "event", "event"
        RETRY = "retry", "retry"
        #: A person let a dead message run again.
        REPLAY = "replay", "replay"
        #: It was lost on the way, and is sent again.
        RECONCILE = "reconcile", "reconcile"
        #: Its turn among the messages of its ordering key has come.
        TURN = "turn", "turn"

    # The message id is not unique here: a retry or replay is a new row with the same message id.
    exchange = models.CharField(max_length=255, blank=True)
    routing_key = models.CharField(max_length=255)
    #: The one consumer that a retry or replay is addressed to; empty: whoever is bound.
    consumer = models.CharField(max_length=255, blank=True)
    origin = models.CharField(max_length=10, choices=Origin.choices, default=Origin.EVENT)
    body = models.BinaryField()

    state = models.CharField(max_length=10, choices=State.choices, default=State.PENDING)
    created_at = MomentField(db_default=Now())
    #: Not before this time: a delay, a retry's rest, or the next try of an unroutable row.
    publish_at = MomentField(db_default=Now())
    published_at = MomentField(null=True, blank=True)
    publish_attempts = models.PositiveIntegerField(default=0)
    last_error = models.TextField(blank=True)
    #: Names of the consumers registered for the message when it was published: who must receive it.
    expected_consumers = models.JSONField(default=list, blank=True)

    #: Whose turn it is. A mark counts only while the token is still the marker's own.
    lease_token = models.UUIDField(null=True, blank=True)
    lease_until = MomentField(null=True, blank=True)

    objects = PrimaryQuerySet["OutboxMessage"].as_manager()

    class Meta:
        base_manager_name = "objects"
        verbose_name = "outbox message"
        ordering = ["-id"]
        permissions = [
            ("view_payload", "Can see personal and secret values in messages"),
            ("cancel_message", "Can cancel messages that wait"),
        ]
        indexes = [
            models.Index(
                fields=["publish_at", "id"],
                name="outbox_waiting",
                condition=Q(state__in=["pending", "unroutable"]),
            ),
            models.Index(fields=["message_id"], name="outbox_message_id"),
            models.Index(fields=["published_at", "id"], name="outbox_published", condition=Q(state="published")),
            models.Index(fields=["subject"], name="outbox_subject"),
            models.Index(fields=["state", "created_at"], name="outbox_state_created"),
            models.Index(
                fields=["ordering_key", "id"],
                name="outbox_ordering",
                condition=~Q(ordering_key="") & Q(origin="event"),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.subject or self.message_id}"

    @property
    def place(self) -> int | None:
        """The message's place among those of its ordering key; None without one."""
        return (self.position or self.pk) if self.ordering_key else None


class InboxMessage(MessageColumns):
    """One message at one consumer: the fence that lets its effects happen once, and its dead letter."""

    class State(models.TextChoices):
        #: Handled, and something outside the database is still to be done for it; see Effect.
        EFFECTS_DUE = "effects_due", "effects due"
        HANDLED = "handled", "handled"
        #: Waits for the attempt in `attempt`; no other attempt may run.
        RETRYING = "retrying", "retrying"
        #: Waits for earlier messages of its ordering key.
        WAITING = "waiting", "waiting"
        DEAD = "dead", "dead"
        #: Dead, and a person decided that nothing more shall come of it.
        DISCARDED = "discarded", "discarded"

    #: The handler is through with it; nothing runs it again, unless a person replays a dead one.
    SETTLED = (State.EFFECTS_DUE, State.HANDLED, State.DEAD, State.DISCARDED)

    consumer = models.CharField(max_length=255)
    #: False: the publisher gave no id, so two deliveries of it cannot be told from two messages.
    identified = models.BooleanField(default=True)
    #: Empty for a foreign publisher that sent none.
    type = models.CharField(max_length=255, blank=True)
    app_id = models.CharField(max_length=255, blank=True)

    state = models.CharField(max_length=11, choices=State.choices)
    # `attempt` is the one that is expected (retrying) or was the last one (handled, dead).
    #: Starts of that attempt that were committed before the work: more than one means a process died in it.
    starts = models.PositiveIntegerField(default=0)
    #: Attempts before it was replayed last: the retry policy counts from there.
    attempts_before = models.PositiveIntegerField(default=0)
    received_at = MomentField(db_default=Now())
    changed_at = MomentField(db_default=Now())

    #: Why it is dead, or failed last.
    reason = models.TextField(blank=True)
    #: Failures of the same consumer, type and kind of reason share it, so that they can be replayed together.
    failure_group = models.CharField(max_length=16, blank=True)
    #: Kept of a message that is retrying, waiting or dead: the replay needs them.
    body = models.BinaryField(null=True, blank=True)
    body_truncated = models.BooleanField(default=False)

    objects = PrimaryQuerySet["InboxMessage"].as_manager()

    class Meta:
        base_manager_name = "objects"
        verbose_name = "inbox message"
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["consumer", "message_id"], name="inbox_fence")]
        indexes = [
            models.Index(fields=["message_id"], name="inbox_message_id"),
            models.Index(fields=["subject"], name="inbox_subject"),
            models.Index(fields=["state", "changed_at"], name="inbox_state_changed"),
            models.Index(fields=["failure_group"], name="inbox_failure_group", condition=~Q(failure_group="")),
            models.Index(
                fields=["consumer", "ordering_key", "position"],
                name="inbox_waiting",
                condition=Q(state="waiting"),
            ),
        ]
        permissions = [
            ("replay_message", "Can replay dead messages and hasten waiting ones"),
            ("discard_message", "Can discard dead messages"),
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
    finished_at = MomentField(db_default=Now())
    duration = models.DurationField(default=timedelta)
    #: host:pid of the process.
    process = models.CharField(max_length=255, blank=True)
    redelivered = models.BooleanField(default=False)
    error = models.TextField(blank=True)
    traceback = models.TextField(blank=True)

    objects = PrimaryQuerySet["DeliveryAttempt"].as_manager()

    class Meta:
        base_manager_name = "objects"
        verbose_name = "delivery attempt"
        ordering = ["id"]

    def __str__(self) -> str:
        return f"attempt {self.number}: {self.outcome}"

    @property
    def started_at(self) -> Any:
        """When the attempt began, by the database's clock."""
        return self.finished_at - self.duration


class Effect(models.Model):
    """Something outside the database that follows from a message: a text, a payment. Its row is the ledger."""

    class State(models.TextChoices):
        #: Committed with the handler's work, and not begun, or surely not done and to be tried again.
        INTENDED = "intended", "intended"
        #: Somebody is at it until `sending_until`; after that nobody knows, unless the outside can be asked.
        SENDING = "sending", "sending"
        DONE = "done", "done"
        #: Surely not done, and not tried again.
        FAILED = "failed", "failed"
        #: It may have been done or not. Never sent again blindly: a person settles it.
        UNKNOWN = "unknown", "unknown"

    #: Something is still to be done about it, by itself.
    OPEN = (State.INTENDED, State.SENDING)
    #: Effects of which an attempt failed and another one follows.
    FAILING = Q(state__in=OPEN) & (~Q(error="") | Q(attempts__gt=1))
    #: Which effects nothing more comes of until a person has settled them.
    FOR_A_PERSON = Q(state=State.UNKNOWN) | Q(state=State.FAILED, given_up=False)

    inbox_message = models.ForeignKey(InboxMessage, on_delete=models.CASCADE, related_name="effects")
    #: As in the inbox row.
    consumer = models.CharField(max_length=255)
    message_id = models.CharField(max_length=MAX_ID_LENGTH)
    name = models.CharField(max_length=100)
    payload = models.JSONField(default=dict)

    state = models.CharField(max_length=10, choices=State.choices, default=State.INTENDED)
    attempts = models.PositiveIntegerField(default=0)
    intended_at = MomentField(db_default=Now())
    changed_at = MomentField(db_default=Now())
    #: Not before this time.
    send_at = MomentField(db_default=Now())
    #: Whose turn it is to send, and until when. A result counts only while the token is still the sender's own.
    token = models.UUIDField(null=True, blank=True)
    sending_until = MomentField(null=True, blank=True)
    #: What the outside calls it, once it is done.
    reference = models.CharField(max_length=255, blank=True)
    #: Why the last attempt failed, or who settled it.
    error = models.TextField(blank=True)
    #: As of an inbox row: failures of the same consumer, name and kind of error share it. Empty while nothing failed.
    failure_group = models.CharField(max_length=16, blank=True, default="", db_default="")
    #: It failed, and a person decided to leave it at that: no failure that anybody has to look at.
    given_up = models.BooleanField(default=False, db_default=False)

    objects = PrimaryQuerySet["Effect"].as_manager()

    class Meta:
        base_manager_name = "objects"
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["inbox_message", "name"], name="effect_once")]
        indexes = [
            models.Index(fields=["consumer", "send_at"], name="effect_intended", condition=Q(state="intended")),
            models.Index(fields=["consumer", "sending_until"], name="effect_sending", condition=Q(state="sending")),
            models.Index(fields=["state", "changed_at"], name="effect_state_changed"),
            models.Index(fields=["message_id"], name="effect_message_id"),
            models.Index(fields=["failure_group"], name="effect_failure_group", condition=~Q(failure_group="")),
        ]
        permissions = [("settle_effect", "Can say what became of an effect that nobody knows of")]

    def __str__(self) -> str:
        return f"{self.name}: {self.state}"

    @property
    def key(self) -> str:
        """The same at every attempt, and of no other effect: what a gateway tells repetitions by."""
        return f"{self.message_id}:{self.consumer}:{self.name}"

    @property
    def is_failing(self) -> bool:
        """Whether an attempt failed and another one follows: FAILING of one row."""
        return self.state in self.OPEN and (bool(self.error) or self.attempts > 1)


class EffectAttempt(models.Model):
    """One try of an effect that did not simply succeed: what the outside answered, or why there is no answer.

    A success has no row of its own: the effect's row holds its reference and time.
    """

    class Outcome(models.TextChoices):
        #: Surely not done; tried again.
        NOT_DONE = "not done", "not done"
        #: Surely not done; not tried again.
        FAILED = "failed", "failed"
        #: Perhaps done; sent again with the same key, or asked for.
        DOUBTFUL = "doubtful", "doubtful"
        #: Perhaps done; only a person can settle it.
        UNKNOWN = "unknown", "unknown"
        #: Done, but the answer came after the effect had been settled or taken by another process.
        DONE_LATE = "done late", "done late"

    effect = models.ForeignKey(Effect, on_delete=models.CASCADE, related_name="failed_attempts")
    #: That of the process which tried it: one row for each time the effect was taken.
    token = models.UUIDField()
    number = models.PositiveIntegerField()
    outcome = models.CharField(max_length=10, choices=Outcome.choices)
    finished_at = MomentField(db_default=Now())
    error = models.TextField(blank=True)

    objects = PrimaryQuerySet["EffectAttempt"].as_manager()

    class Meta:
        base_manager_name = "objects"
        verbose_name = "effect attempt"
        ordering = ["id"]
        constraints = [models.UniqueConstraint(fields=["effect", "token"], name="effect_attempt_once")]

    def __str__(self) -> str:
        return f"attempt {self.number}: {self.outcome}"


class OperatorAction(models.Model):
    """What a person did to messages: the audit log. Only ever added to."""

    at = MomentField(db_default=Now())
    #: Name of the user, or of the account that ran a command.
    actor = models.CharField(max_length=255)
    #: What was done; see operations/audit.py.
    action = models.CharField(max_length=20)
    #: To what, as it was asked for.
    about = models.TextField(blank=True)
    #: How many rows it changed.
    changed = models.PositiveIntegerField(default=0)
    details = models.JSONField(default=dict, blank=True)

    objects = PrimaryQuerySet["OperatorAction"].as_manager()

    class Meta:
        base_manager_name = "objects"
        ordering = ["-id"]
        indexes = [models.Index(fields=["at"], name="operator_action_at")]

    def __str__(self) -> str:
        return f"{self.action} by {self.actor}"


class ActionOnMessage(models.Model):
    """A message that an operator's action changed or showed, so that its story can tell of it."""

    action = models.ForeignKey(OperatorAction, on_delete=models.CASCADE, related_name="messages")
    message_id = models.CharField(max_length=MAX_ID_LENGTH)

    objects = PrimaryQuerySet["ActionOnMessage"].as_manager()

    class Meta:
        base_manager_name = "objects"
        indexes = [models.Index(fields=["message_id"], name="action_message_id")]

    def __str__(self) -> str:
        return f"{self.action} of {self.message_id}"


class QueueSighting(models.Model):
    """What reconciling knows of a queue: what was published before it was empty, and left no inbox row, is lost."""

    queue = models.CharField(max_length=255, unique=True)
    #: It was empty then, and that is long enough ago to tell what is lost.
    empty_at = MomentField(null=True, blank=True)
    #: Later times at which it was empty (ISO 8601, oldest first), which are not yet that long ago.
    young = models.JSONField(default=list, blank=True)
    #: All that was published before then has arrived, or was sent again.
    checked_until = MomentField(null=True, blank=True)

    objects = PrimaryQuerySet["QueueSighting"].as_manager()

    class Meta:
        base_manager_name = "objects"

    def __str__(self) -> str:
        return f"{self.queue}, empty at {self.empty_at}"
