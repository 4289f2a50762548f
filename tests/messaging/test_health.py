"""Probes: /healthz says that the process runs, /readyz that it can serve requests."""

from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test import Client

from messaging.models import DeliveryAttempt
from script.shopper import Shopper
from tests.support.processes import ProcessStarter


def test_healthz_answers_without_a_database_a_session_or_a_known_host(client: Client) -> None:
    # pytest-django refuses every query of a test that did not ask for a database.
    client.cookies["sessionid"] = "somebody"

    answer = client.get("/healthz", headers={"host": "10.1.2.3"})

    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Vary" not in answer.headers
    assert not answer.cookies


def test_probes_are_not_redirected_to_https(client: Client, settings: Any) -> None:
    settings.SECURE_SSL_REDIRECT = True

    assert client.get("/healthz").status_code == 200
    assert client.get("/").status_code == 301


def test_probes_leave_no_line_in_the_log(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    client.get("/healthz")

    assert not caplog.records


def test_a_probe_changes_nothing_so_it_cannot_be_posted(client: Client) -> None:
    assert client.post("/healthz").status_code == 405
    assert client.head("/healthz").status_code == 200


@pytest.mark.django_db
def test_readyz_is_content_with_a_database_that_answers_and_has_its_tables(client: Client) -> None:
    answer = client.get("/readyz")

    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.django_db(transaction=True)
def test_readyz_names_a_table_that_is_missing(client: Client) -> None:
    with connection.schema_editor() as editor:
        editor.delete_model(DeliveryAttempt)
    try:
        answer = client.get("/readyz")
    finally:
        with connection.schema_editor() as editor:
            editor.create_model(DeliveryAttempt)

    assert answer.status_code == 503
    assert answer.json()["reason"] == "tables are missing: messaging_deliveryattempt; run manage.py migrate"


@pytest.mark.django_db
def test_readyz_does_not_tell_strangers_what_the_driver_said(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Any:
        raise OperationalError("password of user shop at 10.0.0.7 is wrong")

    monkeypatch.setattr(connection, "cursor", refuse)

    answer = client.get("/readyz")

    assert (answer.status_code, answer.json()["reason"]) == (503, "the database does not answer")


def test_without_a_broker_the_shop_is_ready(run_process: ProcessStarter) -> None:
    web = run_process.web(AMQP_URL="amqp://127.0.0.1:1/")

    assert Shopper(web.url).get("/readyz").status == 200


def test_without_its_database_the_process_runs_and_is_not_ready(run_process: ProcessStarter) -> None:
    for address in ("sqlite:////nowhere/db.sqlite3", "postgres://nobody:secret@127.0.0.1:1/none"):
        web = run_process.web(DATABASE_URL=address)

        assert Shopper(web.url).get("/healthz").status == 200
        answer = Shopper(web.url).get("/readyz")
        assert answer.status == 503
        assert "the database does not answer" in answer.text
