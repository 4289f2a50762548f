"""A plugin of pytest: says how a test process ended that did not end itself, and what its threads did then.

pytest-xdist says only that it crashed.
"""

import faulthandler
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any, TextIO

import pytest

#: What is known of each test process that crashed.
_CRASHES = pytest.StashKey[list[str]]()
#: Where the interpreter writes what its threads did. It must stay open.
_TRACES = pytest.StashKey[TextIO]()


@pytest.hookimpl(trylast=True)  # pytest sets another file
def pytest_configure(config: pytest.Config) -> None:
    """In a test process: let the interpreter write its last words into a file."""
    config.stash[_CRASHES] = []
    if worker := getattr(config, "workerinput", None):
        config.stash[_TRACES] = _traces_of(worker["workerid"], os.getppid()).open("w")
        faulthandler.enable(config.stash[_TRACES])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Keep what is known of a test process that crashed, and remove the file of each."""
    traces = _traces_of(node.gateway.id, os.getpid())
    if error:
        told = traces.read_text() if traces.exists() else ""
        node.config.stash[_CRASHES].append(f"{node.gateway.id}: {_end_of(node.gateway._io.popen)}\n{told}")
    traces.unlink(missing_ok=True)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Tell of those that crashed."""
    for crash in config.stash[_CRASHES]:
        terminalreporter.section("A test process that crashed")
        terminalreporter.write_line(crash)


def _end_of(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(10)
    except subprocess.TimeoutExpired:
        return "it still runs"
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _traces_of(worker: str, controller: int) -> Path:
    return Path(tempfile.gettempdir()) / f"warren-test-{controller}-{worker}.traces"
