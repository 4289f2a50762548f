"""The tests' own tools: waiting for a condition, and for a line of a process; what is said of one that crashed."""

import os
import subprocess
import sys

import pytest

from tests.support.environment import ROOT, process_environment
from tests.support.processes import RunningProcess
from tests.support.waiting import eventually


def test_eventually_says_what_it_waited_for_and_what_it_found():
    with pytest.raises(AssertionError, match=r"Not within 0.05 s: .*len\(\[\]\) == 1.*\n.*returned False\nthe report"):
        eventually(lambda: len([]) == 1, 0.05, report=lambda: "the report")


def test_eventually_takes_a_failed_assertion_for_not_yet_and_returns_the_result():
    answers = iter([None, "early", "there"])

    def third_time():
        answer = next(answers)
        assert answer != "early"
        return answer

    assert eventually(third_time) == "there"


def test_a_line_that_never_comes_is_reported_with_the_output():
    process = RunningProcess(["/bin/sh", "-c", "echo one; echo two >&2"], {})
    with pytest.raises(AssertionError, match=r"ended without a line like 'three'.*\none\ntwo"):
        process.wait_for_line("three")


def test_a_test_process_that_crashes_is_reported_with_the_signal_and_its_threads(tmp_path):
    crashing = tmp_path / "test_crash.py"
    crashing.write_text("import faulthandler\n\ndef test_crash():\n    faulthandler._sigsegv()\n")
    options = ["-p", "tests.support.crashes", "-p", "no:django", "-n", "1", "--max-worker-restart=0", "-c", os.devnull]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, crashing],
        cwd=ROOT,
        env=process_environment(TMPDIR=str(tmp_path)),
        capture_output=True,
        text=True,
    )
    told = run.stdout.partition("A test process that crashed")[2]
    for words in ("gw0: killed by signal 11", "Fatal Python error: Segmentation fault", "in test_crash"):
        assert words in told, run.stdout + run.stderr
    assert list(tmp_path.glob("*.traces")) == []
