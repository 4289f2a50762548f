"""Bodies and headers as pages show them: indented, of limited length, and masked unless the user may see payloads."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from django.contrib.auth.models import AnonymousUser
from django.contrib.auth.models import User as AnyUser
from django.template.defaultfilters import filesizeformat

from messaging.masking import MASK, masked

#: Characters of a body that a page shows.
TEXT_LIMIT = 20_000
#: Bytes of a body that is no text, shown in hexadecimal.
BINARY_LIMIT = 512

WITHHELD = "shown only to people who may see payloads (messaging.view_payload)"


def may_be_seen_by(user: AnyUser | AnonymousUser) -> bool:
    """Whether the user sees personal and secret values."""
    return user.has_perm("messaging.view_payload")


def written(body: bytes, *, unmasked: bool, secrets: Collection[str] = ()) -> str:
    """Return a body as text: JSON indented, other text as it is, anything else in hexadecimal; at most TEXT_LIMIT.

    Without `unmasked`, values under personal keys and under those of `secrets` are hidden, and a body that is not JSON
    altogether: where nothing says what is what, everything may be personal.
    """
    if not body:
        return "(empty)"
    try:
        payload = json.loads(body)
        if secrets and not unmasked and isinstance(payload, dict):
            payload = {name: MASK if name in secrets else value for name, value in payload.items()}
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
