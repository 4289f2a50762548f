"""What grows with the tables? The same work beside 1,000 finished messages, and beside a million.

Of each piece of work the quickest of several runs, in milliseconds, first with 1,000 messages in outbox and inbox, then
with all: they were published and handled, spread over ten days. GROWTH_ROWS=10000000 asks for ten million.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from io import StringIO
from typing import Any

from benchmarks.harness.benchmark import Benchmark, Variant
from benchmarks.harness.clients import SHOP
from benchmarks.harness.window import Measured, Window, require
from benchmarks.shop.finished import fill

FEW = 1_000
REPEATS = 7
#: Rows that a relay claims at once.
CLAIM = 500
STATIC_FILES = "django.contrib.staticfiles.storage.StaticFilesStorage"
OUTBOX, INBOX = "/admin/messaging/outboxmessage/", "/admin/messaging/inboxmessage/"

#: Does a piece of work once; it raises if the work was not done.
Work = Callable[[], object]


def growth(count: int) -> dict[str, Measured]:
    """Measure each piece of work beside few messages, and then beside `count`."""
    _prepare()
    before = _measure(FEW)
    found = _measure(count)
    for name, measured in found.items():
        few, many = before[name].more[NOW], measured.more[NOW]
        measured.more = {TIMES: many / few, "with 1,000, ms": few, "with all, ms": many}
    return found


def _prepare() -> None:
    from django.conf import settings
    from django.contrib.auth.models import User
    from django.core.management import call_command

    settings.ALLOWED_HOSTS = ["*"]
    # Static files are not collected here.
    settings.STORAGES = {**settings.STORAGES, "staticfiles": {"BACKEND": STATIC_FILES}}
    call_command("seed_demo", stdout=StringIO())
    User.objects.create_superuser("bench")


def _measure(count: int) -> dict[str, Measured]:
    fill(count)
    return {name: _timed(work) for name, work in _work(count)}


def _timed(work: Work) -> Measured:
    work()
    window = Window()
    window.start()
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    window.stop()
    return window.measured(REPEATS, more={NOW: min(seconds) * 1e3})


def _work(count: int) -> Iterator[tuple[str, Work]]:
    """Yield each piece of work by its name; what adds rows comes last."""
    from messaging.models import OutboxMessage

    middle = OutboxMessage.objects.order_by("pk")[count // 2]
    yield from _pages(count, middle.subject)
    yield from _commands(middle.subject)
    yield "place an order", _place_order
    yield f"claim {CLAIM} rows, and give them back", _claims()


def _pages(count: int, subject: str) -> Iterator[tuple[str, Work]]:
    from django.contrib.auth.models import User
    from django.test import Client

    client = Client()
    client.force_login(User.objects.get(username="bench"))

    def page(address: str, expected: int) -> Work:
        def show() -> None:
            response: Any = client.get(address)
            require(200, response.status_code, f"as the status of {address}")
            require(expected, len(response.context_data["cl"].result_list), f"rows of {address}")

        return show

    for name, address in (("outbox", OUTBOX), ("inbox", INBOX)):
        yield f"list of the {name}", page(address, 50)
        yield f"{name}, last page", page(f"{address}?p={min(count, 10_000) // 50}", 50)
        yield f"{name}, page 1000", page(f"{address}?p=1000", 50) if count > FEW else page(f"{address}?p=20", 50)
        yield f"{name}, an order's number", page(f"{address}?q={subject}", 1)
        yield f"{name}, the beginning of a number", page(f"{address}?q={subject[:-1]}", 1)
        yield f"{name}, a number that is none", page(f"{address}?q=W-NONE", 0)
        yield f"{name}, past 24 hours", page(f"{address}?since=1d", 50)
    yield "outbox, pending", page(f"{OUTBOX}?state__exact=pending", 0)
    yield "inbox, dead", page(f"{INBOX}?state__exact=dead", 0)


def _commands(subject: str) -> Iterator[tuple[str, Work]]:
    from messaging.actions.prune import prune
    from messaging.actions.selection import Selection
    from messaging.history import listing, timeline
    from messaging.monitoring import status
    from messaging.reconcile.reconcile import reconcile

    def unfinished() -> None:
        found = status.boxes()
        require(0, found.pending.number + found.dead.number, "unfinished messages")

    def nothing_old(run: Callable[[], Any]) -> Work:
        return lambda: require(0, run().changed, "old rows")

    def rows(selection: Selection, expected: int) -> Work:
        return lambda: require(expected, len(listing.newest(selection, 50)), "rows of messages list")

    yield "mq status: outbox, inbox, effects", unfinished
    yield "messages list", rows(Selection(), 50)
    yield "messages list --since 1d", rows(Selection(since=timedelta(days=1)), 50)
    yield "messages list --subject", rows(Selection(subject=subject), 2)
    yield "messages show", lambda: require(3, len(timeline.for_subject(subject).entries), "entries of a story")
    yield "messages prune --dry-run", nothing_old(prune.plan)
    yield "messages prune", nothing_old(prune.run)
    yield "messages reconcile", lambda: require(0, len(reconcile(repair=False, by="bench").findings), "findings")


def _place_order() -> None:
    from django.core.management import call_command

    with suppress(SystemExit):
        call_command("place_order", stdout=StringIO())


def _claims() -> Work:
    from messaging.models import OutboxMessage
    from messaging.relay import leases

    OutboxMessage.objects.filter(state="pending").delete()
    OutboxMessage.objects.bulk_create(
        OutboxMessage(message_id=f"claimed-{number}", type="order.placed", routing_key="order.placed", body=b"x" * 500)
        for number in range(CLAIM)
    )

    def claim() -> None:
        rows = leases.claim(CLAIM, 30)
        require(CLAIM, len(rows), "rows claimed")
        leases.give_back(rows)

    return claim


NOW, TIMES = "now", "times as long"
ROWS = int(os.environ.get("GROWTH_ROWS", "1000000"))
ENVIRONMENT = {**SHOP, "RELAY_THREAD": "0"}
BENCHMARK = Benchmark(
    question="Growth: the same work beside 1,000 finished messages, and beside a million",
    unit="finished messages",
    reference="",
    count=ROWS,
    quick_count=50_000,
    figure=TIMES,
    minutes=15,
    variants=(
        Variant("PostgreSQL", growth, environment=ENVIRONMENT, warren=True),
        Variant("SQLite", growth, database="sqlite", environment=ENVIRONMENT, warren=True),
    ),
)
