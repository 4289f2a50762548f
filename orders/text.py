"""Text: checks of what people type (no invisible characters, no links), and lists in words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import pgettext

#: Joiners that Persian and Indic names are written with.
_ALLOWED_FORMAT_CHARACTERS = "\u200c\u200d"
#: Text that phones turn into a link: a scheme, www., a host with or without a path. "M.Smith" and "St.John" are names.
_LINK = re.compile(r"://|\b[Ww]{3}\.|\w\.\w{2,}/|\w{3,}\.[a-z]{2,}")

#: What browsers take for the dot of a host name: https://www.rfc-editor.org/rfc/rfc3490#section-3.1
_OTHER_DOTS = str.maketrans("\u3002\uff0e\uff61", "...")


def normalized(text: str) -> str:
    """Return `text` with full-width letters and digits as plain ones, and single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def listed(items: Iterable[object]) -> str:
    """Return the items with the comma of the reader's language between them."""
    return pgettext("between the items of a list", ", ").join(str(item) for item in items)


def check_no_link(text: str) -> None:
    """Raise ValidationError if `text` contains a link."""
    if _LINK.search(unicodedata.normalize("NFKC", text).translate(_OTHER_DOTS)):
        raise ValidationError(_("Enter a name without a web address."))


def check_printable(text: str) -> None:
    """Raise ValidationError for control characters, text-direction overrides, and unassigned characters.

    They would garble a label or a text message, or disguise a name as another one.
    """
    for character in text:
        if unicodedata.category(character)[0] == "C" and character not in _ALLOWED_FORMAT_CHARACTERS:
            raise ValidationError(
                _("Use letters, digits and ordinary signs only: there is an invisible character here.")
            )
