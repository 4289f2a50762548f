"""The stage on which a lesson's lines are run as they are printed: real processes, each watched line by line."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from messaging.tutorial.lessons import Line

#: Seconds that a process may take to begin, or to bring what is waited for, on a busy machine.
PATIENCE = 60.0
#: Seconds that a process may take to stop when it is asked to.
STOP_PATIENCE = 10.0
#: Seconds between two looks.
LOOK_EVERY = 0.02
#: What says that a line which stays is ready: a listener that its queue stands and is bound, a server that it serves.
READY = r"^(Listening on|Serving\.)"


class Otherwise(Exception):
    """A lesson did not show what it should; the text says what was seen instead."""


class Interrupted(Exception):
    """Somebody wants this to stop."""


class Actor:
    """One line as a process."""

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
            # Ctrl-C is for whoever runs the check, who then stops the others in order.
            start_new_session=True,
        )
        streams = [(self._process.stdout, self.out), (self._process.stderr, self.err)]
        self._readers = [threading.Thread(target=_read, args=each, daemon=True) for each in streams]
        for reader in self._readers:
            reader.start()

    def wait_until_ready(self) -> None:
        """Wait until it has begun. Raises Otherwise where it does not come to that."""
        self.wait_for(lambda: any(re.search(READY, line) for line in [*self.err, *self.out]), "it to begin")

    def wait_for_lines(self, count: int) -> None:
        """Wait until it has printed so many lines. Raises Otherwise."""
        self.wait_for(lambda: len(self.out) >= count, f"{count} line{'s' * (count != 1)}")

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for what it prints. Raises Otherwise where it ends before, or takes too long; Interrupted."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self._stopped():
                raise Interrupted
            if self._process.poll() is not None:
                self._join_readers()
                if condition():
                    return
                raise Otherwise(f"`{self.line}` ended with {self._process.returncode}: {self.last_words}")
            if time.monotonic() > deadline:
                raise Otherwise(f"`{self.line}`: waited {PATIENCE:g} s for {what}; it printed {self._said()}")
            time.sleep(LOOK_EVERY)

    def end(self) -> int:
        """Wait for its end and return its exit code. Raises Otherwise, Interrupted."""
        deadline = time.monotonic() + PATIENCE
        while self._process.poll() is None:
            if self._stopped():
                raise Interrupted
            if time.monotonic() > deadline:
                raise Otherwise(f"`{self.line}` still ran after {PATIENCE:g} s; it printed {self._said()}")
            time.sleep(LOOK_EVERY)
        self._join_readers()
        return int(self._process.returncode)

    def stop(self) -> None:
        """Ask it to stop, as Ctrl-C does, and wait until it has. Raises Otherwise where it does not, or fails."""
        self.ask_to_stop()
        code = self.end()
        if code != 0:
            raise Otherwise(f"`{self.line}`, told to stop, ended with {code}: {self.last_words}")

    def ask_to_stop(self) -> None:
        """Ask it to stop; do not wait."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()
        self._join_readers()

    def leave(self) -> None:
        """End it by whatever means, if it still runs."""
        try:
            self._process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()

    def _join_readers(self) -> None:
        for reader in self._readers:
            reader.join(1)

    def _said(self) -> str:
        return " / ".join([*self.out, *self.err][-3:]) or "nothing"

    @property
    def last_words(self) -> str:
        """What it said last: the one line of its error, if it ended with one."""
        # The command's one line about it; the log may have gone on.
        told = [line.removeprefix("CommandError: ") for line in self.err if line.startswith("CommandError: ")]
        return told[-1] if told else self._said()


class Stage:
    """Runs a lesson's lines, as a context manager that leaves no process behind."""

    def __init__(self, lines: Mapping[str, Line], stopped: Callable[[], bool]) -> None:
        self._lines = lines
        self._stopped = stopped
        self._actors: list[Actor] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for actor in self._actors:
            actor.ask_to_stop()
        for actor in self._actors:
            actor.leave()

    def start(self, *names: str) -> list[Actor]:
        """Start the lines of these names, all at once, and wait until each has begun. Raises Otherwise."""
        started = [self.begin(name) for name in names]
        for actor in started:
            actor.wait_until_ready()
        return started

    def begin(self, name: str) -> Actor:
        """Start the line of that name."""
        actor = Actor(self._lines[name], self._stopped)
        self._actors.append(actor)
        return actor

    def run(self, name: str, *, code: int = 0) -> Actor:
        """Run the line of that name to its end. Raises Otherwise where it ends with another exit code."""
        actor = self.begin(name)
        found = actor.end()
        if found != code:
            raise Otherwise(f"`{actor.line}` ended with {found} instead of {code}: {actor.last_words}")
        return actor

    def wait_for(self, condition: Callable[[], bool], otherwise: Callable[[], str]) -> None:
        """Wait for something that no process prints. Raises Otherwise with the text, Interrupted."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self._stopped():
                raise Interrupted
            if time.monotonic() > deadline:
                raise Otherwise(otherwise())
            time.sleep(LOOK_EVERY)


def _manage() -> list[str]:
    """Return how this very command was started, up to its name."""
    program = Path(sys.argv[0])
    # Anything but a script of the project's: the test runner, `python -m django`.
    return [sys.executable, str(program)] if program.name == "manage.py" else [sys.executable, "-m", "django"]


def _read(stream: IO[str], lines: list[str]) -> None:
    with stream:
        for line in stream:
            lines.append(line.rstrip("\n"))
