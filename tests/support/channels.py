"""A relay's channels without a broker: the test answers."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

from messaging.broker.publisher import InFlight, Outcome


class FakeChannels:
    """Keeps what is sent, until the test answers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.heard_at = 0.0
        self.answers = True
        self.sent: dict[Any, list[InFlight]] = {}
        #: Of each call of `send`.
        self.may_wait: list[bool] = []
        self.resets: list[str] = []
        self.connection = SimpleNamespace(
            blocked=False,
            call_soon=lambda function: function(),
            reset=self.resets.append,
            succeeded=Mock(),
            refused=False,
            generation=1,
            last_error="",
        )
        self.start, self.stop = Mock(), Mock()

    @property
    def ready(self) -> bool:
        return not self.connection.blocked

    def send(self, where: Any, publishings: Sequence[InFlight], *, may_wait: bool = False) -> None:
        self.sent.setdefault(where, []).extend(publishings)
        self.may_wait.append(may_wait)

    def settle(self, where: Any, outcome: Outcome) -> None:
        for each in self.sent.pop(where, []):
            each.settle(outcome)

    def give_up(self, where: Any, outcome: Outcome) -> None:
        self.settle(where, outcome)
        if self.answers:
            self.heard_at = self.clock()

    def answer(self, where: Any, outcome: Outcome, count: int | None = None) -> None:
        """Settle the first messages that were sent to a destination."""
        self.heard_at = self.clock()
        now, self.sent[where] = self.sent[where][:count], self.sent[where][len(self.sent[where][:count]) :]
        for each in now:
            each.settle(outcome)
