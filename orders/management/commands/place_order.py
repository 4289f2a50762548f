"""`manage.py place_order`: place an order from a terminal."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import CommandError, CommandParser

from messaging.management.arguments import CommandWithExamples, number, positive
from messaging.management.errors import EXIT_TIMED_OUT, EXIT_USAGE, told_in_one_line
from messaging.management.progress import progress_on
from messaging.management.terminal_log import quiet_log
from messaging.validation.texts import storable_text
from orders.exceptions import Refused
from orders.management.demo_order import PHONE, place_demo_order
from orders.models import Order, Product
from orders.phones import MobilePhoneField
from orders.timeline import Timeline, timeline_of

EXAMPLES = """
examples:
  manage.py place_order                              one piece of a product in stock
  manage.py place_order --sku TEA-01 --quantity 2    two tins of tea
  manage.py place_order --language zh-hans           with texts in Simplified Chinese
  manage.py place_order --wait 10                    wait for text message and red packet, too
  manage.py place_order --count 20 --json            twenty orders, one JSON object a line

exit codes: 0 done, 1 refused (sold out, say), 2 wrong arguments, 3 database unreachable,
            7 not finished in time, or with a text message that failed or is in doubt
"""
#: Seconds between two looks at a timeline.
LOOK_EVERY = 0.05


class Command(CommandWithExamples):
    help = "Place an order as the shop does, and print its number."
    examples = EXAMPLES

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--sku", help="product (default: the one with the most pieces left)")
        parser.add_argument("--quantity", type=positive, default=1, metavar="N", help="pieces (default 1)")
        parser.add_argument("--phone", type=_mobile, default=PHONE, help=f"mobile number (default {PHONE})")
        parser.add_argument(
            "--language",
            choices=[code for code, _ in settings.LANGUAGES],
            default=settings.LANGUAGE_CODE,
            help=f"of the order's texts: %(choices)s (default {settings.LANGUAGE_CODE})",
            metavar="CODE",
        )
        parser.add_argument("--count", type=positive, default=1, metavar="N", help="orders to place (default 1)")
        parser.add_argument(
            "--wait",
            type=number(0, 86_400),
            metavar="SECONDS",
            help="wait for text message and red packet, this long at most",
        )
        parser.add_argument("--json", action="store_true", help="one JSON object a line")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            with told_in_one_line(advice=""), quiet_log(unless=options["verbosity"] > 1):
                self._place(options)
        except Refused as refusal:
            raise CommandError(str(refusal)) from None

    def _place(self, options: dict[str, Any]) -> None:
        placed: list[tuple[Order, float]] = []
        with progress_on(self.stderr) as progress:
            for _ in range(options["count"]):
                product = _product(options["sku"])
                started = time.monotonic()
                order = place_demo_order(
                    product, quantity=options["quantity"], phone=options["phone"], language=options["language"]
                )
                placed.append((order, started))
                if options["wait"] is None:
                    self._report(timeline_of(order), None, as_json=options["json"])
                else:
                    progress.show(f"{len(placed)} of {options['count']} orders placed")
        if options["wait"] is not None:
            self._wait(placed, options["wait"], as_json=options["json"])

    def _wait(self, placed: list[tuple[Order, float]], seconds: float, *, as_json: bool) -> None:
        deadline = time.monotonic() + seconds
        late = given_up = 0
        for order, started in placed:
            timeline = self._settled(order, deadline)
            late += not timeline.is_settled
            given_up += timeline.is_settled and not timeline.finished
            self._report(timeline, time.monotonic() - started, as_json=as_json)
        if given_up:
            raise CommandError(
                f"{given_up} of {len(placed)} orders placed, but with a text message that failed or is in doubt; "
                f"{late} not finished within {seconds:g} s. `manage.py messages show NUMBER` says why.",
                returncode=EXIT_TIMED_OUT,
            )
        if late:
            raise CommandError(
                f"{late} of {len(placed)} orders placed, but not finished within {seconds:g} s. Are RabbitMQ, a relay "
                "and `manage.py run_consumer --all` running? `manage.py messages show NUMBER` says what it waits for.",
                returncode=EXIT_TIMED_OUT,
            )

    def _settled(self, order: Order, deadline: float) -> Timeline:
        """Wait until all that follows from `order` is done or has failed, or the deadline; return its timeline."""
        timeline = timeline_of(order)
        with progress_on(self.stderr) as progress:
            while not timeline.is_settled and (left := deadline - time.monotonic()) > 0:
                progress.show(f"Waiting for what follows from order {order.number}, {left:.0f} s at most")
                time.sleep(LOOK_EVERY)
                timeline = timeline_of(Order.objects.get(pk=order.pk))
        return timeline

    def _report(self, timeline: Timeline, seconds: float | None, *, as_json: bool) -> None:
        order = timeline.order
        if as_json:
            facts = {**timeline.as_json(), "total": str(order.total), "currency": order.currency, "seconds": seconds}
            self.stdout.write(json.dumps(facts))
            return
        self.stdout.write(f"{order.number}  {order.total} {order.currency}")
        if seconds is not None:
            for step in timeline.steps:
                self.stdout.write(f"  {step.state.value:8} {step.title}{f': {step.detail}' if step.detail else ''}")
            self.stdout.write(f"  after {seconds:.2f} s")
        self.stdout.flush()


def _product(sku: str | None) -> Product:
    if sku is None:
        if found := Product.objects.in_stock().order_by("-stock", "pk").first():
            return found
        raise CommandError("Nothing is in stock. Fill the shop with `manage.py seed_demo`.")
    if found := Product.objects.filter(sku=storable_text(sku)).first():
        return found
    raise CommandError(f"There is no product with SKU {sku!r}.", returncode=EXIT_USAGE)


def _mobile(text: str) -> str:
    try:
        return str(MobilePhoneField().clean(text).as_e164)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(" ".join(error.messages)) from None
