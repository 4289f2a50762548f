"""The environment of the processes that tests start."""

import os
from pathlib import Path
from urllib.parse import quote

from django.conf import settings
from django.db import connection

from script.environment import UNLIMITED_ORDERS

ROOT = Path(__file__).resolve().parents[2]


def process_environment(**changes: str) -> dict[str, str]:
    """The environment in which a real process uses this test's database and broker. Values of `changes` win."""
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "project.settings",
        "DATABASE_URL": database_url(),
        "AMQP_URL": ",".join(settings.MESSAGING["AMQP_URLS"]),
        "AMQP_MANAGEMENT_URL": settings.MESSAGING["MANAGEMENT_URL"],
        "RELAY_THREAD": "1",
        "PYTHONUNBUFFERED": "1",
        **UNLIMITED_ORDERS,
        **changes,
    }


def database_url() -> str:
    """DATABASE_URL of the database that this test uses; meaningful once the test database was made."""
    database = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{database['NAME']}"
    user, password = quote(database["USER"], safe=""), quote(database["PASSWORD"], safe="")
    return f"postgres://{user}:{password}@{database['HOST']}:{database['PORT']}/{database['NAME']}"
