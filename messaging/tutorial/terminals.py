"""Runs a lesson's lines as they are printed: a process for each terminal, watched line by line."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from messaging.tutorial.lessons import Line

#: Seconds that a process may take to begin, or to print what is waited for, on a busy machine.
PATIENCE = 60.0
#: Seconds that a process may take to stop when it is asked to.
STOP_PATIENCE = 10.0
#: Seconds between two looks.
LOOK_EVERY = 0.02
#: What a line that goes on until Ctrl-C prints once it is ready.
READY = r"^(Listening on|Serving\.)"


class Failed(Exception):
    """A lesson did not show what it should; the text says what was seen instead."""


class Interrupted(Exception):
    """The check was told to stop."""


def wait_for(condition: Callable[[], bool], stopped: Callable[[], bool], failure: Callable[[], str]) -> None:
    """Wait until `condition` holds. Raises Failed with the text of `failure` after PATIENCE, Interrupted."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if stopped():
            raise Interrupted
        if time.monotonic() > deadline:
            raise Failed(failure())
        time.sleep(LOOK_EVERY)


class Terminal:
    """A line that runs. Its methods raise Failed, Interrupted."""

    def __init__(self, line: Line, stopped: Callable[[], bool]) -> None:
        self.line = line
        self._stopped = stopped
        self.out: list[str] = []
        self.err: list[str] = []
        self._process = subprocess.Popen(  # noqa: S603 (our own line)
            [*_manage(), *shlex.split(line.command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # Ctrl-C goes to the check, which then stops its processes in order.
            start_new_session=True,
        )
        streams = [(self._process.stdout, self.out), (self._process.stderr, self.err)]
        self._readers = [threading.Thread(target=_read, args=each, daemon=True) for each in streams]
        for reader in self._readers:
            reader.start()

    def wait_until_ready(self) -> None:
        """Wait until it has begun."""
        self._wait_for(lambda: any(re.search(READY, line) for line in [*self.err, *self.out]), "it to begin")

    def wait_for_lines(self, count: int) -> None:
        """Wait until it has printed so many lines."""
        self._wait_for(lambda: len(self.out) >= count, f"{count} line{'s' * (count != 1)}")

    def end(self) -> int:
        """Wait for its end and return its exit code."""
        self._wait_for(self._has_ended, "its end")
        return int(self._process.returncode)

    def stop(self) -> None:
        """Stop it by Ctrl-C, and wait until it has ended well."""
        self.ask_to_stop()
        if (code := self.end()) != 0:
            raise Failed(f"`{self.line}`, told to stop, ended with {code}: {self.last_words}")

    def ask_to_stop(self) -> None:
        """Send it Ctrl-C; do not wait."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()
        self._has_ended()

    def leave(self) -> None:
        """Wait for its end, and kill it if that takes too long."""
        try:
            self._process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()

    @property
    def last_words(self) -> str:
        """The one line of the error that it ended with; else its last lines."""
        # The log may go on after the error.
        errors = [line.removeprefix("CommandError: ") for line in self.err if line.startswith("CommandError: ")]
        return errors[-1] if errors else " / ".join([*self.out, *self.err][-3:]) or "it printed nothing"

    def _wait_for(self, condition: Callable[[], bool], what: str) -> None:
        wait_for(
            lambda: condition() or self._has_ended(),
            self._stopped,
            lambda: f"`{self.line}`: waited {PATIENCE:g} s for {what}: {self.last_words}",
        )
        if not condition():
            raise Failed(f"`{self.line}` ended with {self._process.returncode}: {self.last_words}")

    def _has_ended(self) -> bool:
        if self._process.poll() is None:
            return False
        for reader in self._readers:
            reader.join(1)
        return True


class Terminals:
    """Runs the lines of a lesson, for `terminals_of`. Its methods raise Failed, Interrupted."""

    def __init__(self, lines: Mapping[str, Line], waiting: Callable[[str], int], stopped: Callable[[], bool]) -> None:
        self._lines = lines
        #: Returns how many messages wait in a queue of the lesson.
        self.waiting = waiting
        self.stopped = stopped
        self.begun: list[Terminal] = []

    def begin(self, name: str) -> Terminal:
        """Start the line of that name."""
        self.begun.append(Terminal(self._lines[name], self.stopped))
        return self.begun[-1]

    def start(self, *names: str) -> list[Terminal]:
        """Start the lines of these names at once, and wait until each is ready."""
        started = [self.begin(name) for name in names]
        for terminal in started:
            terminal.wait_until_ready()
        return started

    def run(self, name: str) -> list[str]:
        """Run the line of that name to its end; return what it printed."""
        terminal = self.begin(name)
        if (code := terminal.end()) != 0:
            raise Failed(f"`{terminal.line}` ended with {code}: {terminal.last_words}")
        return terminal.out


@contextmanager
def terminals_of(
    lines: Mapping[str, Line], waiting: Callable[[str], int], stopped: Callable[[], bool]
) -> Iterator[Terminals]:
    """Yield the terminals for `lines`; no process is left behind."""
    terminals = Terminals(lines, waiting, stopped)
    try:
        yield terminals
    finally:
        for terminal in terminals.begun:
            terminal.ask_to_stop()
        for terminal in terminals.begun:
            terminal.leave()


def _manage() -> list[str]:
    """Return how this command itself was started, up to its name."""
    program = Path(sys.argv[0])
    # Other programs are not the project's: the test runner, `python -m django`.
    return [sys.executable, str(program)] if program.name == "manage.py" else [sys.executable, "-m", "django"]


def _read(stream: IO[str], lines: list[str]) -> None:
    with stream:
        for line in stream:
            lines.append(line.rstrip("\n"))
