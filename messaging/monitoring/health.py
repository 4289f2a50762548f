"""Health: whether this process can do its work, for the probes of a load balancer or container platform."""

from __future__ import annotations

from django.apps import apps
from django.db import DatabaseError, InterfaceError, router

from messaging import database


def unready() -> str:
    """Return why this process cannot serve requests, in words without secrets; empty when it can.

    The database must answer and have every table of the installed apps. The broker is never asked: requests do not
    wait for it, so a shop without it is still open.
    """
    try:
        missing = _missing_tables()
    except (DatabaseError, InterfaceError):
        # The driver's error may name hosts and users, and this answer is public.
        return "the database does not answer"
    if missing:
        return f"tables are missing: {', '.join(missing)}; run manage.py migrate"
    return ""


def _missing_tables() -> list[str]:
    connection = database.connection()
    expected = {
        model._meta.db_table
        for model in apps.get_models(include_auto_created=True)
        if model._meta.can_migrate(connection) and router.allow_migrate_model(connection.alias, model)
    }
    return sorted(expected.difference(connection.introspection.table_names()))
