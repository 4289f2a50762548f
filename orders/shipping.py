"""The price of shipping: asked for over RabbitMQ, within a second; a flat rate if no answer comes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from django.conf import settings
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from messaging import rpc
from messaging.exceptions import MessagingError
from messaging.logs import get_logger
from orders.models import Order, QuietService
from orders.money import rounded

log = get_logger(__name__)

#: Seconds that a visitor waits for a quote, at most.
QUOTE_TIMEOUT = 1.0
#: After a quote that did not come, no visitor waits again for this long.
PAUSE_AFTER_SILENCE = timedelta(minutes=1)
#: In the shop's currency, wherever it goes.
FLAT_RATE = Decimal("25.00")

PROCEDURE = "shipping.quote"
# A refusal comes at once: the visitor did not wait, and the next one may ask again.
_PROMPT = (rpc.NoServer, rpc.RemoteError)


class StillQuiet(Exception):
    """The service did not answer a short while ago, and is not asked now."""


class Answer(BaseModel):
    """What `shipping.quote` replies; anything else counts as no answer."""

    model_config = ConfigDict(frozen=True)

    amount: Decimal = Field(ge=0, le=100_000)
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippingQuote:
    """A price for shipping, in the shop's currency, and where it comes from."""

    amount: Decimal
    source: str

    @property
    def is_flat_rate(self) -> bool:
        return self.source == Order.ShippingSource.FLAT_RATE


def flat_rate() -> ShippingQuote:
    """Return the price of shipping without the shipping service."""
    return ShippingQuote(amount=rounded(FLAT_RATE), source=Order.ShippingSource.FLAT_RATE)


def get_quote(*, weight_grams: int, destination: str) -> ShippingQuote:
    """Return the quote of the shipping service, or the flat rate. Takes QUOTE_TIMEOUT at most, and never fails.

    Never call it while placing an order: that must not wait for the broker.
    """
    try:
        reply = _ask({"weight_grams": weight_grams, "destination": destination})
        answer = Answer.model_validate(reply)
        if answer.currency != settings.SHOP_CURRENCY:
            raise ValueError(f"a quote in {answer.currency}")
    except StillQuiet:
        return flat_rate()
    except (MessagingError, ValidationError, ValueError) as error:
        log.warning("shipping_quote_missing", reason=type(error).__name__, error=str(error))
        return flat_rate()
    return ShippingQuote(amount=rounded(answer.amount), source=Order.ShippingSource.QUOTED)


def _ask(payload: dict[str, Any]) -> Any:
    """Call the procedure. If it did not answer before, one visitor tries in each PAUSE_AFTER_SILENCE, and the others,
    in all web processes, do not wait. Raises StillQuiet, MessagingError."""
    was_quiet = QuietService.objects.filter(name=PROCEDURE).exists()
    if was_quiet and not QuietService.objects.may_try(PROCEDURE, PAUSE_AFTER_SILENCE):
        raise StillQuiet
    try:
        reply = rpc.call(PROCEDURE, payload, timeout=QUOTE_TIMEOUT)
    except _PROMPT:
        raise
    except MessagingError:
        QuietService.objects.note(PROCEDURE, PAUSE_AFTER_SILENCE)
        raise
    if was_quiet:
        QuietService.objects.forget(PROCEDURE)
    return reply
