"""script/test: what it counts, what it selects, and that it leaves nothing behind."""

import os
import signal
import sys

import pytest

from script.programs.selection import BROWSER_TESTS, Selection
from script.programs.tally import Tally
from script.services.owned import owned_pids
from tests.support.environment import ROOT
from tests.support.processes import RunningProcess
from tests.support.waiting import eventually

REPORT = '<testsuites><testsuite tests="{}" failures="{}" errors="{}" skipped="{}"/></testsuites>'


@pytest.fixture
def report(tmp_path):
    def write(*counts):
        path = tmp_path / "report.xml"
        path.write_text(REPORT.format(*counts))
        return path

    return write


@pytest.mark.parametrize(
    ("in_ci", "counts", "exit_code", "passed", "failed"),
    [
        (True, (5, 0, 0, 0), 0, 5, 0),
        (True, (5, 1, 1, 0), 1, 3, 2),
        (True, (5, 0, 0, 2), 1, 3, 2),  # in continuous integration what was skipped has failed
        (False, (5, 0, 0, 2), 0, 3, 0),
        (False, (0, 0, 0, 0), 5, 0, 0),  # no test of this path needs a second database
        (False, (3, 0, 0, 0), 3, 3, 1),  # pytest itself broke down
    ],
)
def test_counts_of_a_run(report, in_ci, counts, exit_code, passed, failed):
    tally = Tally(in_ci)
    tally.tests("Tests", exit_code, report(*counts))
    assert (tally.passed, tally.failed) == (passed, failed)


def test_when_everything_was_asked_for_a_run_without_tests_has_failed(report):
    tally = Tally(in_ci=False, everything=True)
    tally.tests("Tests in a browser", 5, report(0, 0, 0, 0))
    assert tally.failed == 1


def test_a_run_that_wrote_no_report_has_failed(tmp_path):
    tally = Tally(in_ci=False)
    tally.tests("Tests", 4, tmp_path / "missing.xml")
    assert tally.failed == 1


def test_a_missing_service_fails_in_continuous_integration_only():
    for in_ci in (True, False):
        tally = Tally(in_ci)
        tally.missing("no browser")
        assert (tally.failed, tally.notes) == (int(in_ci), ["no browser"])


def test_without_arguments_everything_is_selected():
    everything = Selection.of([])
    assert everything.is_everything
    assert everything.in_browser == [str(BROWSER_TESTS)]
    assert everything.without_browser == [f"--ignore={BROWSER_TESTS}"]


def test_a_path_selects_its_tests_and_the_rest_goes_to_pytest(monkeypatch):
    monkeypatch.chdir(ROOT)
    some = Selection.of(["tests/script/test_test.py::test_counts_of_a_run", "-k", "five", "-x"])
    assert some.without_browser == [
        "tests/script/test_test.py::test_counts_of_a_run",
        f"--ignore={BROWSER_TESTS}",
        "-k",
        "five",
        "-x",
    ]
    assert some.in_browser is None


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], True), (["-k", "node"], True), (["tests"], True), (["tests/foreign/test_amqplib.py::test_x"], True),
        (["tests/orders", "tests/foreign"], True), (["tests/orders"], False), (["tests/test_docs.py", "-x"], False),
    ],
)  # fmt: skip
def test_foreign_clients_are_installed_if_their_tests_may_run(monkeypatch, arguments, wanted):
    monkeypatch.chdir(ROOT)
    assert Selection.of(arguments).has_foreign_clients is wanted


def test_a_browser_test_is_selected_alone(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert Selection.of(["tests/e2e"]).without_browser is None
    assert Selection.of(["tests/e2e/conftest.py", "-x"]).in_browser == ["tests/e2e/conftest.py", "-x"]
    assert Selection.of(["tests"]).in_browser == [str(BROWSER_TESTS)]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_its_services_end_with_it_even_after_a_kill(tmp_path, how):
    command = [sys.executable, "-m", "script.programs.test", "tests/script/test_rabbitmq_node.py"]
    run = RunningProcess(command, {**os.environ, "TMPDIR": str(tmp_path)})
    run.wait_for_line("=== Tests on SQLite", 60)
    (directory,) = tmp_path.glob("warren-test-*/rabbitmq")
    assert owned_pids(directory)
    run.send(how)
    assert run.wait(40) == (130 if how is signal.SIGTERM else -how)
    # Killed, it cannot tell its tests to stop: their services end with them.
    eventually(lambda: not owned_pids(directory), 180)
