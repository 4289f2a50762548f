"""Processes that belong to a directory."""

import subprocess
import sys
from pathlib import Path

from script.services import owned
from tests.support.waiting import eventually

#: Its first thread ends and another one lives on, as in a large process that is being killed.
FIRST_THREAD_ENDS = """
import ctypes, platform, sys, threading
threading.Thread(target=sys.stdin.read).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)
"""


def test_a_process_lives_until_its_last_thread_has_ended(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FIRST_THREAD_ENDS], stdin=subprocess.PIPE, env={owned.OWNER: str(tmp_path)}
    ) as process:
        eventually(lambda: owned._run_state(str(process.pid)) == "Z")

        assert owned.belongs(process.pid, tmp_path)
        assert owned.owned_pids(tmp_path) == [process.pid]

        owned.end(process.pid, tmp_path, how=owned.signal.SIGKILL)
        assert owned.owned_pids(tmp_path) == []
