"""The documented environment, for processes that must not depend on the developer's own .env."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Addresses and secrets, which the starting program must choose.
ADDRESSES = {"AMQP_URL", "CELERY_BROKER_URL", "DATABASE_URL", "SECRET_KEY"}


def documented_variables(path: Path = ROOT / ".env.example") -> dict[str, str]:
    """Return each variable of `.env.example` with its default, commented out or not, except the addresses."""
    found = re.findall(r"^#?([A-Z][A-Z_]*)=(.*)$", path.read_text(), re.MULTILINE)
    return {name: value.strip() for name, value in found if name not in ADDRESSES}


#: For processes whose shoppers all come from one machine, with one phone number.
UNLIMITED_ORDERS = dict.fromkeys(
    ("ORDERS_PER_PHONE", "ORDERS_PER_PHONE_A_DAY", "ORDERS_PER_BROWSER", "ORDERS_PER_ADDRESS"), "0"
)
