"""A reason that lasts is logged once a minute, one that is new at once; LOGGING can name the broker's handler."""

import logging
from logging.config import DictConfigurator
from logging.handlers import QueueHandler

import pytest

from messaging import logs, testing
from messaging.logs import Throttle
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
