"""Bodies and headers for the eyes of people: pretty, short, and without what not everybody may see."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from django.contrib.auth.models import AnonymousUser
from django.contrib.auth.models import User as AnyUser
from django.template.defaultfilters import filesizeformat

#: Characters of a body that a page shows.
TEXT_LIMIT = 20_000
#: Bytes of a body that is no text, shown in hexadecimal.
BINARY_LIMIT = 512

#: A key with one of these in it, whatever else, is taken for personal or secret.
PERSONAL = (
    "phone",
    "mobile",
    "email",
    "name",
    "address",
    "token",
    "password",
    "passwd",
    "secret",
    "api_key",
    "authorization",
    "cookie",
    "session",
    "credential",
    "private_key",
    "recipient",
)
#: Whatever the key: a phone number as people or machines write it (+86 138 0013 8000, 138-0013-8000), or so many
#: digits in a row that they may be one, or a card's. Not the parts of a time, a decimal or a UUID.
PERSONAL_NUMBER = re.compile(
    r"(?<![\w.+-])(?:\+\d[\d ()/-]{5,18}\d|\(?\d{3}\)?[ -]\d{3,4}[ -]\d{4}|\d{10,19})(?!\d|\.\d)"
)
MASK = "•••"
WITHHELD = "shown only to people who may see payloads (messaging.view_payload)"


def may_be_seen_by(user: AnyUser | AnonymousUser) -> bool:
    """Whether the user sees personal and secret values."""
    return user.has_perm("messaging.view_payload")


def written(body: bytes, *, unmasked: bool) -> str:
    """Return a body as text: JSON indented, other text as it is, anything else in hexadecimal; at most TEXT_LIMIT.

    Without `unmasked`, values under personal keys are hidden, and a body that is not JSON altogether: where nothing
    says what is what, everything may be personal.
    """
    if not body:
        return "(empty)"
    try:
        payload = json.loads(body)
        return written_json(payload, unmasked=unmasked)
    # Deep nesting ends in RecursionError; a bad byte in UnicodeDecodeError, a ValueError.
    except (ValueError, RecursionError):
        size = filesizeformat(len(body))
        if not unmasked:
            return f"Not JSON, {size}: {WITHHELD}"
        return f"Not JSON, {size}:\n{_raw(body)}"


def written_json(payload: Any, *, unmasked: bool) -> str:
    """Return a JSON value indented, at most TEXT_LIMIT characters of it. Raises RecursionError for deep nesting."""
    if not unmasked:
        payload = masked(payload)
    chunks: list[str] = []
    length = 0
    # Piece by piece: indenting deep nesting can make gigabytes of a megabyte.
    for chunk in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(payload):
        chunks.append(chunk)
        length += len(chunk)
        if length > TEXT_LIMIT:
            break
    return _shortened(_printable("".join(chunks)))


def masked(value: Any) -> Any:
    """Return a JSON value with everything under a personal key hidden, except null, and phone numbers anywhere."""
    if isinstance(value, Mapping):
        return {
            masked_text(key): MASK if _is_personal(key) and inner is not None else masked(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [masked(item) for item in value]
    if isinstance(value, str):
        return masked_text(value)
    if isinstance(value, int) and PERSONAL_NUMBER.fullmatch(str(value)):
        return MASK
    return value


def masked_text(text: str) -> str:
    """Return `text` with phone numbers hidden: errors and tracebacks quote what handlers were given.

    An id of ten digits and more goes with them; names in free text stay, nothing tells them from other words.
    """
    return PERSONAL_NUMBER.sub(MASK, text)


def _is_personal(key: str) -> bool:
    plain = key.casefold().replace("-", "_")
    return any(word in plain for word in PERSONAL)


def _raw(body: bytes) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = ""
    if text and "\x00" not in text:
        return _shortened(_printable(text))
    shown = body[:BINARY_LIMIT].hex(" ", 1)
    lines = [shown[start : start + 48] for start in range(0, len(shown), 48)]
    return "\n".join(lines) + ("\n…" if len(body) > BINARY_LIMIT else "")


def _shortened(text: str) -> str:
    if len(text) <= TEXT_LIMIT:
        return text
    return f"{text[:TEXT_LIMIT]}\n… (the rest is not shown here)"


def _printable(text: str) -> str:
    # JSON may hold half of a surrogate pair, which no page can.
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(character if character >= " " or character in "\n\t\r" else "\ufffd" for character in text)
