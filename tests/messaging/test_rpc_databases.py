"""The connections to databases that the threads of an RPC server keep from one request to the next."""

import pytest
from django.db import DatabaseError, connection

from messaging.rpc import server
from messaging.rpc.server import Databases

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.only_on("postgresql")]


@pytest.fixture
def databases(monkeypatch: pytest.MonkeyPatch) -> Databases:
    """Of this thread; their age was looked at, and is looked at again in an hour."""
    monkeypatch.setattr(server, "CHECK_AGE_EVERY", 3600.0)
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 0)
    connection.close()
    checked = Databases()
    checked.refresh()
    return checked


def process_of_the_server() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (found,) = cursor.fetchone()
    return int(found)


def test_a_connection_serves_several_requests_though_none_may_grow_old(
    databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = process_of_the_server()
    databases.refresh()
    assert process_of_the_server() == first

    monkeypatch.setattr(server, "CHECK_AGE_EVERY", 0.0)
    databases.refresh()
    assert process_of_the_server() != first


def test_a_connection_that_broke_is_given_up_before_the_next_request(databases: Databases) -> None:
    process_of_the_server()
    connection.connection.close()
    with pytest.raises(DatabaseError):
        process_of_the_server()

    databases.refresh()
    assert process_of_the_server()


def test_a_connection_without_autocommit_is_given_up_before_the_next_request(databases: Databases) -> None:
    connection.set_autocommit(False)
    databases.refresh()
    assert connection.get_autocommit()
