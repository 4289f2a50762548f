"""What the commands share: exit codes, the end without a broker, and arguments that are checked as they are read."""

from __future__ import annotations

import argparse

from django.core.management.base import CommandError

EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_UNHEALTHY = 6
EXIT_TIMED_OUT = 7


def broker_unreachable(reason: object) -> CommandError:
    """Return the error by which a command ends that cannot work without the broker: one line, exit code 3."""
    what = "the certificates" if str(reason).startswith("TLS: ") else "AMQP_URL"
    return CommandError(f"RabbitMQ: {reason}. Check {what}.", returncode=EXIT_UNREACHABLE)


def positive(text: str) -> int:
    """Read a whole number from 1 to 65535, as argparse's `type`."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 65535")
    return number
