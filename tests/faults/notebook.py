"""A consumer for the processes of a test: it takes notes, and misbehaves as the first word of a note tells it to."""

import os
import signal
import threading
import time
from datetime import timedelta

from django.contrib.auth.models import Group

from messaging.consumers import consumer
from messaging.events import Event
from messaging.message import Delivery
from messaging.retry import RetryPolicy
from tests.support.consuming import Noted, note

QUICKLY = RetryPolicy(max_attempts=3, first_delay=timedelta(milliseconds=10), max_delay=timedelta(milliseconds=20))


def opened() -> None:
    """In a process: `run_consumer notes` takes notes."""
    consumer("notes", Noted, queue="tests.notes", retry=QUICKLY)(write_down)


def opened_for_batches() -> None:
    """In a process: the same, up to ten at once."""
    consumer("notes", Noted, queue="tests.notes", retry=QUICKLY, batch=10)(write_down)


def given_up_soon() -> None:
    """In a process: a message is given up at its second counted start, to spare a test the starts between."""
    from messaging.worker import handling

    handling.CRASH_LIMIT = 1


def write_down(event: Noted, delivery: Delivery) -> None:
    """Note the text, and then do what its first word says."""
    note(event.text)
    match event.text.split()[0]:
        case "abort":
            os.abort()
        case "oom":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            while True:
                time.sleep(0.02)
        case "stuck":
            threading.Semaphore(0).acquire()
        case "flaky" if delivery.attempt == 1:
            raise ValueError("not at the first time")


def second_edition_opened() -> None:
    """In a process: the code of the next release, whose notes have an author and call their text words."""

    class SecondEdition(Event, type="test.second"):
        words: str
        author: str

    # The same type, as a new release has it; `Noted` is the old one's.
    from messaging import events

    SecondEdition.event_type, SecondEdition.event_version = "test.noted", 2
    events.registry.put(SecondEdition)
    SecondEdition.upcast(from_version=1)(lambda payload: {"words": payload["text"], "author": "unknown"})

    def write_in_full(event: SecondEdition, delivery: Delivery) -> None:
        note(event.words)
        Group.objects.get_or_create(name=f"author {event.author}")

    consumer("notes", SecondEdition, queue="tests.notes", retry=QUICKLY)(write_in_full)
