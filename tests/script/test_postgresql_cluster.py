"""The private PostgreSQL cluster: durable, killed and frozen on purpose, and gone when it is stopped."""

from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest

from script.services.owned import ServiceError, is_paused, owned_pids
from script.services.postgresql import PostgreSQLCluster


def test_a_cluster_keeps_what_was_committed_through_a_kill_and_leaves_no_process():
    # PostgreSQL's own user must be able to reach it when root runs the tests; pytest's directories are closed to him.
    with TemporaryDirectory(prefix="warren-test-") as name:
        Path(name).chmod(0o711)
        directory = Path(name) / "cluster"
        with PostgreSQLCluster(directory) as cluster:
            url = cluster.url
            with psycopg.connect(url) as connection:
                assert connection.execute("SHOW fsync").fetchone() == ("on",)
                connection.execute("CREATE TABLE kept AS SELECT 1 AS value")
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                psycopg.connect(url.replace("@", "x@"))
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
                cluster.pause()
                assert all(is_paused(pid) for pid in owned_pids(directory))
                cluster.resume()
                assert connection.execute("SELECT 1").fetchone() == (1,)
        assert owned_pids(directory) == []
