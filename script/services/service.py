"""What private servers share: a directory, a state file in it, and how they are stopped, killed and frozen."""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from script.services.owned import (
    POLL_INTERVAL,
    ServiceError,
    belongs,
    end,
    end_all,
    is_paused,
    owned_pids,
    signal_owned,
    start_owned,
    tail,
)


class Service:
    """A server that lives in `directory`. Two objects made for one directory mean the same server, in any process.

    Call `start` and later `stop`, or use the service as a context manager.
    """

    #: What error messages call it.
    title: ClassVar[str]
    #: Name of its state file.
    state_file: ClassVar[str]
    #: What ends it, and what ends the processes that it left behind.
    stop_signal: signal.Signals = signal.SIGTERM
    leftovers_signal: signal.Signals = signal.SIGKILL

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self._state = StateFile(self.directory / self.state_file)
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The pid of the running server, or None."""
        pid = self._state.read().get("pid")
        return pid if isinstance(pid, int) and belongs(pid, self.directory) else None

    @property
    def log(self) -> Path:
        """What the server prints."""
        return self.directory / "output.log"

    def start(self) -> None:
        """Start the server unless it runs, and return when it takes connections. Raises `ServiceError`."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the server, whichever process started it. Nothing of it is left running; its data stays."""
        pid = self.pid
        if pid is not None:
            self.resume()
            end(pid, self.directory, how=self.stop_signal)
        self._end_leftovers()

    def kill(self) -> None:
        """kill -9, as a power cut would; `start` brings the server back on the same port with its data.

        Raises `ServiceError` if it does not run.
        """
        server = self._running("killed")
        # Listed before the kill: a supervisor may start the server again at once, and what it starts must live.
        others = owned_pids(self.directory)
        for pid in (server, *others):
            end(pid, self.directory, how=signal.SIGKILL)
        self._collect_children()

    def pause(self) -> None:
        """Freeze the server and its children: connections stay open and nothing answers, until `resume`.

        Raises `ServiceError` if it does not run.
        """
        # The server first, so that it starts no child in between.
        signal_owned(self._running("paused"), self.directory, signal.SIGSTOP)
        # On a busy machine each may take another step before all its threads have stopped.
        while running := [pid for pid in owned_pids(self.directory) if not is_paused(pid)]:
            for pid in running:
                signal_owned(pid, self.directory, signal.SIGSTOP)
            time.sleep(POLL_INTERVAL)

    def resume(self) -> None:
        """Let a paused server go on; a server that is not paused does not notice."""
        for pid in owned_pids(self.directory):
            signal_owned(pid, self.directory, signal.SIGCONT)

    def _running(self, needed_for: str) -> int:
        pid = self.pid
        if pid is None:
            raise ServiceError(f"{self.title} does not run: it cannot be {needed_for}.")
        return pid

    def _start_process(self, command: Sequence[str | Path], **options: Any) -> subprocess.Popen[bytes]:
        """Start a process of the service; `options` are those of `start_owned`."""
        process = start_owned(command, self.directory, log=self.log, **options)
        self._children.append(process)
        return process

    def _wait_until(self, is_ready: Callable[[], bool], patience: float) -> None:
        """Return when the server is ready. Raises `ServiceError` if it ends, or is not ready in `patience` seconds."""
        deadline = time.monotonic() + patience
        while not is_ready():
            self._collect_children()
            if self.pid is None:
                self._end_leftovers()
                raise ServiceError(f"{self.title} ended while starting. {self.log} says:\n{tail(self.log)}")
            if time.monotonic() > deadline:
                self.stop()
                raise ServiceError(f"{self.title} was not ready in {patience:.0f} s:\n{tail(self.log)}")
            time.sleep(POLL_INTERVAL)

    def _end_leftovers(self) -> None:
        """End every process that carries this directory's mark, such as children of a killed server."""
        end_all(self.directory, how=self.leftovers_signal)
        self._collect_children()

    def _collect_children(self) -> None:
        self._children = [child for child in self._children if child.poll() is None]


class StateFile:
    """A small dictionary on disk that only its owner can read. Every read sees a whole version of it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        """Return the saved values; empty if there are none, or if the file does not hold a dictionary."""
        try:
            values = json.loads(self.path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def save(self, **changes: Any) -> None:
        """Replace some values and keep the others."""
        values = {**self.read(), **changes}
        unfinished = self.path.with_suffix(".new")
        write_private(unfinished, json.dumps(values))
        unfinished.rename(self.path)


def write_private(path: Path, content: str, mode: int = 0o600) -> None:
    """Write a file that other users can never read, not even for an instant."""
    path.touch(mode=0o600)
    path.write_text(content)
    path.chmod(mode)
