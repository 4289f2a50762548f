"""Routing keys that do something else than whoever typed them may think: what to say of them. They are not refused,
as a queue can be bound by any key."""

from __future__ import annotations

from collections.abc import Iterable

#: What a word of a topic exchange's binding can be beside itself: one word, none or more.
_PATTERNS = ("*", "#")


def said_of_message(key: str) -> str:
    """Return what is to say of the key of a message that looks like a pattern; else nothing."""
    if not any(word and not word.strip("".join(_PATTERNS)) for word in key.split(".")):
        return ""
    return f"Key {key!r} is sent as it is: * and # are patterns only where a queue is bound."


def said_of_bindings(exchange: str, type: str, keys: Iterable[str]) -> str:
    """Return what is to say of the first of `keys` that an exchange of this type takes for less of a pattern than it
    looks; else nothing."""
    for key in keys:
        odd = [word for word in key.split(".") if any(each in word for each in _PATTERNS)]
        if type == "direct" and odd:
            return f"{exchange} is a direct exchange, without patterns: {key!r} takes that very key alone."
        odd = [word for word in odd if word not in _PATTERNS]
        if type == "topic" and odd:
            return f"In key {key!r} the word {odd[0]!r} stands for itself: patterns are * and # alone, between dots."
    return ""
