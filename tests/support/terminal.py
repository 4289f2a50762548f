"""`manage.py` on a terminal of its own: what a person sees, colours and all."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.environment import ROOT, process_environment


class Terminal:
    """A process on a terminal, and what it has written there, both streams."""

    def __init__(self, arguments: tuple[str, ...], columns: int) -> None:
        self.seen = ""
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT, env=process_environment(TERM="xterm"), stdin=theirs, stdout=theirs, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait(self, timeout: float = 30) -> int:
        """Wait for its end, and return its exit code."""
        code = self.process.wait(timeout)
        self._reader.join(5)
        return code

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.wait()
        os.close(self._ours)

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._ours, 65536)
            except OSError:  # its last process has gone
                return
            self.seen += piece.decode(errors="replace")


@contextmanager
def on_terminal(*arguments: str, columns: int = 80) -> Iterator[Terminal]:
    """Start `manage.py <arguments>` on a terminal of so many columns; it has ended when the block is left."""
    terminal = Terminal(arguments, columns)
    try:
        yield terminal
    finally:
        terminal.close()
