"""Commands run inside the test: quick, and everything they wrote apart."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO

from django.core.management import CommandError, call_command

from tests.support.running import InThread
from tests.support.waiting import eventually


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Standard output by lines."""
        return self.out.splitlines()


def manage(*arguments: str) -> Said:
    """Run `manage.py <arguments>` to its end. The line that an error ends with is the last of `err`."""
    out, err = StringIO(), StringIO()
    try:
        call_command(*arguments, stdout=out, stderr=err)
        code = 0
    except CommandError as error:
        err.write(str(error))
        code = error.returncode
    return Said(code, out.getvalue(), err.getvalue())


def mq(*arguments: str) -> Said:
    """Run `manage.py mq <arguments>`."""
    return manage("mq", *arguments)


def messages(*arguments: str) -> Said:
    """Run `manage.py messages <arguments>`."""
    return manage("messages", *arguments)


def publish(*arguments: str) -> None:
    """Run `mq publish`, which must succeed."""
    said = mq("publish", *arguments)
    assert said.code == 0, said.err


@contextmanager
def ctrl_c(when: Callable[[], object], times: int = 1) -> Iterator[None]:
    """Press Ctrl-C as soon as `when` returns something true; the block runs a command that takes it."""
    here = threading.get_ident()
    held = []

    def press() -> None:
        held.append(eventually(when))  # Python would close a connection to which nothing refers
        for _ in range(times):
            signal.pthread_kill(here, signal.SIGINT)

    pressing = InThread(press, "Ctrl-C")
    yield
    pressing.join()
