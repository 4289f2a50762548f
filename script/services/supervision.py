"""A supervisor (the library of that name) over several programs: what dies is started again."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from script.services.owned import ServiceError, end, end_all, parent_death_guard, start_owned, tail

#: Seconds a program has to finish what it holds before it is killed.
GRACE = 30
#: A supervisor that lives for fewer seconds than this could not start.
SHORTEST_LIFE = 3.0
#: A socket's path may not be longer than this many bytes; without one only `supervisorctl` is missing.
LONGEST_SOCKET_PATH = 90

#: How supervisord logs that a program ended by itself.
_DIED = re.compile(r"exited: (\S+) \((?:exit status \d+|terminated by \w+); not expected\)")


@dataclass(frozen=True)
class Program:
    """A command that always runs, under a name."""

    name: str
    command: tuple[str, ...]


class Supervisor:
    """supervisord and its programs, everything they write in `directory`, run in the directory `home` (above it)."""

    def __init__(self, directory: Path, home: Path, programs: list[Program], environment: Mapping[str, str]) -> None:
        self.directory = directory.resolve()
        self.programs = programs
        self._home = home
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0

    @property
    def is_alive(self) -> bool:
        """Whether supervisord itself runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start supervisord and its programs, once what an earlier run left behind is gone. Does not wait for them.

        Raises `ServiceError` if the supervisor of the last start ended at once: another start would not help.
        """
        output = self.directory / "supervisord.output"
        if self._process is not None and time.monotonic() - self._started < SHORTEST_LIFE:
            raise ServiceError(f"supervisord ended at once. {output} says:\n{tail(output)}", exit_code=1)
        end_all(self.directory, how=signal.SIGTERM)
        (self.directory / "supervisord.log").unlink(missing_ok=True)
        self.directory.mkdir(parents=True, exist_ok=True)
        configuration = self.directory / "supervisord.conf"
        configuration.write_text(self._configuration())
        self._process = start_owned(
            [sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "--configuration", configuration],
            self.directory,
            log=output,
            environment=self._environment,
            home=self._home,
        )
        self._started = time.monotonic()

    def stop(self) -> None:
        """Stop the programs (they finish what they hold) and supervisord; nothing of them is left running."""
        if self._process is not None:
            end(self._process.pid, self.directory, patience=GRACE + 10)
        end_all(self.directory, how=signal.SIGKILL)
        if self._process is not None:
            self._process.wait(10)

    def log(self, name: str) -> Path:
        """What a program printed."""
        return self.directory / f"{name}.log"

    def deaths(self) -> Counter[str]:
        """How often each program has ended unasked since the supervisor started."""
        try:
            said = (self.directory / "supervisord.log").read_text(errors="replace")
        except OSError:
            return Counter()
        return Counter(_DIED.findall(said))

    def last_line(self, name: str) -> str:
        """The last line that a program printed."""
        return tail(self.log(name), 1).strip()

    def last_words(self) -> str:
        """The end of every program's log, for a person who wonders why it does not work."""
        return "\n".join(f"{self.log(program.name)}:\n{tail(self.log(program.name), 6)}" for program in self.programs)

    def _configuration(self) -> str:
        sections = [self._supervisord(), *map(self._program, self.programs)]
        if len(os.fsencode(self.directory)) <= LONGEST_SOCKET_PATH:
            socket = self._shortly("supervisor.sock")
            sections.append(
                f"[unix_http_server]\nfile = {socket}\nchmod = 0700\n\n"
                "[rpcinterface:supervisor]\n"
                "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n\n"
                f"[supervisorctl]\nserverurl = unix://{socket}\n"
            )
        return "\n".join(sections)

    def _supervisord(self) -> str:
        # It wants to be told that running as root is meant.
        user = "user = root\n" if os.geteuid() == 0 else ""
        return (
            f"[supervisord]\n{user}"
            "silent = true\n"
            f"logfile = {self._shortly('supervisord.log')}\n"
            f"pidfile = {self._shortly('supervisord.pid')}\n"
            f"childlogdir = {self._shortly('.')}\n"
        )

    def _program(self, program: Program) -> str:
        command = shlex.join([*parent_death_guard(signal.SIGTERM), *program.command])
        return (
            f"[program:{program.name}]\n"
            f"command = {_plain(command)}\n"
            "autorestart = true\n"
            # It never gives up; the pause between two attempts grows by a second each time.
            "startretries = 1000000000\n"
            f"stopwaitsecs = {GRACE}\n"
            "killasgroup = true\n"
            "redirect_stderr = true\n"
            f"stdout_logfile = {self._shortly(f'{program.name}.log')}\n"
            "stdout_logfile_maxbytes = 10MB\n"
            "stdout_logfile_backups = 1\n"
        )

    def _shortly(self, name: str) -> str:
        """A file of ours from where supervisord runs: it looks for variables in some paths twice over."""
        return os.path.join(os.path.relpath(self.directory, self._home), name)


def _plain(value: str) -> str:
    """A value in which supervisor looks for no variable."""
    return value.replace("%", "%%")
