"""Clocks of servers that differ from ours: each reply tells the server's time.

A request has a deadline, so that a server that was frozen does not run requests whose callers have left. By a clock
that is ahead a request seems late. The server then replies so, and tells its time; the caller sends the request once
more, with a deadline by that clock.
"""

from __future__ import annotations

from messaging import procedures
from messaging.logs import Throttle, get_logger
from messaging.message import Message, whole_number

log = get_logger(__name__)

#: Milliseconds from which a difference between two clocks is reported.
WORTH_SAYING = 1000


class Clocks:
    """By how much the clock of each request queue's servers differs from ours, as far as it is known."""

    def __init__(self) -> None:
        self._ahead: dict[str, int] = {}
        self._throttle = Throttle()

    def ahead(self, queue: str) -> int:
        """Return by how many milliseconds the clock is ahead of ours."""
        return self._ahead.get(queue, 0)

    def difference(self, queue: str) -> str:
        """Return the difference as a sentence with a space before it; empty if it is small."""
        ahead = self.ahead(queue)
        if abs(ahead) < WORTH_SAYING:
            return ""
        how = "ahead of" if ahead > 0 else "behind"
        return f" The clock of its server is {abs(ahead) / 1000:.1f} s {how} this host's: let NTP set both."

    def compare(self, queue: str, sent_at: int, reply: Message) -> bool:
        """Learn the difference from the reply to a request of `sent_at`; return whether the server's clock is further
        ahead than was known.

        The server wrote its time between the request and now, so a time in between is no difference.
        """
        clock = whole_number(reply.headers.get(procedures.CLOCK_HEADER))
        if clock is None:
            return False
        known, now = self.ahead(queue), procedures.now_ms()
        ahead = self._ahead[queue] = clock - now if clock > now else min(0, clock - sent_at)
        if abs(ahead - known) >= WORTH_SAYING:
            said = self.difference(queue).strip() or "they agree again"
            # Several servers of one queue may have different clocks: each reply would make a line.
            if self._throttle.allows(f"{queue}: {said}"):
                log.warning("rpc.clocks_differ", queue=queue, reason=said)
        return ahead > known
