"""What a command says while it works: one line on a terminal that says how far it has come, and no line of the log."""

import logging
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management.base import OutputWrapper
from django.utils import timezone

from messaging.management.progress import progress_on
from messaging.management.terminal_log import quiet_log
from tests.support.command_line import messages
from tests.support.consuming import a_consumer, a_dead_message, an_inbox_row, an_outbox_row, registered
from tests.support.terminal import on_terminal


class _Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_each_text_replaces_the_one_before_and_the_last_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.05, 1.0])
    monkeypatch.setattr("messaging.management.progress.time.monotonic", lambda: next(clock))
    written = _Terminal()

    with progress_on(OutputWrapper(written)) as progress:
        progress.show("1 of 3")
        progress.show("2 of 3")  # too soon to be read
        progress.show("3 of 3")

    assert written.getvalue() == "\r\x1b[K1 of 3 ...\r\x1b[K3 of 3 ...\r\x1b[K"


def test_elsewhere_than_on_a_terminal_there_is_no_progress() -> None:
    written = StringIO()
    with progress_on(OutputWrapper(written)) as progress:
        progress.show("1 of 3")
    assert written.getvalue() == ""


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("discard --all", "4 of 5 inbox messages discarded"),
        ("cancel --all", "1 of 1 outbox message cancelled"),
        ("replay --all", "4 of 5 replayed: 0 handled, 0 failed again"),
        ("prune --batch 2", "2 inbox messages deleted"),
        ("reconcile --repair", "Comparing the messages of notes"),
    ],
)
def test_long_work_tells_how_far_it_has_come(
    monkeypatch: pytest.MonkeyPatch, settings: Any, command: str, told: str
) -> None:
    texts: list[str] = []
    monkeypatch.setattr("messaging.management.progress.Progress.show", lambda _, text: texts.append(text))
    monkeypatch.setattr("messaging.reconcile.empty_queues.look", lambda _: ({}, {}))
    monkeypatch.setattr("messaging.actions.action.SIZE", 2)
    settings.MESSAGING = {**settings.MESSAGING, "INBOX_RETENTION_DAYS": 2, "OUTBOX_RETENTION_DAYS": 1}
    consumer = a_consumer()
    for number in range(5):
        a_dead_message(consumer, str(number))
        an_inbox_row(message_id=f"old {number}", changed_at=timezone.now() - timedelta(days=3))
    an_outbox_row(publish_at=timezone.now() + timedelta(hours=1))

    with registered(consumer):
        messages(*command.split())

    assert told in texts


@pytest.mark.only_on("sqlite")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("verbose", [False, True])
def test_a_person_sees_one_line_and_no_log_unless_asked_for(verbose: bool) -> None:
    for number in range(2):
        an_inbox_row(state="dead", consumer="sms", type="order.placed", message_id=str(number))

    arguments = ("messages", "replay", "--all", "--canary", "1", "--canary-wait", "0.7")
    with on_terminal(*arguments, *(("-v", "2") if verbose else ())) as terminal:
        assert terminal.wait() == 7

    assert "\r\x1b[K1 of 2 replayed: 0 handled, 0 failed again ...\r\x1b[K" in terminal.seen
    assert "is `manage.py run_consumer sms` running?" in terminal.seen
    assert ("operator.action" in terminal.seen) is verbose
    assert ("messages.replayed" in terminal.seen) is verbose


def test_a_log_that_goes_elsewhere_keeps_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    logger, on_terminal, in_file = logging.getLogger("messaging.quiet"), _Terminal(), StringIO()
    handlers = [logging.StreamHandler(on_terminal), logging.StreamHandler(in_file)]
    for handler in handlers:
        logger.addHandler(handler)
    try:
        with quiet_log(unless=False):
            logger.warning("operator.action")
            logger.error("a fault")
        logger.warning("later")
    finally:
        for handler in handlers:
            logger.removeHandler(handler)

    assert on_terminal.getvalue() == "a fault\nlater\n"
    assert in_file.getvalue() == "operator.action\na fault\nlater\n"
