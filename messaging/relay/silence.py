"""Silence: destinations from which a relay got no word, and how long it sends nothing there."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable

#: The queues that must take a row's message; where we know of none, the exchange and routing key it goes to.
Destination = frozenset[str] | tuple[str, str]

#: Seconds between two tries of destinations that gave no word when they were tried alone.
PAUSE = 30.0
#: Seconds after which a destination is forgotten of which nothing was heard: keys may be made of ids, and be used once.
MEMORY = 600.0


class Silences:
    """What one relay has learnt of destinations.

    A channel does one thing after the other. For a queue without a leader it waits, a minute in RabbitMQ 3.10 and 4.3,
    and whatever was sent after it gets no word either. So all that went together without a word are in doubt, and each
    goes alone until it gets one. Who gets none alone is silent: of those one is tried in each PAUSE, with one message.
    Of one thread; times are those of `clock`, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: When each was last doubted, silent, answering.
        self._doubted: dict[Destination, float] = {}
        self._silent: dict[Destination, float] = {}
        self._answered: dict[Destination, float] = {}
        self._next_trial = 0.0

    def __bool__(self) -> bool:
        """Whether any destination is in doubt or silent."""
        return bool(self._doubted or self._silent)

    def doubted(self, where: Destination) -> bool:
        """Whether messages for it go alone."""
        return where in self._doubted or where in self._silent

    def silent(self, where: Destination) -> bool:
        """Whether it gave no word when it was last tried alone: the next try is of one message."""
        return where in self._silent

    def rest(self, where: Destination) -> float:
        """Return the seconds for which nothing should be sent there; 0 where it may be tried."""
        return max(0.0, self._next_trial - self._clock()) if where in self._silent else 0.0

    def in_order(self, destinations: Iterable[Destination]) -> list[Destination]:
        """Return them as they are best tried: who answered lately first, who was silent last, otherwise by chance, so
        that none is for ever behind one that gives no word."""
        shuffled = random.sample(found := list(destinations), len(found))
        return sorted(shuffled, key=lambda where: (where in self._silent, where not in self._answered))

    def doubt(self, where: Destination) -> None:
        """Take note that it may have been the reason why others got no word."""
        self._doubted[where] = self._clock()

    def gave_no_word(self, where: Destination) -> None:
        """Take note that it was tried alone in vain."""
        self._silent[where] = now = self._clock()
        self._next_trial = now + PAUSE

    def gave_word(self, where: Destination) -> None:
        """Take note that the broker answered, whatever it said. If it had been silent, others may be well again too."""
        self._answered[where] = now = self._clock()
        self._doubted.pop(where, None)
        if self._silent.pop(where, None) is not None:
            self._next_trial = now

    def forget_old(self) -> None:
        """Drop what nothing has confirmed for MEMORY seconds."""
        old = self._clock() - MEMORY
        for times in (self._doubted, self._silent, self._answered):
            for where in [where for where, then in times.items() if then < old]:
                del times[where]
