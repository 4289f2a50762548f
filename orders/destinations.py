"""The countries and regions that the shop sends to."""

from __future__ import annotations

from orders import languages

#: The destination until the visitor chooses one.
DEFAULT = "CN"

CODES = ("CN", "HK", "MO", "TW", "SG", "JP", "KR", "US", "CA", "GB", "IE", "FR", "DE", "NL", "ES", "IT", "AU", "NZ")


def name_of(code: str) -> str:
    """Return the name of the country or region in the reader's language."""
    return str(languages.locale().territories.get(code, code))


def choices() -> list[tuple[str, str]]:
    """Return (code, name) of each destination, the nearest first."""
    return [(code, name_of(code)) for code in CODES]
