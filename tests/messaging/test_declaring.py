"""When a relay declares its topology, and what waits for that. The test is the broker and the clock."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from messaging import conf
from messaging.exceptions import BrokerUnavailable
from messaging.relay import declaring as module
from messaging.relay.declaring import Declaring
from messaging.topology.declare import PAUSE_AFTER_DELETION
from messaging.topology.desired import Topology
from tests.support.consuming import a_consumer, registered

MISSING = {"tests.notes": "it is missing"}


class FakeDeclaration:
    """Declares nothing, and finds or raises what the test says."""

    def __init__(self) -> None:
        self.declared: list[Topology] = []
        self.finds: dict[str, str] = {}
        self.fails: Exception | None = None
        self.meanwhile: Callable[[], None] = lambda: None
        self.problems: Mapping[str, str] = {}

    def declare(self, topology: Topology) -> Mapping[str, str]:
        self.declared.append(topology)
        self.meanwhile()
        if self.fails:
            raise self.fails
        self.problems = self.finds
        return self.problems


class Stage:
    """A relay's declaring, its connection, its threads and the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.connection = SimpleNamespace(generation=1)
        self.declaration = FakeDeclaration()
        #: Threads that have begun, and not ended.
        self.threads: list[Any] = []
        self.may_start_threads = True
        self.told = 0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(module, "Thread", self._thread)
        monkeypatch.setattr(module, "Declaration", self._declaration_on)
        connection: Any = self.connection
        self.declaring = Declaring(connection, self._tell)

    def _declaration_on(self, connection: Any) -> FakeDeclaration:
        assert connection is self.connection
        return self.declaration

    def _thread(self, **how: Any) -> Any:
        assert (how["name"], how["daemon"]) == ("relay-topology", True), "another would keep its process from ending"

        def start() -> None:
            if not self.may_start_threads:
                raise RuntimeError
            self.threads.append(how["target"])

        return SimpleNamespace(start=start)

    def _tell(self) -> None:
        assert not self.declaring._is_running
        self.told += 1

    def begins(self) -> bool:
        """Whether a declaration begins now."""
        before = len(self.threads)
        self.declaring.run()
        return len(self.threads) > before

    def end(self) -> None:
        """The declaration that has begun ends."""
        self.threads.pop()()

    def declare(self) -> None:
        """A whole declaration, which must be due."""
        assert self.begins()
        self.end()


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def test_rows_may_be_published_once_every_queue_was_declared_on_the_present_connection(stage: Stage) -> None:
    declaring = stage.declaring
    with registered(a_consumer()):
        assert (declaring.is_done, declaring.is_waited_for) == (False, True)
        assert not declaring.stale_problems
        assert stage.begins()
        assert (declaring.is_done, declaring.is_waited_for) == (False, False)
        assert not stage.begins(), "one at a time"
        stage.end()
    assert "tests.notes" in [queue.name for queue in stage.declaration.declared[0].queues]
    assert (declaring.is_done, declaring.is_waited_for, stage.told) == (True, False, 1)
    assert not stage.begins()
    stage.connection.generation = 2
    assert (declaring.is_done, declaring.is_waited_for) == (False, True)
    stage.declare()
    assert declaring.is_done


def test_what_was_declared_on_a_connection_that_is_lost_meanwhile_is_declared_on_the_next(stage: Stage) -> None:
    stage.declaration.meanwhile = lambda: setattr(stage.connection, "generation", 2)
    stage.declare()
    assert not stage.declaring.is_done
    assert stage.begins()


def test_it_is_declared_again_at_intervals_and_rows_do_not_wait_for_that(stage: Stage) -> None:
    stage.declare()
    stage.now += conf.DECLARE_INTERVAL - 0.1
    assert not stage.begins()
    stage.now += 0.1
    assert stage.begins()
    assert stage.declaring.is_done


def test_what_is_missing_is_declared_again_a_second_later_and_its_rows_wait_for_that(stage: Stage) -> None:
    declaring = stage.declaring
    stage.declaration.finds = MISSING
    stage.declare()
    assert (declaring.problems, declaring.stale_problems, declaring.is_waited_for) == (MISSING, (), False)
    stage.now += 0.9
    assert not stage.begins()
    stage.now += 0.1
    assert (declaring.stale_problems, declaring.is_waited_for) == (MISSING, True)
    stage.declaration.finds = {}
    assert stage.begins()
    stage.now -= 0.1
    assert (declaring.stale_problems, declaring.is_waited_for) == (MISSING, False)
    stage.end()
    assert not declaring.problems
    assert not stage.begins()


def test_where_something_was_missing_it_is_declared_again_soon(stage: Stage) -> None:
    stage.declare()
    stage.declaring.hasten()
    assert not stage.begins(), "a queue that was deleted a moment ago gets no consumer"
    stage.now += PAUSE_AFTER_DELETION / 2
    stage.declaring.hasten()
    stage.now += PAUSE_AFTER_DELETION / 2
    assert stage.begins(), "further failures put it off no further"


def test_a_declaration_that_failed_is_reported_once_and_repeated(stage: Stage) -> None:
    stage.declaration.fails = BrokerUnavailable("gone")
    stage.declare()
    assert (stage.declaring.is_done, stage.told) == (False, 1)
    with pytest.raises(BrokerUnavailable, match="gone"):
        stage.declaring.run()
    stage.declaration.fails = None
    stage.declare()
    assert stage.declaring.is_done


def test_a_process_that_may_start_no_thread_declares_all_the_same(stage: Stage) -> None:
    stage.may_start_threads = False
    stage.declaring.run()
    assert (stage.declaring.is_done, stage.told) == (True, 1)
