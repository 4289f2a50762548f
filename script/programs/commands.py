"""Running commands in the foreground, and stopping them on a signal."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from types import FrameType

from script.services.owned import parent_death_guard

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Run a command to its end and return its exit code; `environment` is added to ours.

    If we are told to stop, so is the command, and we wait for it. If we are killed, it is interrupted.
    """
    guard = parent_death_guard(signal.SIGINT)
    process = subprocess.Popen([*guard, *command], env={**os.environ, **(environment or {})})
    try:
        # Not one wait for ever: Python misses a signal that comes just before it waits, until that wait is over.
        while process.poll() is None:
            _wait(process, 1)
        return process.returncode
    except KeyboardInterrupt as told:
        # Ctrl-C has reached it, too. A second signal would interrupt its cleanup.
        if told.args == (signal.SIGINT,):
            _wait(process, 20)
        raise
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            _wait(process, 30)
            process.kill()


def _wait(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def stop_on_signals() -> None:
    """From now on SIGINT, SIGTERM and a closed terminal end this process with one `KeyboardInterrupt(signal)`.

    What was started is stopped on the way out; a second signal does not cut that short.
    """
    for number in STOPPING:
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for other in STOPPING:
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number))
