"""How a failed command ends: with one line and an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError
from django.db import InterfaceError, OperationalError, ProgrammingError

from messaging import database
from messaging.broker.errors import TRANSIENT_QUEUES, difference
from messaging.broker.queue_answers import CURE
from messaging.exceptions import (
    AccessRefused,
    BrokerSilent,
    BrokerUnavailable,
    LimitReached,
    NotFound,
    ObjectLimitReached,
    OperationRefused,
    QueueSilent,
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
#: As shells report a program that Ctrl-C ended.
EXIT_INTERRUPTED = 130
#: RabbitMQ's words, at the end, for a queue that a consumer shares with none.
_EXCLUSIVE_USE = " in exclusive use"
#: SQLite's words for a file that it cannot open or create.
_NO_FILE = "unable to open database file"
#: RabbitMQ's words for names that belong to itself.
_RESERVED = ("reserved prefix", "default exchange")


def broker_unreachable(reason: object) -> CommandError:
    """Return the error of a command that cannot work without the broker: exit code 3; 7 if the broker does not answer,
    1 if it closed the connection because of the request."""
    why = str(reason).rstrip(".")
    if isinstance(reason, QueueSilent):
        return CommandError(f"RabbitMQ: {why}: {CURE}.", returncode=EXIT_TIMED_OUT)
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


def broker_refuses(error: OperationRefused) -> CommandError:
    """Return the error of a command whose request the broker refused: exit code 1."""
    if differs := difference(error):
        lost = "messages" if differs.kind == "queue" else "bindings"
        return CommandError(f"{differs}. Ask for it as it exists, or delete it first: its {lost} go with it.")
    match error:
        case AccessRefused() if any(each in error.text for each in _RESERVED):
            hint = "No account may: take a name of your own, that does not begin with amq."
        case AccessRefused() if error.text.endswith(_EXCLUSIVE_USE):
            hint = "It has a consumer that asked to be its only one: stop that first."
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


@contextmanager
def told_in_one_line(advice: str = "Repeat the command: it goes on where it was.") -> Iterator[None]:
    """Convert database errors into a CommandError: exit code 3 if it cannot be reached, else 1.

    `advice` is for errors that suggest none; if it is empty, such an error counts as unreachable.
    """
    try:
        yield
    except (OperationalError, InterfaceError, ProgrammingError) as error:
        # A lock or a deadlock: what was done before stays, as each page is a transaction of its own.
        hint = cure(error) or advice
        if database.is_unreachable(error) or not hint:
            raise database_unreachable(error) from None
        raise CommandError(f"The database refuses: {_in_one_line(error)}. {hint}") from None


def database_unreachable(error: BaseException) -> CommandError:
    """Return the error of a command that cannot work without the database: exit code 3."""
    reason = f"The database is out of reach: {_in_one_line(error)}"
    if _NO_FILE in reason:
        reason += ". Is the folder of its file there, and may this user write in it?"
    return CommandError(reason, returncode=EXIT_UNREACHABLE)


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def cure(error: BaseException) -> str:
    """Return what helps against an error of a database that can be reached; empty if that is not known."""
    if database.is_disk_failure(error):
        return "Is its disk full, or failing?"
    if database.is_read_only(error):
        return "May this user write to it, and is it no standby?"
    if isinstance(error, ProgrammingError) or "no such" in str(error):
        return "Did `manage.py migrate` run?"
    return ""


@contextmanager
def told_when_interrupted() -> Iterator[None]:
    """Convert KeyboardInterrupt into a CommandError (130), for commands that hold nothing which could be lost."""
    try:
        yield
    except KeyboardInterrupt:
        raise CommandError("Interrupted.", returncode=EXIT_INTERRUPTED) from None
