"""What has become of the messages of an operator's action since."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from django.db.models import Count, F, Q, QuerySet

from messaging.models import Effect, InboxMessage, OperatorAction

#: Messages of an action that are looked at, the last ones.
LOOK_AT = 10_000
_REPLAYED: dict[str, str] = {
    InboxMessage.State.HANDLED: "handled",
    InboxMessage.State.EFFECTS_DUE: "handled, an effect is due",
    InboxMessage.State.RETRYING: "not handled yet",
    InboxMessage.State.WAITING: "waiting for earlier messages",
    InboxMessage.State.DEAD: "dead again",
    InboxMessage.State.DISCARDED: "discarded",
}
_EFFECTS: dict[str, str] = {
    Effect.State.INTENDED: "not done yet",
    Effect.State.SENDING: "not done yet",
    Effect.State.DONE: "done",
    Effect.State.FAILED: "failed, or given up",
    Effect.State.UNKNOWN: "of unknown outcome",
}
_FAILED_AGAIN = "failed again, to be tried again"


def outcome_since(action: OperatorAction) -> list[tuple[int, str]]:
    """Return how many messages of a replay are in which state now, in words. After effects were settled or retried:
    how many effects of their messages are. Empty for other actions."""
    ids = action.messages.order_by("-pk").values("message_id")[:LOOK_AT]
    if action.action == "replay":
        replayed = InboxMessage.objects.filter(message_id__in=ids, attempts_before__gt=0)
        again = Q(state=InboxMessage.State.RETRYING, attempt__gt=F("attempts_before") + 1)
        return _told(replayed, again, _REPLAYED)
    if action.action in {"settle", "retry"}:
        return _told(Effect.objects.filter(message_id__in=ids), Effect.FAILING, _EFFECTS)
    return []


def _told(rows: QuerySet[Any], again: Q, words: Mapping[str, str]) -> list[tuple[int, str]]:
    """Count rows by what is said of their state, and those `again` apart; the most frequent first."""
    found: Counter[str] = Counter()
    counted = rows.order_by().values("state").annotate(total=Count("pk"), again=Count("pk", filter=again))
    for each in counted:
        found[words[each["state"]]] += each["total"] - each["again"]
        found[_FAILED_AGAIN] += each["again"]
    return [(number, said) for said, number in found.most_common() if number]
