"""What happened to messages, for people to read, and what they may do about it."""

from messaging.admin.audit import OperatorActionAdmin
from messaging.admin.effects import EffectAdmin
from messaging.admin.inbox import InboxMessageAdmin
from messaging.admin.outbox import OutboxMessageAdmin

__all__ = ["EffectAdmin", "InboxMessageAdmin", "OperatorActionAdmin", "OutboxMessageAdmin"]
