"""A log that leaves the terminal to the command."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

#: What tells of connections and calls that come and go.
LOGGERS = ("messaging.broker", "messaging.rpc.client")


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
