"""Does the order wait for the broker? Its latency with RabbitMQ running, stopped and frozen.

    .venv/bin/python -m benchmarks.order_latency [sqlite|postgresql] [ORDERS]

Measures the order's POST alone (answer: a redirect), one after the other, in the same world.
"""

from __future__ import annotations

import sys
import time

from benchmarks.figures import line
from benchmarks.world import wait_for, world
from script.shopper import Shopper

SLUG = "jasmine-tea"


def main(database: str, orders: int) -> None:
    with world(database) as shop:
        from messaging.models import OutboxMessage

        shop.manage("run_consumer", "--all")
        shopper = Shopper(shop.url, follow_redirects=False)
        measure(shopper, 20)
        print(f"{database}, {orders} orders each, one after the other")
        print(line("broker running", measure(shopper, orders)))
        shop.node.pause()
        print(line("broker frozen", measure(shopper, orders)))
        shop.node.resume()
        shop.node.kill()
        print(line("broker stopped", measure(shopper, orders)))
        shop.node.start()
        start = time.perf_counter()
        waiting = OutboxMessage.objects.exclude(state=OutboxMessage.State.PUBLISHED)
        wait_for(lambda: not waiting.exists(), every=0.05)
        print(f"everything published {time.perf_counter() - start:.1f} s after the broker was back")


def measure(shopper: Shopper, orders: int) -> list[float]:
    """Return the seconds of each order's POST."""
    seconds = []
    for _ in range(orders):
        checkout = shopper.fill_cart(SLUG)
        start = time.perf_counter()
        shopper.place_order(checkout)
        seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "sqlite", int(sys.argv[2]) if len(sys.argv) > 2 else 200)
