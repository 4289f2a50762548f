"""Words that a command shows of errors: masked, unless asked. A terminal is looked at, copied and pasted."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from messaging.masking import masked_text


def add_unmasked(parser: argparse.ArgumentParser) -> None:
    """Add the flag."""
    parser.add_argument("--unmasked", action="store_true", help="show phone numbers and secrets that errors quote")


def words_for(options: dict[str, Any]) -> Callable[[str], str]:
    """Return what turns stored words into those to show."""
    return str if options["unmasked"] else masked_text
