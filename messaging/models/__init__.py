"""The rows: what was written, what was received, each attempt. They are the message log."""

from messaging.models.counts import MinuteCount
from messaging.models.effects import Effect, EffectAttempt
from messaging.models.inbox import DeliveryAttempt, InboxMessage
from messaging.models.operations import ActionOnMessage, EmptyQueue, OperatorAction
from messaging.models.outbox import OutboxMessage

__all__ = [
    "ActionOnMessage",
    "DeliveryAttempt",
    "Effect",
    "EffectAttempt",
    "EmptyQueue",
    "InboxMessage",
    "MinuteCount",
    "OperatorAction",
    "OutboxMessage",
]
