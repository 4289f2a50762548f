"""Numbers and codes that are easy to read aloud and hard to guess."""

import secrets

#: Digits and capitals, without 0 O 1 I L, which look alike.
ALPHABET = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"

#: Matches an order number in an address.
ORDER_NUMBER_PATTERN = r"W-[2-9A-HJKMNP-Z]{6}"


def new_order_number() -> str:
    """Return a number such as W-7K3M9Q, one of 887 million. The column is unique: draw again if it is taken."""
    return f"W-{_draw(6)}"


def new_red_packet_code() -> str:
    """Return a code of 50 bits: anybody who knows it can spend the red packet."""
    return _draw(10)


def _draw(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))
