"""What people may do to chosen messages: asked first, with what would come of it, by POST, each with its own right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from django.contrib import messages
from django.contrib.admin import ModelAdmin
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse

from messaging.actions import cancel, discard, replay
from messaging.actions import publish_now as hasten
from messaging.actions.replay import Fate
from messaging.actions.selection import Wanted
from messaging.admin.links import admin_url
from messaging.models import InboxMessage, OutboxMessage

#: Rows that one request changes: it must not take long, and Django takes no form of more than a thousand fields. The
#: commands know no limit.
LIMIT = 500
#: Characters of a note that are kept.
NOTE_LIMIT = 500

Ids = Collection[int]


@dataclass(frozen=True, slots=True)
class Outlook:
    """How many rows an operation would change, and what it would do about each of the chosen ones, in words."""

    possible: int
    told: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Done:
    """What an operation did, in words, and how a page says that (a level of Django's messages).

    A success is only what was done to all that were asked for.
    """

    words: str
    level: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Something that people may do to rows of one box."""

    name: str
    label: str
    permission: str
    #: What it does, in a sentence or two.
    meaning: str
    #: States of rows for which a page of a message offers it.
    states: tuple[str, ...]
    outlook: Callable[[Ids], Outlook]
    #: Does it, for (rows, who, why), and says what it did.
    run: Callable[[Ids, str, str], Done]


def _replay_outlook(rows: Ids) -> Outlook:
    plan = replay.plan(Wanted(inbox_rows=rows))
    counts: Counter[Fate] = Counter()
    for each in plan.planned:
        counts[each.fate] += each.count
    return Outlook(counts[Fate.RUNS], tuple((count, _FATES[fate]) for fate, count in counts.items()))


_FATES = {
    Fate.RUNS: "to run again, each at the consumer where it is dead",
    Fate.REPLAYED: "already replayed, and not begun yet",
    Fate.DONE: "handled: nothing is done",
    Fate.WAITS: "waiting already, for the next attempt or a turn",
    Fate.NO_HANDLER: "without a handler: no consumer of that name handles that type here",
    Fate.TRUNCATED: "with only the beginning of the body kept",
    Fate.DISCARDED: "discarded",
}


def _replay(rows: Ids, who: str, why: str) -> Done:
    wanted = Wanted(inbox_rows=rows)
    result = replay.replay(wanted, by=who, note=why)
    if not result.replayed:
        return Done(f"0 replayed: {replay.why_nothing(wanted)}.", messages.WARNING)
    rest = len(rows) - result.replayed - result.left
    told = f"{result.replayed} replayed.{f' {rest} left as they are.' if rest else ''}"
    if result.stopped:
        return Done(f"{told} {result.ending}", messages.ERROR)
    return Done(told, messages.WARNING if rest else messages.SUCCESS)


def _discard_outlook(rows: Ids) -> Outlook:
    possible = discard.dead(Wanted(inbox_rows=rows)).count()
    return _outlook(rows, possible, "to be discarded", "not dead: nothing is done")


def _discard(rows: Ids, who: str, why: str) -> Done:
    return _done(rows, discard.discard(Wanted(inbox_rows=rows), by=who, note=why), "discarded", "not dead")


def _cancel_waiting_outlook(rows: Ids) -> Outlook:
    possible = cancel.plan(Wanted(inbox_rows=rows)).inbox
    return _outlook(rows, possible, "to be cancelled", "not waiting for a turn: nothing is done")


def _cancel_waiting(rows: Ids, who: str, why: str) -> Done:
    cancelled = cancel.cancel(Wanted(inbox_rows=rows), by=who, note=why).inbox
    return _done(rows, cancelled, "cancelled", "not waiting for a turn")


def _hasten_outlook(rows: Ids) -> Outlook:
    possible = hasten.waiting(Wanted(outbox_rows=rows)).count()
    return _outlook(rows, possible, "to be due now", "due, on the way, published or cancelled already")


def _hasten(rows: Ids, who: str, why: str) -> Done:
    hastened = hasten.hasten(Wanted(outbox_rows=rows), by=who, note=why)
    done = _done(rows, hastened, "due now", "due, on the way, published or cancelled already")
    if not hastened:
        return done
    # Whether a relay runs and the broker answers is not known here.
    return Done(f"{done.words} A relay publishes it as soon as RabbitMQ takes it.", done.level)


def _cancel_outlook(rows: Ids) -> Outlook:
    plan = cancel.plan(Wanted(outbox_rows=rows))
    rest = len(rows) - plan.outbox - plan.leased
    told = [
        (plan.outbox, "to be cancelled"),
        (plan.leased, "being published at this moment"),
        (rest, "published or cancelled already"),
    ]
    return Outlook(plan.outbox, tuple((count, words) for count, words in told if count))


def _cancel(rows: Ids, who: str, why: str) -> Done:
    cancelled = cancel.cancel(Wanted(outbox_rows=rows), by=who, note=why)
    told = f"{cancelled.outbox} cancelled."
    if cancelled.leased:
        told = f"{told} {cancelled.leased} being published at this moment."
    if rest := len(rows) - cancelled.outbox - cancelled.leased:
        told = f"{told} {rest} published or cancelled already."
    return Done(told, messages.SUCCESS if cancelled.outbox == len(rows) else messages.WARNING)


def _done(rows: Ids, changed: int, word: str, not_so: str) -> Done:
    rest = len(rows) - changed
    told = f"{changed} {word}.{f' {rest} left as they are: {not_so}.' if rest else ''}"
    return Done(told, messages.WARNING if rest else messages.SUCCESS)


def _outlook(rows: Ids, possible: int, will: str, not_so: str) -> Outlook:
    told = [(possible, will), (len(rows) - possible, not_so)]
    return Outlook(possible, tuple((count, words) for count, words in told if count))


ON_INBOX = (
    Operation(
        name="replay",
        label="Replay",
        permission="messaging.replay_message",
        meaning="A dead message runs again at its consumer, with a whole new retry policy, behind the same fence as "
        "before: what was handled is not handled again.",
        states=(InboxMessage.State.DEAD,),
        outlook=_replay_outlook,
        run=_replay,
    ),
    Operation(
        name="discard",
        label="Discard",
        permission="messaging.discard_message",
        meaning="Nothing more comes of a discarded message, and it cannot be replayed any more. It is kept for a "
        "while, so that a copy of it is recognised.",
        states=(InboxMessage.State.DEAD,),
        outlook=_discard_outlook,
        run=_discard,
    ),
    Operation(
        name="cancel",
        label="Cancel",
        permission="messaging.cancel_message",
        meaning="A message that waits for its turn is dead instead, and lets those behind it pass. It can be replayed.",
        states=(InboxMessage.State.WAITING,),
        outlook=_cancel_waiting_outlook,
        run=_cancel_waiting,
    ),
)
ON_OUTBOX = (
    Operation(
        name="publish",
        label="Publish now",
        permission="messaging.replay_message",
        meaning="What rests (a retry, an unroutable message) or was refused by the broker is due at once.",
        states=(OutboxMessage.State.PENDING, OutboxMessage.State.UNROUTABLE, OutboxMessage.State.FAILED),
        outlook=_hasten_outlook,
        run=_hasten,
    ),
    Operation(
        name="cancel",
        label="Cancel",
        permission="messaging.cancel_message",
        meaning="A cancelled message is not published. If it was to bring a message to one consumer again, that "
        "message is dead there, and can be replayed. What the broker has already cannot be taken back.",
        states=(OutboxMessage.State.PENDING, OutboxMessage.State.UNROUTABLE, OutboxMessage.State.FAILED),
        outlook=_cancel_outlook,
        run=_cancel,
    ),
)


def allowed(request: HttpRequest, operations: Sequence[Operation]) -> Iterator[Operation]:
    """Yield the operations that the user of this request may do."""
    return (each for each in operations if request.user.has_perm(each.permission))


def address(model_admin: ModelAdmin, operation: Operation) -> str:  # type: ignore[type-arg]
    """Return where an operation on rows of this box is asked for, and confirmed."""
    return admin_url(f"messaging_{model_admin.opts.model_name}_operate", operation.name)


def operate(
    request: HttpRequest,
    model_admin: ModelAdmin,  # type: ignore[type-arg]
    operations: Sequence[Operation],
    name: str,
) -> HttpResponse:
    """Answer a POST that asks for an operation, with the rows in `row`: ask back, or do it where that is confirmed."""
    operation = next((each for each in operations if each.name == name), None)
    if operation is None:
        raise Http404
    if not (request.user.has_perm(operation.permission) and model_admin.has_view_permission(request)):
        raise PermissionDenied
    rows = {int(row) for row in request.POST.getlist("row") if row.isascii() and row.isdigit() and len(row) < 19}
    if "confirmed" not in request.POST or not rows or len(rows) > LIMIT:
        return ask(request, model_admin, operation, sorted(rows))
    note = request.POST.get("note", "").replace("\x00", "").strip()[:NOTE_LIMIT]
    done = operation.run(sorted(rows), request.user.get_username(), note)
    messages.add_message(request, done.level, done.words)
    return HttpResponseRedirect(_list_of(model_admin, request))


def ask(
    request: HttpRequest,
    model_admin: ModelAdmin,  # type: ignore[type-arg]
    operation: Operation,
    rows: Sequence[int],
) -> HttpResponse:
    """Say what the operation would do about these rows, and ask whether it shall."""
    chosen = rows[:LIMIT]
    outlook = operation.outlook(chosen) if chosen else Outlook(0, ())
    context = {
        **model_admin.admin_site.each_context(request),
        "title": operation.label,
        "operation": operation,
        "outlook": outlook,
        "rows": chosen,
        "limit": LIMIT if len(rows) > LIMIT else None,
        "note_limit": NOTE_LIMIT,
        "address": address(model_admin, operation),
        "query": request.GET.urlencode(),
        "back": _list_of(model_admin, request),
        "opts": model_admin.opts,
        "media": model_admin.media,
    }
    return TemplateResponse(request, "messaging/admin/confirm.html", context)


def _list_of(model_admin: ModelAdmin, request: HttpRequest) -> str:  # type: ignore[type-arg]
    """The list, filtered as it was when the rows were chosen."""
    there = admin_url(f"messaging_{model_admin.opts.model_name}_changelist")
    query = request.GET.urlencode()
    return f"{there}?{query}" if query else there
