"""What the commands share: exit codes, the end without a broker, and arguments that are checked as they are read."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management.base import CommandError

from messaging import conf
from messaging.broker.errors import TRANSIENT_QUEUES, difference
from messaging.exceptions import (
    AccessRefused,
    BrokerSilent,
    BrokerUnavailable,
    LimitReached,
    NotFound,
    ObjectLimitReached,
    OperationRefused,
    ResourceLocked,
    ThreadNotStarted,
    TransientQueuesForbidden,
    Unsupported,
    VhostDown,
)

EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_UNHEALTHY = 6
EXIT_TIMED_OUT = 7
#: What a shell says of a program that Ctrl-C ended.
EXIT_INTERRUPTED = 130
#: RabbitMQ's words for names that belong to itself.
_RESERVED = ("reserved prefix", "default exchange")


def broker_unreachable(reason: object) -> CommandError:
    """Return the error by which a command ends that cannot work without the broker: one line, and exit code 3; 7 where
    the broker is there and does not answer, 1 where it left because of what was asked."""
    why = str(reason).rstrip(".")
    if isinstance(reason, BrokerSilent):
        return CommandError(f"RabbitMQ: {why}. It may be frozen or overworked.", returncode=EXIT_TIMED_OUT)
    if isinstance(reason, ThreadNotStarted):
        return CommandError(f"{why}. Raise the limit (ulimit -u, or the container's).", returncode=EXIT_UNREACHABLE)
    if isinstance(reason, TransientQueuesForbidden):
        return CommandError(
            f"RabbitMQ refuses: {why}. Leave --transient out, or put deprecated_features.permit.{TRANSIENT_QUEUES} = "
            "true into its configuration."
        )
    return CommandError(f"RabbitMQ: {why}. {what_to_do(reason)}", returncode=EXIT_UNREACHABLE)


def what_to_do(reason: object) -> str:
    """Return in a sentence what helps if the broker could not be used for `reason`."""
    if isinstance(reason, LimitReached):
        return "Raise the limit, or try again once others have left, as consumers and relays do."
    if isinstance(reason, VhostDown):
        return "Start it, and try again, as consumers and relays do."
    return f"Check {'the certificates' if str(reason).startswith('TLS: ') else 'AMQP_URL'}."


def broker_line() -> str:
    """Return the line of a banner that says which brokers are used, without any password."""
    return f"Broker: {', '.join(map(str, conf.get().brokers))}"


def broker_refuses(error: OperationRefused) -> CommandError:
    """Return the error by which a command ends that the broker says no to: one line, exit code 1."""
    if differs := difference(error):
        lost = "messages" if differs.kind == "queue" else "bindings"
        return CommandError(f"{differs}. Ask for it as it exists, or delete it first: its {lost} go with it.")
    match error:
        case AccessRefused() if any(each in error.text for each in _RESERVED):
            hint = "No account may: take a name of your own, that does not begin with amq."
        case AccessRefused():
            hint = "Use an account that may (AMQP_URL); `manage.py mq grants` prints the rights that each one needs."
        case ObjectLimitReached():
            hint = "Delete what is not needed, or raise the limit."
        case NotFound():
            hint = "Is the name right, and the virtual host?"
        case ResourceLocked():
            hint = "It is another connection's own (exclusive)."
        case Unsupported() if "stream" in error.text:
            hint = (
                "A stream keeps its messages, read or not. They leave by its x-max-age or x-max-length-bytes, or when "
                "it is deleted."
            )
        case _:
            hint = ""
    return CommandError(f"RabbitMQ refuses: {error.sentence}. {hint}".rstrip())


@contextmanager
def broker_told_in_one_line() -> Iterator[None]:
    """Convert broker errors into a CommandError."""
    try:
        yield
    except OperationRefused as error:
        raise broker_refuses(error) from None
    except BrokerUnavailable as error:
        raise broker_unreachable(error) from None


def number(low: float, high: float = math.inf, *, whole: bool = False) -> Callable[[str], Any]:
    """Return what reads a number within these bounds, as argparse's `type`."""
    kind = "whole number" if whole else "number"
    bounds = f"from {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"

    def read(text: str) -> float:
        try:
            found = int(text) if whole else float(text)
        except ValueError:
            found = math.nan
        if not low <= found <= high or math.isinf(found):
            raise argparse.ArgumentTypeError(f"{text!r} is not a {kind} {bounds}")
        return found

    return read


#: What AMQP counts in 16 bits, and whatever else is a number of things.
positive = number(1, 65_535, whole=True)
#: A number of messages.
from_one = number(1, whole=True)
