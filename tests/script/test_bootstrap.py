"""script/bootstrap: done once, quick ever after."""

import subprocess
import time

from tests.support.environment import ROOT


def bootstrap(*arguments):
    command = [ROOT / "script" / "bootstrap", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_a_repeat_is_silent_and_takes_less_than_a_second():
    assert bootstrap("--dev").returncode == 0
    began = time.monotonic()
    again = bootstrap("--dev")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert time.monotonic() - began < 1


def test_what_it_does_not_know_is_a_usage_error():
    refused = bootstrap("--sideways")
    assert refused.returncode == 2
    assert "Usage: script/bootstrap" in refused.stderr
    assert "Usage: script/bootstrap" in bootstrap("--help").stdout


def test_a_repeat_never_touches_the_environment_file():
    before = (ROOT / ".env").read_text()
    bootstrap("--dev")
    assert (ROOT / ".env").read_text() == before
