"""Routing: exchanges, bindings, and which binding takes which message. RabbitMQ decides; this predicts its decision
(https://www.rabbitmq.com/docs/exchanges)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from string import Formatter
from typing import Any, Literal, get_args

from messaging.validation import texts

ExchangeType = Literal["direct", "fanout", "topic", "headers"]
EXCHANGE_TYPES: tuple[ExchangeType, ...] = get_args(ExchangeType)

#: Longest name and routing key, in bytes: an AMQP short string.
MAX_SHORT_STRING = 255
#: How many "#" a pattern may have: RabbitMQ 4.3 refuses to bind by more.
MAX_MANY_WORDS = 2

#: Exchanges that every virtual host has (https://www.rabbitmq.com/tutorials/amqp-concepts#exchanges).
_PREDECLARED: dict[str, ExchangeType] = {
    **{f"amq.{each}": each for each in EXCHANGE_TYPES},
    "amq.match": "headers",
}


@dataclass(frozen=True, slots=True)
class Exchange:
    """Where events are published to. Its type decides how they are routed: `direct` by equal key, `topic` by pattern,
    `fanout` to all, `headers` by headers. Raises ValueError for another type, or a name that is empty, too long,
    or RabbitMQ's own."""

    name: str
    type: ExchangeType = "topic"

    def __post_init__(self) -> None:
        if self.type not in EXCHANGE_TYPES:
            raise ValueError(f"exchange {self.name!r}: type is {self.type!r}; it is one of {', '.join(EXCHANGE_TYPES)}")
        if not (self.name and texts.is_short(self.name)):
            raise ValueError(f"exchange {self.name!r:.60}: a name has 1 to {MAX_SHORT_STRING} bytes, and no NUL")
        if self.name.startswith(texts.RESERVED_PREFIX) and _PREDECLARED.get(self.name) != self.type:
            raise ValueError(
                f"exchange {self.name!r} ({self.type}): RabbitMQ keeps names that begin with "
                f"{texts.RESERVED_PREFIX!r} for itself"
            )


@dataclass(frozen=True, slots=True)
class Binding:
    """Routes messages from an exchange to a queue: by a key, or at a headers exchange by `arguments`."""

    exchange: str
    queue: str
    key: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)


def takes(exchange_type: str, binding: Binding, routing_key: str, headers: Mapping[str, Any]) -> bool:
    """Whether `binding`, at an exchange of this type, takes a message with this key and these headers."""
    match exchange_type:
        case "direct":
            return binding.key == routing_key
        case "topic":
            return matches(binding.key, routing_key)
        case "headers":
            return _headers_match(binding.arguments, headers)
        case _:
            return True


def matches(pattern: str, routing_key: str) -> bool:
    """Whether a topic exchange takes the key by this pattern: words between dots, `*` one word, `#` none or more."""
    if pattern == routing_key:
        return True
    return _words_match(pattern.split(".") if pattern else [], routing_key.split(".") if routing_key else [])


def fields_in(template: str) -> list[str]:
    """Return the names of the fields in a template of a routing key. Raises ValueError."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"key {template!r} cannot be read: {error}") from None
    if any("{" in (how or "") for _, _, how, _ in parts):
        raise ValueError(f"key {template!r} has braces inside of braces")
    return [name for _, name, _, _ in parts if name is not None]


def pattern_of(template: str) -> str:
    """Return the pattern that matches every key made from a template: a field can become any number of words."""
    # A NUL replaces each field: a format in its braces may have dots.
    parts = ("".join([text, "" if field is None else "\0"]) for text, field, _, _ in Formatter().parse(template))
    words = ("#" if "\0" in word else word for word in "".join(parts).split("."))
    # Several "#" in a row match what one matches.
    return ".".join("#" if word == "#" else ".".join(run) for word, run in groupby(words))


def check_patterns(patterns: Iterable[str]) -> None:
    """Raise ValueError for a pattern that RabbitMQ does not bind by."""
    for pattern in patterns:
        if pattern.split(".").count("#") > MAX_MANY_WORDS:
            raise ValueError(
                f"RabbitMQ takes a key with at most {MAX_MANY_WORDS} '#', not {pattern!r}: say which you want, such as "
                'keys=["*.error"]'
            )


def check_table(what: str, table: Mapping[str, Any]) -> None:
    """Raise ValueError for a table of arguments or headers that AMQP cannot carry."""
    for name, value in table.items():
        if not texts.is_short(name) or not _is_sendable(value):
            raise ValueError(f"{what} hold texts, numbers of 64 bits, truths and None, not {name!r:.60}: {value!r:.60}")


def fits_64_bits(value: float) -> bool:
    """Whether a number fits the 64 bits that AMQP has for whole numbers; false for infinity and for what is no number.

    A float must fit, too: PostgreSQL returns a large one from JSON as a whole number.
    """
    return -(2**63) <= value < 2**63


def _is_sendable(value: object) -> bool:
    if isinstance(value, str):
        return not any("\ud800" <= each <= "\udfff" for each in value)  # half characters, which UTF-8 does not have
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (isinstance(value, int) and fits_64_bits(value))


def _words_match(pattern: Sequence[str], words: Sequence[str]) -> bool:
    # How many words the pattern so far can match. This takes no longer for many "#".
    reached = {0}
    for part in pattern:
        if part == "#":
            reached = set(range(min(reached), len(words) + 1))
        else:
            reached = {at + 1 for at in reached if at < len(words) and part in {"*", words[at]}}
        if not reached:
            return False
    return len(words) in reached


def _headers_match(arguments: Mapping[str, Any], headers: Mapping[str, Any]) -> bool:
    how = str(arguments.get("x-match", "all"))
    # Only the "-with-x" kinds look at headers that begin with "x-".
    asked = {
        name: value
        for name, value in arguments.items()
        if name != "x-match" and (how.endswith("-with-x") or not name.startswith("x-"))
    }
    found = [name in headers and (value is None or _same(value, headers[name])) for name, value in asked.items()]
    return any(found) if how.startswith("any") else all(found)


def _same(asked: Any, value: Any) -> bool:
    # True equals 1 in Python, not at a broker.
    return bool(asked == value) and isinstance(asked, bool) is isinstance(value, bool)
