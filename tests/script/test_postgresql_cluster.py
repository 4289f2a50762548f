"""The private PostgreSQL cluster."""

import psycopg
import pytest

from script.services.owned import owned_pids
from script.services.postgresql import PostgreSQLCluster


@pytest.fixture
def directory(tmp_path_factory):
    """One that PostgreSQL's own user can reach when root runs the tests."""
    path = tmp_path_factory.mktemp("postgresql")
    for parent in (path, path.parent, path.parent.parent):
        parent.chmod(parent.stat().st_mode | 0o011)
    return path / "cluster"


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
