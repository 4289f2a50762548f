"""Upkeep: a thread of each worker carries out effects that are due, and releases messages that need wait no longer.

These are effects that rest or that a dead process left, and messages whose predecessor was settled without a handler.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from django.db import DatabaseError, InterfaceError, connections

from messaging import conf, database
from messaging.consumers import Consumer
from messaging.logs import Throttle, get_logger
from messaging.worker import effect_runner, ordering

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
                    _, reached = ordering.release_due(self._consumers, after=reached, limit=KEYS_AT_ONCE)
                    effect_runner.run_all_due(self._consumers, self.stopping)
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
