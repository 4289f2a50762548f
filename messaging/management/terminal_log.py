"""How much of the log reaches the terminal: little beside a command's own output, all of a process that serves."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

#: Loggers of connections and calls.
LOGGERS = ("messaging.broker", "messaging.rpc")


@contextmanager
def quiet_log(*, unless: bool) -> Iterator[None]:
    """Keep what is below an error off the terminal, and comings and goings out of the log: the command itself says what
    a person needs. A log that goes elsewhere keeps what was done."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [logger.level for logger in loggers]
    handlers = [] if unless else _on_terminals()
    for handler in handlers:
        handler.addFilter(_is_error)
    if not unless:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
        for handler in handlers:
            handler.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _on_terminals() -> list[logging.Handler]:
    """Return the handlers that write to a terminal; among them the one that Python uses where there is no other."""
    names = [name for name, logger in logging.root.manager.loggerDict.items() if isinstance(logger, logging.Logger)]
    every = [handler for name in (None, *names) for handler in logging.getLogger(name).handlers]
    return [each for each in dict.fromkeys([*every, logging.lastResort]) if each is not None and _is_on_terminal(each)]


def _is_on_terminal(handler: logging.Handler) -> bool:
    stream = handler.stream if isinstance(handler, logging.StreamHandler) else None
    return stream is not None and stream.isatty()


@contextmanager
def shown_log() -> Iterator[None]:
    """Show what `messaging` does on standard error, where the project says nowhere what becomes of its log: Python by
    itself would show warnings alone."""
    logger = logging.getLogger("messaging")
    if structlog.is_configured() or logger.hasHandlers():
        yield
        return
    handler, before = logging.StreamHandler(), logger.level
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(before or logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
