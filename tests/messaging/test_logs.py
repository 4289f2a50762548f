"""A reason that lasts is logged once a minute, one that is new at once."""

import pytest

from messaging import logs
from messaging.logs import Throttle


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
