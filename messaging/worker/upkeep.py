"""Upkeep: a thread of each worker carries out effects that are due, and releases messages that need wait no longer.

These are effects that rest or that a dead process left, and messages whose predecessor was settled without a handler.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache

from django.db import DatabaseError, InterfaceError, connections

from messaging import conf, database, effects
from messaging.consumers import Consumer
from messaging.logs import Throttle, get_logger
from messaging.models import Effect, InboxMessage
from messaging.models.clock import NOW
from messaging.models.counts import counting
from messaging.worker import effect_runner, ledger, ordering

log = get_logger(__name__)

#: Ordering keys that are looked at before the effects' turn comes, and the next keys a POLL_INTERVAL later.
KEYS_AT_ONCE = 100


class Upkeep:
    """The upkeep of the consumers of this process, every `POLL_INTERVAL`, on `thread`, until `stopping` is set."""

    def __init__(self, consumers: Sequence[Consumer]) -> None:
        self._consumers = consumers
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def _run(self) -> None:
        reached, reasons = ordering.BEGINNING, Throttle()
        try:
            while not self.stopping.wait(conf.POLL_INTERVAL):
                try:
                    reached = look_after(self._consumers, after=reached, stopping=self.stopping)
                    if counting.is_due:
                        with database.atomic():
                            counting.write(database.connection())
                    database.release_between_messages()
                except (DatabaseError, InterfaceError) as error:
                    if reasons.allows(reason := str(error).strip()):
                        log.warning("upkeep.database_error", reason=reason)
                except BaseException:
                    # Neither a fault of our own nor `sys.exit` in the project's code may end the thread that effects
                    # depend on.
                    log.exception("upkeep.fault")
        finally:
            connections.close_all()


def look_after(
    consumers: Sequence[Consumer],
    *,
    after: ordering.ConsumerAndKey = ordering.BEGINNING,
    stopping: threading.Event | None = None,
) -> ordering.ConsumerAndKey:
    """Release messages of up to KEYS_AT_ONCE keys behind `after`, and carry out effects that are due; return where to
    go on. Raises DatabaseError.

    Mostly there is nothing: one statement asks for both.
    """
    has_waiting, has_effects = _what_is_due([each.name for each in consumers])
    if has_waiting:
        _, after = ordering.release_due(consumers, after=after, limit=KEYS_AT_ONCE)
    if has_effects or ledger.has_unanswered():
        effect_runner.run_all_due(consumers, stopping)
    return after


def _what_is_due(consumers: Sequence[str]) -> tuple[bool, bool]:
    """Return whether messages wait at these consumers, and whether effects of theirs are due."""
    kinds = [kind.name for kind in effects.registered()]
    here = database.connection()
    if here.errors_occurred:
        here.close_if_unusable_or_obsolete()
    with here.cursor() as cursor:
        cursor.execute(
            _due(here.vendor, len(consumers), len(kinds)), [*consumers, *consumers, *kinds, *consumers, *kinds]
        )
        has_waiting, *has_effects = cursor.fetchone()
    return bool(has_waiting), any(has_effects)


@cache
def _due(vendor: str, consumers: int, kinds: int) -> str:
    inbox, effect, now = InboxMessage._meta.db_table, Effect._meta.db_table, NOW[vendor]
    at, among = f"consumer IN ({_listed(consumers)})", f"name IN ({_listed(kinds)})"
    return (
        f"SELECT EXISTS (SELECT 1 FROM {inbox} WHERE {at} AND state = 'waiting'),"  # noqa: S608  (constants only)
        # Not by OR: each has an index of its own.
        f" EXISTS (SELECT 1 FROM {effect} WHERE {at} AND {among} AND state = 'intended' AND send_at <= {now}),"
        f" EXISTS (SELECT 1 FROM {effect} WHERE {at} AND {among} AND state = 'sending'"
        f" AND sending_until <= {now})"
    )


def _listed(count: int) -> str:
    return ", ".join(["%s"] * count) or "NULL"
