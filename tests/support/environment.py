"""The environment of the processes that tests start, and what `.env.example` says about it."""

import os
import re
from pathlib import Path
from urllib.parse import quote

from django.conf import settings
from django.db import connection

ROOT = Path(__file__).resolve().parents[2]
#: Where they lead has to be said by whoever runs the tests.
ADDRESSES = {"AMQP_URL", "CELERY_BROKER_URL", "DATABASE_URL", "SECRET_KEY"}


def documented_variables(path: Path = ROOT / ".env.example") -> dict[str, str]:
    """Every variable of `.env.example` with its default, commented out or not, but for the addresses."""
    found = re.findall(r"^#?([A-Z][A-Z_]*)=(.*)$", path.read_text(), re.MULTILINE)
    return {name: value.strip() for name, value in found if name not in ADDRESSES}


def process_environment(**changes: str) -> dict[str, str]:
    """The environment in which a real process uses this test's database and broker. Values of `changes` win."""
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "project.settings",
        "DATABASE_URL": database_url(),
        "AMQP_URL": ",".join(settings.MESSAGING["AMQP_URLS"]),
        "RELAY_THREAD": "1",
        "PYTHONUNBUFFERED": "1",
        **changes,
    }


def database_url() -> str:
    """DATABASE_URL of the database that this test uses; meaningful once the test database was made."""
    database = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{database['NAME']}"
    user, password = quote(database["USER"], safe=""), quote(database["PASSWORD"], safe="")
    return f"postgres://{user}:{password}@{database['HOST']}:{database['PORT']}/{database['NAME']}"
