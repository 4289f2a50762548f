"""`manage.py simulate_orders`: orders at a steady rate."""

from __future__ import annotations

import random
import time
from typing import Any

from django.core.management.base import CommandError, CommandParser

from messaging.management.arguments import CommandWithExamples, number, positive
from messaging.management.errors import told_in_one_line
from messaging.management.terminal_log import quiet_log
from messaging.processes import StopSignals
from orders.exceptions import Refused
from orders.management.demo_order import place_demo_order
from orders.models import Product
from orders.services import cancel_order

EXAMPLES = """
examples:
  manage.py simulate_orders                           20 orders, two a second
  manage.py simulate_orders --count 500 --rate 50     a busy day
  manage.py simulate_orders --cancel 0.2              every fifth customer changes their mind
"""
#: Pieces that one customer buys, at most.
MOST_PIECES = 3
#: Seconds after which a pause between two orders notices a signal.
NAP = 0.1


class Command(CommandWithExamples):
    help = "Place orders for random products at a steady rate."
    examples = EXAMPLES

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--count", type=positive, default=20, metavar="N", help="orders to place (default 20)")
        parser.add_argument(
            "--rate", type=number(0.01, 1000), default=2.0, metavar="N", help="orders a second (default 2)"
        )
        parser.add_argument(
            "--cancel", type=number(0, 1), default=0.0, metavar="SHARE", help="share of orders to cancel, 0 to 1"
        )
        parser.add_argument("--seed", type=int, help="of the random choices: one seed, one sequence")

    def handle(self, *args: Any, **options: Any) -> None:
        dice = random.Random(options["seed"])  # noqa: S311  (choices of customers, not secrets)
        placed = cancelled = refused = 0
        started = time.monotonic()
        quiet = quiet_log(unless=options["verbosity"] > 1)
        with told_in_one_line(advice=""), quiet, StopSignals() as signals:
            for index in range(options["count"]):
                _wait_until(started + index / options["rate"], signals)
                if signals.received:
                    break
                try:
                    order = place_demo_order(_any_product(dice), quantity=dice.randint(1, MOST_PIECES))
                except Refused as refusal:
                    refused += 1
                    self.stdout.write(f"refused   {refusal}")
                    continue
                placed += 1
                self.stdout.write(f"placed    {order.number}  {order.total} {order.currency}")
                if dice.random() < options["cancel"]:
                    cancel_order(order.number)
                    cancelled += 1
                    self.stdout.write(f"cancelled {order.number}")
        seconds = time.monotonic() - started
        self.stdout.write(f"Stopped. {placed} placed, {cancelled} cancelled, {refused} refused in {seconds:.1f} s.")
        if refused and not placed:
            raise CommandError("No order was placed.")


def _any_product(dice: random.Random) -> Product:
    products = list(Product.objects.in_stock().order_by("pk"))
    if not products:
        raise CommandError("Nothing is in stock. Fill the shop with `manage.py seed_demo`, or raise the stock.")
    return dice.choice(products)


def _wait_until(moment: float, signals: StopSignals) -> None:
    while not signals.received and (left := moment - time.monotonic()) > 0:
        time.sleep(min(left, NAP))
