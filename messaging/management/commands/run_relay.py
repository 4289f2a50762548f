"""`manage.py run_relay`: publish what the outbox holds, in the foreground."""

from __future__ import annotations

import threading
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from messaging import conf, processes
from messaging.management.errors import broker_unreachable
from messaging.management.serving import broker_line, wait_for_table
from messaging.management.terminal_log import shown_log
from messaging.models import OutboxMessage
from messaging.processes import StopSignals, process_name
from messaging.relay.relay import Relay


class Command(BaseCommand):
    help = (
        "Publish committed events. Web and consumer processes do that themselves, unless RELAY_THREAD=0. Run this "
        "command then, or to publish faster."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        relay = Relay()
        started = time.monotonic()
        self.stdout.write(broker_line())
        self.stdout.write(f"Relay running as {process_name()}. Press CTRL+C to stop.")
        self.stdout.flush()
        thread = threading.Thread(target=relay.run, name="relay", daemon=True)
        with shown_log(), StopSignals() as signals:
            if not wait_for_table(OutboxMessage, lambda: signals.received, patiently=True):
                self.stdout.write("Stopped before the database was reached.")
                return
            if not processes.start_thread(thread.name, thread.start, lambda: signals.received):
                return
            while not signals.received and thread.is_alive():
                if relay.refusal:
                    raise broker_unreachable(relay.refusal)
                time.sleep(0.1)
            died = not thread.is_alive()
            relay.stop(conf.DRAIN_TIMEOUT)
            thread.join(conf.DRAIN_TIMEOUT + 2)
        if died:
            raise CommandError("The relay ended by itself; the log says why. What it held is published by another.")
        self.stdout.write(f"Stopped. {relay.published} published in {time.monotonic() - started:.1f} s.")
