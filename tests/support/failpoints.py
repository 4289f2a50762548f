"""Failpoints and mutants, put into a process from outside: the product holds neither, and no switch for them.

A process gets them by its environment, whatever it is: `manage.py`, each gunicorn worker, Celery, with the relay
thread inside. It runs on the settings `tests.faults.settings`, which install the app below; once Django is set up
the app wraps the functions that `WARREN_TEST_FAULTS` names:

    run_process("run_consumer", "sms", **failpoints.at("committed-not-acked"))
    run_process("run_consumer", "sms", **failpoints.at(failpoints.ack_before_commit, LEASE=3))

A process is killed the first time that it comes to a failpoint. A function without arguments, here or in a test module,
is a mutant: it is called at the start and may replace whatever it likes. Capital keywords are values of
`settings.MESSAGING`, or constants of `messaging.conf`, lowered so that a test sees a deadline pass. `crashed` tells
whether a process really ended at its failpoint; a test that does not ask could pass by accident.

Wrapped is the attribute of a module or class. A module that imported the function by name keeps the old one.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
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
        _fault(word)
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
class Failpoint:
    """A place in the product: before or after a function, if `only` agrees (it gets the arguments, and the result)."""

    function: str
    before: bool
    only: Callable[[tuple[Any, ...], Any], bool] = lambda arguments, result: True


#: Each is the last line before the point of no return, or the first behind it.
POINTS = {
    # The web process, or another that adds an event.
    "order-not-committed": Failpoint("messaging.outbox.add", before=False),
    "committed-not-handed-over": Failpoint("messaging.relay.thread.hand_over", before=True),
    # The relay, on its thread or in `run_relay`.
    "claimed-not-published": Failpoint(
        "messaging.relay.leases.claim", before=False, only=lambda arguments, result: bool(result)
    ),
    "confirmed-not-marked": Failpoint(
        "messaging.relay.leases.write",
        before=True,
        only=lambda arguments, result: any(mark.outcome.status.value == "confirmed" for mark in arguments[0]),
    ),
    # The consumer.
    # A message that comes again passes: its process would die of it until the message is given up.
    "handled-not-committed": Failpoint(
        "messaging.worker.running.run", before=False, only=lambda arguments, result: not arguments[1].redelivered
    ),
    "committed-not-acked": Failpoint(
        "messaging.worker.consumer_threads.ConsumerThreads._done",
        before=True,
        only=lambda arguments, result: any(verdict != "duplicate" for _, verdict in arguments[2]),
    ),
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
            self._connection.call_soon(lambda: None)  # so that it does not wait for others
        return arrival

    ConsumerThreads._take = take_and_ack
    # The proper ones would make the broker close the channel: it knows the delivery no longer.
    Subscription.ack = Subscription.requeue = lambda self, *arrivals: None


def mark_before_confirm() -> None:
    """Marks rows as published and publishes them afterwards, whatever comes of it. A dead broker then loses them."""
    from messaging.broker.publisher import Outcome, Status
    from messaging.relay import leases
    from messaging.relay.flow import Flow

    send = Flow.send

    def mark_and_send(self: Flow, problems: Any, **options: Any) -> None:
        rows = [each.held.row for stream in self._streams.values() for each in stream.waiting]
        leases.write([leases.Mark(row, Outcome(Status.CONFIRMED), ()) for row in rows])
        send(self, problems, **options)

    Flow.send = mark_and_send  # type: ignore[method-assign]


def no_inbox() -> None:
    """Lets every delivery through, handled before or not. A copy then runs the handler a second time.

    The shop's own handlers ask first whether there is a text or red packet, so there it shows as a second delivery
    attempt *handled* of one inbox row; a handler that does not ask has its effect twice.
    """
    from messaging.models import InboxMessage
    from messaging.worker import fence, inbox

    admit, start = fence.admit, inbox.start

    def found(delivery: Any) -> InboxMessage:
        row = InboxMessage.objects.get(consumer=delivery.consumer, message_id=delivery.message_id)
        row.starts = 1
        return row

    fence.admit = lambda delivery: admit(delivery) or fence.Admitted(delivery, found(delivery).pk, again=True)
    inbox.start = lambda delivery: start(delivery) or found(delivery)


# --- In the process ----------------------------------------------------------------------------------------


class FailpointsConfig(AppConfig):
    """The last of the installed apps: what it wraps is imported, and consumers are registered."""

    name = "tests.support.failpoints"

    def ready(self) -> None:
        for word in os.environ.get(VARIABLE, "").split():
            fault = _fault(word)
            if isinstance(fault, Failpoint):
                _wrap(fault)
            else:
                fault()


def _fault(word: str) -> Failpoint | Callable[[], None]:
    """Return the failpoint of this name, or the mutant `module:function`. Raises LookupError."""
    if word in POINTS:
        return POINTS[word]
    module, _, name = word.partition(":")
    try:
        mutant: Callable[[], None] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise LookupError(f"{word!r} is neither one of {', '.join(POINTS)} nor module:function") from None
    return mutant


def _wrap(point: Failpoint) -> None:
    path, _, name = point.function.rpartition(".")
    try:
        owner = importlib.import_module(path)
    except ModuleNotFoundError:
        owner = pkgutil.resolve_name(path)  # a class
    real = getattr(owner, name)

    def reached(arguments: tuple[Any, ...], result: Any = None) -> None:
        if point.only(arguments, result):
            # To this thread, which goes not one step further.
            signal.pthread_kill(threading.get_ident(), signal.SIGKILL)

    @wraps(real)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        if point.before:
            reached(arguments)
        result = real(*arguments, **options)
        if not point.before:
            reached(arguments, result)
        return result

    setattr(owner, name, wrapper)
