"""Loggers: structlog's if the project has configured it, else the standard library's. Throttles and sums of lines.

An unconfigured structlog prints to standard output, where commands write what programs read. Whether to configure it is
the project's decision.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import structlog

from messaging.exceptions import HandlerTimeout
from messaging.masking import mask_event

#: Seconds after which a reason that lasts is logged again.
REPEAT_AFTER = 60.0
#: Seconds between two lines about successes.
SUM_EVERY = 1.0
#: Most reasons that a throttle remembers: their texts may contain something that changes each time.
REMEMBERED = 100


class Logger:
    """structlog's logger of a name. Until structlog is configured, its lines go to `logging` as text (the event and its
    fields), by the handlers and levels of LOGGING.

    A line raises nothing, whatever the project's handlers, filters and processors do: it may be written after a commit,
    or by a thread that must not end. What fails is printed on standard error, once a minute.
    """

    def __init__(self, level: logging.Logger, configured: Any, plain: Any, bound: Mapping[str, Any]) -> None:
        self._level = level
        self._configured = configured
        self._plain = plain
        self._bound = bound

    @property
    def prints_debug(self) -> bool:
        """Whether `logging` prints lines of level DEBUG for this name.

        Ask before you log a line for each message: a line costs ten microseconds even if nobody prints it, and this
        question a small part of one.
        """
        return self._level.isEnabledFor(logging.DEBUG)

    def bind(self, **fields: Any) -> Logger:
        """Return a logger that has these fields in each line."""
        return Logger(self._level, self._configured, self._plain, {**self._bound, **fields})

    def __getattr__(self, level: str) -> Callable[..., None]:
        return partial(self._write, level)

    def _write(self, level: str, event: str, **fields: Any) -> None:
        # Decided for each line: modules make their loggers before the project has configured anything.
        logger = self._configured if structlog.is_configured() else self._plain
        try:
            getattr(logger, level)(event, **{**self._bound, **fields})
        except HandlerTimeout:
            raise  # meant for the handler that was about to log
        except Exception:
            _report(event)


def get_logger(name: str) -> Logger:
    """Return the logger of that name; a module passes its own."""
    level = logging.getLogger(name)
    plain = structlog.wrap_logger(
        level,
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=_TO_LOGGING,
        cache_logger_on_first_use=True,
    )
    return Logger(level, structlog.get_logger(name), plain, {})


def _report(event: str) -> None:
    """Print the error by which a line failed."""
    with suppress(Exception):
        if _failures.allows("the log"):
            sys.stderr.write(f"The log line {event!r} could not be written: a part of the project's log failed.\n")
            traceback.print_exc()


def quiet_pika() -> None:
    """Silence pika's own loggers, unless the project has set their level.

    pika logs each step of each attempt to connect: dozens of lines even when all is well. `messaging.broker` logs what
    people need to know.
    """
    pika = logging.getLogger("pika")
    if pika.level == logging.NOTSET:
        pika.setLevel(logging.CRITICAL)


class Throttle:
    """Lets a lasting reason be logged when it begins and then once a minute. For one thread.

    Code that waits for a broker or a database retries every second: a line for each attempt would flood the log, and a
    line for the first alone would be missed by people who look later.
    """

    def __init__(self) -> None:
        self._logged_at: dict[str, float] = {}

    def allows(self, reason: str) -> bool:
        """Whether `reason` is to be logged now; if so, it counts as logged."""
        now = time.monotonic()
        if now - self._logged_at.get(reason, -math.inf) < REPEAT_AFTER:
            return False
        if len(self._logged_at) >= REMEMBERED:
            self._logged_at.clear()
        self._logged_at[reason] = now
        return True

    def reset(self) -> bool:
        """Forget all reasons, because the trouble is over. Return whether any had been logged."""
        had_logged = bool(self._logged_at)
        self._logged_at.clear()
        return had_logged


class Successes:
    """Sums what went well, so that it is told in one line a second for each name, and not in a line for each message.

    `add` may be called by any thread; `tell` by one that comes by again and again, at least once a second.
    """

    def __init__(
        self, log: Logger, event: str, named: str, *, also: Callable[[str, int], None] = lambda name, count: None
    ) -> None:
        """`named` is the field of the lines that holds the name: consumer, procedure. `also` is called with the name
        and the number of each line."""
        self._log = log
        self._event = event
        self._named = named
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._also = also
        self._told_at = -math.inf

    def add(self, name: str, count: int = 1, *, seconds: float) -> None:
        """Count `count` successes of that name, which took `seconds` together."""
        with self._lock:
            self._counts[name] += count
            self._seconds[name] += seconds

    def tell(self, *, at_end: bool = False) -> None:
        """Log what was added since the last lines if they are a second old, `at_end` in any case."""
        now = time.monotonic()
        if not self._counts or (now - self._told_at < SUM_EVERY and not at_end):
            return
        with self._lock:
            counts, seconds = self._counts, self._seconds
            self._counts, self._seconds = Counter(), defaultdict(float)
        self._told_at = now
        for name, count in counts.items():
            each = round(seconds[name] / count * 1000, 1)
            self._log.info(self._event, **{self._named: name}, count=count, milliseconds_each=each)
            self._also(name, count)


#: When it was last said that a line could not be written.
_failures = Throttle()


def _as_text(logger: Any, method: str, event: Any) -> tuple[tuple[str], dict[str, Any]]:
    """Return the arguments for `logging`. The text contains the traceback already, masked."""
    return (str(_RENDER(logger, method, event)),), {"exc_info": False, "stacklevel": _FRAMES}


_RENDER = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
#: Frames between the line that logs and the call of `logging`: one is ours, and three are structlog's.
_FRAMES = 5
_TO_LOGGING: list[Any] = [
    structlog.stdlib.filter_by_level,
    structlog.contextvars.merge_contextvars,
    # Makes tracebacks text, so that they can be masked.
    structlog.processors.format_exc_info,
    mask_event,
    _as_text,
]
