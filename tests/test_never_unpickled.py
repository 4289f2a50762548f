"""Nothing that came from outside is ever unpickled. Code of ours that would make objects out of bytes is found by
ruff's rules S102, S301, S302, S307, S403 and S506."""

from pathlib import Path

import pytest
from django.conf import settings
from django.contrib.sessions.serializers import JSONSerializer
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.utils.module_loading import import_string

from messaging import procedures, testing
from messaging.models import InboxMessage
from messaging.rpc.answering import answer
from messaging.worker import dead_letters
from tests.support.consuming import a_consumer, a_message
from tests.support.pickle_probe import pickle_that_creates


def test_sessions_celery_and_caches_carry_no_pickles() -> None:
    assert import_string(settings.SESSION_SERIALIZER) is JSONSerializer
    assert settings.CELERY_ACCEPT_CONTENT == settings.CELERY_RESULT_ACCEPT_CONTENT == ["json"]
    assert settings.CELERY_TASK_SERIALIZER == "json"
    assert settings.CELERY_BEAT_SCHEDULER == "celery.beat:Scheduler"
    # Django's caches pickle; this one never leaves the process that wrote it.
    assert [type(each) for each in caches.all(initialized_only=False)] == [LocMemCache]


@pytest.mark.django_db
@pytest.mark.parametrize("content_type", ["application/x-python-serialize", "application/json", ""])
def test_a_pickled_message_ends_dead_and_nothing_of_it_runs(tmp_path: Path, content_type: str) -> None:
    body = pickle_that_creates(tmp_path / "ran")
    bad = a_message(body=body, content_type=content_type)
    for consumer in (a_consumer(), dead_letters.consumer()):
        testing.deliver(bad, consumer)
    rows = InboxMessage.objects.filter(message_id=bad.id)
    assert [(row.state, bytes(row.body or b"")) for row in rows] == [("dead", body)] * 2
    assert not (tmp_path / "ran").exists()


def test_a_pickled_request_is_a_bad_request_and_nothing_of_it_runs(tmp_path: Path) -> None:
    request = a_message(body=pickle_that_creates(tmp_path / "ran"), content_type="application/x-python-serialize")

    assert answer(procedures.get("shipping.quote"), request).error == "BadRequest"
    assert not (tmp_path / "ran").exists()
