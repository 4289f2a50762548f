"""Databases, settings and servers in which messages would not be safe: refused by `manage.py check` and at the start.

docs/configuration.md lists what is supported.
"""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.connection import ConnectionDoesNotExist

from messaging import conf, database

#: Vendors whose SQL and locks are known. Engines built on them, such as PostGIS, have the same vendor.
SUPPORTED = {"sqlite", "postgresql"}
#: The first that has RETURNING (https://www.sqlite.org/lang_returning.html).
OLDEST_SQLITE = (3, 35)
#: Packages that give each tenant a schema: their names are in engines, routers or apps.
TENANT_PACKAGES = ("django_tenants", "tenant_schemas", "django_pgschemas")
TENANT_SETTING = "TENANT_APPS"
#: Methods of such a package's connection, whatever its name.
TENANT_METHODS = ("set_tenant", "set_schema")


@register("messaging")
def check_environment(**kwargs: Any) -> list[CheckMessage]:
    """Report what is not supported, and an SQLite that serves one process at a time."""
    return [*unsupported(), *_sqlite_options()]


def unsupported() -> list[Error]:
    """Return what `messaging` does not support in this project, each as one sentence with the cure. Queries no
    database."""
    return [*_engine(), *_tenants(), *_autocommit(), *_threads(), *_time_zone()]


def require_supported() -> None:
    """Raise ImproperlyConfigured with the first error, if there is one."""
    for error in unsupported():
        raise ImproperlyConfigured(f"{error.msg} ({error.id})")


def is_checked_by_django() -> bool:
    """Whether this process is a management command: Django runs all checks before the command."""
    program = Path(sys.argv[0])
    return program.name in {"manage.py", "django-admin"} or program.parts[-2:] == ("django", "__main__.py")


def green_threads() -> str:
    """Return why no handler can run here: gevent or eventlet has replaced the threads. Empty if they are real."""
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    name = "gevent" if gevent and gevent.is_module_patched("threading") else ""
    name = "eventlet" if eventlet and eventlet.is_monkey_patched("thread") else name
    return name and (
        f"{name} has replaced the threads of this process, and a handler in such a thread cannot be interrupted after "
        "its timeout: run consumers and RPC servers without its monkey patches (a web server may have them)."
    )


def _engine() -> Iterator[Error]:
    connection = _connection()
    if connection is None or _engine_name() == "django.db.backends.dummy":
        return  # no database, or no driver: Django reports that when one is needed
    version = sqlite3.sqlite_version_info
    if connection.vendor not in SUPPORTED:
        yield Error(
            f"messaging needs SQLite or PostgreSQL, and the database {database.alias()!r} is {_engine_name()}: it "
            "would publish events and never handle one, so use django.db.backends.postgresql or "
            "django.db.backends.sqlite3.",
            id="messaging.E101",
        )
    elif connection.vendor == "sqlite" and version < OLDEST_SQLITE:
        yield Error(
            f"messaging needs SQLite {'.'.join(map(str, OLDEST_SQLITE))} or newer, and Python was built with "
            f"{'.'.join(map(str, version))}: use a newer Python or PostgreSQL.",
            id="messaging.E102",
        )


def _engine_name() -> str:
    return str(settings.DATABASES.get(database.alias(), {}).get("ENGINE") or "")


def _connection() -> BaseDatabaseWrapper | None:
    """Return Django's connection object, open or not; None if it cannot be made, for instance without its driver."""
    try:
        return connections[database.alias()]
    except (ImproperlyConfigured, ConnectionDoesNotExist):
        return None


def _tenants() -> Iterator[Error]:
    if found := _tenant_sign():
        yield Error(
            f"messaging does not support a schema for each tenant ({found}): relays and consumers work in one schema, "
            "so events of the others would stay unpublished or be handled in the wrong one; run a project and a "
            "database for each tenant, or keep tenants apart by a column.",
            id="messaging.E103",
        )


def _tenant_sign() -> str:
    """Return what shows that tenants have schemas; empty if nothing does."""
    routers = [each if isinstance(each, str) else type(each).__module__ for each in settings.DATABASE_ROUTERS]
    for place, names in (
        ("ENGINE", [_engine_name()]), ("DATABASE_ROUTERS", routers), ("INSTALLED_APPS", settings.INSTALLED_APPS),
    ):  # fmt: skip
        for name in names:
            if name.partition(".")[0] in TENANT_PACKAGES:
                return f"{place}: {name}"
    if hasattr(settings, TENANT_SETTING):
        return TENANT_SETTING
    connection = _connection()
    methods = [name for name in TENANT_METHODS if hasattr(connection, name)]
    return f"{_engine_name()} has {methods[0]}" if methods else ""


def _autocommit() -> Iterator[Error]:
    alias = database.alias()
    if settings.DATABASES.get(alias, {}).get("AUTOCOMMIT") is False:
        yield Error(
            f"messaging needs Django's transactions, and DATABASES[{alias!r}] has AUTOCOMMIT = False: an event would "
            "not commit with its change, so remove AUTOCOMMIT and use transaction.atomic().",
            id="messaging.E104",
        )


def _threads() -> Iterator[Error]:
    # uWSGI's module exists in its own processes alone. Without the option its workers never run a Python thread.
    uwsgi = sys.modules.get("uwsgi")
    options = {str(name, "ascii") if isinstance(name, bytes) else name for name in getattr(uwsgi, "opt", {})}
    runs_threads = options & {"enable-threads", "threads"} or any(name.startswith("gevent") for name in options)
    if uwsgi and conf.get().relay_thread and not runs_threads:
        yield Error(
            "uWSGI runs without threads, so nothing would publish the events of this process at once: start it with "
            "--enable-threads, or set MESSAGING['RELAY_THREAD'] to False and run `manage.py run_relay`.",
            id="messaging.E105",
        )


def _time_zone() -> Iterator[Error]:
    # Django itself takes an empty one for the machine's own; its functions for times do not.
    if not settings.TIME_ZONE:
        yield Error(
            "messaging shows times in the project's time zone, and settings.TIME_ZONE is empty: name the zone there, "
            'such as "Europe/Berlin" or "UTC".',
            id="messaging.E106",
        )


def _sqlite_options() -> Iterator[Warning]:
    connection = _connection()
    if connection is None or connection.vendor != "sqlite":
        return
    options, name = connection.settings_dict["OPTIONS"], f'DATABASES[{connection.alias!r}]["OPTIONS"]'
    if str(options.get("transaction_mode") or "DEFERRED").upper() == "DEFERRED":
        yield Warning(
            "SQLite transactions do not take the write lock at their start.",
            hint=f'Set {name}["transaction_mode"] = "IMMEDIATE". Otherwise a transaction that reads first and writes '
            'later fails with "database is locked", whatever the timeout.',
            id="messaging.W001",
        )
    if not re.search(r"journal_mode\s*(=|\()\s*['\"]?wal", str(options.get("init_command")), re.IGNORECASE):
        yield Warning(
            "SQLite does not use a write-ahead log (WAL).",
            hint=f'Put "PRAGMA journal_mode=WAL;" into {name}["init_command"]. Otherwise every reader and writer, in '
            "all processes, waits for every other.",
            id="messaging.W002",
        )
