"""Loggers: structlog's where the project has configured it, else the standard library's.

An unconfigured structlog prints to standard output, where commands write what a program will read. And it is the
project's to configure, or to leave alone.
"""

from __future__ import annotations

import logging
from typing import Any

import structlog

from messaging.masking import mask_event


class Logger:
    """structlog's logger of a name. For as long as nobody has configured structlog, its lines are `logging`'s, as text:
    the event and its fields. They go where LOGGING says, by its levels."""

    def __init__(self, name: str) -> None:
        self._configured = structlog.get_logger(name)
        self._plain = structlog.wrap_logger(
            logging.getLogger(name),
            wrapper_class=structlog.stdlib.BoundLogger,
            processors=_TO_LOGGING,
            cache_logger_on_first_use=True,
        )

    def __getattr__(self, name: str) -> Any:
        # Asked at each line: modules make their loggers before the project has configured anything.
        return getattr(self._configured if structlog.is_configured() else self._plain, name)


def get_logger(name: str) -> Logger:
    """Return the logger of that name; a module gives its own."""
    return Logger(name)


def quiet_pika() -> None:
    """Silence pika's own loggers, unless the project has set their level.

    pika logs each step of each attempt to connect, dozens of lines even where all is well. What a person needs of it,
    the lines of `messaging.broker` say.
    """
    pika = logging.getLogger("pika")
    if pika.level == logging.NOTSET:
        pika.setLevel(logging.CRITICAL)


def _as_text(logger: Any, method: str, event: Any) -> tuple[tuple[str], dict[str, Any]]:
    """Return what `logging` is called with. The text has the traceback already, without its secrets."""
    return (str(_RENDER(logger, method, event)),), {"exc_info": False, "stacklevel": _FRAMES}


_RENDER = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
#: How far the line that logs is above the call of `logging`: structlog has three functions in between.
_FRAMES = 4
_TO_LOGGING: list[Any] = [
    structlog.stdlib.filter_by_level,
    structlog.contextvars.merge_contextvars,
    # Tracebacks become text before secrets are hidden.
    structlog.processors.format_exc_info,
    mask_event,
    _as_text,
]
