"""Silence: destinations from which a relay got no word, and how long it sends nothing there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

#: The queues that must take a row's message; where we know of none, the exchange and routing key it goes to.
Destination = frozenset[str] | tuple[str, str]

#: Seconds of the first pause after a silence; each further one is twice as long, up to the longest.
FIRST_PAUSE = 5.0
LONGEST_PAUSE = 60.0


@dataclass(slots=True)
class _Doubt:
    """Nothing is sent until `until`, and then apart from all else."""

    until: float
    pause: float


class Silences:
    """What one relay has learnt of destinations, until they answer again or nothing was heard of them for long.

    A channel does one thing after the other. For a queue without a leader it waits, a minute in RabbitMQ 3.10 and 4.3,
    and whatever was sent after it gets no word either. In what was sent together all are therefore doubted; in what
    went alone, the one. Of one thread; times are those of `clock`, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._doubts: dict[Destination, _Doubt] = {}

    def __bool__(self) -> bool:
        """Whether any destination is doubted."""
        return bool(self._doubts)

    def doubted(self, where: Destination) -> bool:
        """Whether messages for it had better go alone."""
        return where in self._doubts

    def rest(self, where: Destination) -> float:
        """Return the seconds for which nothing should be sent there; 0 where it may be tried."""
        doubt = self._doubts.get(where)
        return max(0.0, doubt.until - self._clock()) if doubt else 0.0

    def doubt(self, where: Destination) -> None:
        """Take note that it may have been the reason why others got no word."""
        self._doubts.setdefault(where, _Doubt(self._clock(), 0.0))

    def silent(self, where: Destination) -> None:
        """Take note that it gave no word when it was tried alone: it is left alone for a while."""
        before = self._doubts.get(where)
        pause = min(max(FIRST_PAUSE, 2 * before.pause if before else 0.0), LONGEST_PAUSE)
        self._doubts[where] = _Doubt(self._clock() + pause, pause)

    def answered(self, where: Destination) -> None:
        """Take note that the broker gave its word, whatever it was."""
        self._doubts.pop(where, None)

    def forget_old(self) -> None:
        """Drop the doubts that nothing has confirmed for long: keys may be made of ids, and never be used again."""
        long_ago = self._clock() - 2 * LONGEST_PAUSE
        self._doubts = {where: doubt for where, doubt in self._doubts.items() if doubt.until > long_ago}
