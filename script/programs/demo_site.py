"""Preparing the demo's database, and waiting until an order can be placed."""

import io
import os
import re
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable

import django
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connections

from script.services.amqp import connect, consumer_count
from script.services.owned import ServiceError

#: What Django prints around the findings of `check`.
_AROUND_FINDINGS = re.compile(r"^(SystemCheckError: )?System check identified .*$|^ERRORS:$|^\?: \(\S+\) ", re.M)


def check_settings() -> None:
    """Run `manage.py check` before anything is started: it needs neither broker nor database.

    Raises `ServiceError` with one line (exit code 2) if a setting is wrong.
    """
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "project.settings"}
    done = subprocess.run(
        [sys.executable, "manage.py", "check", "--no-color"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.partition("WARNINGS:")[0] or done.stderr
        raise ServiceError(_one_line(_AROUND_FINDINGS.sub("", said)), exit_code=2)


def prepare_site() -> str | None:
    """Migrate and seed the database. Return the administrator's password if it was created now, else None.

    Raises `ServiceError` with one line if the configuration is wrong (exit code 2) or the database is unreachable (3).
    """
    os.environ["DJANGO_SETTINGS_MODULE"] = "project.settings"
    try:
        django.setup()
        call_command("migrate", verbosity=0, interactive=False)
        password = None if _has_administrator() else secrets.token_urlsafe(12)
        options = [f"--admin-password={password}"] if password else []
        call_command("seed_demo", *options, stdout=io.StringIO())
        connections.close_all()
    except DatabaseError as error:
        raise ServiceError(f"the database cannot be used. {_one_line(error)} (DATABASE_URL)") from error
    except ImproperlyConfigured as error:
        raise ServiceError(_one_line(error), exit_code=2) from error
    except CommandError as error:
        raise ServiceError(_one_line(error), error.returncode) from error
    return password


def _has_administrator() -> bool:
    from django.contrib.auth import get_user_model

    return get_user_model().objects.filter(is_superuser=True).exists()


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


class NotReady(ServiceError):
    """Something is still missing after a long time. Why, the programs' logs may say."""


def wait_until_ready(url: str, patience: float, check: Callable[[], None]) -> None:
    """Return once the shop answers and a consumer listens on every queue. `check` is called between two looks.

    Raises `NotReady`, saying what is missing, after `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while missing := _missing(url):
        if time.monotonic() > deadline:
            raise NotReady(f"not ready after {patience:.0f} s: {missing}.", exit_code=1)
        check()
        time.sleep(0.1)


def _missing(url: str) -> str | None:
    try:
        urllib.request.urlopen(url, timeout=10).close()  # noqa: S310 (our own address)
    except urllib.error.HTTPError as error:
        error.close()
        return f"{url} answers {error.code}"
    except OSError:
        return f"nothing answers at {url}"
    idle = _queues_without_consumer()
    return f"no consumer reads {', '.join(idle)}" if idle else None


def _queues_without_consumer() -> list[str]:
    from messaging.consumers import registered

    queues = [consumer.queue for consumer in registered()]
    try:
        with connect(os.environ["AMQP_URL"]) as connection:
            return [queue for queue in queues if not consumer_count(connection, queue)]
    except ServiceError:
        return queues
