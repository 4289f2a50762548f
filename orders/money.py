"""Amounts: Decimal inside, formatted by Babel at the edge."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

from babel.numbers import format_currency, get_currency_precision
from django.conf import settings
from django.utils.translation import get_language, to_locale

#: No column holds more than two decimals, whatever the currency would allow.
_MOST_DECIMALS = 2


def smallest_unit(currency: str | None = None) -> Decimal:
    """Return the smallest amount that can be paid: 0.01 for CNY, 1 for JPY."""
    decimals = min(get_currency_precision(currency or settings.SHOP_CURRENCY), _MOST_DECIMALS)
    return Decimal(1).scaleb(-decimals)


def rounded(amount: Decimal, currency: str | None = None) -> Decimal:
    """Return `amount` in whole smallest units, halves away from zero."""
    return amount.quantize(smallest_unit(currency), ROUND_HALF_UP)


def written(amount: Decimal, currency: str | None = None) -> str:
    """Return `amount` as the reader's language writes it, such as CN¥12.50."""
    locale = to_locale(get_language() or settings.LANGUAGE_CODE)
    return format_currency(amount, currency or settings.SHOP_CURRENCY, locale=locale)
