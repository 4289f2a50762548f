"""`mq status`: what is wrong first, and an exit code that a probe can go by."""

import json
import re
import signal
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from messaging.models import Effect, OutboxMessage
from messaging.monitoring import status
from script.services.ports import free_port
from tests.support.consuming import Noted, a_consumer, a_dead_message, registered
from tests.support.network import BrokerNetwork
from tests.support.running import add, running_worker
from tests.support.terminal import on_terminal
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

NOTES = a_consumer()


@pytest.fixture
def well(vhost: str) -> Iterator[None]:
    """All is well: the one consumer runs."""
    with registered(NOTES):
        call_command("mq", "topology", "declare", stdout=StringIO())
        with running_worker(NOTES):
            eventually(lambda: shown()[0] == 0, report=shown)
            yield


def shown(*arguments: str) -> tuple[int, str]:
    """Exit code and output."""
    output = StringIO()
    try:
        call_command("mq", "status", *arguments, stdout=output, stderr=StringIO())
    except CommandError as error:
        return error.returncode, f"{output.getvalue()}{error}"
    return 0, output.getvalue()


def test_all_is_well_where_every_consumer_runs_and_nothing_waits_also_by_amqp_alone(well: None, settings: Any) -> None:
    code, output = shown()

    assert code == 0
    assert "all is well" in output.splitlines()[0]
    assert "RabbitMQ 3." in output or "RabbitMQ 4." in output
    assert re.search(r"^tests\.notes\tquorum\t0\t0?\t1$", output, re.MULTILINE)

    settings.MESSAGING = {**settings.MESSAGING, "MANAGEMENT_URL": f"http://127.0.0.1:{free_port()}"}
    code, output = shown()

    assert code == 0
    assert "By AMQP alone" in output
    assert "alarms unknown" in output


def test_what_is_wrong_comes_first_and_is_exit_code_6(well: None) -> None:
    dead = a_dead_message(NOTES, "gone")
    Effect.objects.create(inbox_message=dead, consumer="notes", message_id="m", name="mail", state="unknown")
    failed, late = add(Noted(text="failed"), Noted(text="late"))
    OutboxMessage.objects.filter(pk=failed.pk).update(state="failed")
    OutboxMessage.objects.filter(pk=late.pk).update(publish_at=timezone.now() - timedelta(minutes=3),
                                                    lease_until=None)  # fmt: skip

    code, output = shown()
    facts = json.loads(shown("--json")[1].splitlines()[0])

    assert code == 6
    assert output.splitlines()[0].endswith("4 WRONG")
    assert [line[:3] for line in output.splitlines()[1:5]] == ["  !"] * 4
    assert "effects that have an unknown outcome: 1; `manage.py messages list --state unknown`" in output
    assert (facts["outbox"]["failed"], facts["outbox"]["pending"], facts["inbox"]["dead"]) == (1, 1, 1)
    assert facts["outbox"]["oldest_seconds"] is not None


def test_what_the_broker_does_not_confirm_is_wrong_though_it_is_due_only_later(well: None) -> None:
    now = timezone.now()
    tried = OutboxMessage.objects.create(
        message_id="1", type="x", exchange="e", routing_key="x", body=b"{}", publish_attempts=7,
        publish_at=now + timedelta(seconds=50),
    )  # fmt: skip
    assert "has not confirmed" not in shown()[1]
    OutboxMessage.objects.filter(pk=tried.pk).update(created_at=now - timedelta(minutes=2))
    assert "RabbitMQ has not confirmed for over a minute what was sent to it" in shown()[1]


def test_a_missing_queue_and_one_without_a_consumer_are_reported(vhost: str) -> None:
    with registered(NOTES):
        assert "queue tests.notes is missing" in shown()[1]
        call_command("mq", "topology", "declare", stdout=StringIO())
        code, output = shown()

    assert code == 6
    assert "queue tests.notes has no consumer (waiting messages: 0): `manage.py run_consumer notes`" in output


def test_a_broker_that_is_away_is_exit_code_3_and_the_rest_is_shown(settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [f"amqp://u:secret@127.0.0.1:{free_port()}/"]}

    code, output = shown()

    assert code == 3
    assert "RabbitMQ cannot be reached" in output
    assert "outbox   0 pending" in output
    assert "secret" not in output


def test_a_terminal_names_the_trouble_once(settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [f"amqp://u:secret@127.0.0.1:{free_port()}/"]}

    with on_terminal("mq", "status", columns=200) as terminal:
        assert terminal.wait() == 3

    assert terminal.seen.count("RabbitMQ cannot be reached: connection refused: nothing listens at 127.0.0.1:") == 1
    assert "One thing is wrong; see the top." in terminal.seen


def test_a_frozen_broker_is_exit_code_7_and_the_rest_is_shown(network: BrokerNetwork, settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "CONNECT_TIMEOUT": 0.5}
    network.pause()

    code, output = shown()

    assert code == 7
    assert output.splitlines()[0].endswith("1 WRONG")
    assert "outbox   0 pending" in output


def test_counting_stops_at_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "COUNTED", 3)
    add(*(Noted(text=str(number)) for number in range(7)))

    assert (str(status.boxes().pending), status.boxes().pending.number) == ("over 3", 4)


def test_watching_through_a_pipe_appends(vhost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter(range(3))

    def sleep_or_press_ctrl_c(seconds: float) -> None:
        if next(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("messaging.management.watching.time.sleep", sleep_or_press_ctrl_c)
    code, output = shown("--watch")

    assert (code, output.count("outbox   ")) == (0, 3)
    assert "\x1b" not in output


def test_watching_on_a_terminal_redraws_in_place_without_log_lines_and_ends_well_with_ctrl_c(vhost: str) -> None:
    with on_terminal("mq", "status", "--watch", "0.2") as terminal:
        eventually(lambda: terminal.seen.count("outbox   ") >= 3, report=lambda: terminal.seen)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.wait() == 0

    assert terminal.seen.count("\x1b[H\x1b[J") >= 2
    assert "amqp." not in terminal.seen
    assert "Traceback" not in terminal.seen
