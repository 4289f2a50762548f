"""Text messages: what they say, and the backends that deliver them.

A backend is chosen by `SMS_BACKEND`, a dotted path, like Django's email backends.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod

from django.conf import settings
from django.utils.formats import date_format
from django.utils.module_loading import import_string
from django.utils.timezone import localtime

from orders.models import Order, TextMessage
from orders.money import written


class SmsBackend(ABC):
    """Delivers one text message, already written down as a row in the caller's transaction."""

    @abstractmethod
    def send(self, text: TextMessage) -> None:
        """Deliver `text`. Raises whatever went wrong: the message is then tried again by the retry policy."""


class DatabaseBackend(SmsBackend):
    """Delivers into the database: the row is the text, and the preview page shows it."""

    def send(self, text: TextMessage) -> None:
        return None


class ConsoleBackend(SmsBackend):
    """Prints the text on standard output, for development. A handler that is run again prints again."""

    def send(self, text: TextMessage) -> None:
        sys.stdout.write(f"SMS to {text.phone.as_e164}\n{text.body}\n{'-' * 60}\n")
        sys.stdout.flush()


def get_backend() -> SmsBackend:
    """Return the backend that `SMS_BACKEND` names. Raises ImportError, or TypeError where it is no SmsBackend."""
    backend = import_string(settings.SMS_BACKEND)
    if not (isinstance(backend, type) and issubclass(backend, SmsBackend)):
        raise TypeError(f"{settings.SMS_BACKEND} is not a subclass of orders.sms.SmsBackend")
    return backend()


def send_text(order: Order, kind: TextMessage.Kind, *, message_id: str) -> TextMessage | None:
    """Write the text down and deliver it; None where one of this kind was sent before.

    Call it inside a transaction: the row and what asked for it commit together.
    """
    text, is_new = TextMessage.objects.get_or_create(
        order=order,
        kind=kind,
        defaults={"phone": order.phone, "body": wording(order, kind), "message_id": message_id},
    )
    if not is_new:
        return None
    get_backend().send(text)
    return text


def wording(order: Order, kind: TextMessage.Kind) -> str:
    """Return what to tell the customer. True whatever happened since the event: it reads the order as it is now."""
    total = written(order.total, order.currency)
    if kind == TextMessage.Kind.CANCELLED:
        return f"Warren: your order {order.number} is cancelled. {total} will not be charged."
    if kind == TextMessage.Kind.SHIPPED:
        return f"Warren: your order {order.number} is on its way to you."
    placed = date_format(localtime(order.placed_at), "j M, H:i")
    if order.is_cancelled:
        return f"Warren: your order {order.number} of {placed} was cancelled meanwhile. {total} will not be charged."
    return f"Warren: thank you, {order.customer_name}. We have your order {order.number} of {placed}: {total}."
