"""Routing: exchanges, bindings, and which binding takes which message. No broker here: RabbitMQ decides, and this says
beforehand what it will decide (https://www.rabbitmq.com/docs/exchanges)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from messaging.validation import texts

ExchangeType = Literal["direct", "fanout", "topic", "headers"]
EXCHANGE_TYPES: tuple[ExchangeType, ...] = get_args(ExchangeType)

#: Longest name and routing key, in bytes: an AMQP short string.
MAX_SHORT_STRING = 255
#: How many "#" a pattern may have: RabbitMQ 4.3 refuses to bind by more.
MAX_MANY_WORDS = 2


@dataclass(frozen=True, slots=True)
class Exchange:
    """Where events are published to, and the rule by which it passes them on: `direct` by equal key, `topic` by
    pattern, `fanout` to all, `headers` by headers. Raises ValueError for another type, or a name that is too long or
    RabbitMQ's own."""

    name: str
    type: ExchangeType = "topic"

    def __post_init__(self) -> None:
        if self.type not in EXCHANGE_TYPES:
            raise ValueError(f"exchange {self.name!r}: type is {self.type!r}; it is one of {', '.join(EXCHANGE_TYPES)}")
        if not (self.name and texts.is_short(self.name)):
            raise ValueError(f"exchange {self.name!r:.60}: a name has 1 to {MAX_SHORT_STRING} bytes, and no NUL")


@dataclass(frozen=True, slots=True)
class Binding:
    """What brings messages from an exchange to a queue: a key, or for a headers exchange the `arguments`."""

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


def _words_match(pattern: Sequence[str], words: Sequence[str]) -> bool:
    # Which numbers of words the pattern so far can take: no matter how many "#" there are, it stays quick.
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
    wanted = {
        name: value
        for name, value in arguments.items()
        if name != "x-match" and (how.endswith("-with-x") or not name.startswith("x-"))
    }
    found = [name in headers and (value is None or _same(value, headers[name])) for name, value in wanted.items()]
    return any(found) if how.startswith("any") else all(found)


def _same(wanted: Any, value: Any) -> bool:
    # True is 1 to Python, not to a broker.
    return bool(wanted == value) and isinstance(wanted, bool) is isinstance(value, bool)
