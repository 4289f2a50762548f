"""What has happened to an order and what is still to come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property
from typing import Any

from django.db.models import Q
from django.utils import timezone

from messaging.events import Event
from messaging.models import Effect, InboxMessage, OutboxMessage
from orders import sms
from orders.events import OrderCancelled, OrderPlaced, OrderShipped
from orders.models import Order, RedPacket, TextMessage
from orders.money import written

#: After this long the page says that something is late.
DELAYED_AFTER = timedelta(seconds=30)
#: After this long the page stops asking by itself.
GIVE_UP_AFTER = timedelta(hours=1)


class State(StrEnum):
    DONE = "done"
    WAITING = "waiting"
    DELAYED = "delayed"
    #: Given up: nothing more comes of it by itself.
    FAILED = "failed"
    #: It may have happened or not. Somebody who can find out has to look.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One line of the timeline. `at` is when it was done."""

    name: str
    title: str
    state: State
    at: datetime | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The steps of an order, oldest first."""

    order: Order
    steps: tuple[Step, ...]

    @property
    def finished(self) -> bool:
        """Whether every step, so far, is done."""
        return all(step.state is State.DONE for step in self.steps)

    @property
    def is_settled(self) -> bool:
        """Whether nothing more comes by itself."""
        return all(step.state in {State.DONE, State.FAILED, State.UNKNOWN} for step in self.steps)

    @property
    def is_delayed(self) -> bool:
        return any(step.state is State.DELAYED for step in self.steps)

    @property
    def keeps_refreshing(self) -> bool:
        """Whether a page should ask again by itself."""
        return not self.is_settled and timezone.now() - _last_change(self.order) < GIVE_UP_AFTER

    @property
    def fingerprint(self) -> str:
        """Changes with what the timeline shows: a page that has seen it needs nothing new."""
        return "-".join(step.state.value for step in self.steps)

    @property
    def summary(self) -> str:
        """One sentence for who listens rather than looks."""
        if self.finished and self.order.is_cancelled:
            return f"This order is cancelled. You will not be charged {self._total}."
        if self.finished:
            return "Everything is done."
        if self.is_delayed:
            return f"{self._safe} Something takes longer than usual. We keep trying."
        if self.is_settled:
            return f"{self._safe} {self._missing}"
        if self.order.is_cancelled:
            return f"This order is cancelled. You will not be charged {self._total}. The rest is on its way."
        return "Your order is placed. The rest is on its way."

    @property
    def _total(self) -> str:
        return written(self.order.total, self.order.currency)

    @property
    def _safe(self) -> str:
        if self.order.is_cancelled:
            return f"This order is cancelled. You will not be charged {self._total}."
        return "Your order is safe."

    @property
    def _missing(self) -> str:
        """What did not come, or may not have."""
        if any(step.name == "red_packet" and step.state is State.FAILED for step in self.steps):
            return "We have to look after something by hand."
        return "A text message about it may not have reached you."

    def as_json(self) -> dict[str, Any]:
        """Return the timeline as `timeline.json` serves it."""
        return {
            "number": self.order.number,
            "status": self.order.status,
            "finished": self.finished,
            "events": [
                {
                    "name": step.name,
                    "title": step.title,
                    "state": step.state.value,
                    "at": step.at.isoformat() if step.at else None,
                    "detail": step.detail,
                }
                for step in self.steps
            ],
        }


def timeline_of(order: Order) -> Timeline:
    """Read the timeline of an order."""
    return Timeline(order=order, steps=tuple(_steps(order)))


def _steps(order: Order) -> Iterator[Step]:
    texts = {text.kind: text for text in order.text_messages.all()}
    ended = _Ended(order)
    effects = sms.effects_of(texts.values())
    documents = ", ".join(document.number for document in order.documents.all())
    yield Step(name="placed", title="Order placed", state=State.DONE, at=order.placed_at)
    yield Step(name="documents", title="Documents created", state=State.DONE, at=order.placed_at, detail=documents)
    yield _red_packet(order, ended)
    yield _text(
        "text_message",
        "Text message",
        texts.get(TextMessage.Kind.PLACED),
        effects,
        since=order.placed_at,
        ended=lambda: ended.has("sms", OrderPlaced),
    )
    if order.cancelled_at:
        yield Step(name="cancelled", title="Order cancelled", state=State.DONE, at=order.cancelled_at)
        yield _text(
            "text_message_cancelled",
            "Text message about the cancellation",
            texts.get(TextMessage.Kind.CANCELLED),
            effects,
            since=order.cancelled_at,
            ended=lambda: ended.has("sms", OrderCancelled),
        )
    if order.shipped_at:
        yield Step(name="shipped", title="Order shipped", state=State.DONE, at=order.shipped_at)
        yield _text(
            "text_message_shipped",
            "Text message about the shipping",
            texts.get(TextMessage.Kind.SHIPPED),
            effects,
            since=order.shipped_at,
            ended=lambda: ended.has("sms", OrderShipped),
        )


class _Ended:
    """Which steps nothing more comes of by itself, because their message is dead, refused or cancelled. Asked for only
    where a step is not done."""

    def __init__(self, order: Order) -> None:
        self._order = order

    @cached_property
    def _pairs(self) -> set[tuple[str, str]]:
        """Consumer (or "" for all) and type of event."""
        dead = InboxMessage.objects.filter(
            subject=self._order.number, state__in=[InboxMessage.State.DEAD, InboxMessage.State.DISCARDED]
        )
        # A cancelled retry or replay has left its message dead.
        stopped = OutboxMessage.objects.filter(
            Q(state=OutboxMessage.State.FAILED) | Q(state=OutboxMessage.State.CANCELLED, consumer=""),
            subject=self._order.number,
        )
        return {*dead.values_list("consumer", "type"), *stopped.values_list("consumer", "type")}

    def has(self, consumer: str, event: type[Event]) -> bool:
        """Whether the consumer will not handle the order's event by itself."""
        return bool({(consumer, event.event_type), ("", event.event_type)} & self._pairs)


def _red_packet(order: Order, ended: _Ended) -> Step:
    packet = RedPacket.objects.filter(order=order).first()
    if packet and packet.voided_at:
        detail = "Withdrawn with the order"
    elif packet:
        detail = f"{written(packet.amount, order.currency)}, code {packet.code}"
    elif order.red_packet_settled_at:
        detail = "None this time"
    else:
        return _pending("red_packet", "Red packet", since=order.placed_at, ended=ended.has("red_packet", OrderPlaced))
    at = packet.granted_at if packet else order.red_packet_settled_at
    return Step(name="red_packet", title="Red packet", state=State.DONE, at=at, detail=detail)


def _text(
    name: str,
    title: str,
    text: TextMessage | None,
    effects: Mapping[str, Effect],
    *,
    since: datetime,
    ended: Callable[[], bool],
) -> Step:
    if text is None:
        return _pending(name, title, since=since, ended=ended())
    effect = effects.get(text.message_id)
    if effect is None:
        return _sent(name, title, text, at=text.created_at)
    match effect.state:
        case Effect.State.DONE:
            return _sent(name, title, text, at=effect.changed_at)
        case Effect.State.FAILED:
            detail = f"It could not be sent to {text.masked_phone}. Your order is safe."
            return Step(name=name, title=title, state=State.FAILED, detail=detail)
        case Effect.State.UNKNOWN:
            detail = f"We cannot tell whether it reached {text.masked_phone}. Your order is safe."
            return Step(name=name, title=title, state=State.UNKNOWN, detail=detail)
        case _:
            return _pending(name, title, since=since)


def _sent(name: str, title: str, text: TextMessage, *, at: datetime) -> Step:
    return Step(name=name, title=title, state=State.DONE, at=at, detail=f"Sent to {text.masked_phone}")


def _pending(name: str, title: str, *, since: datetime, ended: bool = False) -> Step:
    if ended:
        detail = "It could not be done automatically; a person has to look at it. Your order is safe."
        return Step(name=name, title=title, state=State.FAILED, detail=detail)
    if timezone.now() - since < DELAYED_AFTER:
        return Step(name=name, title=title, state=State.WAITING, detail="On its way")
    detail = "Later than usual. We keep trying; your order is safe."
    return Step(name=name, title=title, state=State.DELAYED, detail=detail)


def _last_change(order: Order) -> datetime:
    return order.shipped_at or order.cancelled_at or order.placed_at
