"""What operators did, and what reconciling knows of queues."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now

from messaging.message import MAX_ID_LENGTH
from messaging.models.columns import Row, UTCDateTimeField


class OperatorAction(Row):
    """What a person did to messages: the audit log. While the action runs its row counts on; then it never changes."""

    at = UTCDateTimeField(db_default=Now())
    #: Name of the user, or of the account that ran a command.
    actor = models.CharField(max_length=255)
    #: What was done; see actions.audited().
    action = models.CharField(max_length=20)
    #: The selection, as it was given.
    about = models.TextField(blank=True)
    #: How many rows it changed.
    changed = models.PositiveIntegerField(default=0)
    details = models.JSONField(default=dict, blank=True)

    class Meta(Row.Meta):
        ordering = ["-id"]
        indexes = [models.Index(fields=["at"], name="operator_action_at")]

    def __str__(self) -> str:
        return f"{self.action} by {self.actor}"


class ActionOnMessage(Row):
    """A message that an operator's action changed or showed, for the message's history."""

    action = models.ForeignKey(OperatorAction, on_delete=models.CASCADE, related_name="messages")
    message_id = models.CharField(max_length=MAX_ID_LENGTH)

    class Meta(Row.Meta):
        indexes = [models.Index(fields=["message_id"], name="action_message_id")]

    def __str__(self) -> str:
        return f"{self.action} of {self.message_id}"


class EmptyQueue(Row):
    """When a queue was seen empty: messages published before, and without an inbox row, are lost."""

    queue = models.CharField(max_length=255, unique=True)
    #: It was empty then, long enough ago to tell what is lost.
    empty_at = UTCDateTimeField(null=True, blank=True)
    #: Later times at which it was empty (ISO 8601, oldest first).
    young = models.JSONField(default=list, blank=True)
    #: Every message published before then has arrived, or was sent again.
    checked_until = UTCDateTimeField(null=True, blank=True)

    class Meta(Row.Meta):
        # Its name before the model had this one: processes of the older code run on while the database is migrated.
        db_table = "messaging_queuesighting"

    def __str__(self) -> str:
        return f"{self.queue}, empty at {self.empty_at}"
