"""The active language: that of the visitor while a page is made, that of the order while its text is written.

The middleware activates the visitor's, and texts override it with the order's.
"""

from __future__ import annotations

from babel import Locale
from django.conf import settings
from django.utils.translation import get_language, to_locale


def current() -> str:
    """Return the code of the active language, such as "zh-hans"."""
    return get_language() or settings.LANGUAGE_CODE


def locale() -> Locale:
    """Return Babel's locale of the active language, for amounts and for names of countries and time zones."""
    return Locale.parse(to_locale(current()))
