"""Readers of environment variables, for `project/settings.py` alone.

A value that cannot be understood raises ImproperlyConfigured with the variable's name.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import environ
from django.core.exceptions import ImproperlyConfigured

from messaging.validation.addresses import hidden

BASE_DIR = Path(__file__).resolve().parent.parent

_NAME = r"[\w.-]+|\[[0-9a-fA-F:.]+\]"
_HOST = re.compile(rf"\*|\.?(?:{_NAME})")
_ORIGIN = re.compile(rf"https?://(?:\*\.)?(?:{_NAME})(?::\d+)?")

# A password may begin with "$". With interpolation, django-environ reads it as the name of another variable.
environ.Env.interpolate = False
env = environ.Env()
env.read_env(BASE_DIR / ".env")


def flag(name: str, default: bool) -> bool:
    """Read 1 or 0 and their synonyms. django-environ itself reads any unknown word as 0."""
    text = env.str(name, default="").strip().lower()
    if text not in {*env.BOOLEAN_TRUE_STRINGS, "0", "false", "no", "off", "n", "f", ""}:
        raise ImproperlyConfigured(f"{name} is {text!r}; it must be 1 or 0.")
    return text in env.BOOLEAN_TRUE_STRINGS if text else default


def whole_number(name: str, default: int) -> int:
    """Read a whole number, 0 or more."""
    text = env.str(name, default=str(default))
    if not text.isdecimal():
        raise ImproperlyConfigured(f"{name} is {text!r}; it must be a whole number.")
    return int(text)


def seconds(name: str, default: float) -> float:
    """Read a number of seconds, above 0 and up to an hour."""
    text = env.str(name, default=f"{default:g}")
    try:
        time = float(text)
    except ValueError:
        time = 0.0
    if not 0 < time <= 3600:
        raise ImproperlyConfigured(f"{name} is {text!r}; it must be a number of seconds above 0, up to 3600.")
    return time


def items(name: str, default: Sequence[str]) -> list[str]:
    """Read a list of items with commas between them. Blanks around items, and empty items, are dropped."""
    found = [text.strip() for text in env.str(name, default=",".join(default)).split(",")]
    for text in found:
        if re.search(r"[\s'\"]", text):
            # Only an address is repeated, with its password hidden. Other text may be part of a password.
            where = f" ({hidden(text)})" if hidden(text) else ""
            raise ImproperlyConfigured(
                f"{name}: write commas between the items, and no blank or quotation mark in one{where}."
            )
    return [text for text in found if text]


def hosts(name: str, default: Sequence[str]) -> list[str]:
    """Read a list of hosts. Django compares them with the host alone, so another form would never match."""
    return _in_form(name, default, _HOST, "a host, without scheme and port, such as shop.example or .shop.example")


def origins(name: str, default: Sequence[str]) -> list[str]:
    """Read a list of origins. Django compares them with what browsers send, so another form would never match."""
    return _in_form(name, default, _ORIGIN, "an origin, with scheme and without path, such as https://shop.example")


def _in_form(name: str, default: Sequence[str], form: re.Pattern[str], meaning: str) -> list[str]:
    found = items(name, default)
    for text in found:
        if not form.fullmatch(text):
            raise ImproperlyConfigured(f"{name}: {text!r} is not {meaning}.")
    return found


def one_of(name: str, *choices: str) -> str:
    """Read one of the choices; the first is the default."""
    text: str = env.str(name, default=choices[0])
    if text not in choices:
        raise ImproperlyConfigured(f"{name} is {text!r}; it must be one of {', '.join(choices)}.")
    return text


def time_zone(name: str, default: str) -> str:
    """Read the name of a time zone."""
    text: str = env.str(name, default=default)
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ImproperlyConfigured(f"{name} is {text!r}; it must be a time zone such as Asia/Shanghai.") from None
    return text
