"""The overview: is all well, what is wrong, and what to do. It is the first page of Messaging in the admin."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.apps import apps
from django.db.models import QuerySet
from django.http import HttpRequest

from messaging import consumers, database
from messaging.actions import audit
from messaging.actions.selection import Selection
from messaging.admin import failures, words
from messaging.admin.chart import Chart, chart_of
from messaging.admin.links import admin_url
from messaging.history import listing
from messaging.history.effect_trouble import EffectTrouble
from messaging.models import InboxMessage, OperatorAction, OutboxMessage
from messaging.monitoring import status
from messaging.monitoring.activity import activity
from messaging.monitoring.status import Boxes, Broker, Count
from messaging.topology.existing import Queue

#: Seconds for which the pages of a process share one look at the broker, before one of them asks again.
SHARE_FOR = 5.0
#: Seconds after which a look at the broker is too old to be shown.
TOO_OLD = 30.0
#: Seconds after which the page looks again by itself.
LOOK_AGAIN = 10
#: How many failure groups, and how many actions, the page shows.
SHOWN = 5
#: Troubles of effects that have a card, each with its tone.
TROUBLES = {EffectTrouble.FAILING: "warning", EffectTrouble.UNKNOWN: "bad", EffectTrouble.FAILED: "bad"}
#: What a user needs to see the page.
PERMISSIONS = ("messaging.view_outboxmessage", "messaging.view_inboxmessage", "messaging.view_effect")


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A figure, what it counts, and the address of the rows behind it. `tone` is one of those of `words.LOOKS`."""

    figure: str
    label: str
    detail: str = ""
    tone: str = "calm"
    url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What the page shows. `queues` is None where the broker was not asked, or has not answered yet."""

    headline: str
    #: A tone of `words.LOOKS`: "calm" where nothing is wrong so far.
    tone: str
    wrong: Sequence[str]
    cards: Sequence[Card]
    chart: Chart
    groups: Sequence[failures.Line]
    queues: Sequence[Queue] | None
    actions: Sequence[OperatorAction]
    #: Seconds after which the page looks again by itself; None where it does not.
    again: int | None
    asked_broker: bool
    #: When outbox, inbox and effects were looked at.
    at: datetime


def may_read(request: HttpRequest) -> bool:
    """Whether the user may read all that the page sums up."""
    return request.user.has_perms(PERMISSIONS)


def overview(request: HttpRequest) -> Overview:
    """Look at outbox, inbox and effects. With `?broker=` in its address also at RabbitMQ, which may take seconds if it
    does not answer: the page asks for that once it is shown."""
    boxes = status.boxes()
    hours = 24 if request.GET.get("hours") == "24" else 1
    asks_broker = bool(request.GET.get("broker"))
    looks_again = apps.is_installed("django_htmx") and not request.GET.get("still")
    broker = _broker.look() if asks_broker else None
    wrong = [*(status.wrong_at(broker) if broker else []), *status.wrong_in(boxes)]
    return Overview(
        headline=headline(len(wrong), broker),
        tone="bad" if wrong else "good" if broker else "calm",
        wrong=wrong,
        cards=[*_cards(boxes), *([_consumers(broker)] if broker and not broker.unreachable else [])],
        chart=chart_of(activity(boxes.now, hours), hours),
        groups=[failures.line(request, each) for each in listing.failure_groups(Selection(), SHOWN)],
        queues=broker.queues if broker and not broker.unreachable else None,
        actions=_actions() if request.user.has_perm("messaging.view_operatoraction") else [],
        again=LOOK_AGAIN if looks_again else None,
        at=boxes.now,
        asked_broker=asks_broker,
    )


def headline(wrong: int, broker: Broker | None = None) -> str:
    """Return the page's first sentence. `wrong` is how many things are wrong; `broker` is None if it was not looked
    at."""
    if wrong:
        return "1 thing is wrong" if wrong == 1 else f"{wrong} things are wrong"
    if broker:
        return "All is well"
    return "Outbox, inbox and effects are well; of RabbitMQ nothing is known yet"


class _SharedLook:
    """The latest look at the broker. One page asks; the others take what it has found."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._found: Broker | None = None
        self._found_at = -math.inf

    def look(self) -> Broker | None:
        """Return the broker as it was found at most TOO_OLD seconds ago; None if there is no such look yet, because
        another page still asks."""
        if time.monotonic() - self._found_at > SHARE_FOR and self._asking.acquire(blocking=False):
            try:
                self._found = status.broker()
                self._found_at = time.monotonic()
            finally:
                self._asking.release()
        return self._found if time.monotonic() - self._found_at <= TOO_OLD else None


_broker = _SharedLook()


def _cards(boxes: Boxes) -> Iterator[Card]:
    outbox, inbox, effect = "outboxmessage", "inboxmessage", "effect"
    waiting = Count(boxes.pending.number + boxes.unroutable.number)
    oldest = f"the oldest for {words.span(boxes.oldest_age)}" if boxes.oldest_age is not None else ""
    yield Card(
        figure=str(waiting),
        label="waiting in the outbox",
        detail=oldest,
        tone="warning" if boxes.overdue or boxes.unroutable else "calm",
        url=_list(outbox, state__exact="unroutable" if boxes.unroutable else "pending"),
    )
    yield Card(
        figure=str(boxes.dead),
        label="dead messages",
        tone="bad" if boxes.dead else "calm",
        url=_list(inbox, state__exact="dead"),
    )
    for trouble, tone in TROUBLES.items():
        count = boxes.effects[trouble]
        yield Card(
            figure=str(count),
            label=f"effects that {trouble.words}",
            tone=tone if count else "calm",
            url=_list(effect, trouble=trouble),
        )
    yield Card(figure=str(_lately(OutboxMessage, "published_at", "published")), label="published in the last minute")
    yield Card(
        figure=str(_lately(InboxMessage, "changed_at", "handled")),
        label="handled in the last minute",
        detail=f"{boxes.retrying} to be tried again" if boxes.retrying else "",
    )


def _consumers(broker: Broker) -> Card:
    found = {queue.name: queue for queue in broker.queues}
    expected = consumers.registered()
    # A queue that does not answer does not say how many consumers it has.
    unknown = [each.name for each in expected if each.queue in found and found[each.queue].consumers is None]
    alive = [each.name for each in expected if each.queue in found and found[each.queue].consumers]
    missing = [each.name for each in expected if each.name not in {*alive, *unknown}]
    told = [f"{how}: {', '.join(names)}" for how, names in (("not", missing), ("not known", unknown)) if names]
    return Card(
        figure=f"{len(alive)} of {len(expected)}",
        label="consumers run",
        detail="; ".join(told),
        tone="bad" if missing else "warning" if unknown else "good",
    )


def _lately(box: type[OutboxMessage] | type[InboxMessage], column: str, state: str) -> Count:
    since = database.in_future(-timedelta(minutes=1).total_seconds())
    rows: QuerySet[Any] = box.objects.filter(**{f"{column}__gte": since, "state": state})
    return status.counted(rows)


def _list(box: str, **filters: str) -> str:
    return f"{admin_url(f'messaging_{box}_changelist')}?{urlencode(filters)}"


def _actions() -> list[OperatorAction]:
    return list(OperatorAction.objects.exclude(action=audit.VIEW_PAYLOAD).order_by("-pk")[:SHOWN])
