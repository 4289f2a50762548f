"""The database of a chaos run: always a new one. Nothing else on a given server is touched."""

import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from script.services import packages
from script.services.owned import ServiceError
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
    #: The private cluster that may be crashed; None without one.
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


def open_database(stack: ExitStack, asked: str, directory: Path) -> Database:
    """Create the database: "sqlite", "postgres", or on the server of an address. The stack ends what was started.

    Raises `ServiceError` if that is not possible, or if an SQLite file exists already.
    """
    if asked == "sqlite":
        asked = f"sqlite:///{directory / 'db.sqlite3'}"
    if asked.startswith("sqlite:///"):
        if Path(asked.removeprefix("sqlite:///")).exists():
            raise ServiceError(f"{asked} exists: chaos needs a new database, name a new file.", exit_code=2)
        return Database("sqlite", asked, asked)
    if asked in {"postgres", "postgresql"}:
        return _private_cluster(stack, directory)
    if asked.startswith(("postgres://", "postgresql://")):
        return _database_of_a_server(stack, asked)
    raise ServiceError("--database is sqlite, postgres, sqlite:///path or postgres://…", exit_code=2)


def _private_cluster(stack: ExitStack, directory: Path) -> Database:
    if installed_programs() is None:
        packages.install("postgresql")
    cluster = stack.enter_context(PostgreSQLCluster(directory / "postgresql"))
    port = urlsplit(cluster.url).port
    line = stack.enter_context(TcpProxy(lambda: urlsplit(cluster.url).port or 0))
    product_url = cluster.url.replace(f":{port}/", f":{line.port}/")
    return Database("postgresql", cluster.url, product_url, cluster, line)


def _database_of_a_server(stack: ExitStack, url: str) -> Database:
    name = f"warren_chaos_{secrets.token_hex(4)}"
    _on_server(url, f"CREATE DATABASE {name}")
    print(f"Made the database {name} on {urlsplit(url).hostname}; it is dropped at the end. Nothing else is touched.")
    stack.callback(_on_server, url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    own = urlsplit(url)._replace(path=f"/{name}").geturl()
    return Database("postgresql", own, own)


def _on_server(url: str, statement: str) -> None:
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
            connection.execute(statement)
    except psycopg.Error as error:
        raise ServiceError(f"{statement}: {str(error).strip()} (--database)") from error
