"""What `manage.py check` finds in the shop's settings."""

from typing import Any

from babel.core import UnknownLocaleError
from babel.numbers import is_currency
from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from orders import sms


@register
def check_currency(**kwargs: Any) -> list[CheckMessage]:
    """SHOP_CURRENCY must be an ISO 4217 code that Babel knows."""
    try:
        known = is_currency(settings.SHOP_CURRENCY)
    except UnknownLocaleError:
        known = False
    if known:
        return []
    return [
        Error(
            f"SHOP_CURRENCY is {settings.SHOP_CURRENCY!r}, which is no currency.",
            hint="Use an ISO 4217 code such as CNY or EUR.",
            id="orders.E001",
        )
    ]


@register
def check_sms_backend(**kwargs: Any) -> list[CheckMessage]:
    """SMS_BACKEND must name a class that can be imported."""
    try:
        sms.get_backend()
    except (ImportError, TypeError) as error:
        return [
            Error(
                f"SMS_BACKEND is {settings.SMS_BACKEND!r}, which cannot be used: {error}",
                hint="Use orders.sms.DatabaseBackend or orders.sms.ConsoleBackend.",
                id="orders.E002",
            )
        ]
    return []
