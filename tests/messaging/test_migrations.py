"""The tables migrate with data in them: each row is still there, and an operator can work with it."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from django.apps import apps
from django.contrib.auth.models import Permission
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from django.utils.timezone import now

from messaging import models
from messaging.actions.replay import replay
from messaging.actions.selection import Selection
from messaging.actions.settle import Decision, settle
from messaging.history import timeline
from messaging.worker import handling
from tests.support.consuming import Noted, a_consumer, delivery_of, notes, registered

pytestmark = pytest.mark.django_db(transaction=True)

MESSAGE = {"type": "test.noted", "subject": "n-1", "headers": {"a": 1}, "body": Noted(text="old").encode()}
#: For each table, parents first: the column that holds a row's state, and the columns of a row in that state.
TABLES: dict[str, tuple[str, Callable[[str], dict[str, Any]]]] = {
    "InboxMessage": ("state", lambda state: {**MESSAGE, "message_id": state, "consumer": "notes", "reason": "why"}),
    "OutboxMessage": ("state", lambda state: {**MESSAGE, "message_id": f"out-{state}", "routing_key": "test.noted"}),
    "DeliveryAttempt": ("outcome", lambda outcome: {"inbox_message_id": 1, "number": 1, "error": "why"}),
    "Effect": ("state", lambda state: {"inbox_message_id": 1, "consumer": "notes", "message_id": "m", "name": state,
                                       "error": "given up; settled by ann" if state == "failed" else ""}),
    "EffectAttempt": ("outcome", lambda outcome: {"effect_id": 1, "token": uuid4(), "number": 1}),
    "OperatorAction": ("", lambda _: {"actor": "ann", "action": "replay", "about": "dead", "changed": 1}),
    "ActionOnMessage": ("", lambda _: {"action_id": 1, "message_id": "dead"}),
    "MinuteCount": ("what", lambda _: {"minute": now(), "name": "notes", "number": 1}),
    "QueueSighting": ("", lambda _: {"queue": "notes"}),
    "EmptyQueue": ("", lambda _: {"queue": "notes"}),  # the same table
}  # fmt: skip
MIGRATIONS = sorted(name for app, name in MigrationExecutor(None).loader.disk_migrations if app == "messaging")


@pytest.fixture
def migrate() -> Iterator[Callable[[str | None], Any]]:
    """Migrates to a migration, or to none, and returns the apps of that time. Afterwards the newest is restored."""

    def to(name: str | None) -> Any:
        return MigrationExecutor(connection).migrate([("messaging", name)]).apps

    to(None)
    yield to
    to(MIGRATIONS[-1])


def fill(then: Any) -> None:
    """Write a row of each state that the tables have at that time and hold no row of."""
    there = {model.__name__ for model in then.get_models() if model._meta.app_label == "messaging"}
    assert there <= TABLES.keys()
    for name in filter(there.__contains__, TABLES):
        (field, columns), model = TABLES[name], then.get_model("messaging", name)
        for state in [state for state, _ in model._meta.get_field(field).choices] if field else [""]:
            given = {field: state} if field else {}
            if not model.objects.filter(**given).exists():
                model.objects.create(**columns(state), **given)


def rows(apps: Any) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the columns of each row, by table and id."""
    return {
        (model._meta.db_table, row["id"]): {name: value.tobytes() if isinstance(value, memoryview) else value
                                      for name, value in row.items()}
        for model in apps.get_models() if model._meta.app_label == "messaging" for row in model.objects.values()
    }  # fmt: skip


def test_rows_of_every_state_outlive_the_migrations_and_can_be_worked_with(
    migrate: Callable[[str | None], Any], admin_client: Client
) -> None:
    written: dict[tuple[str, int], dict[str, Any]] = {}
    for migration in MIGRATIONS:
        then = migrate(migration)
        fill(then)
        written = {**rows(then), **written}

    now = rows(apps)
    assert now.keys() == written.keys()
    for key, row in written.items():
        assert {name: now[key][name] for name in row} == row
    assert models.Effect.objects.get(given_up=True).error == "given up; settled by ann"
    assert timeline.for_message("dead").entries
    for page in ("inboxmessage", "outboxmessage", "effect", "operatoraction"):
        assert admin_client.get(f"/admin/messaging/{page}/1/change/").status_code == 200

    consumer, dead = a_consumer(), Selection(message_ids=["dead"])
    with registered(consumer):
        assert replay.run(dead, by="ann").changed == 1
        assert handling.handle(consumer, delivery_of(models.OutboxMessage.objects.get(origin="replay"))) == "handled"
    assert notes("old") == 1
    unknown = Selection(effect_rows=[models.Effect.objects.get(state="unknown").pk])
    assert settle.run(unknown, by="ann", decision=Decision.DONE).changed == 1


def test_a_permission_of_an_older_version_gets_its_new_name(migrate: Callable[[str | None], Any]) -> None:
    migrate("0009_effect_attempts")
    older = Permission.objects.filter(codename="replay_message")
    assert older.update(name="Can replay dead messages and hasten waiting ones") == 1
    migrate("0010_plain_words")
    assert older.get().name == "Can replay dead messages and publish waiting ones now"


def test_the_audit_log_names_an_action_of_an_older_version_as_its_command_is_called_now(
    migrate: Callable[[str | None], Any],
) -> None:
    then = migrate("0009_effect_attempts")
    then.get_model("messaging", "OperatorAction").objects.create(actor="ann", action="hasten", about="m-1")
    migrate("0010_plain_words")
    assert models.OperatorAction.objects.get().action == "publish"


def test_a_migration_outside_a_transaction_that_was_stopped_half_way_goes_on(
    migrate: Callable[[str | None], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate("0010_plain_words")
    loaded = MigrationExecutor(connection).loader.disk_migrations["messaging", "0011_search_indexes"]
    with monkeypatch.context() as stopped:
        added_and_one_removed = type(loaded).operations[:6]
        stopped.setattr(type(loaded), "operations", added_and_one_removed)
        migrate("0011_search_indexes")
    MigrationRecorder(connection).record_unapplied("messaging", "0011_search_indexes")

    migrate("0011_search_indexes")

    with connection.cursor() as cursor:
        there = connection.introspection.get_constraints(cursor, "messaging_outboxmessage")
    assert {"outbox_message_id_begins", "outbox_subject_begins"} <= there.keys()
    assert not {"outbox_message_id", "outbox_subject"} & there.keys()


@pytest.mark.only_on("postgresql")
def test_a_page_of_the_outbox_has_room_for_claimed_rows_until_that_is_migrated_back(
    migrate: Callable[[str | None], Any],
) -> None:
    def options() -> list[str] | None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT reloptions FROM pg_class WHERE relname = 'messaging_outboxmessage'")
            return cursor.fetchone()[0]  # type: ignore[no-any-return]

    migrate("0014_room_for_claims")
    assert options() == ["fillfactor=60"]
    migrate("0013_one_row_for_a_success")
    assert options() is None
