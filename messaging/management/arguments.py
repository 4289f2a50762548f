"""What the commands share: exit codes, the end without a broker, and arguments that are checked as they are read."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError

from messaging import conf
from messaging.broker import reply_codes
from messaging.broker.differences import difference
from messaging.broker.refusals import AT_A_LIMIT, TRANSIENT_QUEUES, VHOST_IS_DOWN, says_limit
from messaging.exceptions import BrokerSilent, BrokerUnavailable, ChannelClosed, ThreadNotStarted

EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_UNHEALTHY = 6
EXIT_TIMED_OUT = 7
#: What a shell says of a program that Ctrl-C ended.
EXIT_INTERRUPTED = 130
#: In RabbitMQ's refusals of what belongs to itself.
_NOBODYS = ("reserved prefix", "default exchange")


def broker_unreachable(reason: object) -> CommandError:
    """Return the error by which a command ends that cannot work without the broker: one line, and exit code 3; 7 where
    the broker is there and does not answer, 1 where it left because of what was asked."""
    why = str(reason).rstrip(".")
    if isinstance(reason, BrokerSilent):
        return CommandError(f"RabbitMQ: {why}. It may be frozen or overworked.", returncode=EXIT_TIMED_OUT)
    if isinstance(reason, ThreadNotStarted):
        return CommandError(f"{why}. Raise the limit (ulimit -u, or the container's).", returncode=EXIT_UNREACHABLE)
    if TRANSIENT_QUEUES in why:
        return CommandError(
            f"RabbitMQ refuses: {why}. Leave --transient out, or put deprecated_features.permit.{TRANSIENT_QUEUES} = "
            "true into its configuration."
        )
    return CommandError(f"RabbitMQ: {why}. {what_to_do(reason)}", returncode=EXIT_UNREACHABLE)


def what_to_do(reason: object) -> str:
    """Return in a sentence what helps where the broker could not be used for `reason`."""
    why = str(reason)
    if AT_A_LIMIT in why:
        return "Raise the limit, or try again once others have left, as consumers and relays do."
    if VHOST_IS_DOWN in why:
        return "Start it, and try again, as consumers and relays do."
    return f"Check {'the certificates' if why.startswith('TLS: ') else 'AMQP_URL'}."


def broker_line() -> str:
    """Return the line of a banner that says which brokers are used, without any password."""
    return f"Broker: {', '.join(map(str, conf.get().brokers))}"


def broker_refuses(error: ChannelClosed) -> CommandError:
    """Return the error by which a command ends that the broker says no to: one line, exit code 1."""
    _, _, text = error.text.partition(" - ")
    if differs := difference(error):
        lost = "messages" if differs.kind == "queue" else "bindings"
        return CommandError(f"{differs}. Ask for it as it stands, or delete it first: its {lost} go with it.")
    match error.code:
        case reply_codes.ACCESS_REFUSED if any(each in text for each in _NOBODYS):
            hint = "No account may: take a name of your own, that does not begin with amq."
        case reply_codes.ACCESS_REFUSED:
            hint = "Use an account that may (AMQP_URL); `manage.py mq grants` prints the rights that each one needs."
        case _ if says_limit(error):
            hint = "Delete what is not needed, or raise the limit."
        case reply_codes.NOT_FOUND:
            hint = "Is the name right, and the virtual host?"
        case reply_codes.RESOURCE_LOCKED:
            hint = "It is another connection's own (exclusive)."
        case reply_codes.NOT_IMPLEMENTED if "stream" in text:
            hint = (
                "A stream keeps its messages, read or not: `manage.py mq listen NAME --from-start` shows them. They "
                "leave by its x-max-age or x-max-length-bytes, or when it is deleted."
            )
        case _:
            hint = ""
    return CommandError(f"RabbitMQ refuses ({error.code}): {(text or error.text).rstrip('.')}. {hint}".rstrip())


@contextmanager
def broker_told_in_one_line() -> Iterator[None]:
    """Turn the broker's no, and its absence, into the CommandError that says so."""
    try:
        yield
    except ChannelClosed as error:
        raise broker_refuses(error) from None
    except BrokerUnavailable as error:
        raise broker_unreachable(error) from None


def from_one(text: str) -> int:
    """Read a whole number from 1, as argparse's `type`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def positive(text: str) -> int:
    """Read a whole number from 1 to 65535, as argparse's `type`."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 65535")
    return number
