"""Sending what `mq publish` was given, and saying what became of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from messaging import conf
from messaging.broker.publisher import Outcome, Publisher, Publishing, Status
from messaging.exceptions import OperationRefused
from messaging.management.arguments import EXIT_TIMED_OUT, EXIT_UNREACHABLE, broker_refuses
from messaging.management.tables import unwritten
from messaging.message import Message
from messaging.mq import bodies

#: What a script must not take for success.
STOPPED_FIRST = "Stopped before anything was sent."


class Sending:
    """A batch after the other: the next goes once the broker's word on this one has come.

    What is sent has the properties of `pattern`, and goes where the options of the command say.
    """

    def __init__(
        self,
        command: BaseCommand,
        options: dict[str, Any],
        publisher: Publisher,
        pattern: Message,
        stopped: Callable[[], bool],
    ) -> None:
        self._command = command
        self._options = options
        self._publisher = publisher
        self._stopped = stopped
        self._exchange = "" if options["queue"] else options["exchange"]
        self._key = options["queue"] or options["key"]
        self._pattern = pattern
        self._counts: Counter[Status] = Counter()
        #: The first outcome that is no success, for the line at the end.
        self._trouble: Outcome | None = None

    def send_all(self, batches: Iterator[list[bytes]]) -> None:
        """Send, and sum up. Raises CommandError by the worst that happened."""
        try:
            complete = self._send_all(batches)
        finally:
            self._sum_up()
        if self._trouble:
            raise self._explained(self._trouble)
        if self._stopped() and not self._counts:
            raise CommandError(STOPPED_FIRST)
        if not complete:
            raise CommandError("Stopped before all were sent.")

    def _send_all(self, batches: Iterator[list[bytes]]) -> bool:
        due = time.monotonic()
        for batch in batches:
            if not self._wait_until(due):
                return False
            if self._options["rate"]:
                due = max(due, time.monotonic()) + len(batch) / self._options["rate"]
            outcomes = self._publisher.publish([self._publishing(body) for body in batch], conf.get().publish_timeout)
            self._counts.update(outcome.status for outcome in outcomes)
            if bad := [each for each in outcomes if each.status not in {Status.CONFIRMED, Status.SENT}]:
                # A returned one says nothing about the next: somebody may listen by then.
                self._trouble = next(
                    (each for each in bad if each.status is not Status.RETURNED), self._trouble or bad[0]
                )
                if self._trouble.status is not Status.RETURNED:
                    return False
        return True

    def _wait_until(self, due: float) -> bool:
        while not self._stopped():
            left = due - time.monotonic()
            if left <= 0:
                return True
            time.sleep(min(left, bodies.LOOK_EVERY))
        return False

    def _publishing(self, body: bytes) -> Publishing:
        content_type = self._pattern.content_type or _content_type(body, as_json=self._options["json"])
        message = replace(self._pattern, body=body, content_type=content_type)
        return Publishing(key="", exchange=self._exchange, routing_key=self._key, message=message)

    def _sum_up(self) -> None:
        """Say how many met which end; beside the output where that is full, as they are sent nevertheless."""
        line = self._sum()
        if line and (problem := unwritten(self._command.stdout, line)):
            self._command.stderr.write(f"{line} The output cannot be written: {problem}.", style_func=str)

    def _sum(self) -> str:
        if self._options["lines"] or (self._options["count"] or 1) > 1:
            sent = self._counts.total() - self._counts[Status.UNSENDABLE]
            always = {Status.CONFIRMED, Status.RETURNED} if self._options["confirm"] else {Status.RETURNED}
            told = [
                status for status in Status if status in always or (self._counts[status] and status is not Status.SENT)
            ]
            return f"Sent {sent}: {', '.join(f'{self._counts[status]} {status.value}' for status in told)}."
        if self._counts[Status.CONFIRMED]:
            return "Sent and confirmed."
        return "Sent." if self._counts[Status.SENT] else ""

    def _explained(self, trouble: Outcome) -> CommandError:
        code = 1
        match trouble.status:
            case Status.RETURNED:
                text = self._returned()
            case Status.REFUSED:
                return broker_refuses(trouble.refusal or OperationRefused(trouble.reason))
            case Status.NACKED:
                text = f"Not taken: {trouble.reason}. A queue is full, or failing; the message is not in it."
            case Status.UNSENDABLE:
                text = f"It cannot be sent: {trouble.reason}."
            case _ if trouble.late:
                code = EXIT_TIMED_OUT
                text = f"RabbitMQ: {trouble.reason}. What has no confirm may have arrived, or may yet."
            case _:
                code = EXIT_UNREACHABLE
                text = f"RabbitMQ: {trouble.reason}. What has no confirm may have arrived."
        return CommandError(text, returncode=code)

    def _returned(self) -> str:
        what = (
            "the message is" if self._counts[Status.RETURNED] == 1 else f"{self._counts[Status.RETURNED]} messages are"
        )
        hint = ""
        if self._options["queue"]:
            why = f"there is no queue {self._key}"
            hint = " --declare makes it."
        elif self._options["headers"] and not self._key:
            why = f"no queue is bound to exchange {self._exchange} for these headers: nobody listens"
        else:
            why = f"no queue is bound to exchange {self._exchange} for key {self._key!r}: nobody listens"
        return f"returned: {why}; {what} gone.{hint}"


def _content_type(body: bytes, *, as_json: bool) -> str:
    if as_json:
        return "application/json"
    try:
        body.decode()
    except UnicodeDecodeError:
        return "application/octet-stream"
    return "text/plain"
