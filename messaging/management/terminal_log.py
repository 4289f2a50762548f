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
    """Keep comings and goings out of the log: the command itself says what a person needs."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [logger.level for logger in loggers]
    if not unless:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


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
