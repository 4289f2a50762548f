"""Probes: /healthz says that the process runs, /readyz that it can serve requests."""

from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test import Client

from script.shopper import Shopper
from tests.support.processes import ProcessStarter


def test_healthz_answers_without_database_session_known_host_https_or_log_line(
    client: Client, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # pytest-django refuses every query of a test that did not ask for a database.
    client.cookies["sessionid"] = "any"
    settings.SECURE_SSL_REDIRECT = True
    caplog.set_level("INFO")

    answer = client.get("/healthz", headers={"host": "10.1.2.3"})

    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Vary" not in answer.headers
    assert not answer.cookies
    assert not caplog.records
    assert client.head("/healthz").status_code == 200
    assert client.post("/healthz").status_code == 405
    assert client.get("/").status_code == 301


@pytest.mark.django_db
def test_readyz_needs_a_database_with_its_tables_and_no_broker(client: Client) -> None:
    # No broker runs at the address in the tests' settings.
    answer = client.get("/readyz")

    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.django_db
def test_readyz_names_a_table_that_is_missing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    there = set(connection.introspection.table_names()) - {"messaging_deliveryattempt"}
    monkeypatch.setattr(connection.introspection, "table_names", lambda: sorted(there))

    answer = client.get("/readyz")

    assert answer.status_code == 503
    assert answer.json()["reason"] == "tables are missing: messaging_deliveryattempt; run manage.py migrate"


@pytest.mark.django_db
def test_readyz_does_not_tell_strangers_what_the_driver_said(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Any:
        raise OperationalError("password of user shop at 10.0.0.7 is wrong")

    monkeypatch.setattr(connection, "cursor", refuse)

    answer = client.get("/readyz")

    assert (answer.status_code, answer.json()["reason"]) == (503, "the database does not answer")


@pytest.mark.only_on("sqlite")
def test_a_web_process_starts_without_database_and_broker_and_is_not_ready(run_process: ProcessStarter) -> None:
    web = run_process.web(DATABASE_URL="postgres://shop:secret@127.0.0.1:1/none", AMQP_URL="amqp://127.0.0.1:1/")

    assert Shopper(web.url).get("/healthz").status == 200
    answer = Shopper(web.url).get("/readyz")
    assert answer.status == 503
    assert "the database does not answer" in answer.text
