"""The crew: processes that are started again whenever they end, and may be killed and frozen."""

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from script.services.owned import end_all, owned_pids, start_owned

#: A process that lived for fewer seconds than this is started again only after a rest.
SHORT_LIFE = 1.0
REST = 0.5


class Member:
    """One process of the product, with the children it starts; it prints to a log of its own."""

    def __init__(
        self, name: str, command: Sequence[str], *, mark: Path, home: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.log = mark / f"{name}.log"
        #: Exit codes of the ends that nobody outside had asked for.
        self.own_ends: Counter[int] = Counter()
        #: While it is true, it is not started again.
        self.held_down = False
        self._command = command
        self._mark = mark
        self._home = home
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._asked_to_end = False
        self._started = 0.0
        self._not_before = 0.0

    @property
    def pid(self) -> int | None:
        """The pid of the process, or None between an end and the next start."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def children(self) -> list[int]:
        """The pids of its children, such as gunicorn's workers, by age."""
        pid = self.pid
        return [] if pid is None else sorted(each for each in owned_pids(self._mark) if _parent(each) == pid)

    def tend(self) -> None:
        """Start it if it does not run. For one thread only, which must outlive the process."""
        if self.pid is not None:
            return
        now = time.monotonic()
        if self._process is not None:
            self._note_end(self._process, now)
        if now >= self._not_before and not self.held_down:
            self._process = start_owned(
                self._command, self._mark, log=self.log, home=self._home, environment=self._environment
            )
            self._started, self._asked_to_end = now, False

    def _note_end(self, process: "subprocess.Popen[bytes]", now: float) -> None:
        if not self._asked_to_end:
            self.own_ends[process.returncode] += 1
        if now - self._started < SHORT_LIFE:
            self._not_before = now + REST
        # Children that outlived it hold its port.
        _send_to_group(process.pid, signal.SIGKILL)
        self._process = None

    def kill(self) -> bool:
        """kill -9 it and its children; whether there was something to kill."""
        return self._end(signal.SIGKILL)

    def terminate(self) -> bool:
        """Ask it to stop; whether there was something to ask."""
        return self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> bool:
        pid = self.pid
        if pid is None:
            return False
        self._asked_to_end = True
        if how is signal.SIGKILL:
            _send_to_group(pid, how)
        else:
            # Its children are its own business.
            with suppress(ProcessLookupError):
                os.kill(pid, how)
        return True

    def freeze(self) -> bool:
        """SIGSTOP it and its children; whether there was something to freeze."""
        pid = self.pid
        if pid is not None:
            _send_to_group(pid, signal.SIGSTOP)
        return pid is not None

    def thaw(self) -> None:
        """SIGCONT it and its children."""
        pid = self.pid
        if pid is not None:
            _send_to_group(pid, signal.SIGCONT)


def _send_to_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def stop(members: Sequence[Member], mark: Path, patience: float) -> None:
    """Ask every member to stop, all at once, and kill what has not after `patience` seconds."""
    for member in members:
        member.thaw()
        member.terminate()
    deadline = time.monotonic() + patience
    while any(member.pid for member in members) and time.monotonic() < deadline:
        time.sleep(0.05)
    end_all(mark, how=signal.SIGKILL)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
