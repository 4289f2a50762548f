"""The failpoints themselves: a suite that injects faults is worth nothing if they are not injected."""

import pytest

from tests.support import failpoints


@pytest.mark.parametrize("unknown", ["no-such-point", "tests.support.failpoints:no_such_mutant"])
def test_a_fault_that_does_not_exist_is_refused(unknown: str) -> None:
    with pytest.raises(LookupError, match="neither one of"):
        failpoints.at(unknown)


class Counter:
    count = 0

    def add(self) -> None:
        self.count += 1


@pytest.mark.parametrize(("before", "count"), [(True, 0), (False, 1)])
def test_a_failpoint_is_reached_before_or_after_its_function(
    before: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter, reached = Counter(), []
    monkeypatch.setattr(Counter, "add", Counter.add)  # restored after the test
    monkeypatch.setitem(failpoints.POINTS, "here", failpoints.Failpoint(f"{__name__}.Counter.add", before=before))
    monkeypatch.setenv(failpoints.VARIABLE, "here")
    monkeypatch.setattr(failpoints.signal, "pthread_kill", lambda *_: reached.append(counter.count))
    failpoints.FailpointsConfig("tests.support.failpoints", failpoints).ready()
    counter.add()
    assert reached == [count]
