"""What has happened to an order, and what is still to come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property
from typing import Any

from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import pgettext

from messaging.events import Event
from messaging.models import Effect, InboxMessage, OutboxMessage
from orders import sms
from orders.events import OrderCancelled, OrderPlaced, OrderShipped
from orders.models import Order, RedPacket, TextMessage
from orders.money import written
from orders.text import listed

#: After this long the page says that something is late.
DELAYED_AFTER = timedelta(seconds=30)
#: After this long the page stops asking by itself.
GIVE_UP_AFTER = timedelta(hours=1)


class State(StrEnum):
    DONE = "done"
    WAITING = "waiting"
    DELAYED = "delayed"
    #: Given up: it will not happen by itself.
    FAILED = "failed"
    #: It may have happened or not: a person has to find out.
    UNKNOWN = "unknown"

    @property
    def in_words(self) -> str:
        """The state as a screen reader says it."""
        return {
            State.DONE: pgettext("state of a step", "done"),
            State.WAITING: pgettext("state of a step", "waiting"),
            State.DELAYED: pgettext("state of a step", "delayed"),
            State.FAILED: pgettext("state of a step", "failed"),
            State.UNKNOWN: pgettext("state of a step", "unknown"),
        }[self]


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
        """Whether no step will change by itself."""
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
        """Changes with what the timeline shows: a page that shows it already needs no update."""
        return "-".join(step.state.value for step in self.steps)

    @property
    def summary(self) -> str:
        """One sentence, for screen readers and for the top of the page."""
        if self.finished:
            return self._not_charged if self.order.is_cancelled else _("Everything is done.")
        safe = self._not_charged if self.order.is_cancelled else _("Your order is safe.")
        if self.is_delayed:
            return _sentences(safe, _("Something takes longer than usual. We keep trying."))
        if self.is_settled:
            return _sentences(safe, self._missing)
        placed = self._not_charged if self.order.is_cancelled else _("Your order is placed.")
        return _sentences(placed, _("The rest is on its way."))

    @property
    def _not_charged(self) -> str:
        total = written(self.order.total, self.order.currency)
        return _("This order is cancelled. You will not be charged %(total)s.") % {"total": total}

    @property
    def _missing(self) -> str:
        if any(step.name == "red_packet" and step.state is State.FAILED for step in self.steps):
            return _("We have to look after something by hand.")
        return _("A text message about it may not have reached you.")

    def as_json(self) -> dict[str, Any]:
        """Return the timeline as `timeline.json` serves it."""
        return {
            "number": self.order.number,
            "status": self.order.status,
            "finished": self.finished,
            "events": [
                {**asdict(step), "state": step.state.value, "at": step.at.isoformat() if step.at else None}
                for step in self.steps
            ],
        }


def timeline_of(order: Order) -> Timeline:
    """Read the timeline of an order."""
    return Timeline(order=order, steps=tuple(_steps(order)))


def _steps(order: Order) -> Iterator[Step]:
    texts = {text.kind: text for text in order.text_messages.all()}
    given_up = _GivenUp(order)
    effects = sms.effects_of(texts.values())

    def text(name: str, title: str, kind: TextMessage.Kind, event: type[Event], since: datetime) -> Step:
        if kind in texts:
            return _text(name, title, texts[kind], effects.get(texts[kind].message_id), since)
        return _pending(name, title, since=since, given_up=given_up.has("sms", event))

    documents = listed(document.number for document in order.documents.all())
    yield Step(name="placed", title=_("Order placed"), state=State.DONE, at=order.placed_at)
    yield Step(name="documents", title=_("Documents created"), state=State.DONE, at=order.placed_at, detail=documents)
    yield _red_packet(order, given_up)
    yield text("text_message", _("Text message"), TextMessage.Kind.PLACED, OrderPlaced, order.placed_at)
    if at := order.cancelled_at:
        yield Step(name="cancelled", title=_("Order cancelled"), state=State.DONE, at=at)
        title = _("Text message about the cancellation")
        yield text("text_message_cancelled", title, TextMessage.Kind.CANCELLED, OrderCancelled, at)
    if at := order.shipped_at:
        yield Step(name="shipped", title=_("Order shipped"), state=State.DONE, at=at)
        title = _("Text message about the shipping")
        yield text("text_message_shipped", title, TextMessage.Kind.SHIPPED, OrderShipped, at)


class _GivenUp:
    """The events of an order that a consumer will not handle by itself: their message is dead, refused or cancelled.

    Read only if a step is not done.
    """

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
        return bool({(consumer, event.event_type), ("", event.event_type)} & self._pairs)


def _red_packet(order: Order, given_up: _GivenUp) -> Step:
    name, title = "red_packet", _("Red packet")
    packet = RedPacket.objects.filter(order=order).first()
    if packet is None and order.red_packet_settled_at is None:
        return _pending(name, title, since=order.placed_at, given_up=given_up.has(name, OrderPlaced))
    at = packet.granted_at if packet else order.red_packet_settled_at
    if packet is None:
        detail = _("None this time")
    elif packet.voided_at:
        detail = _("Withdrawn with the order")
    else:
        amount = written(packet.amount, order.currency)
        detail = _("%(amount)s, code %(code)s") % {"amount": amount, "code": packet.code}
    return Step(name=name, title=title, state=State.DONE, at=at, detail=detail)


def _text(name: str, title: str, text: TextMessage, effect: Effect | None, since: datetime) -> Step:
    phone = text.masked_phone
    if effect is None or effect.state == Effect.State.DONE:
        at = effect.changed_at if effect else text.created_at
        return Step(name=name, title=title, state=State.DONE, at=at, detail=_("Sent to %(phone)s") % {"phone": phone})
    if effect.state == Effect.State.FAILED:
        detail = _("It could not be sent to %(phone)s. Your order is safe.") % {"phone": phone}
        return Step(name=name, title=title, state=State.FAILED, detail=detail)
    if effect.state == Effect.State.UNKNOWN:
        detail = _("We cannot tell whether it reached %(phone)s. Your order is safe.") % {"phone": phone}
        return Step(name=name, title=title, state=State.UNKNOWN, detail=detail)
    return _pending(name, title, since=since)


def _pending(name: str, title: str, *, since: datetime, given_up: bool = False) -> Step:
    if given_up:
        detail = _("It could not be done automatically; a person has to look at it. Your order is safe.")
        return Step(name=name, title=title, state=State.FAILED, detail=detail)
    if timezone.now() - since < DELAYED_AFTER:
        return Step(name=name, title=title, state=State.WAITING, detail=_("On its way"))
    detail = _("Later than usual. We keep trying; your order is safe.")
    return Step(name=name, title=title, state=State.DELAYED, detail=detail)


def _last_change(order: Order) -> datetime:
    return order.shipped_at or order.cancelled_at or order.placed_at


def _sentences(first: str, second: str) -> str:
    return pgettext("two sentences", "%(first)s %(second)s") % {"first": first, "second": second}
