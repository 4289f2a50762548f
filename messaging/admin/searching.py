"""How outbox, inbox and effects are searched: by an index where that finds something, else for words among the newest
rows."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from django.db.models import Q

from messaging import database

#: Begins a search for words anywhere in a text.
ANYWHERE = "~"
#: The newest rows, among which words are looked for: where no index finds anything, and after ANYWHERE.
AT_ONCE = 1_000
ASKED_FOR = 100_000
#: Follows every text in the order that SQLite compares by, and begins none.
_LAST = "\U0010ffff"


class How(StrEnum):
    """How a search found its rows, as the page says it."""

    WHOLE = ""
    BEGINNING = "These order numbers or message ids begin with it."
    WORDS_AT_ONCE = (
        f"No order number or message id begins with it. Its words were looked for among the newest {AT_ONCE:,} only."
    )
    WORDS = f"Its words were looked for among the newest {ASKED_FOR:,}; older ones were not looked at."

    @property
    def can_go_further(self) -> bool:
        """Whether there is more to be found after ANYWHERE."""
        return self in {How.BEGINNING, How.WORDS_AT_ONCE}


def is_whole(term: str) -> Callable[[str], Q]:
    """Return what finds rows whose column is `term`."""
    return lambda column: Q(**{column: term})


def begins_with(term: str) -> Callable[[str], Q]:
    """Return what finds rows whose column begins with `term`, also in capitals or without."""
    written = dict.fromkeys((term, term.upper(), term.lower()))

    def matches(column: str) -> Q:
        found = Q()
        for each in written:
            found |= (
                # SQLite's LIKE uses no index.
                Q(**{f"{column}__gte": each, f"{column}__lt": each + _LAST})
                if database.is_sqlite()
                else Q(**{f"{column}__startswith": each})
            )
        return found

    return matches
