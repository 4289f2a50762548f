"""The shop's system checks, for `manage.py check`."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from babel.core import UnknownLocaleError
from babel.numbers import is_currency
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, router
from django.db.models import Model

from orders import sms
from orders.models import Campaign, Product
from orders.money import is_payable


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


@register(Tags.database)
def check_amounts(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Prices and campaigns must be payable in SHOP_CURRENCY. Runs with `migrate` and `check --database default`."""
    amounts: dict[type[Model], tuple[str, ...]] = {
        Product: ("price",),
        Campaign: ("budget", "min_amount", "max_amount"),
    }
    return [
        Warning(
            f"{len(wrong)} {model._meta.verbose_name_plural} have amounts that cannot be paid in "
            f"{settings.SHOP_CURRENCY}, such as {wrong[0]}.",
            hint="Correct them in the admin. Such a product cannot be ordered, and fractions are never given away.",
            id="orders.W002",
        )
        for model, fields in amounts.items()
        if router.db_for_read(model) in (databases or ()) and (wrong := _not_payable(model, fields))
    ]


def _not_payable(model: type[Model], fields: tuple[str, ...]) -> list[str]:
    try:
        rows = list(model._default_manager.values_list("pk", *fields).order_by("pk"))
    except DatabaseError:
        return []  # not migrated yet
    return [f"number {pk}" for pk, *values in rows if not all(map(is_payable, values))]


@register
def check_text_messages(**kwargs: Any) -> list[CheckMessage]:
    """SMS_BACKEND must name a backend, and the gateway's address and token must be valid if texts go there."""
    try:
        backend = sms.get_backend()
    except (ImportError, TypeError, ImproperlyConfigured) as error:
        return [
            Error(
                f"SMS_BACKEND is {settings.SMS_BACKEND!r}, which cannot be used: {error}",
                hint="Use orders.sms.DatabaseBackend, orders.sms.ConsoleBackend or orders.sms.GatewayBackend.",
                id="orders.E002",
            )
        ]
    if not isinstance(backend, sms.GatewayBackend):
        return []
    hint = "See the section on the SMS gateway in docs/configuration.md."
    problems = [
        Error(f"SMS_GATEWAY_{setting.upper()} {problem}.", hint=hint, id="orders.E003")
        for setting, problem in backend.gateway.problems()
    ]
    if problems or not any(map(_is_unencrypted, (backend.gateway.url, backend.gateway.ask_url))):
        return [*problems]
    text = "Token, numbers and texts travel to the SMS gateway unencrypted."
    return [Warning(text, hint="Use an https:// address.", id="orders.W001")]


def _is_unencrypted(url: str) -> bool:
    address = urlsplit(url)
    return address.scheme == "http" and address.hostname not in {"localhost", "127.0.0.1", "::1"}
