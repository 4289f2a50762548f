"""The groups that `migrate` creates: what members may do in the admin, and that the project decides afterwards."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import Group, Permission, User
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.db.models.signals import post_migrate
from django.test import Client

from messaging import actions
from messaging.consumers import Consumer
from messaging.models import Effect, groups
from tests.support.consuming import a_consumer, a_dead_message, an_outbox_row, registered
from tests.support.environment import ROOT

pytestmark = pytest.mark.django_db

MESSAGING = apps.get_app_config("messaging")
NAMES = [groups.VIEWER, groups.OPERATOR, groups.ADMINISTRATOR]
PHONE = "+8613800138000"
#: What a project without users runs.
WITHOUT_AUTH = """
import django
from django.conf import settings
from django.core.management import call_command
settings.configure(
    INSTALLED_APPS=["messaging"], USE_TZ=True, SECRET_KEY="x", MESSAGING={"AMQP_URLS": ["amqp://h"], "EXCHANGE": "e"},
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:",
                           "OPTIONS": {"transaction_mode": "IMMEDIATE"}}},
)
django.setup()
call_command("migrate", verbosity=0, skip_checks=True)
print("migrated")
"""


@pytest.fixture
def seeded() -> None:
    """The groups, also after a test that emptied the database."""
    groups.create(MESSAGING, "default")


@pytest.fixture
def member(client: Client, seeded: None) -> Callable[[str], Client]:
    """Signs in a user whose only rights are those of one group."""

    def sign_in(group: str) -> Client:
        user = User.objects.create_user("ann", is_staff=True)
        user.groups.add(Group.objects.get(name=group))
        client.force_login(user)
        return client

    return sign_in


@pytest.fixture
def consumer() -> Iterator[Consumer]:
    with registered(consumer := a_consumer()):
        yield consumer


def codenames(group: str) -> set[str]:
    return set(Group.objects.get(name=group).permissions.values_list("codename", flat=True))


def with_plan(*plan: tuple[str, bool]) -> None:
    """Send the signal of a `migrate` that applied these migrations of messaging, or undid them."""
    steps = [(MigrationExecutor(connection).loader.disk_migrations["messaging", name], undone) for name, undone in plan]
    post_migrate.send(sender=MESSAGING, app_config=MESSAGING, verbosity=0, interactive=False, using="default",
                      apps=apps, plan=steps)  # fmt: skip


# --- what they may do --------------------------------------------------------------------------------------


def test_every_action_has_a_permission_and_each_group_has_more_than_the_one_before(seeded: None) -> None:
    needed = {action.permission.partition(".")[2] for action in actions.on_messages()}
    known = set(Permission.objects.filter(content_type__app_label="messaging").values_list("codename", flat=True))
    viewer, operator, administrator = map(codenames, NAMES)

    assert needed <= known
    assert viewer == {name for name in known if name.startswith("view_") and name != "view_payload"}
    assert operator - viewer == {"replay_message", "settle_effect"}
    assert administrator - operator == {"cancel_message", "discard_message", "view_payload"}
    assert needed <= administrator


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize(
    ("group", "may", "sees_payload"),
    [
        (groups.VIEWER, set(), False),
        (groups.OPERATOR, {"replay", "publish", "settle"}, False),
        (groups.ADMINISTRATOR, {"replay", "publish", "settle", "cancel", "discard"}, True),
    ],
)
def test_members_see_every_page_and_the_buttons_of_what_they_may_do(
    member: Callable[[str], Client], consumer: Consumer, group: str, may: set[str], sees_payload: bool
) -> None:
    client = member(group)
    dead = a_dead_message(consumer, text=f"call {PHONE}")
    waits = an_outbox_row(state="unroutable")
    effect = Effect.objects.create(
        inbox_message=dead, consumer="notes", message_id=dead.message_id, name="text", state="unknown"
    )
    pages = {}
    for name, row in (("inboxmessage", dead), ("outboxmessage", waits), ("effect", effect)):
        assert client.get(f"/admin/messaging/{name}/").status_code == 200
        response = client.get(f"/admin/messaging/{name}/{row.pk}/change/")
        assert response.status_code == 200
        pages[name] = response.content.decode()

    everything = "".join(pages.values())
    shown = {action.name for action in actions.on_messages() if f"/operate/{action.name}/" in everything}
    assert shown == may
    assert (PHONE in pages["inboxmessage"]) is sees_payload


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize(
    ("group", "may_replay", "may_discard"),
    [(groups.VIEWER, 403, 403), (groups.OPERATOR, 302, 403), (groups.ADMINISTRATOR, 302, 302)],
)
def test_the_admin_does_what_a_group_may_and_refuses_the_rest(
    member: Callable[[str], Client], consumer: Consumer, group: str, may_replay: int, may_discard: int
) -> None:
    client = member(group)
    for action, status in (("replay", may_replay), ("discard", may_discard)):
        row = a_dead_message(consumer)
        response = client.post(
            f"/admin/messaging/inboxmessage/operate/{action}/", {"row": [row.pk], "confirmed": "yes"}
        )
        row.refresh_from_db()
        assert response.status_code == status
        assert (row.state != "dead") is (status == 302)


# --- when they are created ---------------------------------------------------------------------------------


def test_migrate_creates_them_with_their_migration_and_later_runs_change_nothing() -> None:
    Group.objects.filter(name__in=NAMES).delete()

    with_plan((groups.MIGRATION, False))
    assert set(Group.objects.filter(name__in=NAMES).values_list("name", flat=True)) == set(NAMES)

    Group.objects.get(name=groups.VIEWER).delete()
    Group.objects.filter(name=groups.OPERATOR).update(name="Night shift")
    Group.objects.get(name=groups.ADMINISTRATOR).permissions.clear()
    call_command("migrate", verbosity=0)
    with_plan(("0014_room_for_claims", False))

    assert not Group.objects.filter(name__in=[groups.VIEWER, groups.OPERATOR]).exists()
    assert codenames("Night shift")
    assert codenames(groups.ADMINISTRATOR) == set()


def test_a_group_of_that_name_that_the_project_made_is_left_as_it_is() -> None:
    Group.objects.filter(name__in=NAMES).delete()
    Group.objects.create(name=groups.VIEWER)

    with_plan((groups.MIGRATION, False))

    assert codenames(groups.VIEWER) == set()
    assert codenames(groups.OPERATOR)


def test_undoing_the_migration_creates_nothing() -> None:
    Group.objects.filter(name__in=NAMES).delete()
    with_plan((groups.MIGRATION, True))
    assert not Group.objects.filter(name__in=NAMES).exists()


def test_they_are_created_where_the_users_are(settings: Any) -> None:
    Group.objects.filter(name__in=NAMES).delete()

    class UsersElsewhere:
        def allow_migrate(self, db: str, app_label: str, **_: Any) -> bool:
            return app_label != "auth"

    settings.DATABASE_ROUTERS = [UsersElsewhere()]
    with_plan((groups.MIGRATION, False))
    settings.DATABASE_ROUTERS = []
    assert not Group.objects.filter(name__in=NAMES).exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.only_on("sqlite")
def test_migrate_zero_and_back_creates_those_that_are_missing() -> None:
    Group.objects.filter(name=groups.VIEWER).delete()
    call_command("migrate", "messaging", "zero", verbosity=0)
    call_command("migrate", "messaging", verbosity=0)
    assert set(NAMES) <= set(Group.objects.values_list("name", flat=True))


def test_a_project_without_users_migrates() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_AUTH], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("migrated\n", "")
