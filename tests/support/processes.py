"""Real processes for tests: `manage.py …` and gunicorn, watched line by line, ended by pid."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from script.services.owned import OWNER, end_all, is_paused
from script.services.ports import free_port
from tests.support.environment import ROOT, process_environment
from tests.support.waiting import eventually


class RunningProcess:
    """A process, everything it printed (both streams), and its end."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], directory: Path = ROOT) -> None:
        self.command = list(command)
        self.lines: list[str] = []
        self._arrived = threading.Condition()
        self._ended = False
        self._process = subprocess.Popen(
            self.command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # A group of its own: `send_to_group` reaches its children, and Ctrl-C in the terminal does not.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The pid of the process started; for gunicorn its master."""
        return self._process.pid

    @property
    def output(self) -> str:
        """Everything printed so far."""
        return "\n".join(self.lines)

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    @property
    def cpu_seconds(self) -> float:
        """How long it and its children, those that run, have had a core so far."""
        ticks = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                # The name before may hold spaces and brackets: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[2]) == self.pid:
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def wait_for_line(self, pattern: str, timeout: float = 20) -> re.Match[str]:
        """The first line that `pattern` is found in, as its match; lines already printed count.

        Fails with the whole output after `timeout` seconds, or as soon as the process ends without such a line.
        """
        deadline = time.monotonic() + timeout
        seen = 0
        with self._arrived:
            while True:
                for line in self.lines[seen:]:
                    if match := re.search(pattern, line):
                        return match
                seen = len(self.lines)
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    why = "ended" if self._ended else f"ran for {timeout:g} s"
                    raise AssertionError(f"{self} {why} without a line like {pattern!r}. It printed:\n{self.output}")
                self._arrived.wait(left)

    def send(self, number: signal.Signals) -> None:
        """Signal this one process; after SIGSTOP wait until all its threads have stopped."""
        self._process.send_signal(number)
        if number is signal.SIGSTOP:
            eventually(lambda: is_paused(self.pid))

    def send_to_group(self, number: signal.Signals) -> None:
        """Signal the process and its children at once."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """kill -9 the process and its children, and wait until it is gone."""
        self.send_to_group(signal.SIGKILL)
        self.wait(10)

    def stop(self, timeout: float = 30) -> int:
        """Ask it to stop (SIGTERM) and return its exit code."""
        self.send(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = 30) -> int:
        """Wait for its end and return its exit code; fails with the output if it still runs after `timeout` seconds."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self} still ran after {timeout:g} s. It printed:\n{self.output}") from None
        # Children may hold the pipe open for longer.
        self._reader.join(2)
        return code

    def __str__(self) -> str:
        return " ".join(Path(part).name if part == self.command[0] else part for part in self.command)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._arrived:
                self.lines.append(line.rstrip("\n"))
                self._arrived.notify_all()
        with self._arrived:
            self._ended = True
            self._arrived.notify_all()
        self._process.stdout.close()


class WebProcess(RunningProcess):
    """gunicorn serving the project on `url` (without a slash at its end)."""

    def __init__(self, port: int, command: Sequence[str], environment: dict[str, str]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        super().__init__(command, environment)

    def wait_until_it_answers(self, path: str = "/healthz", timeout: float = 30) -> None:
        """Return once any answer comes, an error page included."""
        eventually(lambda: self._answers(path), timeout, report=lambda: self.output)

    def _answers(self, path: str) -> bool:
        if not self.is_alive:
            raise RuntimeError(f"{self} ended with {self.wait()}. It printed:\n{self.output}")
        try:
            urllib.request.urlopen(self.url + path, timeout=5).close()
        except urllib.error.HTTPError as answer:
            answer.close()
        except OSError:
            return False
        return True


class ProcessStarter:
    """Starts processes on a test's database and broker, and ends them all, with whatever they started.

    Their temporary files are in `directory`: a killed process leaves some behind.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: list[RunningProcess] = []

    def __call__(self, *arguments: str, **environment: str) -> RunningProcess:
        """Start `manage.py <arguments>`; keyword arguments are environment variables."""
        return self.program(sys.executable, "manage.py", *arguments, **environment)

    def program(self, *command: str, **environment: str) -> RunningProcess:
        """Start any program in the project's directory."""
        return self._remember(RunningProcess(command, self._environment(environment)))

    def web(self, *, workers: int = 1, threads: int = 4, port: int | None = None, **environment: str) -> WebProcess:
        """Start gunicorn as the demo does, and return when it answers."""
        port = port or free_port()
        gunicorn = str(Path(sys.executable).with_name("gunicorn"))
        size = [f"--workers={workers}", f"--threads={threads}"]
        command = [gunicorn, "project.wsgi", f"--bind=127.0.0.1:{port}", *size, "--no-control-socket"]
        web = WebProcess(port, command, self._environment(environment))
        self._remember(web)
        web.wait_until_it_answers()
        return web

    def end_all(self) -> None:
        """kill -9 what still runs, found by the mark in its environment, and print what each process said."""
        end_all(self._directory, how=signal.SIGKILL)
        for process in self._started:
            code = process.wait(10)
            print(f"--- {process} (pid {process.pid}) ended with {code} and had printed:\n{process.output}")

    def _environment(self, changes: dict[str, str]) -> dict[str, str]:
        return process_environment(**{OWNER: str(self._directory), "TMPDIR": str(self._directory), **changes})

    def _remember(self, process: RunningProcess) -> RunningProcess:
        self._started.append(process)
        return process
