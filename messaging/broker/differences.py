"""Differences: how a queue or an exchange stands, where it stands otherwise than somebody asked for.

RabbitMQ changes nothing that exists. It refuses (406) and names the first thing that differs, in words of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from messaging.broker.reply_codes import PRECONDITION_FAILED
from messaging.exceptions import ChannelClosed

_SENTENCE = re.compile(
    r"inequivalent arg '(?P<property>[^']*)' for (?P<kind>queue|exchange) '(?P<name>.*)' in vhost '.*': "
    r"received (?P<wanted>.+) but current is (?P<found>.+)$",
    re.DOTALL,
)
_TYPED = re.compile(r"the value '(.*)' of type '\w+'", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Difference:
    """One property or argument of a queue or an exchange. As text: one line that says both sides.

    `wanted` and `found` are texts; None where that argument is not given at all.
    """

    #: "queue" or "exchange".
    kind: str
    name: str
    property: str
    wanted: str | None
    found: str | None

    def __str__(self) -> str:
        found, wanted = (_said(self.property, each) for each in (self.found, self.wanted))
        return f"{self.kind} {self.name} stands {found}, you asked for it {wanted}"


def difference(error: ChannelClosed) -> Difference | None:
    """Return what differs, by the broker's refusal; None where it refused for another reason."""
    said = _SENTENCE.search(error.text) if error.code == PRECONDITION_FAILED else None
    if said is None:
        return None
    wanted, found = _value(said["wanted"]), _value(said["found"])
    return Difference(said["kind"], said["name"], said["property"], wanted, found)


def _value(text: str) -> str | None:
    if text == "none":
        return None
    typed = _TYPED.fullmatch(text)
    return typed[1] if typed else text.strip("'")


def _said(name: str, value: str | None) -> str:
    return f"without {name}" if value is None else f"with {name}={value}"
