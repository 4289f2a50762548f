"""A supervisor over several programs: a program that ends is started again, and may be killed and frozen on purpose."""

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from script.services.owned import end_all, owned_pids, start_owned, tail

#: A program that ended within this many seconds is started again only after a pause.
SHORT_LIFE = 1.0
PAUSE = 0.5
#: Bytes of a log after which a starting program begins a new one; one old log is kept.
LONG_LOG = 10_000_000


class Program:
    """A command that always runs, with the children it starts; it prints to a log of its own in `directory`."""

    def __init__(
        self, name: str, command: Sequence[str], *, directory: Path, home: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        #: How often it ended without being told to, by exit code.
        self.own_ends: Counter[int] = Counter()
        #: While it is true, it is not started again.
        self.held_down = False
        self._command = command
        self._directory = directory
        self._home = home
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._told_to_end = False
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
        return [] if pid is None else sorted(each for each in owned_pids(self._directory) if _parent(each) == pid)

    def tend(self) -> None:
        """Start it if it does not run. To be called by one thread only, which must outlive the process."""
        if self.pid is not None:
            return
        now = time.monotonic()
        if self._process is not None:
            self._note_end(self._process, now)
        if now >= self._not_before and not self.held_down:
            if self.log.exists() and self.log.stat().st_size > LONG_LOG:
                self.log.rename(self.log.with_suffix(".log.1"))
            self._process = start_owned(
                self._command, self._directory, log=self.log, home=self._home, environment=self._environment
            )
            self._started, self._told_to_end = now, False

    def _note_end(self, process: "subprocess.Popen[bytes]", now: float) -> None:
        if not self._told_to_end:
            self.own_ends[process.returncode] += 1
        if now - self._started < SHORT_LIFE:
            self._not_before = now + PAUSE
        # Children that outlived it hold its port.
        _send_to_group(process.pid, signal.SIGKILL)
        self._process = None

    def kill(self) -> bool:
        """kill -9 it and its children; return whether it ran."""
        return self._end(signal.SIGKILL)

    def terminate(self) -> bool:
        """Ask it to stop; return whether it ran."""
        return self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> bool:
        pid = self.pid
        if pid is None:
            return False
        self._told_to_end = True
        if how is signal.SIGKILL:
            _send_to_group(pid, how)
        else:
            # It stops its children itself.
            with suppress(ProcessLookupError):
                os.kill(pid, how)
        return True

    def freeze(self) -> bool:
        """SIGSTOP it and its children; return whether it ran."""
        pid = self.pid
        if pid is not None:
            _send_to_group(pid, signal.SIGSTOP)
        return pid is not None

    def thaw(self) -> None:
        """SIGCONT it and its children."""
        pid = self.pid
        if pid is not None:
            _send_to_group(pid, signal.SIGCONT)


class Supervisor:
    """Programs, by name; everything they print is in `directory`, and they run in the directory `home`.

    What an earlier run left behind there is ended first.
    """

    def __init__(
        self, directory: Path, home: Path, commands: Mapping[str, Sequence[str]], environment: Mapping[str, str]
    ) -> None:
        self._directory = directory.resolve()
        end_all(self._directory, how=signal.SIGTERM)
        self._directory.mkdir(parents=True, exist_ok=True)
        where = {"directory": self._directory, "home": home}
        self.programs = {
            name: Program(name, command, **where, environment=environment) for name, command in commands.items()
        }

    def tend(self) -> None:
        """Start every program that does not run; see `Program.tend`."""
        for program in self.programs.values():
            program.tend()

    def stop(self, patience: float) -> None:
        """Ask every program to stop, all at once, and kill those that have not stopped after `patience` seconds."""
        for program in self.programs.values():
            program.thaw()
            program.terminate()
        deadline = time.monotonic() + patience
        while any(program.pid for program in self.programs.values()) and time.monotonic() < deadline:
            time.sleep(0.05)
        end_all(self._directory, how=signal.SIGKILL)

    def log_ends(self, lines: int = 6) -> str:
        """Return the end of each program's log, for error messages."""
        return "\n".join(f"{each.log}:\n{tail(each.log, lines)}" for each in self.programs.values())


def _send_to_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
