"""An environment in which messages would not be safe is refused by `manage.py check` and at the start."""

import os
import sqlite3
import subprocess
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.apps import apps
from django.conf import settings as django_settings
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command, load_command_class
from django.db import InternalError, connection, connections

from messaging.checks import environment
from messaging.database import is_read_only, release_between_messages
from messaging.models import InboxMessage
from tests.support.environment import ROOT


@pytest.fixture(autouse=True)
def same_databases(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    """Settings of databases that a test changes are its own. Afterwards all threads have the same ones again."""
    monkeypatch.setitem(settings.DATABASES, "default", dict(settings.DATABASES["default"]))


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Any:
    """Changes one of the settings of the database."""
    return lambda name, value: monkeypatch.setitem(settings.DATABASES["default"], name, value)


@pytest.fixture
def uwsgi(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Any:
    """As in a process of uWSGI that was started with these options."""
    settings.MESSAGING = {**settings.MESSAGING, "RELAY_THREAD": True}

    def started_with(**options: Any) -> None:
        module = types.ModuleType("uwsgi")
        module.opt = {name.replace("_", "-"): value for name, value in options.items()}  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "uwsgi", module)

    return started_with


def refused() -> list[str]:
    """The ids of what is refused; `check` has the same, and a server does not start."""
    found = environment.unsupported()
    errors = {each.id for each in run_checks(tags=["messaging"])}
    for each in found:
        assert each.id in errors
        assert each.msg.count(". ") == 0
        with pytest.raises(ImproperlyConfigured, match="messaging"):
            environment.require_supported()
    return [each.id for each in found]


def test_the_project_itself_is_supported() -> None:
    assert refused() == []
    environment.require_supported()


@pytest.mark.parametrize("vendor", ["mysql", "cockroachdb"])
def test_a_database_of_another_kind_is_refused(vendor: str, monkeypatch: pytest.MonkeyPatch, database: Any) -> None:
    database("ENGINE", f"some.{vendor}")
    monkeypatch.setattr(connections["default"], "vendor", vendor)
    assert [each.id for each in environment.unsupported()] == ["messaging.E101"]
    assert "SQLite or PostgreSQL" in environment.unsupported()[0].msg
    with pytest.raises(ImproperlyConfigured, match=f"some.{vendor}"):
        environment.require_supported()


@pytest.mark.parametrize("engine", ["django.contrib.gis.db.backends.postgis", "django_prometheus.db.backends.sqlite3"])
def test_an_engine_built_on_a_supported_one_is_supported(engine: str, database: Any) -> None:
    database("ENGINE", engine)
    assert refused() == []


def test_a_project_without_a_database_or_its_driver_is_left_to_django(
    database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    database("ENGINE", "django.db.backends.dummy")
    assert refused() == []
    missing = mock.MagicMock()
    missing.__getitem__.side_effect = ImproperlyConfigured("Error loading psycopg2 or psycopg module")
    monkeypatch.setattr(environment, "connections", missing)
    environment.require_supported()


def test_an_old_sqlite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    assert refused() == (["messaging.E102"] if connection.vendor == "sqlite" else [])


@pytest.mark.parametrize(
    "found",
    [
        {"TENANT_APPS": ["messaging"]},
        {"DATABASE_ROUTERS": ["django_tenants.routers.TenantSyncRouter"]},
        {"INSTALLED_APPS": ["django_tenants", "messaging"]},
    ],
)
def test_a_schema_for_each_tenant_is_refused(
    found: dict[str, Any], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not Django's own: it would look for the apps and the routers.
    names = ("DATABASES", "DATABASE_ROUTERS", "INSTALLED_APPS", "TIME_ZONE")
    given = {name: getattr(settings, name) for name in names}
    monkeypatch.setattr(environment, "settings", types.SimpleNamespace(**{**given, **found}))
    assert [each.id for each in environment.unsupported()] == ["messaging.E103"]


def test_tenants_that_a_column_keeps_apart_are_supported(settings: Any) -> None:
    settings.TENANT_MODEL = "accounts.Tenant"
    assert refused() == []


def test_a_connection_that_changes_its_schema_is_refused_by_its_engine_or_method(
    database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(connections["default"], "set_schema", lambda name: None, raising=False)
        assert refused() == ["messaging.E103"]
    database("ENGINE", "django_tenants.postgresql_backend")
    assert refused() == ["messaging.E103"]


def test_a_database_without_djangos_transactions_is_refused(database: Any) -> None:
    database("AUTOCOMMIT", False)
    assert refused() == ["messaging.E104"]


@pytest.mark.parametrize("zone", [None, ""])
def test_a_project_without_a_time_zone_is_refused(zone: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not by the fixture: it would have Django look for the zone.
    monkeypatch.setattr(django_settings, "TIME_ZONE", zone)
    assert refused() == ["messaging.E106"]


def test_uwsgi_without_threads_is_refused_unless_a_relay_of_its_own_runs(uwsgi: Any, settings: Any) -> None:
    for option in ("enable_threads", "threads", "gevent"):
        uwsgi(**{option: b"2"})
        assert refused() == []
    uwsgi(processes=b"4")
    assert refused() == ["messaging.E105"]
    settings.MESSAGING = {**settings.MESSAGING, "RELAY_THREAD": False}
    assert refused() == []


@pytest.mark.parametrize(
    ("patching", "asked"), [("gevent.monkey", "is_module_patched"), ("eventlet.patcher", "is_monkey_patched")]
)
def test_no_handler_runs_on_green_threads(patching: str, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType(patching)
    monkeypatch.setitem(sys.modules, patching, module)
    setattr(module, asked, lambda name: False)
    assert environment.green_threads() == ""
    setattr(module, asked, lambda name: True)
    for command in ("run_consumer --all", "run_rpc_worker"):
        with pytest.raises(CommandError, match=f"{patching.partition('.')[0]} has replaced the threads"):
            call_command(*command.split(), skip_checks=True)


def test_pooled_connections_are_released_between_messages_and_others_kept(
    database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread of a consumer would keep one: a pool of four, Django's default, leaves the fifth thread without."""
    closed: list[str] = []
    monkeypatch.setattr(connections["default"], "close", lambda: closed.append("default"))
    release_between_messages()
    assert closed == []
    monkeypatch.setitem(connections["default"].settings_dict["OPTIONS"], "pool", {"max_size": 2})
    release_between_messages()
    assert closed == ["default"]
    monkeypatch.setattr(connections["default"], "in_atomic_block", True)
    release_between_messages()
    assert closed == ["default"]


@pytest.mark.django_db
def test_statements_that_debug_keeps_are_forgotten_between_messages(settings: Any) -> None:
    """Each has the body of a message in it, and Django keeps 9000."""
    settings.DEBUG = True
    InboxMessage.objects.exists()
    assert connection.queries_log
    release_between_messages()
    assert not connection.queries_log


def test_errors_tell_their_code_with_psycopg2_too() -> None:
    error = InternalError("cannot execute UPDATE in a read-only transaction")
    error.__cause__ = type("ReadOnlySqlTransaction", (Exception,), {"pgcode": "25006"})()
    assert is_read_only(error)


def test_a_command_and_a_server_refuse_another_database(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(connections["default"], "vendor", "mysql")
    with pytest.raises(SystemExit, match="1"):
        # Not the whole of manage.py: it would set up the log anew, on this test's standard error.
        load_command_class("messaging", "run_relay").run_from_argv(["manage.py", "run_relay"])
    assert "messaging.E101" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["gunicorn"])
    with pytest.raises(ImproperlyConfigured, match="needs SQLite or PostgreSQL"):
        apps.get_app_config("messaging").ready()


# --- In a process of its own -------------------------------------------------------------------------------

PEOPLE = """
import uuid
from django.contrib.auth.models import AbstractBaseUser, BaseUserManager, PermissionsMixin
from django.db import models
class People(BaseUserManager):
    pass
class Badge:  # a name that is no text
    def __init__(self, number): self.number = number
    def __str__(self): return f"badge {self.number}"
class BadgeField(models.IntegerField):
    def from_db_value(self, value, expression, connection): return Badge(value)
    def get_prep_value(self, value): return getattr(value, "number", value)
class Person(PermissionsMixin, AbstractBaseUser):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    badge = BadgeField(unique=True)
    is_staff = is_active = True
    USERNAME_FIELD = "badge"
    objects = People()
    class Meta:
        app_label = "people"
"""
APPS = [f"django.contrib.{name}" for name in ("admin", "auth", "contenttypes", "sessions", "messages")]
SETTINGS = (
    f"INSTALLED_APPS = {[*APPS, 'people', 'messaging', 'messaging.tutorial']}"
    + """
SECRET_KEY = "x"
MESSAGING = {"AMQP_URLS": ["amqp://127.0.0.1:1/"]}
AUTH_USER_MODEL = "people.Person"
DEFAULT_AUTO_FIELD = "people.fields.UUIDAutoField"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3", "ATOMIC_REQUESTS": True,
             "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True}}
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
LOGGING_CONFIG = None
APPEND_SLASH = False
FORCE_SCRIPT_NAME = "/under"
ALLOWED_HOSTS = ["*"]
USE_I18N = False
MIGRATION_MODULES = {name.rpartition(".")[2]: None for name in INSTALLED_APPS}
ROOT_URLCONF = "people.urls"
STATIC_URL = "static/"
MIDDLEWARE = ["django.contrib.sessions.middleware.SessionMiddleware",
              "django.contrib.auth.middleware.AuthenticationMiddleware",
              "django.contrib.messages.middleware.MessageMiddleware"]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True, "OPTIONS": {
    "context_processors": [f"django.{each}" for each in ("template.context_processors.request",
        "contrib.auth.context_processors.auth", "contrib.messages.context_processors.messages")]}}]
"""
)
URLS = """
from django.contrib import admin
from django.urls import path
urlpatterns = [path("admin/", admin.site.urls)]
"""
FIELDS = """
import uuid
from django.db import models
class UUIDAutoField(models.UUIDField, models.AutoField):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"default": uuid.uuid4, **kwargs})
"""
#: What Windows has not, taken away before anything of ours is imported.
AS_ON_WINDOWS = """
import os, select, signal, sys
for name in ("pwd", "grp", "fcntl", "resource", "termios", "tty", "pty", "readline", "syslog"):
    sys.modules[name] = None
for module, names in ((os, "register_at_fork fork geteuid getuid killpg setsid"), (select, "poll epoll"),
                      (signal, "SIGHUP SIGUSR1 SIGUSR2 SIGPIPE SIGKILL SIGALRM setitimer pthread_sigmask")):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
os.getlogin = lambda: "ann"
"""
DEVELOPED = """
import importlib, pkgutil, django
django.setup()
import messaging
for each in pkgutil.walk_packages(messaging.__path__, "messaging."):
    if "migrations" not in each.name and each.name != "messaging.tasks":
        importlib.import_module(each.name)
from django.core.management import call_command
from django.db import transaction
from django.test import Client
from messaging import Event, consumer, outbox
from messaging.actions import audit
from messaging.models import InboxMessage, OperatorAction
from messaging.relay import thread as relay_thread
from people.models import Person
class Noted(Event, type="people.noted"):
    text: str
@consumer("notes", Noted)
def notes(event, delivery): pass
call_command("migrate", run_syncdb=True, verbosity=0)
relay_thread.enable(at_once=True)
with transaction.atomic():
    outbox.add(Noted(text="x"))
call_command("messages", "list")
print(audit.account())
row = InboxMessage.objects.create(consumer="notes", message_id="m-1", type="people.noted", state="dead",
                                  body=Noted(text="x").encode())
client = Client()
person = Person(badge=7, is_superuser=True)
person.save()
client.force_login(person)
root = "/admin/messaging/inboxmessage/"
for page in ("", f"{row.pk}/change/"):
    assert client.get(root + page).status_code == 200, page
answer = client.post(root + "operate/replay/", {"row": row.pk, "confirmed": "1"})
assert answer.status_code == 302, answer.content
assert answer["Location"].startswith("/under/admin/"), answer["Location"]
row.refresh_from_db()
print(row.state, OperatorAction.objects.filter(action="replay").get().actor)
"""


def test_a_project_may_have_its_own_users_and_settings_and_be_developed_on_windows(tmp_path: Path) -> None:
    """People with ids that are no numbers and names that are no texts; sessions, paths, tables and keys of its own;
    neither forks nor accounts by number, `poll` and most signals."""
    people = tmp_path / "people"
    people.mkdir()
    for name, text in (("__init__", ""), ("models", PEOPLE), ("fields", FIELDS), ("urls", URLS)):
        (people / f"{name}.py").write_text(text)
    (tmp_path / "its_settings.py").write_text(SETTINGS)
    done = subprocess.run(
        [sys.executable, "-c", AS_ON_WINDOWS + DEVELOPED], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "its_settings", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "people.noted" in done.stdout
    account, replayed = done.stdout.splitlines()[-2:]
    assert account.startswith("ann@")
    assert replayed == "retrying badge 7"
