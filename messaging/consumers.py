"""Consumers: who wants which events. A declaration; `worker` is what runs it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured

from messaging import conf
from messaging.delivery import Delivery
from messaging.events import Event
from messaging.exceptions import UnknownConsumer
from messaging.retry import RetryPolicy

#: What a handler looks like: `def sms(event: OrderPlaced, delivery: Delivery) -> None`.
Handler = Callable[[Any, Delivery], None]
AnyHandler = TypeVar("AnyHandler", bound=Callable[..., None])

#: Longest name of a queue, in bytes: an AMQP short string.
MAX_QUEUE_NAME = 255

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_registry: dict[str, Consumer] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """A declared subscription: a queue of its own, bound to the types of its events."""

    name: str
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
    #: False: the handler gets each delivery undecoded, as `handler(None, delivery)`, and fences its own writes.
    fenced: bool = True

    @property
    def bindings(self) -> list[tuple[str, str]]:
        """(exchange, routing key) of each event this consumer wants."""
        return [(exchange_of(event), event.event_type) for event in self.events]

    @property
    def handler_timeout(self) -> float:
        """Seconds that the handler may take."""
        return self.timeout.total_seconds() if self.timeout else conf.get().handler_timeout

    def wants(self, event_type: str) -> bool:
        """Whether a message of this type belongs in this consumer's queue."""
        return any(event.event_type == event_type for event in self.events)


def consumer(
    name: str,
    *events: type[Event],
    retry: RetryPolicy | None = None,
    timeout: timedelta | None = None,
    prefetch: int | None = None,
    batch: int = 1,
    queue: str | None = None,
) -> Callable[[AnyHandler], AnyHandler]:
    """Declare the decorated function as the handler of `events`.

    It is called as `handler(event, delivery)` inside a transaction that also holds the inbox row: its writes to
    the database take effect once per message. It returns, or raises `Reject` (dead at once), `RetryLater`
    (again after a time) or anything else (again by `retry`). Past its `timeout` (default: `HANDLER_TIMEOUT`)
    HandlerTimeout is raised in it, which counts as a failure. With `batch`, up to that many deliveries share a
    transaction; should one fail, each is handled in its own. The queue is named `<app label>.<name>` unless
    `queue` says otherwise.

    Raises ImproperlyConfigured for a bad or taken name, a queue that another consumer has, or no events.
    """
    if not _NAME.fullmatch(name):
        raise ImproperlyConfigured(f"consumer name {name!r}: use small letters, digits and underscores")
    if not events:
        raise ImproperlyConfigured(f"consumer {name!r} names no events")
    if timeout is not None and timeout <= timedelta(0):
        raise ImproperlyConfigured(f"consumer {name!r}: timeout is a positive time")
    if batch < 1:
        raise ImproperlyConfigured(f"consumer {name!r}: batch is at least 1")

    def register(handler: AnyHandler) -> AnyHandler:
        where = queue or f"{_app_label(handler)}.{name}"
        if len(where.encode()) > MAX_QUEUE_NAME:
            # A relay that cannot declare it could publish nothing at all.
            raise ImproperlyConfigured(f"consumer {name!r}: the name of its queue has at most {MAX_QUEUE_NAME} bytes")
        other = _registry.get(name)
        if other is not None and _path(other.handler) != _path(handler):
            raise ImproperlyConfigured(f"two consumers are named {name!r}: {_path(other.handler)}, {_path(handler)}")
        for sharer in _registry.values():
            if sharer.queue == where and sharer.name != name:
                # Each would take messages that the other should have had.
                raise ImproperlyConfigured(f"consumers {sharer.name!r} and {name!r} share the queue {where!r}")
        _registry[name] = Consumer(
            name=name,
            queue=where,
            events=events,
            handler=handler,
            retry=retry or RetryPolicy(),
            timeout=timeout,
            prefetch=prefetch,
            batch=batch,
        )
        return handler

    return register


def registered() -> list[Consumer]:
    """Return every consumer, by name."""
    return [_registry[name] for name in sorted(_registry)]


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


def exchange_of(event: type[Event]) -> str:
    """Return the exchange that events of this class are published to."""
    return event.event_exchange or conf.get().exchange


def _path(handler: Callable[..., None]) -> str:
    return f"{handler.__module__}.{handler.__qualname__}"


def _app_label(handler: Callable[..., None]) -> str:
    app = apps.get_containing_app_config(handler.__module__)
    return app.label if app else handler.__module__.partition(".")[0]
