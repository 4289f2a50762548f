"""What can be found: each kind of drift has an id of its own, under which `manage.py check` knows it too."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from messaging import consumers
from messaging.broker.management import Address
from messaging.topology import existing as standing


class Kind(StrEnum):
    """What is wrong; the value is its id."""

    UNWANTED_EVENT = "messaging.W006"
    MISSING_EXCHANGE = "messaging.W007"
    OTHER_EXCHANGE = "messaging.W008"
    MISSING_QUEUE = "messaging.W009"
    OTHER_QUEUE = "messaging.W010"
    MISSING_BINDING = "messaging.W011"
    EXTRA_BINDING = "messaging.W012"
    UNCONSUMED_QUEUE = "messaging.W013"
    UNROUTED_EVENT = "messaging.W014"
    ABANDONED_QUEUE = "messaging.W015"
    HARMFUL_POLICY = "messaging.W017"
    SILENT_QUEUE = "messaging.W018"
    FOREIGN_QUEUE = "messaging.I002"
    FOREIGN_BINDING = "messaging.I003"

    @property
    def words(self) -> str:
        """In two words."""
        return self.name.lower().replace("_", " ")


#: What `manage.py check` says where nobody could look at the broker.
NOT_LOOKED_AT = "messaging.W016"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as wanted."""

    kind: Kind
    #: Of the exchange, the queue or the type of event that it is about.
    name: str
    said: str
    hint: str
    #: The consumer whose messages it may have cost; empty: none, or several.
    consumer: str = ""
    #: False: it need not be wrong.
    is_wrong: bool = True
    #: False: what it is about was declared by another application, as far as can be seen.
    is_ours: bool = True
    #: For an extra binding.
    binding: standing.Binding | None = None


@dataclass(slots=True)
class Drift:
    """What was found, and what nobody could see."""

    how: str
    #: The management API that told it; None where AMQP did.
    address: Address | None = None
    findings: list[Finding] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[Finding]:
        """Return the findings that somebody should do something about."""
        return [finding for finding in self.findings if finding.is_wrong]


def consumer_of(queue: str) -> str:
    """Return the name of the registered consumer that reads `queue`; empty where none does."""
    return next((each.name for each in consumers.registered() if each.queue == queue), "")
