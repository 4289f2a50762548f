"""Django applications that use RabbitMQ and never lose an event.

Applications import what they declare and call from here. Each name is loaded when it is first used: this package can be
imported before Django's apps are ready.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from messaging import outbox, rpc, testing
    from messaging.consumers import consumer
    from messaging.effects import Sending, effect
    from messaging.events import Event
    from messaging.exceptions import NotDone, Reject, RetryLater
    from messaging.message import Delivery
    from messaging.procedures import procedure
    from messaging.retry import RetryPolicy
    from messaging.routing import Exchange

__all__ = [  # noqa: RUF022  (in groups)
    # Events: what happened, and the transaction that reports it.
    "Event",
    "Exchange",
    "outbox",
    # Consumers: what follows in the database.
    "consumer",
    "Delivery",
    "Reject",
    "RetryLater",
    "RetryPolicy",
    # Effects: what follows outside the database.
    "effect",
    "Sending",
    "NotDone",
    # Questions to other processes.
    "procedure",
    "rpc",
    # Tests without a broker.
    "testing",
]

_HOMES = {
    "Event": "events",
    "Exchange": "routing",
    "consumer": "consumers",
    "Delivery": "message",
    "Reject": "exceptions",
    "RetryLater": "exceptions",
    "RetryPolicy": "retry",
    "effect": "effects",
    "Sending": "effects",
    "NotDone": "exceptions",
    "procedure": "procedures",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"messaging.{_HOMES[name]}"), name)
    if name in __all__:
        return import_module(f"messaging.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
