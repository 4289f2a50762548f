"""Times as pages and texts write them: in the reader's language, and in the shop's time zone (`TIME_ZONE`).

The formats are messages of the catalogues, in the letters of Django's `date` filter.
"""

from __future__ import annotations

from datetime import datetime

from babel.dates import get_timezone_name
from django.utils.formats import date_format
from django.utils.timezone import localtime
from django.utils.translation import pgettext

from orders import languages


def day(at: datetime) -> str:
    """Return the date, such as 1 Dec 2026."""
    return date_format(localtime(at), pgettext("date format", "j M Y"))


def minute(at: datetime) -> str:
    """Return date and time, such as 1 Dec 2026, 10:13."""
    return date_format(localtime(at), pgettext("date format", "j M Y, H:i"))


def second(at: datetime) -> str:
    """Return date and time to the second."""
    return date_format(localtime(at), pgettext("date format", "j M Y, H:i:s"))


def minute_this_year(at: datetime) -> str:
    """Return date and time without the year, with the zone as an offset: 1 Dec, 10:13 (UTC+8)."""
    written = date_format(localtime(at), pgettext("date format", "j M, H:i"))
    return pgettext("a time and the offset of its zone", "%(time)s (%(offset)s)") % {
        "time": written,
        "offset": _offset(at),
    }


def zone(at: datetime) -> str:
    """Return the name of the shop's time zone, with its offset at that time: China Standard Time (UTC+8)."""
    name, offset = get_timezone_name(localtime(at), width="long", locale=languages.locale()), _offset(at)
    if name.startswith("GMT"):  # Babel has no name for it
        return offset
    return pgettext("a time zone and its offset", "%(zone)s (%(offset)s)") % {"zone": name, "offset": offset}


def _offset(at: datetime) -> str:
    offset = localtime(at).utcoffset()
    minutes = round(offset.total_seconds() / 60) if offset else 0
    hours, rest = divmod(abs(minutes), 60)
    sign = "+" if minutes > 0 else "-"
    return f"UTC{sign}{hours}{f':{rest:02}' if rest else ''}" if minutes else "UTC"
