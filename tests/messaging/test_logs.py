"""A reason that lasts is logged once a minute, one that is new at once; LOGGING can name the broker's handler."""

import logging
from logging.config import DictConfigurator
from logging.handlers import QueueHandler

import pytest
from structlog.testing import capture_logs

from messaging import logs, testing
from messaging.logs import Successes, Throttle, get_logger
from messaging.monitoring.log_handler import BrokerHandler
from tests.support.consuming import a_consumer, a_message


def test_a_reason_that_lasts_is_logged_again_each_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(logs.time, "monotonic", lambda: now)
    throttle = Throttle()
    assert throttle.allows("refused at a")
    assert throttle.allows("refused at b")
    assert not throttle.allows("refused at a")  # two addresses take turns
    now += logs.REPEAT_AFTER - 1
    assert not throttle.allows("refused at a")
    now += 1
    assert throttle.allows("refused at a")
    throttle.reset()
    assert throttle.allows("refused at a")


def test_reasons_that_never_repeat_are_forgotten() -> None:
    reasons = Throttle()
    for number in range(3 * logs.REMEMBERED):
        assert reasons.allows(str(number))
    assert len(reasons._logged_at) <= logs.REMEMBERED


def test_successes_are_summed_to_one_line_a_second_for_each_name(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(logs.time, "monotonic", lambda: now)
    successes = Successes(get_logger("messaging"), "messages.handled", named="consumer")

    with capture_logs() as lines:
        successes.tell()  # nothing to tell
        successes.add("sms", seconds=0.004)
        successes.tell()
        now = 0.5
        successes.add("sms", 2, seconds=0.01)
        successes.add("red_packet", seconds=0.0)
        successes.tell()
        assert len(lines) == 1
        now = 1.0
        successes.tell()
        successes.add("sms", seconds=0.0)
        successes.tell(at_end=True)

    told = [(line["event"], line["consumer"], line["count"], line["milliseconds_each"]) for line in lines]
    assert told == [
        ("messages.handled", "sms", 1, 4.0),
        ("messages.handled", "sms", 2, 5.0),
        ("messages.handled", "red_packet", 1, 0.0),
        ("messages.handled", "sms", 1, 0.0),
    ]


def test_the_level_of_the_standard_library_says_whether_each_message_has_a_line() -> None:
    log = get_logger("messaging.each_message")

    assert not log.prints_debug
    logging.getLogger("messaging.each_message").setLevel(logging.DEBUG)
    assert log.prints_debug
    assert log.bind(consumer="sms").prints_debug


def test_dict_config_makes_the_handler_of_the_broker_on_each_python() -> None:
    """From Python 3.12 on it makes a QueueHandler in another way: with a queue of its own, and handlers behind it."""
    handler = DictConfigurator({}).configure_handler(
        {"class": f"{BrokerHandler.__module__}.BrokerHandler", "level": "WARNING"}
    )
    assert isinstance(handler, BrokerHandler)
    assert not isinstance(handler, QueueHandler)
    handler.close()


class FailingLog(logging.Handler):
    """A handler of a project, with a fault of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("no such file")


@pytest.mark.django_db
def test_a_log_that_fails_makes_no_failure_of_a_message_and_says_so_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs, "_failures", Throttle())
    monkeypatch.setattr(logging.getLogger(), "handlers", [FailingLog()])

    def fail(*given: object) -> None:
        raise ValueError("not today")

    assert testing.deliver(a_message(), a_consumer()) == "handled"
    assert testing.deliver(a_message(), a_consumer(fail)) == "retrying"

    said = capsys.readouterr().err
    assert "could not be written" in said
    assert "RuntimeError: no such file" in said
