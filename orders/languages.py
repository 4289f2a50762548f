"""The language of whoever reads: the visitor of a page, or the customer of the order that a text is about.

Django's active language says which. The middleware activates the visitor's; texts override it with the order's.
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
