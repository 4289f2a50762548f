"""The database of a chaos run: always a new one."""

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from script.services import packages
from script.services.postgresql import PostgreSQLCluster, installed_programs
from script.services.tcp_proxy import TcpProxy

#: While it is locked, no consumer can write. On SQLite no process can.
LOCKED_TABLE = "messaging_inboxmessage"


@dataclass(frozen=True)
class Database:
    """Addresses of the database: `url` for this process, `product_url` for the product, by a line that can be cut."""

    kind: str
    url: str
    product_url: str
    #: The private cluster that may be crashed; None on SQLite.
    cluster: PostgreSQLCluster | None = None
    line: TcpProxy | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, consumers wait for a lock. Raises the database's own errors."""
        if self.kind == "sqlite":
            with closing(sqlite3.connect(self.url.removeprefix("sqlite:///"), timeout=5, isolation_level=None)) as held:
                held.execute("BEGIN IMMEDIATE")
                yield
        else:
            with psycopg.connect(self.url, connect_timeout=5) as connection:
                connection.execute("SET lock_timeout = '5s'")
                connection.execute(f"LOCK TABLE {LOCKED_TABLE} IN EXCLUSIVE MODE")
                yield
                connection.rollback()

    def end_sessions(self) -> None:
        """Let the server end all sessions but this one. PostgreSQL only."""
        with psycopg.connect(self.url, autocommit=True, connect_timeout=5) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )


def open_database(stack: ExitStack, kind: str, directory: Path) -> Database:
    """Create the database in `directory`; `stack` ends what was started. Raises `ServiceError`."""
    if kind == "sqlite":
        url = f"sqlite:///{directory / 'db.sqlite3'}"
        return Database("sqlite", url, url)
    if installed_programs() is None:
        packages.install("postgresql")
    cluster = stack.enter_context(PostgreSQLCluster(directory / "postgresql"))
    port = urlsplit(cluster.url).port
    line = stack.enter_context(TcpProxy(lambda: urlsplit(cluster.url).port or 0))
    product_url = cluster.url.replace(f":{port}/", f":{line.port}/")
    return Database("postgresql", cluster.url, product_url, cluster, line)
