"""Nothing that came from outside is ever unpickled, nor otherwise turned into code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest
from django.conf import settings
from django.contrib.sessions.serializers import JSONSerializer
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.utils.module_loading import import_string

from messaging import procedures
from messaging.broker.properties import to_pika
from messaging.models import InboxMessage
from messaging.rpc.answering import answer
from messaging.topology import desired
from messaging.worker import dead_letters
from tests.support.amqp import plain_channel
from tests.support.consuming import a_consumer, a_message, notes
from tests.support.environment import ROOT
from tests.support.pickle_probe import pickle_that_creates
from tests.support.running import running_worker
from tests.support.waiting import eventually

FOLDERS = ("messaging", "orders", "project", "script", "benchmarks")
PRODUCT = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
#: Modules that make objects, and so code, out of bytes.
FORBIDDEN_MODULES = {
    "pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle", "joblib", "yaml",
    "multiprocessing", "dbm",
}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def findings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            if name.partition(".")[0] in FORBIDDEN_MODULES:
                yield f"{path.relative_to(ROOT)}:{node.lineno} imports {name}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            yield f"{path.relative_to(ROOT)}:{node.lineno} calls {node.func.id}"


def test_no_code_of_ours_makes_objects_out_of_bytes() -> None:
    assert len(PRODUCT) > 100
    assert [finding for path in [*PRODUCT, ROOT / "manage.py"] for finding in findings(path)] == []


def test_the_search_for_pickles_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "bad.py").write_text("import pickle as p\nfrom yaml import load\nx = eval(y)\nimport os\n")
    assert len(list(findings(tmp_path / "bad.py"))) == 3


def test_sessions_celery_and_caches_carry_no_pickles() -> None:
    assert import_string(settings.SESSION_SERIALIZER) is JSONSerializer
    assert settings.CELERY_ACCEPT_CONTENT == settings.CELERY_RESULT_ACCEPT_CONTENT == ["json"]
    assert settings.CELERY_TASK_SERIALIZER == "json"
    assert settings.CELERY_BEAT_SCHEDULER == "celery.beat:Scheduler"
    # Django's caches pickle; this one never leaves the process that wrote it.
    assert [type(each) for each in caches.all(initialized_only=False)] == [LocMemCache]


@pytest.mark.parametrize("content_type", ["application/x-python-serialize", "application/json", ""])
def test_a_pickled_message_ends_dead_and_nothing_of_it_runs(
    vhost: str, transactional_db: None, tmp_path: Path, content_type: str
) -> None:
    consumer = a_consumer()
    body = pickle_that_creates(tmp_path / "ran")
    good = a_message()
    bad = a_message(body=body, content_type=content_type)
    with running_worker(consumer, dead_letters.consumer()), plain_channel(vhost) as channel:
        eventually(lambda: _is_declared(vhost, consumer.queue))
        for queue, message in ((consumer.queue, bad), (desired.dead_letter_queue(), bad), (consumer.queue, good)):
            channel.basic_publish("", queue, message.body, to_pika(message), mandatory=True)
        eventually(lambda: notes("hello") == 1)
        eventually(lambda: InboxMessage.objects.filter(message_id=bad.id, state=InboxMessage.State.DEAD).count() == 2)

    assert not (tmp_path / "ran").exists()
    row = InboxMessage.objects.get(message_id=bad.id, consumer=consumer.name)
    assert bytes(row.body or b"") == body


def _is_declared(vhost: str, queue: str) -> bool:
    try:
        with plain_channel(vhost) as channel:
            channel.queue_declare(queue, passive=True)
    except pika.exceptions.ChannelClosedByBroker:
        return False
    return True


def test_a_pickled_request_is_a_bad_request_and_nothing_of_it_runs(tmp_path: Path) -> None:
    request = a_message(body=pickle_that_creates(tmp_path / "ran"), content_type="application/x-python-serialize")

    assert answer(procedures.get("shipping.quote"), request).error == "BadRequest"
    assert not (tmp_path / "ran").exists()
