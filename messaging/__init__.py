"""Django applications that use RabbitMQ and never lose an event.

Applications import what they declare and call from here. Each name is loaded when it is first used: this package can be
imported before Django's apps are ready.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from messaging import outbox as outbox
    from messaging import rpc as rpc
    from messaging import testing as testing
    from messaging.consumers import consumer as consumer
    from messaging.effects import Sending as Sending
    from messaging.effects import effect as effect
    from messaging.events import Event as Event
    from messaging.exceptions import NotDone as NotDone
    from messaging.exceptions import Reject as Reject
    from messaging.exceptions import RetryLater as RetryLater
    from messaging.message import Delivery as Delivery
    from messaging.procedures import procedure as procedure
    from messaging.retry import RetryPolicy as RetryPolicy
    from messaging.routing import Exchange as Exchange

#: The public names, and the module of each.
_MODULES = {
    # Events: what happened, and the transaction that reports it.
    "Event": "events",
    "Exchange": "routing",
    "outbox": "outbox",
    # Consumers: what follows in the database.
    "consumer": "consumers",
    "Delivery": "message",
    "Reject": "exceptions",
    "RetryLater": "exceptions",
    "RetryPolicy": "retry",
    # Effects: what follows outside the database.
    "effect": "effects",
    "Sending": "effects",
    "NotDone": "exceptions",
    # Questions to other processes; tests without a broker.
    "procedure": "procedures",
    "rpc": "rpc",
    "testing": "testing",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"messaging.{_MODULES[name]}")
    return getattr(module, name, module)
