"""A reason that lasts is logged once a minute, one that is new at once; LOGGING can name the broker's handler."""

from logging.config import DictConfigurator
from logging.handlers import QueueHandler

import pytest

from messaging import logs
from messaging.logs import Throttle
from messaging.monitoring.log_handler import BrokerHandler


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
