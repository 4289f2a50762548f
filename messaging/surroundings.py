"""What a project may not be, for its messages to be safe: refused by `manage.py check`, and at the start.

docs/configuration.md has the whole list, with what is supported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.connection import ConnectionDoesNotExist

from messaging import conf, database

#: Vendors whose statements and locks we know. Others that take their names speak their SQL, such as PostGIS.
SUPPORTED = {"sqlite", "postgresql"}
#: The first that has RETURNING (https://www.sqlite.org/lang_returning.html).
OLDEST_SQLITE = (3, 35)
#: Packages that give each tenant a schema, by their engines and routers, and a setting that they are known by.
TENANT_PACKAGES = ("django_tenants", "tenant_schemas", "django_pgschemas")
TENANT_SETTING = "TENANT_APPS"
#: What a connection of such a package can do, whatever its name.
TENANT_METHODS = ("set_tenant", "set_schema")


@dataclass(frozen=True, slots=True)
class Unsupported:
    """One thing that is not supported: the id of its check, and a sentence with the cure."""

    id: str
    said: str


def unsupported() -> list[Unsupported]:
    """Return what this project has that `messaging` does not support. Asks no database."""
    return [*_engine(), *_tenants(), *_autocommit(), *_threads(), *_time_zone()]


def require() -> None:
    """Raise ImproperlyConfigured, with the first sentence, where something is not supported."""
    for each in unsupported():
        raise ImproperlyConfigured(f"{each.said} ({each.id})")


def are_checked() -> bool:
    """Whether this process is a command of Django's, which runs all checks before it does anything."""
    program = Path(sys.argv[0])
    return program.name in {"manage.py", "django-admin"} or program.parts[-2:] == ("django", "__main__.py")


def green_threads() -> str:
    """Return why no handler can run here: threads are those of gevent or eventlet. Empty where they are real."""
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    name = "gevent" if gevent and gevent.is_module_patched("threading") else ""
    name = "eventlet" if eventlet and eventlet.is_monkey_patched("thread") else name
    return name and (
        f"{name} has replaced the threads of this process, and a handler in one of those cannot be interrupted when "
        "its time is over: run consumers and RPC servers without its monkey patches (a web server may have them)."
    )


def _engine() -> Iterator[Unsupported]:
    alias = database.alias()
    engine, here = _engine_name(alias), _connection(alias)
    if here is None or engine == "django.db.backends.dummy":
        return  # no database, or no driver: Django says so where one is needed
    if here.vendor not in SUPPORTED:
        yield Unsupported(
            "messaging.E101",
            f"messaging needs SQLite or PostgreSQL, and the database {alias!r} is {engine}: it would publish events "
            "and never handle one, so use django.db.backends.postgresql or django.db.backends.sqlite3.",
        )
    elif here.vendor == "sqlite":
        yield from _sqlite()


def _engine_name(alias: str) -> str:
    return str(settings.DATABASES.get(alias, {}).get("ENGINE") or "")


def _connection(alias: str) -> BaseDatabaseWrapper | None:
    """Return Django's connection, which need not be open; None where it cannot be made: its driver is missing."""
    try:
        return connections[alias]
    except (ImproperlyConfigured, ConnectionDoesNotExist):
        return None


def _sqlite() -> Iterator[Unsupported]:
    version = import_module("sqlite3").sqlite_version_info
    if version < OLDEST_SQLITE:
        yield Unsupported(
            "messaging.E102",
            f"messaging needs SQLite {'.'.join(map(str, OLDEST_SQLITE))} or newer, and Python was built with "
            f"{'.'.join(map(str, version))}: use a newer Python or PostgreSQL.",
        )


def _tenants() -> Iterator[Unsupported]:
    if found := _tenant_sign():
        yield Unsupported(
            "messaging.E103",
            f"messaging does not support a schema for each tenant ({found}): relays and consumers work in one schema, "
            "so events of the others would stay unpublished or be handled in the wrong one; run a project and a "
            "database for each tenant, or keep tenants apart by a column.",
        )


def _tenant_sign() -> str:
    """Return what shows that tenants have schemas; empty where nothing does."""
    alias = database.alias()
    engine, here = _engine_name(alias), _connection(alias)
    routers = [each if isinstance(each, str) else type(each).__module__ for each in settings.DATABASE_ROUTERS]
    apps = list(settings.INSTALLED_APPS)
    for place, names in (("ENGINE", [engine]), ("DATABASE_ROUTERS", routers), ("INSTALLED_APPS", apps)):
        for name in names:
            if name.partition(".")[0] in TENANT_PACKAGES:
                return f"{place}: {name}"
    if hasattr(settings, TENANT_SETTING):
        return TENANT_SETTING
    if here is not None and here.vendor == "postgresql":
        methods = [name for name in TENANT_METHODS if hasattr(here, name)]
        return f"{engine} has {methods[0]}" if methods else ""
    return ""


def _autocommit() -> Iterator[Unsupported]:
    alias = database.alias()
    if settings.DATABASES.get(alias, {}).get("AUTOCOMMIT") is False:
        yield Unsupported(
            "messaging.E104",
            f"messaging needs Django's transactions, and DATABASES[{alias!r}] has AUTOCOMMIT = False: an event would "
            "not commit with its change, so remove AUTOCOMMIT and use transaction.atomic().",
        )


def _threads() -> Iterator[Unsupported]:
    # uWSGI's own module exists in its processes alone. Without the option its workers never run a Python thread.
    uwsgi = sys.modules.get("uwsgi")
    options = {str(name, "ascii") if isinstance(name, bytes) else name for name in getattr(uwsgi, "opt", {})}
    runs_threads = options & {"enable-threads", "threads"} or any(name.startswith("gevent") for name in options)
    if uwsgi and conf.get().relay_thread and not runs_threads:
        yield Unsupported(
            "messaging.E105",
            "uWSGI runs without threads, so nothing would publish the events of this process at once: start it with "
            "--enable-threads, or set MESSAGING['RELAY_THREAD'] to False and run `manage.py run_relay`.",
        )


def _time_zone() -> Iterator[Unsupported]:
    # Django takes that for the machine's own, as far as it asks itself; its tools for times do not.
    if not settings.TIME_ZONE:
        yield Unsupported(
            "messaging.E106",
            "messaging shows times in the project's time zone, and settings.TIME_ZONE is empty: name the zone there, "
            'such as "Europe/Berlin" or "UTC".',
        )
