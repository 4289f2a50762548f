"""What happened to messages, for people to read. Nobody changes a message here."""

from messaging.admin.inbox import InboxMessageAdmin
from messaging.admin.outbox import OutboxMessageAdmin

__all__ = ["InboxMessageAdmin", "OutboxMessageAdmin"]
