"""Whole numbers and switches that a declaration gives."""

from __future__ import annotations


def check_whole(what: str, given: object, highest: int) -> None:
    """Raise ValueError unless `given` is a whole number from 1 to `highest`; `what` names it in the error."""
    if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given <= highest:
        raise ValueError(f"{what} is a whole number from 1 to {highest}, not {given!r:.60}")


def check_switch(what: str, given: object) -> None:
    """Raise ValueError unless `given` is True or False. A text such as "no" would count as True."""
    if not isinstance(given, bool):
        raise ValueError(f"{what} is True or False, not {given!r:.60}")
