"""A reason that lasts is logged once a minute, one that is new at once."""

import pytest

from messaging import news
from messaging.news import News


def test_a_reason_that_lasts_is_said_again_each_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(news.time, "monotonic", lambda: now)
    said = News()
    assert said.is_due("refused at a")
    assert said.is_due("refused at b")
    assert not said.is_due("refused at a")  # two addresses take turns
    now += news.SAY_AGAIN - 1
    assert not said.is_due("refused at a")
    now += 1
    assert said.is_due("refused at a")
    said.forget()
    assert said.is_due("refused at a")
