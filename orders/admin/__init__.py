"""The shop's side of the admin."""

from orders.admin import catalogue, orders, red_packets, text_messages  # noqa: F401  (importing registers)
