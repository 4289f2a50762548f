"""Delivery: one arrival of a message at a consumer, as a handler sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from messaging import effects
from messaging.effects import Intended
from messaging.message import Message


@dataclass(slots=True)
class Tries:
    """What this process has seen of one delivery, over all its tries to handle it."""

    #: Whether the handler was called in the present try.
    called: bool = False
    #: Whether it has returned: an effect that is intended after that would not be written down.
    returned: bool = False
    #: How often the connection to the database ended after that.
    losses: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One arrival of a message at one consumer.

    `message_id` is what the message is known by here: its own id, with the `app_id` of a foreign publisher in front
    (see `message.identity`), or one given on arrival where such a one sent none: then `identified` is False, and two
    deliveries of it cannot be told from two messages. `attempt` counts from 1.
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
    #: What the handler has intended so far in this try.
    intended: list[Intended] = field(default_factory=list, compare=False)
    #: For the handling alone.
    tries: Tries = field(default_factory=Tries, compare=False, repr=False)

    @property
    def subject(self) -> str:
        """What the message is about: a business key such as an order number."""
        return self.message.subject

    def effect(self, name: str, payload: dict[str, Any] | None = None) -> None:
        """Intend something outside the database: the effect `name`, with a JSON `payload`.

        It is written down in the handler's transaction and carried out after its commit, before the message is
        acknowledged; if the handler fails, nothing was intended. One of each name for one message.

        Raises RuntimeError once the handler has returned (in a callback of `on_commit`, or a thread of its own),
        UnknownEffect, and ValueError for a second one of that name, and a payload that is no JSON object, that a
        database does not store, or that would be read as another (keys that are numbers).
        """
        if self.tries.returned:
            raise RuntimeError(
                f"the effect {name!r} was intended after the handler had returned, so it will not be carried out: "
                "intend it in the handler itself"
            )
        self.intended.append(effects.intended(name, {} if payload is None else payload, beside=self.intended))
