"""Masking: phone numbers, passwords and the like, hidden from logs, terminals and pages.

It hides too much rather than too little: an id of ten digits may look like a phone number. It cannot recognise names in
free text, nor secrets without a key word before them: log ids, not payloads.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from datetime import date, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any
from uuid import UUID

MASK = "***"

#: In a payload, a key that contains one of these is taken for personal or secret.
PERSONAL = (
    "phone", "mobile", "email", "name", "address", "token", "password", "passwd", "secret", "api_key",
    "authorization", "cookie", "session", "credential", "private_key", "recipient",
)  # fmt: skip
#: Likewise in a log line, where `name` is a queue's and `address` a broker's.
SECRET = (
    "password", "passwd", "passphrase", "secret", "token", "api_key", "access_key", "private_key", "authorization",
    "cookie", "session", "credential", "phone", "mobile", "email", "recipient", "customer",
)  # fmt: skip

#: Phone numbers as people or machines write them, and numbers as long as a phone's or a card's. What only looks like
#: them is matched first, and kept.
_NUMBER = re.compile(
    r"""
    (?P<kept>
        \b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b                         # a UUID
      | \b0x[0-9a-f]+\b | \b(?=[0-9]*[a-f])[0-9a-f]{24,}\b                      # an address in memory, a digest
      | \d{4}-\d\d-\d\d[ ]?T?[ ]?\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:[+-]\d\d:?\d\d)?   # a time
      | (?<![\w.+-])\d+\.\d+(?![\d.])                                           # a decimal
    )
    | (?:\+|%2B)\d[\d\ \u00a0()./-]{5,20}\d
    | (?<!\d)(?:\d{1,4}[\ \u00a0.-])?(?:\(\d{3}\)|\d{3})[\ \u00a0.-]?\d{3,4}[\ \u00a0.-]\d{4}(?!\d)
    | (?<!\d)\d{10,19}(?!\d)
    """,
    re.VERBOSE | re.IGNORECASE,
)
#: The last "@" counts: a password may hold one, though it should not.
_PASSWORD_IN_URL = re.compile(r"([a-z][a-z0-9+.-]{0,20}://[^\s:/@]{0,255}:)(?:(?!://)\S)+@", re.IGNORECASE)

_QUOTED = r"""[bfru]{0,2}(?:"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')"""
_SAYS = r"""[\\"')\]]{0,4}\s{0,3}(?:=>|[:=])\s{0,3}"""
_NOTHING = r"(?!(?:None|null|True|False)\b)"
#: Headers whose value goes on to the end of the line, unless it is quoted.
_HEADER = re.compile(rf"((?:authorization|cookie)[\w-]{{0,40}}{_SAYS}){_NOTHING}(?:{_QUOTED}|[^\n]+)", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    rf"""((?:passw(?:or)?d|passphrase|secret|token|(?:api|access|private)[_-]?key|session_?(?:id|key)|credentials?)
    [\w-]{{0,40}}{_SAYS})
    {_NOTHING}(?:{_QUOTED}|\([^)\n]*\)|(?:bearer|basic)\s+\S+|[\\"']{{0,3}}[^\s,;&)\]}}"'\\]+)""",
    re.IGNORECASE | re.VERBOSE,
)
_PERSONAL_VALUE = re.compile(
    rf"""((?:phone|mobile|msisdn|e-?mail|recipient|(?:customer|first|last|full|family|given)_?name|input_value)
    [\w-]{{0,40}}(?:[\\"')\]]{{1,4}}\s?[:=]\s?|=))
    {_NOTHING}(?:{_QUOTED}|\([^)\n]*\)|[\\"']{{0,3}}[^\s,;&)\]}}"'\\]+)""",
    re.IGNORECASE | re.VERBOSE,
)
#: Secrets without a key: what follows these words in a header, and JSON web tokens.
_BEARER = re.compile(r"\b((?:Bearer|bearer|Basic)\s+)(?=[\w.~+/=-]*[0-9A-Z_=])[\w.~+/=-]{6,}|\beyJ[\w-]{8,}\.[\w.-]+")
#: PostgreSQL quotes the row that a constraint refused.
_ROW = re.compile(r"(Failing row contains )\([^\n]*")
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_MANY_DIGITS = re.compile(r"(?:\d[^\d\n]{0,3}){7}")
#: The smallest number with ten digits.
_SMALLEST_PERSONAL = 10**9


def masked(value: Any) -> Any:
    """Return a JSON value with everything under a personal key hidden, except null, and secrets hidden in every text.
    Values that are no JSON become text."""
    if isinstance(value, str):
        return masked_text(value)
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return MASK if abs(value) >= _SMALLEST_PERSONAL and masked_text(str(value)) != str(value) else value
    if isinstance(value, Mapping):
        return {
            masked_text(str(key)): MASK if _has(PERSONAL, str(key)) and inner is not None else masked(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [masked(item) for item in value]
    if isinstance(value, date | timedelta | Decimal | UUID):
        return str(value)
    return masked_text(repr(value))


def masked_text(text: str) -> str:
    """Return `text` with phone numbers, passwords, tokens and the like hidden: errors and tracebacks quote payloads and
    addresses."""
    if _UUID.fullmatch(text):
        return text
    # Most texts contain nothing of the kind, and each log line has several: quick tests come first.
    if "://" in text:
        text = _PASSWORD_IN_URL.sub(rf"\1{MASK}@", text)
    if _MANY_DIGITS.search(text):
        text = _NUMBER.sub(lambda found: found[0] if found["kept"] else MASK, text)
    if ":" in text or "=" in text:
        text = _HEADER.sub(rf"\1{MASK}", text)
        text = _SECRET_VALUE.sub(rf"\1{MASK}", text)
        text = _PERSONAL_VALUE.sub(rf"\1{MASK}", text)
    if "earer" in text or "Basic" in text or "eyJ" in text:
        text = _BEARER.sub(lambda found: f"{found[1] or ''}{MASK}", text)
    if "Failing row" in text:
        text = _ROW.sub(rf"\1({MASK})", text)
    return text


def mask_event(_: Any, __: str, event: Any) -> Any:
    """Hide secrets in a log event. A structlog processor, to run after exceptions have become text."""
    for key, value in event.items():
        if value is None or isinstance(value, bool) or key == "timestamp":
            continue
        try:
            event[key] = MASK if _has(SECRET, key) else masked(value)
        except Exception:
            # Nested too deep, or an object whose repr() fails: log the line without it.
            event[key] = "(cannot be shown)"
    return event


class MaskedHandler(logging.StreamHandler[Any]):
    """Writes to standard error. `logging` quotes a record that cannot be formatted; this handler masks it too."""

    def handleError(self, record: logging.LogRecord) -> None:
        with suppress(Exception):
            sys.stderr.write(masked_text(f"A log record could not be written: {record.msg!r} {record.args!r}\n"))
            sys.stderr.write(masked_text(traceback.format_exc()))


@lru_cache(maxsize=4096)
def _has(words: tuple[str, ...], key: str) -> bool:
    plain = key.casefold().replace("-", "_")
    return any(word in plain for word in words)
