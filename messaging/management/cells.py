"""Values in the output of commands."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone


def json_value(value: Any) -> Any:
    """Return `value` as JSON has it: a time with its zone, a duration in seconds."""
    if isinstance(value, datetime):
        return timezone.localtime(value).isoformat(timespec="milliseconds")
    return value.total_seconds() if isinstance(value, timedelta) else value


def cell(value: Any, *, short: bool = False) -> str:
    """Return `value` as text in one line; a time that is `short` without its zone."""
    if value is None:
        return ""
    if isinstance(value, datetime) and short:
        return timezone.localtime(value).replace(tzinfo=None).isoformat(" ", timespec="milliseconds")
    return one_line(str(json_value(value)))


def one_line(text: str) -> str:
    """Return `text` without line ends and control characters."""
    return "".join(each if each.isprintable() else " " for each in text)
