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

WITHHELD = "shown only to people who may see payloads (messaging.view_payload)"


def may_be_seen_by(user: AnyUser | AnonymousUser) -> bool:
    """Whether the user sees personal and secret values."""
    return user.has_perm("messaging.view_payload")


def written(body: bytes, *, unmasked: bool, secrets: Collection[str] = ()) -> str:
    """Return a body as text, at most TEXT_LIMIT characters: JSON indented, other text unchanged, anything else escaped.

    Without `unmasked`, values under personal keys and under those of `secrets` are hidden, and so is all of a body that
    is not JSON: without keys everything may be personal.
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
        return f"Not JSON, {size}:\n{_raw(body)}" if unmasked else f"Not JSON, {size}: {WITHHELD}"


def written_json(payload: Any, *, unmasked: bool) -> str:
    """Return a JSON value indented, at most TEXT_LIMIT characters of it. Raises RecursionError for deep nesting."""
    text = ""
    # Piece by piece: indenting deep nesting can make gigabytes of a megabyte.
    for chunk in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(payload if unmasked else masked(payload)):
        text += chunk
        if len(text) > TEXT_LIMIT:
            break
    return _printable(text)


def _raw(body: bytes) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = "\x00"
    return _printable(repr(body) if "\x00" in text else text)


def _printable(text: str) -> str:
    # JSON may hold half of a surrogate pair, which no page can.
    shown = text[:TEXT_LIMIT].encode("utf-8", "backslashreplace").decode()
    shown = "".join(character if character >= " " or character in "\n\t\r" else "\ufffd" for character in shown)
    return shown if len(text) <= TEXT_LIMIT else f"{shown}\n… (the rest is not shown here)"
