"""script/test: what it counts, what it selects, and that a command it runs ends with it."""

import os
import signal
import sys
from pathlib import Path

import pytest

from script.programs.selection import BROWSER_TESTS, Selection
from script.programs.tally import Tally
from tests.support.environment import ROOT
from tests.support.processes import RunningProcess
from tests.support.waiting import eventually

REPORT = '<testsuites><testsuite tests="{}" failures="{}" errors="{}" skipped="{}"/></testsuites>'
IGNORE = f"--ignore={BROWSER_TESTS}"


@pytest.mark.parametrize(
    ("in_ci", "everything", "counts", "exit_code", "passed", "failed"),
    [
        (True, False, (5, 0, 0, 0), 0, 5, 0),
        (True, False, (5, 1, 1, 0), 1, 3, 2),
        (True, False, (5, 0, 0, 2), 1, 3, 2),  # in continuous integration what was skipped has failed
        (False, False, (5, 0, 0, 2), 0, 3, 0),
        (False, False, (0, 0, 0, 0), 5, 0, 0),  # no test of this path needs a second database
        (False, True, (0, 0, 0, 0), 5, 0, 1),  # but of all tests some must
        (False, False, (3, 0, 0, 0), 3, 3, 1),  # pytest itself broke down
        (False, False, None, 4, 0, 1),  # and wrote no report
    ],
)
def test_counts_of_a_run(tmp_path, in_ci, everything, counts, exit_code, passed, failed):
    report = tmp_path / "report.xml"
    if counts:
        report.write_text(REPORT.format(*counts))
    tally = Tally(in_ci, everything)
    tally.tests("Tests", exit_code, report)
    assert (tally.passed, tally.failed) == (passed, failed)


@pytest.mark.parametrize("in_ci", [True, False])
def test_a_missing_service_fails_in_continuous_integration_only(in_ci):
    tally = Tally(in_ci)
    tally.missing("no browser")
    assert (tally.failed, tally.notes) == (int(in_ci), ["no browser"])


@pytest.mark.parametrize(
    ("arguments", "without_browser", "in_browser", "has_foreign_clients"),
    [
        ([], [IGNORE], [str(BROWSER_TESTS)], True),
        (["-k", "node"], [IGNORE, "-k", "node"], [str(BROWSER_TESTS), "-k", "node"], True),
        (["tests"], ["tests", IGNORE], [str(BROWSER_TESTS)], True),
        (["tests/orders", "tests/foreign"], ["tests/orders", "tests/foreign", IGNORE], None, True),
        (["tests/script/test_test.py::test_x", "-x"], ["tests/script/test_test.py::test_x", IGNORE, "-x"], None, False),
        (["tests/e2e"], None, [str(BROWSER_TESTS)], False),
        (["tests/e2e/conftest.py", "-x"], None, ["tests/e2e/conftest.py", "-x"], False),
    ],
)
def test_a_path_selects_its_tests_and_the_rest_goes_to_pytest(
    monkeypatch, arguments, without_browser, in_browser, has_foreign_clients
):
    monkeypatch.chdir(ROOT)
    selected = Selection.of(arguments)
    assert (selected.without_browser, selected.in_browser) == (without_browser, in_browser)
    assert selected.has_foreign_clients is has_foreign_clients
    assert selected.is_everything == (not arguments)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_ends_with_the_program_that_runs_it_even_if_that_is_killed(how):
    program = (
        "from script.programs.commands import run, stop_on_signals; stop_on_signals(); "
        "run(['sh', '-c', 'trap \"exit 0\" INT; echo runs as $$; while :; do sleep 0.05; done'])"
    )
    running = RunningProcess([sys.executable, "-c", program], dict(os.environ))
    command = int(running.wait_for_line(r"runs as (\d+)")[1])

    running.send(how)

    assert running.wait(20) != 0
    eventually(lambda: not Path(f"/proc/{command}").exists())
