"""How long after the press of the button are the text message and the red packet there?

    .venv/bin/python -m benchmarks.order_to_effect [sqlite|postgresql] [ORDERS]

Places orders one after the other through HTTP, with a consumer for each kind running, and measures from sending the
POST until another connection to the database sees the row.
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
        from orders.models import RedPacket, TextMessage

        shop.manage("run_consumer", "sms")
        shop.manage("run_consumer", "red_packet")
        shopper = Shopper(shop.url, follow_redirects=False)
        shopper.buy(SLUG)
        wait_for(lambda: TextMessage.objects.exists() and RedPacket.objects.exists())

        posted, text, packet = [], [], []
        for _ in range(orders):
            checkout = shopper.fill_cart(SLUG)
            before = TextMessage.objects.count(), RedPacket.objects.count()
            start = time.perf_counter()
            shopper.place_order(checkout)
            posted.append(time.perf_counter() - start)
            seen: dict[str, float] = {}

            def look(start: float = start, before: tuple[int, int] = before, seen: dict[str, float] = seen) -> bool:
                counts = TextMessage.objects.count(), RedPacket.objects.count()
                for name, now, then in zip(("text", "packet"), counts, before, strict=True):
                    if now > then:
                        seen.setdefault(name, time.perf_counter() - start)
                return len(seen) == 2

            wait_for(look)
            text.append(seen["text"])
            packet.append(seen["packet"])
    print(f"{database}, {orders} orders, one after the other")
    print(line("POST alone", posted))
    print(line("POST to text-message row", text))
    print(line("POST to red packet", packet))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "sqlite", int(sys.argv[2]) if len(sys.argv) > 2 else 200)
