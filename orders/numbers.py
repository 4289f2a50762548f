"""Numbers and codes that people read aloud and strangers cannot guess."""

import secrets

#: Digits and capitals without those that look alike: 0 O, 1 I L.
ALPHABET = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"

#: Matches an order number in an address.
ORDER_NUMBER_PATTERN = r"W-[2-9A-HJKMNP-Z]{6}"


def new_order_number() -> str:
    """Return a number such as W-7K3M9Q: one of 887 million. The column is unique; a taken one is drawn again."""
    return f"W-{_draw(6)}"


def new_red_packet_code() -> str:
    """Return a code of 50 bits: it is worth money to whoever knows it."""
    return _draw(10)


def _draw(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))
