"""The sweep: looks after what nobody else does any more. Effects that rest, or that a dead process left; messages whose
turn has come unnoticed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from django.db import DatabaseError, InterfaceError, connections
from django.db.models import Q

from messaging import conf, database, effects, processes
from messaging.consumers import Consumer
from messaging.logs import Throttle, get_logger
from messaging.worker import effect_runner as sending
from messaging.worker import ledger, ordering
from messaging.worker.database_wait import Turns

log = get_logger(__name__)

#: Ordering keys that a sweeper looks at before it goes on to effects, and to the next keys a POLL_INTERVAL later.
KEYS_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Swept:
    """How many effects were looked after, and how many messages had waited for a turn that had come."""

    effects: int = 0
    released: int = 0


def sweep(consumers: Sequence[Consumer], stopping: threading.Event | None = None) -> Swept:
    """Carry out every effect of these consumers that is due, and send every message whose turn has come.

    Several sweeps may run at once: each effect is claimed by one. With `stopping` set it ends after those under way.
    Should the database fail after effects were carried out, it is waited for (until `stopping`): what came of them
    is known here alone.
    """
    released, _ = ordering.release_due(consumers)
    return Swept(effects=_carry_out(consumers, stopping or threading.Event()), released=released)


def _carry_out(consumers: Sequence[Consumer], stopping: threading.Event) -> int:
    """Carry out every effect of these consumers that is due; return how many were."""
    turns = Turns("sweep", stopping, None)
    which = Q(consumer__in=[consumer.name for consumer in consumers])
    done = 0
    full = bool(effects.registered())
    while full:
        claimed = ledger.claim(which, sending.PARALLEL)
        if claimed:
            turns.take(partial(ledger.note, sending.carry_out(claimed)))
        done += len(claimed)
        full = len(claimed) == sending.PARALLEL and not stopping.is_set()
    return done


class Sweeper:
    """Sweeps, for the consumers of this process, on a thread of its own until stopped."""

    def __init__(self, consumers: Sequence[Consumer]) -> None:
        self._consumers = consumers
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Start sweeping, every `POLL_INTERVAL`."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Stop, and wait up to `timeout` seconds for an effect under way."""
        self._stopping.set()
        processes.join(self._thread, timeout)

    def _run(self) -> None:
        reached, reasons = ordering.BEGINNING, Throttle()
        try:
            while not self._stopping.wait(conf.get().poll_interval):
                try:
                    _, reached = ordering.release_due(self._consumers, after=reached, limit=KEYS_AT_ONCE)
                    _carry_out(self._consumers, self._stopping)
                    database.give_back_pooled()
                except (DatabaseError, InterfaceError) as error:
                    if reasons.allows(reason := str(error).strip()):
                        log.warning("sweep.database_error", reason=reason)
                except BaseException:
                    # Neither a fault of our own nor `sys.exit` in a project's code may end the thread that effects
                    # depend on.
                    log.exception("sweep.fault")
        finally:
            connections.close_all()
