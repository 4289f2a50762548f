"""The ledger of effects: what happens outside the database because of a message, and each attempt that failed."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from messaging.message import MAX_ID_LENGTH
from messaging.models.columns import Row, UTCDateTimeField
from messaging.models.inbox import InboxMessage


class Effect(Row):
    """Something outside the database that follows from a message: a text, a payment. Its row is the ledger."""

    class State(models.TextChoices):
        #: Committed with the handler's work, and not begun; or surely not done, and to be tried again.
        INTENDED = "intended", "intended"
        #: A process carries it out until `sending_until`; after that it is in doubt.
        SENDING = "sending", "sending"
        DONE = "done", "done"
        #: Surely not done, and not tried again.
        FAILED = "failed", "failed"
        #: It may have been done. It is never sent again blindly: a person settles it.
        UNKNOWN = "unknown", "unknown"

    #: The worker still works on it.
    OPEN = (State.INTENDED, State.SENDING)
    #: An attempt failed, and another follows.
    FAILING = Q(state__in=OPEN) & (~Q(error="") | Q(attempts__gt=1))
    #: Only a person can settle it.
    FOR_A_PERSON = Q(state=State.UNKNOWN) | Q(state=State.FAILED, given_up=False)

    inbox_message = models.ForeignKey(InboxMessage, on_delete=models.CASCADE, related_name="effects")
    #: As in the inbox row.
    consumer = models.CharField(max_length=255)
    message_id = models.CharField(max_length=MAX_ID_LENGTH)
    name = models.CharField(max_length=100)
    payload = models.JSONField(default=dict)

    state = models.CharField(max_length=10, choices=State.choices, default=State.INTENDED)
    attempts = models.PositiveIntegerField(default=0)
    intended_at = UTCDateTimeField(db_default=Now())
    changed_at = UTCDateTimeField(db_default=Now())
    #: Not before this time.
    send_at = UTCDateTimeField(db_default=Now())
    #: The process that carries it out, and until when. Its result counts only while the row has its token.
    token = models.UUIDField(null=True, blank=True)
    sending_until = UTCDateTimeField(null=True, blank=True)
    #: The gateway's reference, once it is done.
    reference = models.CharField(max_length=255, blank=True)
    #: Why the last attempt failed, or the person who settled it.
    error = models.TextField(blank=True)
    #: Shared by failures of the same consumer, name and kind of error. Empty while nothing failed.
    failure_group = models.CharField(max_length=16, blank=True, default="", db_default="")
    #: It failed, and a person gave it up.
    given_up = models.BooleanField(default=False, db_default=False)

    class Meta(Row.Meta):
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["inbox_message", "name"], name="effect_once")]
        indexes = [
            models.Index(fields=["consumer", "send_at"], name="effect_intended", condition=Q(state="intended")),
            models.Index(fields=["consumer", "sending_until"], name="effect_sending", condition=Q(state="sending")),
            models.Index(fields=["state", "changed_at"], name="effect_state_changed"),
            models.Index(fields=["message_id"], name="effect_message_id"),
            models.Index(fields=["failure_group"], name="effect_failure_group", condition=~Q(failure_group="")),
        ]
        permissions = [("settle_effect", "Can record the outcome of an effect whose result is unknown")]

    def __str__(self) -> str:
        return f"{self.name}: {self.state}"

    @property
    def key(self) -> str:
        """The same at every attempt, and no other effect has it: a gateway recognises repetitions by it."""
        return f"{self.message_id}:{self.consumer}:{self.name}"

    @property
    def is_failing(self) -> bool:
        """Whether an attempt failed and another follows: FAILING for one row."""
        return self.state in self.OPEN and (bool(self.error) or self.attempts > 1)


class EffectAttempt(Row):
    """One attempt at an effect that did not simply succeed: what the gateway answered, or why there is no answer.

    A success has no row of its own: the effect's row holds its reference and time.
    """

    class Outcome(models.TextChoices):
        #: Surely not done; tried again.
        NOT_DONE = "not done", "not done"
        #: Surely not done; not tried again.
        FAILED = "failed", "failed"
        #: Perhaps done; sent again with the same key, or the gateway is asked.
        DOUBTFUL = "doubtful", "doubtful"
        #: Perhaps done; only a person can settle it.
        UNKNOWN = "unknown", "unknown"
        #: Done, but the answer came after the effect was settled or another process had it.
        DONE_LATE = "done late", "done late"

    effect = models.ForeignKey(Effect, on_delete=models.CASCADE, related_name="failed_attempts")
    #: The token of the process that tried it: one row for each time the effect was claimed.
    token = models.UUIDField()
    number = models.PositiveIntegerField()
    outcome = models.CharField(max_length=10, choices=Outcome.choices)
    finished_at = UTCDateTimeField(db_default=Now())
    error = models.TextField(blank=True)

    class Meta(Row.Meta):
        verbose_name = "effect attempt"
        ordering = ["id"]
        constraints = [models.UniqueConstraint(fields=["effect", "token"], name="effect_attempt_once")]

    def __str__(self) -> str:
        return f"attempt {self.number}: {self.outcome}"
