"""What `manage.py check` finds in the shop's settings."""

from typing import Any
from urllib.parse import urlsplit

from babel.core import UnknownLocaleError
from babel.numbers import is_currency
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

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
                hint="Use orders.sms.DatabaseBackend, orders.sms.ConsoleBackend or orders.sms.GatewayBackend.",
                id="orders.E002",
            )
        ]
    return []


@register
def check_sms_gateway(**kwargs: Any) -> list[CheckMessage]:
    """Where texts go to a gateway, its address and token must be there and make sense."""
    try:
        backend = sms.get_backend()
    except (ImportError, TypeError):
        return []  # said above
    if not isinstance(backend, sms.GatewayBackend):
        return []
    found: list[CheckMessage] = [
        Error(
            f"SMS_GATEWAY_{which.upper()} {what}.",
            hint="See the section on the SMS gateway in docs/configuration.md.",
            id="orders.E003",
        )
        for which, what in backend.gateway.problems()
    ]
    return found or _check_secrecy(backend.gateway.url, backend.gateway.ask_url)


def _check_secrecy(*urls: str) -> list[CheckMessage]:
    for url in urls:
        address = urlsplit(url)
        if address.scheme == "http" and address.hostname not in {"localhost", "127.0.0.1", "::1"}:
            return [
                Warning(
                    "Token, numbers and texts travel to the SMS gateway unencrypted.",
                    hint="Use an https:// address.",
                    id="orders.W001",
                )
            ]
    return []
