"""What `mq listen NAME` means: a queue, or an exchange and what is bound to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from django.core.management.base import CommandError

from messaging import conf
from messaging.broker.connection import Connection
from messaging.broker.declaring import declare_exchange, declare_queue, exchange_exists, exchange_type, queue_exists
from messaging.broker.errors import Difference
from messaging.management.arguments import EXIT_USAGE
from messaging.mq.keys import said_of_bindings
from messaging.routing import Binding, Exchange
from messaging.topology import desired


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody asked to listen to, as the command line has it."""

    name: str
    keys: Sequence[str] = ()
    #: Headers to match, and whether "all" or "any" of them must.
    headers: dict[str, Any] = field(default_factory=dict)
    match: str = "all"
    #: The exchange's type; empty where none is asked for.
    type: str = ""
    #: "queue", "exchange", or empty: whichever there is.
    kind: str = ""
    declare: bool = False
    durable: bool = True
    queue_type: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def may_be_queue(self) -> bool:
        """Whether nothing in it says that an exchange is meant."""
        return self.kind != "exchange" and not (self.keys or self.headers or self.type)

    @property
    def may_be_exchange(self) -> bool:
        """Whether nothing in it says that a queue is meant."""
        return self.kind != "queue"


@dataclass(frozen=True, slots=True)
class Source:
    """What is listened to: a queue, or the bindings of a queue of our own to an exchange."""

    #: "queue" or "exchange".
    kind: str
    name: str
    bindings: Sequence[Binding] = ()
    #: What a person should know beforehand.
    note: str = ""


def find(connection: Connection, wish: Wish) -> Source:
    """Return what `wish` means, declared if it says so.

    A name that is not there is also looked for with APP_ID in front of it, and so is one with keys that is a fanout
    exchange, to which keys mean nothing. Raises CommandError where there is no such thing, OperationRefused where the
    broker refuses, BrokerUnavailable.
    """
    if wish.declare:
        return _declared(connection, wish)
    meant: list[Source] = []
    for name in (wish.name, f"{conf.get().app_id}.{wish.name}"):
        is_queue = wish.may_be_queue and queue_exists(connection, name)
        is_exchange = wish.may_be_exchange and exchange_exists(connection, name)
        if is_queue and is_exchange:
            raise CommandError(f"{name} is a queue and an exchange: say --queue or --exchange.", returncode=EXIT_USAGE)
        if is_queue:
            return Source("queue", name)
        if is_exchange:
            type_ = exchange_type(connection, name)
            source = _bound(name, type_, wish)
            if not (wish.keys and type_ == "fanout"):
                return source
            meant.append(source)
    if meant:
        return meant[0]
    logs = desired.log_exchange()
    if wish.may_be_exchange and logs.name in {wish.name, f"{conf.get().app_id}.{wish.name}"}:
        return _logs_before_the_first_line(connection, logs, wish)
    kinds = " and no ".join(
        kind for kind, may in (("queue", wish.may_be_queue), ("exchange", wish.may_be_exchange)) if may
    )
    raise CommandError(
        f"There is no {kinds} {wish.name}, nor {conf.get().app_id}.{wish.name}. "
        "Is the name right, and the virtual host?"
    )


def find_queue(connection: Connection, name: str) -> str:
    """Return the name of a queue that stands, with APP_ID in front if need be. Raises as `find`."""
    return find(connection, Wish(name, kind="queue")).name


def stands(connection: Connection, source: Source) -> bool:
    """Whether `source` is still there. Raises OperationRefused, BrokerUnavailable."""
    return (queue_exists if source.kind == "queue" else exchange_exists)(connection, source.name)


def _logs_before_the_first_line(connection: Connection, logs: Exchange, wish: Wish) -> Source:
    """Return the logs' exchange, which whoever logs first declares; a listener may come before."""
    if not conf.get().log_to_broker:
        raise CommandError(f"There is no exchange {logs.name} yet: processes write to it with LOG_TO_BROKER=1.")
    declare_exchange(connection, logs.name, logs.type, durable=True, arguments={})
    return _bound(logs.name, logs.type, wish)


def _declared(connection: Connection, wish: Wish) -> Source:
    if wish.may_be_queue:
        if not wish.kind and exchange_exists(connection, wish.name):
            raise CommandError(
                f"There is an exchange {wish.name}: leave --declare out to listen to it, or say --queue for a queue of "
                "that name.",
                returncode=EXIT_USAGE,
            )
        note = declare_queue(
            connection, wish.name, durable=wish.durable, queue_type=wish.queue_type, arguments=wish.arguments
        )
        return Source("queue", wish.name, note=note)
    note = declare_exchange(connection, wish.name, wish.type, durable=wish.durable, arguments=wish.arguments)
    source = _bound(wish.name, wish.type, wish)
    return replace(source, note=" ".join(filter(None, (note, source.note))))


def _bound(name: str, type_: str, wish: Wish) -> Source:
    """Return the exchange with the bindings that suit its type; an unknown one is empty."""
    if wish.type and type_ and wish.type != type_:
        raise CommandError(f"{Difference('exchange', name, 'type', asked=wish.type, found=type_)}.")
    type_ = type_ or wish.type or ("headers" if wish.headers else "")
    note = ""
    match type_:
        case "headers":
            bindings = [Binding(name, "", "", {"x-match": wish.match, **wish.headers})]
        case "fanout":
            bindings = [Binding(name, "")]
            note = f"{name} is a fanout exchange: it passes on everything, whatever the key." if wish.keys else ""
        case _:
            bindings = [Binding(name, "", key) for key in wish.keys or ["#"]]
            note = said_of_bindings(name, type_, wish.keys)
    if problem := _mismatch(type_, wish):
        article = "an" if type_[0] in "aeiou" else "a"
        raise CommandError(f"{name} is {article} {type_} exchange: {problem}.", returncode=EXIT_USAGE)
    return Source("exchange", name, bindings, note)


def _mismatch(type_: str, wish: Wish) -> str:
    if type_ == "headers":
        return "it goes by headers, not by keys: say --header NAME=VALUE" if wish.keys else ""
    if wish.headers:
        return "it does not go by headers: say keys"
    if type_ == "direct" and not wish.keys:
        return f"it goes by equal keys: say which, such as `mq listen {wish.name} info warning`"
    return ""
