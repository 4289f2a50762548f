"""Failpoints and mutants, put into a process from outside: the product holds neither, and no switch for them.

A process gets them by its environment, whatever it is: `manage.py`, each gunicorn worker, Celery, with the relay
thread inside. It runs on the settings `tests.faults.settings`, which install the app below; once Django is set up
the app wraps the functions that `WARREN_TEST_FAULTS` names:

    run_process("run_consumer", "sms", **failpoints.at("committed-not-acked"))
    run_process.web(**failpoints.at("order-not-committed:3"))                    the third time it comes there
    run_process("run_relay", **failpoints.at("confirmed-not-marked=STOP"))       another signal than KILL
    run_process("run_consumer", "sms", **failpoints.at(failpoints.ack_before_commit, LEASE=3))

Several may be given. A function without arguments, here or in a test module, is called at the start and may replace
whatever it likes: a mutant. Capital keywords are values of `settings.MESSAGING`, or constants of `messaging.conf`,
lowered so that a test sees a deadline pass. `crashed` tells whether a process really ended at its failpoint; a test
that does not ask could pass by accident.

Wrapped is the attribute of a module or class. Who imported the function by name keeps the old one: wrap it there.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

from django.apps import AppConfig

from messaging import conf

VARIABLE = "WARREN_TEST_FAULTS"
MESSAGING_VARIABLE = "WARREN_TEST_MESSAGING"
SETTINGS = "tests.faults.settings"


# --- For tests ---------------------------------------------------------------------------------------------


def at(*faults: str | Callable[[], None], **messaging: Any) -> dict[str, str]:
    """The environment of a process with these failpoints and mutants, and these values of `settings.MESSAGING`."""
    words = [each if isinstance(each, str) else f"{each.__module__}:{each.__qualname__}" for each in faults]
    for word in words:
        _understood(word)
    return {
        "DJANGO_SETTINGS_MODULE": SETTINGS,
        VARIABLE: " ".join(words),
        MESSAGING_VARIABLE: json.dumps(messaging),
    }


def lower(settings: Any, monkeypatch: Any, **messaging: Any) -> None:
    """Set these values in the test's own process, as `at` does in another."""
    for name in messaging.keys() & vars(conf).keys():
        monkeypatch.setattr(conf, name, messaging.pop(name))
    settings.MESSAGING = {**settings.MESSAGING, **messaging}


def crashed(code: int) -> bool:
    """Whether this exit code is that of a process which a failpoint has killed."""
    return code == -signal.SIGKILL


# --- The points --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a wrapped function; `result` is there after it."""

    arguments: tuple[Any, ...]
    result: Any = None


def _always(call: Call) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Failpoint:
    """A place in the product: before or after a function, where `only` says so, for the `nth` time."""

    function: str
    before: bool
    only: Callable[[Call], bool] = _always
    nth: int = 1
    signal: signal.Signals = signal.SIGKILL


def _confirmed(call: Call) -> bool:
    return any(mark.outcome.status.value == "confirmed" for mark in call.arguments[0])


def _first_delivery(call: Call) -> bool:
    # One that comes again is let through: its process would die of it until it is given up.
    return not call.arguments[1].redelivered


#: What dies, and where. Add to them as the tests need; each is the last line before the point of no return, or the
#: first behind it.
POINTS = {
    # The web process, or whoever adds an event.
    "order-not-committed": Failpoint("messaging.outbox.add", before=False),
    "committed-not-handed-over": Failpoint("messaging.relay.thread.hand_over", before=True),
    # The relay, on its thread or in `run_relay`.
    "claimed-not-published": Failpoint(
        "messaging.relay.leases.claim", before=False, only=lambda call: bool(call.result)
    ),
    "confirmed-not-marked": Failpoint("messaging.relay.leases.write", before=True, only=_confirmed),
    # The consumer.
    "handled-not-committed": Failpoint("messaging.worker.handling._run", before=False, only=_first_delivery),
    "committed-not-acked": Failpoint(
        "messaging.worker.consumer_threads.ConsumerThreads._done",
        before=True,
        only=lambda call: call.arguments[2] != "duplicate",
    ),
    # The RPC server.
    "worked-not-replied": Failpoint("messaging.broker.request_queue.RequestQueue.finish", before=True),
    # Its effects.
    "committed-effect-not-claimed": Failpoint(
        "messaging.worker.consumer_threads.ConsumerThreads._run_effects", before=True
    ),
    "claimed-not-sent": Failpoint("messaging.worker.effect_runner.carry_out", before=True),
    "answered-not-noted": Failpoint("messaging.worker.ledger.note", before=True),
}


# --- The mutants -------------------------------------------------------------------------------------------


def ack_before_commit() -> None:
    """Acknowledges a delivery when it is taken. A consumer killed in its handler then loses the message."""
    from messaging.broker.subscription import Subscription
    from messaging.worker.consumer_threads import ConsumerThreads

    take, ack = ConsumerThreads._take, Subscription.ack

    def take_and_ack(self: ConsumerThreads, timeout: float | None) -> Any:
        arrival = take(self, timeout)
        if arrival is not None:
            ack(self.subscription, arrival)
        return arrival

    ConsumerThreads._take = take_and_ack
    # The proper ones would make the broker close the channel: it knows the delivery no longer.
    Subscription.ack = Subscription.requeue = lambda self, arrival: None


def mark_before_confirm() -> None:
    """Marks rows as published and publishes them afterwards, whatever comes of it. A dead broker then loses them."""
    from messaging.broker.publisher import Outcome, Status
    from messaging.relay.relay import Relay

    send = Relay._send

    def mark_and_send(self: Relay, rows: Any) -> list[Outcome]:
        confirmed = [Outcome(Status.CONFIRMED) for _ in rows]
        for row, outcome in zip(rows, confirmed, strict=True):
            self._record(row, outcome)
        self._write_marks()
        send(self, rows)
        return confirmed

    Relay._send = mark_and_send


def no_inbox() -> None:
    """Lets every delivery through, handled before or not. A copy then runs the handler a second time.

    The shop's own handlers ask first whether there is a text or red packet, so there it shows as a second delivery
    attempt *handled* of one inbox row; a handler that does not ask has its effect twice.
    """
    from messaging.models import InboxMessage
    from messaging.worker import inbox

    admit, start = inbox.admit, inbox.start

    def found(delivery: Any) -> InboxMessage:
        row = InboxMessage.objects.get(consumer=delivery.consumer, message_id=delivery.message_id)
        row.starts = 1
        return row

    inbox.admit = lambda delivery: admit(delivery) or found(delivery)
    inbox.start = lambda delivery: start(delivery) or found(delivery)


# --- In the process ----------------------------------------------------------------------------------------


class FailpointsConfig(AppConfig):
    """The last of the installed apps: what it wraps is imported, and consumers are registered."""

    name = "tests.support.failpoints"

    def ready(self) -> None:
        for word in os.environ.get(VARIABLE, "").split():
            fault = _understood(word)
            if isinstance(fault, Failpoint):
                _wrap(fault)
            else:
                fault()


def _understood(word: str) -> Failpoint | Callable[[], None]:
    """Return what `point[:nth][=SIGNAL]` or `module:function` means. Raises LookupError for an unknown point."""
    point, _, name = word.partition("=")
    point, _, number = point.partition(":")
    if point in POINTS:
        return replace(POINTS[point], nth=int(number or 1), signal=signal.Signals[f"SIG{name or 'KILL'}"])
    try:
        mutant: Callable[[], None] = getattr(importlib.import_module(point), number)
    except (ImportError, AttributeError):
        raise LookupError(f"{word!r} is neither one of {', '.join(POINTS)} nor module:function") from None
    return mutant


def _wrap(point: Failpoint) -> None:
    owner, name = _found(point.function)
    real = getattr(owner, name)
    counter = itertools.count(1)

    def reached(call: Call) -> None:
        # To this thread, not to the process: it goes not one step further, whichever signal it is.
        if point.only(call) and next(counter) == point.nth:
            signal.pthread_kill(threading.get_ident(), point.signal)

    @wraps(real)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        if point.before:
            reached(Call(arguments))
            return real(*arguments, **options)
        result = real(*arguments, **options)
        reached(Call(arguments, result))
        return result

    setattr(owner, name, wrapper)


def _found(path: str) -> tuple[Any, str]:
    """Return the module or class that holds the function of this dotted path, and its name there."""
    parts = path.split(".")
    for module, inside in _splits(parts):
        try:
            owner = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        for part in inside[:-1]:
            owner = getattr(owner, part)
        return owner, inside[-1]
    raise LookupError(f"there is no {path}")


def _splits(parts: list[str]) -> Iterator[tuple[str, list[str]]]:
    for length in range(len(parts) - 1, 0, -1):
        yield ".".join(parts[:length]), parts[length:]
