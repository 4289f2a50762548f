"""Consumers: who wants which events. A declaration; `worker` is what runs it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import groupby
from string import Formatter
from typing import Any, Literal, TypeVar, get_args

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured

from messaging import conf, effects
from messaging.effects import Intended
from messaging.events import Event, fields_in, typed_parent, untyped
from messaging.exceptions import UnknownConsumer
from messaging.message import Message
from messaging.retry import RetryPolicy, is_limit
from messaging.routing import MAX_MANY_WORDS, MAX_SHORT_STRING, Binding, Exchange, takes
from messaging.validation import functions, texts


@dataclass(slots=True)
class Tries:
    """What this process has seen of one delivery, over all its tries to handle it."""

    #: Whether the handler was called in the present try.
    called: bool = False
    #: Whether it has returned: an effect that is intended after that would not be written down.
    returned: bool = False
    #: How often the connection to the database ended after that.
    losses: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One arrival of a message at one consumer.

    `message_id` is what the message is known by here: its own id, with the `app_id` of a foreign publisher in front
    (see `message.identity`), or one given on arrival where such a one sent none: then `identified` is False, and two
    deliveries of it cannot be told from two messages. `attempt` counts from 1.
    """

    consumer: str
    queue: str
    message: Message
    message_id: str
    attempt: int = 1
    identified: bool = True
    redelivered: bool = False
    exchange: str = ""
    routing_key: str = ""
    #: What the handler has intended so far in this try.
    intended: list[Intended] = field(default_factory=list, compare=False)
    #: For the handling alone.
    tries: Tries = field(default_factory=Tries, compare=False, repr=False)

    @property
    def subject(self) -> str:
        """What the message is about: a business key such as an order number."""
        return self.message.subject

    def effect(self, name: str, payload: dict[str, Any] | None = None) -> None:
        """Intend something outside the database: the effect `name`, with a JSON `payload`.

        It is written down in the handler's transaction and carried out after its commit, before the message is
        acknowledged; if the handler fails, nothing was intended. One of each name for one message.

        Raises RuntimeError once the handler has returned (in a callback of `on_commit`, or a thread of its own),
        UnknownEffect, and ValueError for a second one of that name, and a payload that is no JSON object, that a
        database does not store, or that would be read as another (keys that are numbers).
        """
        if self.tries.returned:
            raise RuntimeError(
                f"the effect {name!r} was intended after the handler had returned, so it will not be carried out: "
                "intend it in the handler itself"
            )
        self.intended.append(effects.intended(name, {} if payload is None else payload, beside=self.intended))


#: What a handler looks like: `def sms(event: OrderPlaced, delivery: Delivery) -> None`.
Handler = Callable[[Any, Delivery], None]
AnyHandler = TypeVar("AnyHandler", bound=Callable[..., None])

QueueType = Literal["quorum", "classic"]
#: Most levels of priority that a queue may have; each costs the broker memory
#: (https://www.rabbitmq.com/docs/priority).
MAX_PRIORITY = 255

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_registry: dict[str, Consumer] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """A declared subscription: a queue, and what is bound to it."""

    name: str
    #: Empty for a broadcast: the broker names the queue of each process.
    queue: str
    events: tuple[type[Event], ...]
    handler: Handler
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    #: How long the handler may take; None means the project's setting.
    timeout: timedelta | None = None
    #: Unacknowledged deliveries that a process may hold; None means the project's setting.
    prefetch: int | None = None
    #: Deliveries handled in one transaction, at most.
    batch: int = 1
    #: False: the handler fences its own writes. That of a broadcast has no fence: each process handles the message.
    fenced: bool = True
    #: Routing keys, or patterns of them, instead of each event's own.
    keys: tuple[str, ...] = ()
    #: What a headers exchange binds by; empty: everything.
    headers: Mapping[str, Any] = field(default_factory=dict, hash=False)
    broadcast: bool = False
    #: None means the project's setting.
    queue_type: QueueType | None = None
    max_priority: int | None = None
    #: Further arguments of the queue.
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def bindings(self) -> list[Binding]:
        """What brings this consumer's events to its queue."""
        return list(
            dict.fromkeys(binding for event in self.events for binding in self._bindings_of(event, exchange_of(event)))
        )

    @property
    def handler_timeout(self) -> float:
        """Seconds that the handler may take."""
        return self.timeout.total_seconds() if self.timeout else conf.get().handler_timeout

    def wants(self, event_type: str) -> bool:
        """Whether a message of this type belongs in this consumer's queue."""
        return any(event.event_type == event_type for event in self.events)

    def receives(self, event_type: str, exchange: str, routing_key: str, headers: Mapping[str, Any]) -> bool:
        """Whether a message of this type, published like this, is for this consumer. Where it did not say which it
        wants, the type alone decides: the key may be one that its event had formerly. So it does by an exchange that
        its event had formerly, and whose bindings are not known here any more."""
        for event in self.events:
            if event.event_type == event_type:
                known = exchange_of(event)
                asked = self.headers if known.type == "headers" else self.keys
                if not asked or known.name != exchange:
                    return True
                if any(takes(known.type, each, routing_key, headers) for each in self._bindings_of(event, known)):
                    return True
        return False

    def _bindings_of(self, event: type[Event], exchange: Exchange) -> Iterator[Binding]:
        match exchange.type:
            case "fanout":
                yield Binding(exchange.name, self.queue)
            case "headers":
                yield Binding(exchange.name, self.queue, arguments={"x-match": "all", **self.headers})
            case _:
                for key in self.keys or [_pattern_of(event)]:
                    yield Binding(exchange.name, self.queue, key)


def consumer(
    name: str,
    *events: type[Event],
    retry: RetryPolicy | None = None,
    timeout: timedelta | None = None,
    prefetch: int | None = None,
    batch: int = 1,
    queue: str | None = None,
    keys: Iterable[str] = (),
    headers: Mapping[str, Any] | None = None,
    broadcast: bool = False,
    queue_type: QueueType | None = None,
    max_priority: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Callable[[AnyHandler], AnyHandler]:
    """Declare the decorated function as the handler of `events`.

    It is called as `handler(event, delivery)` inside a transaction that also holds the inbox row: its writes to
    the database take effect once per message. It returns, or raises `Reject` (dead at once), `RetryLater`
    (again after a time) or anything else (again by `retry`). Past its `timeout` (default: `HANDLER_TIMEOUT`)
    HandlerTimeout is raised in it, which counts as a failure. With `batch`, up to that many deliveries share a
    transaction; should one fail, each is handled in its own. The queue is named `<app label>.<name>` unless
    `queue` says otherwise.

    It gets every message of its events, unless it says which: by `keys` (those of a direct exchange, or patterns such
    as `kern.*` of a topic exchange), or by `headers` for a headers exchange (`{"x-match": "any", "format": "pdf"}`).

    With `broadcast` every process that runs the consumer gets each message, by a queue of its own that goes with the
    process: for what a process keeps in memory. Nothing remembers these: what is published while a process is not
    there, or fails in its handler, is not for it. Such a handler intends no effects.

    `queue_type`, `max_priority` (events with a higher `priority` are delivered first; needs a classic queue) and
    further `arguments` are what the queue is declared with; on a queue that exists they cannot be changed.

    Raises ImproperlyConfigured for a bad or taken name, a queue that another consumer has, no events, a function that
    cannot be called as a handler or would not run (`async def`, a generator), and for what does not go together.
    """
    if not isinstance(name, str):
        raise ImproperlyConfigured(f'a consumer has a name: write @consumer("sms", OrderPlaced), not {name!r:.100}')
    if not _NAME.fullmatch(name) or len(name) > texts.LONGEST:
        raise ImproperlyConfigured(
            f"consumer name {name!r}: use small letters, digits and underscores, {texts.LONGEST} at most"
        )
    if not events:
        raise ImproperlyConfigured(f"consumer {name!r} names no events")
    for event in events:
        _check_event(name, event)
    if timeout is not None and not is_limit(timeout):
        raise ImproperlyConfigured(f"consumer {name!r}: timeout is a positive time, such as timedelta(seconds=30)")
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise ImproperlyConfigured(f"consumer {name!r}: retry is a RetryPolicy, such as RetryPolicy(max_attempts=5)")
    if retry is not None:
        functions.check_runs(retry.delay_after, f"delay_after of the retry policy of consumer {name!r}")
    if batch < 1:
        raise ImproperlyConfigured(f"consumer {name!r}: batch is at least 1")
    if isinstance(keys, str):
        raise ImproperlyConfigured(f'consumer {name!r}: keys is a list of keys, such as ["{keys}"]')
    if broadcast and (queue or queue_type or max_priority or arguments or retry or batch > 1):
        raise ImproperlyConfigured(
            f"consumer {name!r}: a broadcast has no queue of a name or kind of yours, no retries and no batches"
        )

    def register(handler: AnyHandler) -> AnyHandler:
        functions.check(handler, f"the handler of consumer {name!r}", takes="event, delivery")
        where = "" if broadcast else queue or f"{_app_label(handler)}.{name}"
        if not texts.is_short(where):
            # A relay that cannot declare it could publish nothing at all.
            raise ImproperlyConfigured(
                f"consumer {name!r}: the name of its queue is a text of at most {MAX_SHORT_STRING} bytes, without NUL"
            )
        other = _registry.get(name)
        if other is not None and functions.path(other.handler) != functions.path(handler):
            raise ImproperlyConfigured(
                f"two consumers are named {name!r}: {functions.path(other.handler)}, {functions.path(handler)}"
            )
        for sharer in registered():
            if sharer.queue == where and sharer.name != name:
                # Each would take messages that the other should have had.
                raise ImproperlyConfigured(f"consumers {sharer.name!r} and {name!r} share the queue {where!r}")
        declared = Consumer(
            name=name,
            queue=where,
            events=events,
            handler=handler,
            retry=retry or RetryPolicy(),
            timeout=timeout,
            prefetch=prefetch,
            batch=batch,
            fenced=not broadcast,
            keys=tuple(keys),
            headers=headers or {},
            broadcast=broadcast,
            queue_type=queue_type,
            max_priority=max_priority,
            arguments=arguments or {},
        )
        _check_bindings(declared)
        _check_queue(declared)
        _registry[name] = declared
        return handler

    return register


def registered() -> list[Consumer]:
    """Return every consumer that has a lasting queue, by name: those that must receive what is published for them."""
    return [each for each in _all() if not each.broadcast]


def broadcasting() -> list[Consumer]:
    """Return every broadcast consumer, by name."""
    return [each for each in _all() if each.broadcast]


def get(name: str) -> Consumer:
    """Return the consumer of that name. Raises UnknownConsumer, listing the names that exist."""
    try:
        return _registry[name]
    except KeyError:
        known = ", ".join(sorted(_registry)) or "none"
        raise UnknownConsumer(f"There is no consumer {name!r}. Registered: {known}.") from None


def named(names: Iterable[str]) -> list[Consumer]:
    """Return the consumers of those names, each once. Raises UnknownConsumer."""
    return [get(name) for name in dict.fromkeys(names)]


def exchange_of(event: type[Event]) -> Exchange:
    """Return the exchange that events of this class are published to."""
    return event.event_exchange or Exchange(conf.get().exchange)


def _all() -> list[Consumer]:
    return [_registry[name] for name in sorted(_registry)]


def _pattern_of(event: type[Event]) -> str:
    """Return what takes every key that the event can have: a field may be any number of words."""
    if not event.event_key:
        return event.event_type
    # A field stands as a NUL meanwhile: what is in its braces, a format, may have dots.
    template = "".join(text + ("" if name is None else "\0") for text, name, _, _ in Formatter().parse(event.event_key))
    words = ("#" if "\0" in word else word for word in template.split("."))
    # Several "#" in a row take what one takes.
    return ".".join("#" if word == "#" else ".".join(run) for word, run in groupby(words))


def _check_event(consumer: str, event: Any) -> None:
    if not (isinstance(event, type) and issubclass(event, Event)):
        raise ImproperlyConfigured(f"consumer {consumer!r}: {event!r:.100} is no event: name classes below Event")
    if not event.event_type and typed_parent(event):
        # Another one without a type is an error of `manage.py check`.
        raise ImproperlyConfigured(f"consumer {consumer!r}: {untyped(event)}")


def _check_bindings(consumer: Consumer) -> None:
    """Raise ImproperlyConfigured where `keys` and `headers` do not fit the exchanges of the consumer's events."""
    types = {exchange_of(event).type for event in consumer.events}
    if consumer.keys and not types & {"direct", "topic"}:
        raise ImproperlyConfigured(f"consumer {consumer.name!r}: keys mean nothing to a {types.pop()} exchange")
    if consumer.headers and "headers" not in types:
        raise ImproperlyConfigured(f"consumer {consumer.name!r}: only a headers exchange looks at headers")
    if not all(map(texts.is_short, consumer.keys)):
        raise ImproperlyConfigured(
            f"consumer {consumer.name!r}: a key is a text of at most {MAX_SHORT_STRING} bytes, without NUL"
        )
    _check_table(consumer, "headers", consumer.headers)
    for event in consumer.events:
        if exchange_of(event).type == "direct" and fields_in(event.event_key) and not consumer.keys:
            raise ImproperlyConfigured(
                f"consumer {consumer.name!r}: the keys of {event.__qualname__} differ, and its exchange compares them "
                'letter by letter: say which you want, keys=["error", "warning"]'
            )
        if exchange_of(event).type == "topic":
            _check_patterns(consumer, consumer.keys or [_pattern_of(event)])


def _check_patterns(consumer: Consumer, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        if pattern.split(".").count("#") > MAX_MANY_WORDS:
            raise ImproperlyConfigured(
                f"consumer {consumer.name!r}: RabbitMQ takes a key with at most {MAX_MANY_WORDS} '#', not {pattern!r}: "
                'say which you want, such as keys=["*.error"]'
            )


def _check_queue(consumer: Consumer) -> None:
    if consumer.queue_type not in {None, *get_args(QueueType)}:
        raise ImproperlyConfigured(f"consumer {consumer.name!r}: queue_type is {' or '.join(get_args(QueueType))}")
    for argument, instead in (("x-queue-type", "queue_type"), ("x-max-priority", "max_priority")):
        if argument in consumer.arguments:
            raise ImproperlyConfigured(f"consumer {consumer.name!r}: say {instead} instead of the argument {argument}")
    if "x-expires" in consumer.arguments:
        raise ImproperlyConfigured(
            f"consumer {consumer.name!r}: x-expires deletes the queue, and all that waits in it, while nobody consumes"
        )
    _check_table(consumer, "arguments", consumer.arguments)
    if consumer.max_priority is None:
        return
    if not 1 <= consumer.max_priority <= MAX_PRIORITY:
        raise ImproperlyConfigured(f"consumer {consumer.name!r}: max_priority is 1 to {MAX_PRIORITY}")
    if (consumer.queue_type or conf.get().queue_type) != "classic":
        raise ImproperlyConfigured(
            f'consumer {consumer.name!r}: only a classic queue has priorities; say queue_type="classic"'
        )


def _check_table(consumer: Consumer, what: str, table: Mapping[str, Any]) -> None:
    """Raise ImproperlyConfigured for what AMQP cannot say: a relay that cannot declare it could publish nothing."""
    for name, value in table.items():
        if not texts.is_short(name) or not _is_sendable(value):
            raise ImproperlyConfigured(
                f"consumer {consumer.name!r}: {what} hold texts, numbers of 64 bits, truths and None, not "
                f"{name!r:.60}: {type(value).__name__}"
            )


def _is_sendable(value: Any) -> bool:
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, str | float)


def _app_label(handler: Callable[..., None]) -> str:
    module = functions.module(handler)
    app = apps.get_containing_app_config(module)
    return app.label if app else module.partition(".")[0]
