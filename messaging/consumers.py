"""Consumers: which handler receives which events. A declaration; the worker runs it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, TypeVar, get_args

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured

from messaging import conf
from messaging.events import Event, typed_parent, untyped
from messaging.exceptions import UnknownConsumer
from messaging.registry import Registry
from messaging.retry import RetryPolicy, check_times
from messaging.routing import Binding, Exchange, check_patterns, check_table, fields_in, pattern_of, takes
from messaging.validation import functions, numbers, texts

#: `def sms(event: OrderPlaced, delivery: Delivery) -> None`; of a whole batch, it takes a list of each.
Handler = Callable[[Any, Any], None]
AnyHandler = TypeVar("AnyHandler", bound=Callable[..., None])

QueueType = Literal["quorum", "classic"]
#: Most levels of priority of a queue; each costs the broker memory (https://www.rabbitmq.com/docs/priority).
MAX_PRIORITY = 255
#: Most deliveries that a consumer may hold: AMQP counts them in 16 bits.
MAX_PREFETCH = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """A declared subscription: a queue and its bindings, and the handler of what arrives."""

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
    #: Most deliveries handled in one transaction.
    batch: int = 1
    #: The handler takes the events and deliveries of a batch as two lists.
    whole_batch: bool = False
    #: False: the handler fences its own writes. A broadcast has no fence: each process handles the message.
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
        """The bindings that route this consumer's events to its queue."""
        return list(dict.fromkeys(binding for event in self.events for binding in self.bindings_of(event)))

    @property
    def records_failures(self) -> bool:
        """Whether failures have inbox rows: not those of a broadcast, and of the built-in consumer of dead letters."""
        return bool(self.events) and not self.broadcast

    @property
    def handler_timeout(self) -> float:
        """Seconds that the handler may take."""
        return self.timeout.total_seconds() if self.timeout else conf.get().handler_timeout

    def wants(self, event_type: str) -> bool:
        """Whether a message of this type belongs in this consumer's queue."""
        return any(event.event_type == event_type for event in self.events)

    def receives(self, event_type: str, exchange: str, routing_key: str, headers: Mapping[str, Any]) -> bool:
        """Whether a message of this type, published like this, is for this consumer.

        Without keys or headers only the type counts: the event may once have used another routing key. So it does at an
        exchange that the event once had: its bindings are not known here any more.
        """
        for event in self.events:
            if event.event_type == event_type:
                known = exchange_of(event)
                asked = self.headers if known.type == "headers" else self.keys
                if not asked or known.name != exchange:
                    return True
                if any(takes(known.type, each, routing_key, headers) for each in self.bindings_of(event)):
                    return True
        return False

    def bindings_of(self, event: type[Event]) -> Iterator[Binding]:
        """Yield the bindings that route one of this consumer's events."""
        exchange = exchange_of(event)
        match exchange.type:
            case "fanout":
                yield Binding(exchange.name, self.queue)
            case "headers":
                yield Binding(exchange.name, self.queue, arguments={"x-match": "all", **self.headers})
            case _:
                for key in self.keys or [pattern_of(event.event_key) if event.event_key else event.event_type]:
                    yield Binding(exchange.name, self.queue, key)


registry: Registry[Consumer] = Registry(
    "consumer", name_of=lambda each: each.name, defined_by=lambda each: each.handler, unknown=UnknownConsumer
)
get, named = registry.get, registry.named


def registered() -> list[Consumer]:
    """Return every consumer that has a lasting queue, by name: they must receive the events published for them."""
    return [each for each in registry.all() if not each.broadcast]


def broadcasting() -> list[Consumer]:
    """Return every broadcast consumer, by name."""
    return [each for each in registry.all() if each.broadcast]


def recording(names: Iterable[str]) -> list[str]:
    """Return those of these consumers that have a row for each message. One that is not declared here may."""
    return [name for name in names if (known := registry.find(name)) is None or known.fenced]


def exchange_of(event: type[Event]) -> Exchange:
    """Return the exchange that events of this class are published to."""
    return event.event_exchange or Exchange(conf.get().exchange)


def consumer(
    name: str,
    *events: type[Event],
    retry: RetryPolicy | None = None,
    timeout: timedelta | None = None,
    prefetch: int | None = None,
    batch: int = 1,
    whole_batch: bool = False,
    queue: str | None = None,
    keys: Iterable[str] = (),
    headers: Mapping[str, Any] | None = None,
    broadcast: bool = False,
    fenced: bool = True,
    queue_type: QueueType | None = None,
    max_priority: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Callable[[AnyHandler], AnyHandler]:
    """Declare the decorated function as the handler of `events`.

    It is called as `handler(event, delivery)` inside a transaction that also writes the inbox row: its writes to the
    database take effect once per message. It returns, or raises `Reject` (dead at once), `RetryLater` (again after a
    time) or anything else (again by `retry`). After its `timeout` (default: `HANDLER_TIMEOUT`) HandlerTimeout is raised
    in it, which counts as a failure. With `batch`, up to that many deliveries share a transaction; if one fails, each
    is handled in its own. With `whole_batch` the handler is called once for all of them, as `handler(events,
    deliveries)` with two lists of the same length; if it fails, once for each. Duplicates are left out before. The
    queue is `queue`, by default `<app label>.<name>`.

    It receives every message of its events, or those with certain `keys` (of a direct exchange, or patterns such as
    `kern.*` of a topic exchange) or `headers` (of a headers exchange: `{"x-match": "any", "format": "pdf"}`).

    With `broadcast` every process that runs the consumer receives each message, by its own queue that is deleted with
    the process: for what a process keeps in memory. No row is kept: a process misses what is published while it does
    not run, and what its handler fails on. Such a handler intends no effects.

    With `fenced=False` a message that succeeds at once leaves no inbox row: for handlers that may run twice for one
    (after a crash, or for a copy). Failures are recorded, retried and replayed as usual. No ordering, no effects.

    The queue is declared with `queue_type`, `max_priority` (events with a higher `priority` are delivered first; needs
    a classic queue) and further `arguments`. On an existing queue they cannot be changed.

    Raises ImproperlyConfigured for a bad or taken name, a queue of another consumer, no events, a function that cannot
    be called as a handler or would not run (`async def`, a generator), and options that contradict each other.
    """
    if not isinstance(name, str):
        raise ImproperlyConfigured(f'a consumer has a name: write @consumer("sms", OrderPlaced), not {name!r:.100}')
    check_times(f"consumer {name!r}", timeout, retry)
    with _named_in_errors(name):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or len(name) > texts.LONGEST:
            raise ValueError(f"a name has small letters, digits and underscores, {texts.LONGEST} at most")
        if not events:
            raise ValueError("it names no events")
        for event in events:
            _check_event(event)
        for switch, given in (("whole_batch", whole_batch), ("broadcast", broadcast), ("fenced", fenced)):
            numbers.check_switch(switch, given)
        numbers.check_whole("batch", batch, MAX_PREFETCH)
        if whole_batch and batch == 1:
            raise ValueError("with whole_batch say how many deliveries the handler takes at most, as batch=50")
        numbers.check_whole("prefetch", 1 if prefetch is None else prefetch, MAX_PREFETCH)
        if isinstance(keys, str):
            raise ValueError(f'keys is a list of keys, such as ["{keys}"]')
        if broadcast and (queue or queue_type or max_priority or arguments or retry or batch > 1):
            raise ValueError("a broadcast has no named queue, no type of queue, no retries and no batches")

    def register(handler: AnyHandler) -> AnyHandler:
        takes = "events, deliveries" if whole_batch else "event, delivery"
        functions.check(handler, f"the handler of consumer {name!r}", takes=takes)
        declared = Consumer(
            name=name,
            queue="" if broadcast else queue or f"{_app_label(handler)}.{name}",
            events=events,
            handler=handler,
            retry=retry or RetryPolicy(),
            timeout=timeout,
            prefetch=prefetch,
            batch=batch,
            whole_batch=whole_batch,
            fenced=fenced and not broadcast,
            keys=tuple(keys),
            headers=headers or {},
            broadcast=broadcast,
            queue_type=queue_type,
            max_priority=max_priority,
            arguments=arguments or {},
        )
        # A relay publishes nothing while it cannot declare one of the queues.
        with _named_in_errors(name):
            _check_queue(declared)
            _check_bindings(declared)
        registry.add(declared)
        return handler

    return register


@contextmanager
def _named_in_errors(name: str) -> Iterator[None]:
    """Turn a ValueError into an ImproperlyConfigured that names the consumer."""
    try:
        yield
    except ValueError as error:
        raise ImproperlyConfigured(f"consumer {name!r}: {error}") from None


def _check_event(event: Any) -> None:
    if not (isinstance(event, type) and issubclass(event, Event)):
        raise ValueError(f"{event!r:.100} is no event: name classes below Event")
    if not event.event_type and typed_parent(event):
        # Without such a parent it is an error of `manage.py check`.
        raise ValueError(untyped(event))


def _check_queue(consumer: Consumer) -> None:
    if not texts.is_short(consumer.queue):
        raise ValueError(f"the name of its queue is a text of at most {texts.LONGEST} bytes, without NUL")
    if consumer.queue.startswith(texts.RESERVED_PREFIX):
        raise ValueError(
            f"the broker keeps names that begin with {texts.RESERVED_PREFIX!r} for itself, such as {consumer.queue!r}"
        )
    for other in registered():
        if other.queue == consumer.queue and other.name != consumer.name:
            # Each would take messages from the other.
            raise ValueError(f"it shares the queue {other.queue!r} with consumer {other.name!r}")
    if consumer.queue_type not in {None, *get_args(QueueType)}:
        raise ValueError(f"queue_type is {' or '.join(get_args(QueueType))}")
    for argument, instead in (("x-queue-type", "queue_type"), ("x-max-priority", "max_priority")):
        if argument in consumer.arguments:
            raise ValueError(f"say {instead} instead of the argument {argument}")
    if "x-expires" in consumer.arguments:
        raise ValueError("x-expires deletes the queue, with all its messages, while no process consumes it")
    check_table("arguments", consumer.arguments)
    if consumer.max_priority is None:
        return
    numbers.check_whole("max_priority", consumer.max_priority, MAX_PRIORITY)
    if (consumer.queue_type or conf.get().queue_type) != "classic":
        raise ValueError('only a classic queue has priorities; say queue_type="classic"')


def _check_bindings(consumer: Consumer) -> None:
    """Raise ValueError where `keys` and `headers` do not fit the exchanges of the consumer's events."""
    types = {exchange_of(event).type for event in consumer.events}
    if consumer.keys and not types & {"direct", "topic"}:
        raise ValueError(f"keys mean nothing to a {types.pop()} exchange")
    if consumer.headers and "headers" not in types:
        raise ValueError("only a headers exchange looks at headers")
    if not all(map(texts.is_short, consumer.keys)):
        raise ValueError(f"a key is a text of at most {texts.LONGEST} bytes, without NUL")
    check_table("headers", consumer.headers)
    for event in consumer.events:
        if exchange_of(event).type == "direct" and fields_in(event.event_key) and not consumer.keys:
            raise ValueError(
                f"the keys of {event.__qualname__} differ, and its exchange compares them letter by letter: say which "
                'you want, keys=["error", "warning"]'
            )
        if exchange_of(event).type == "topic":
            check_patterns(binding.key for binding in consumer.bindings_of(event))


def _app_label(handler: Callable[..., None]) -> str:
    module = functions.module(handler)
    app = apps.get_containing_app_config(module)
    return app.label if app else module.partition(".")[0]
