"""The private PostgreSQL cluster."""

from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest

from script.services.owned import ServiceError, is_paused, owned_pids
from script.services.postgresql import PostgreSQLCluster


@pytest.fixture
def directory():
    """One that PostgreSQL's own user can reach when root runs the tests; pytest's are closed by the next pytest."""
    with TemporaryDirectory(prefix="warren-test-") as name:
        Path(name).chmod(0o711)
        yield Path(name) / "cluster"


def test_a_cluster_is_durable_keeps_its_data_and_leaves_no_process(directory):
    with PostgreSQLCluster(directory) as cluster:
        first_url = cluster.url
        with psycopg.connect(cluster.url) as connection:
            assert connection.execute("SHOW fsync").fetchone() == ("on",)
            connection.execute("CREATE TABLE kept AS SELECT 1 AS value")
    assert owned_pids(directory) == []
    with PostgreSQLCluster(directory) as cluster:
        assert cluster.url == first_url
        with psycopg.connect(cluster.url) as connection:
            assert connection.execute("SELECT value FROM kept").fetchone() == (1,)


def test_a_wrong_password_is_refused(directory):
    with PostgreSQLCluster(directory) as cluster:
        wrong = cluster.url.replace("@", "x@")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(wrong)


def test_a_killed_cluster_comes_back_on_its_port_with_what_was_committed(directory):
    with PostgreSQLCluster(directory) as cluster:
        url = cluster.url
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS value")
        under_way = psycopg.connect(url)
        under_way.execute("INSERT INTO kept VALUES (2)")
        cluster.kill()
        assert owned_pids(directory) == []
        with pytest.raises(psycopg.OperationalError):
            under_way.execute("SELECT 1")
        with pytest.raises(ServiceError, match="cannot be killed"):
            cluster.kill()
        cluster.start()
        assert cluster.url == url
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT value FROM kept").fetchall() == [(1,)]


def test_a_paused_cluster_answers_when_it_goes_on(directory):
    with PostgreSQLCluster(directory) as cluster, psycopg.connect(cluster.url) as connection:
        cluster.pause()
        assert all(is_paused(pid) for pid in owned_pids(directory))
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            psycopg.connect(cluster.url, connect_timeout=2)
        cluster.resume()
        assert connection.execute("SELECT 1").fetchone() == (1,)
