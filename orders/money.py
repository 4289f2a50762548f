"""Amounts of money: Decimal in the code, formatted by Babel for readers."""

from __future__ import annotations

from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal

from babel.numbers import format_currency, get_currency_precision
from django.conf import settings
from django.core.exceptions import ValidationError

from orders import languages

#: No column holds more than two decimals, whatever the currency would allow.
_MOST_DECIMALS = 2


def smallest_unit(currency: str | None = None) -> Decimal:
    """Return the smallest amount that can be paid: 0.01 for CNY, 1 for JPY."""
    decimals = min(get_currency_precision(currency or settings.SHOP_CURRENCY), _MOST_DECIMALS)
    return Decimal(1).scaleb(-decimals)


def rounded(amount: Decimal, currency: str | None = None) -> Decimal:
    """Return `amount` in whole smallest units, halves away from zero."""
    return amount.quantize(smallest_unit(currency), ROUND_HALF_UP)


def rounded_down(amount: Decimal, currency: str | None = None) -> Decimal:
    """Return the largest amount in whole smallest units that is not above `amount`."""
    return amount.quantize(smallest_unit(currency), ROUND_DOWN)


def is_payable(amount: Decimal, currency: str | None = None) -> bool:
    """Whether `amount` is in whole smallest units: 10.50 can be paid in CNY and not in JPY."""
    return amount % smallest_unit(currency) == 0


def check_payable(amount: Decimal) -> None:
    """Raise ValidationError for an amount that cannot be paid in the shop's currency."""
    if amount.is_finite() and not is_payable(amount):
        unit = smallest_unit()
        raise ValidationError(
            f"The smallest amount of {settings.SHOP_CURRENCY} is {unit}: enter a multiple of it, such as "
            f"{rounded(amount)}.",
            code="not_payable",
        )


def written(amount: Decimal, currency: str | None = None) -> str:
    """Return `amount` as the reader's language writes it: CN¥12.50 in English, ¥12.50 in Simplified Chinese.

    An amount that cannot be paid keeps all its decimals, so that sums of such amounts add up.
    """
    currency = currency or settings.SHOP_CURRENCY
    return format_currency(
        amount, currency, locale=languages.locale(), decimal_quantization=is_payable(amount, currency)
    )
