"""Delivery: one arrival of a message at a consumer, as a handler sees it."""

from __future__ import annotations

from dataclasses import dataclass

from messaging.message import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One arrival of a message at one consumer.

    `message_id` is the message's own id, or one given on arrival where a foreign publisher sent none: then
    `identified` is False, and two deliveries of it cannot be told from two messages. `attempt` counts from 1.
    """

    consumer: str
    queue: str
    message: Message
    message_id: str
    attempt: int = 1
    identified: bool = True
    redelivered: bool = False
    exchange: str = ""
    routing_key: str = ""

    @property
    def subject(self) -> str:
        """What the message is about: a business key such as an order number."""
        return self.message.subject
