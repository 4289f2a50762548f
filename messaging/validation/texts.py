"""Texts and values from a project or a person: what a database or AMQP would refuse later is refused, or made to fit,
at the call. The rules are the same on every database, although SQLite stores what PostgreSQL refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.utils.functional import Promise

#: Characters in a column for a name, an id or a key, and bytes in an AMQP short string.
LONGEST = 255
#: RabbitMQ lets no client declare names that begin with this.
RESERVED_PREFIX = "amq."


def checked(what: str, given: Any, *, characters: int | None = LONGEST, octets: int | None = None) -> str:
    """Return the text `given` for the argument `what`. A whole number or a UUID becomes text.

    Raises ValueError, in one sentence that names `what`: for anything else, for more than so many `characters` or
    `octets` (bytes in UTF-8), and for characters that a database or AMQP does not take.
    """
    if isinstance(given, Promise | UUID) or (isinstance(given, int) and not isinstance(given, bool)):
        given = str(given)  # a promise is a lazy translation
    if not isinstance(given, str):
        raise ValueError(f"{what} is text, not {type(given).__name__}: {given!r:.60}")
    if "\x00" in given:
        raise ValueError(f"{what} holds a NUL character, which PostgreSQL does not store: {given!r:.60}")
    try:
        size = len(given.encode())
    except UnicodeEncodeError:
        raise ValueError(
            f"{what} holds half of a surrogate pair, which is no character and cannot be stored: {given!r:.60}"
        ) from None
    if octets is not None and size > octets:
        raise ValueError(f"{what} has {size} bytes; AMQP has room for {octets}")
    if characters is not None and len(given) > characters:
        raise ValueError(f"{what} has {len(given)} characters; there is room for {characters}")
    return given


def is_short(given: object) -> bool:
    """Whether `given` is a text that AMQP takes as a name or a key, and that every database stores."""
    try:
        return isinstance(given, str) and given == checked("it", given, octets=LONGEST)
    except ValueError:
        return False


def checked_json(what: str, given: Any) -> None:
    """Raise ValueError, in one sentence that names `what`, if `given` has no JSON form that every database stores and
    brings back unchanged (its keys are texts)."""
    try:
        json.dumps(given, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON: {error}") from None
    _check_texts(f"a text in {what}", given)


def _check_texts(what: str, given: Any) -> None:
    if isinstance(given, str):
        checked(what, given, characters=None)
    elif isinstance(given, Mapping):
        for name, value in given.items():
            if not isinstance(name, str):
                raise ValueError(f"{what}: the key {name!r:.60} would be read as a text; write it as one")
            _check_texts(what, name)
            _check_texts(what, value)
    elif isinstance(given, list | tuple):
        for value in given:
            _check_texts(what, value)


def fitted(given: object, octets: int = LONGEST) -> str:
    """Return a value that a stranger chose, such as the id of a request, as a text that can be stored and sent.

    Characters that cannot be stored become "?", and a longer text is cut.
    """
    text = str(given).encode(errors="replace").replace(b"\x00", b"?")
    return text[:octets].decode(errors="ignore")


def storable_text(text: str) -> str:
    """Return `text` as every database takes it: none holds half of a surrogate pair, and PostgreSQL no NUL."""
    return text.encode(errors="replace").decode().replace("\x00", "\ufffd")
