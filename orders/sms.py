"""Text messages: what they say, and the backends that deliver them.

A backend is chosen by `SMS_BACKEND`, a dotted path, like Django's email backends.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable

from django.conf import settings
from django.utils import translation
from django.utils.module_loading import import_string
from django.utils.translation import gettext as _

from messaging.effects import Sending
from messaging.message import Delivery
from messaging.models import Effect
from messaging.validation.functions import check_runs
from orders.models import Order, TextMessage
from orders.money import written
from orders.times import minute_this_year

#: Name of the effect by which a text leaves the database; see orders/effects.py.
EFFECT = "text_message"
#: Who signs the texts.
BRAND = "Warren"
#: Country code of phone numbers in mainland China.
_MAINLAND = 86


class SmsBackend(ABC):
    """Delivers text messages. Each is a row already, committed with its event's handling."""

    #: False: the row is the text, and `send` is never called.
    is_outside = True

    @property
    def honours_keys(self) -> bool:
        """Whether a text that is sent twice with the same key reaches its phone once."""
        return False

    @abstractmethod
    def send(self, sending: Sending) -> str | None:
        """Deliver the text in `sending.payload`: "to" and "text". Return values and errors are those of effects."""

    def ask(self, sending: Sending) -> str | None:
        """Return the outside's id of the text if it was sent before, None if it surely was not."""
        raise NotImplementedError(f"{type(self).__name__} cannot be asked")


class DatabaseBackend(SmsBackend):
    """Delivers nothing: the row is the text, and the preview page shows it."""

    is_outside = False

    def send(self, sending: Sending) -> str | None:
        return None


class ConsoleBackend(SmsBackend):
    """Prints the text on standard output, for development."""

    def send(self, sending: Sending) -> str | None:
        sys.stdout.write(f"SMS to {sending.payload['to']}\n{sending.payload['text']}\n{'-' * 60}\n")
        sys.stdout.flush()
        return None


class GatewayBackend(SmsBackend):
    """Posts the text to the gateway of the settings SMS_GATEWAY_…."""

    def __init__(self) -> None:
        from orders.sms_gateway import SmsGateway  # only processes that send texts need it

        self.gateway = SmsGateway(
            url=settings.SMS_GATEWAY_URL,
            token=settings.SMS_GATEWAY_TOKEN,
            key_header=settings.SMS_GATEWAY_KEY_HEADER,
            honours_keys=settings.SMS_GATEWAY_HONOURS_KEYS,
            ask_url=settings.SMS_GATEWAY_ASK_URL,
        )

    @property
    def honours_keys(self) -> bool:
        return self.gateway.honours_keys

    def send(self, sending: Sending) -> str | None:
        to, text = sending.payload["to"], sending.payload["text"]
        return self.gateway.send(to, text, key=sending.key, timeout=sending.timeout)

    def ask(self, sending: Sending) -> str | None:
        return self.gateway.ask(sending.key, timeout=sending.timeout)


def get_backend() -> SmsBackend:
    """Return the backend that `SMS_BACKEND` names. Raises ImportError, TypeError if it is no SmsBackend, and
    ImproperlyConfigured if its methods are async."""
    backend = import_string(settings.SMS_BACKEND)
    if not (isinstance(backend, type) and issubclass(backend, SmsBackend)):
        raise TypeError(f"{settings.SMS_BACKEND} is not a subclass of orders.sms.SmsBackend")
    for method in (backend.send, backend.ask):
        check_runs(method, f"{settings.SMS_BACKEND}.{method.__name__}")
    return backend()


def send_text(order: Order, kind: TextMessage.Kind, delivery: Delivery) -> TextMessage | None:
    """Create the text's row, and intend the effect that sends it. Return None if there is a text of this kind already.

    To be called in a handler: the rows of text, effect and inbox commit together. The backend is called after that.
    """
    text, is_new = TextMessage.objects.get_or_create(
        order=order,
        kind=kind,
        defaults={"phone": order.phone, "body": wording(order, kind), "message_id": delivery.message_id},
    )
    if not is_new:
        return None
    if get_backend().is_outside:
        delivery.effect(EFFECT, {"to": text.phone.as_e164, "text": text.body})
    return text


def effects_of(texts: Iterable[TextMessage]) -> dict[str, Effect]:
    """Return, by message id, the effects of those texts that leave the database."""
    ids = [text.message_id for text in texts]
    return (
        {effect.message_id: effect for effect in Effect.objects.filter(name=EFFECT, message_id__in=ids)} if ids else {}
    )


def wording(order: Order, kind: TextMessage.Kind) -> str:
    """Return the text for the customer, signed and in the order's language. It is true at this moment: it reads the
    order as it is now."""
    with translation.override(order.language):
        return f"{_signature(order)}{_words(order, kind)}"


def _signature(order: Order) -> str:
    """Return the sender, in the brackets that carriers in mainland China demand and readers of Chinese expect."""
    is_chinese = order.language.startswith("zh")
    return f"【{BRAND}】" if is_chinese or order.phone.country_code == _MAINLAND else f"{BRAND}: "


def _words(order: Order, kind: TextMessage.Kind) -> str:
    # No customer's name: whatever a visitor typed must not go to a number that the visitor typed.
    facts = {
        "number": order.number,
        "total": written(order.total, order.currency),
        "placed": minute_this_year(order.placed_at),
    }
    if kind == TextMessage.Kind.CANCELLED:
        return _("Your order %(number)s is cancelled. %(total)s will not be charged.") % facts
    if kind == TextMessage.Kind.SHIPPED:
        return _("Your order %(number)s is on its way to you.") % facts
    if order.is_cancelled:
        return _("Your order %(number)s of %(placed)s was cancelled meanwhile. %(total)s will not be charged.") % facts
    return _("Thank you. We have your order %(number)s of %(placed)s: %(total)s.") % facts
