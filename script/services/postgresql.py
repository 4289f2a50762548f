"""A private PostgreSQL cluster in a directory of its own, with its own port (on loopback) and password."""

import os
import pwd
import secrets
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import psycopg

from script.services.owned import ServiceError, tail, user_group
from script.services.ports import free_again, free_port
from script.services.service import Service, write_private

USER = "warren"
DATABASE = "warren"
#: A socket's path may not be longer than this many bytes; TCP remains.
LONGEST_SOCKET_PATH = 100


def installed_programs() -> Path | None:
    """The directory with `postgres` and `initdb` of the newest installed version, or None."""
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    if versions:
        return max(versions, key=lambda path: float(path.parent.name))
    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb else None


class PostgreSQLCluster(Service):
    """A cluster that lives in a directory.

    PostgreSQL refuses to run as root: root's clusters run as the user `postgres` (or `nobody`), who must be able to
    reach the directory. Durability is not weakened: `fsync` stays on.
    """

    title = "The PostgreSQL server"
    state_file = "cluster.json"
    # A fast shutdown: sessions are ended, and what they committed stays.
    stop_signal = signal.SIGINT
    leftovers_signal = signal.SIGQUIT

    @property
    def url(self) -> str:
        """The value of DATABASE_URL for the cluster's database."""
        state = self._state.read()
        return f"postgres://{USER}:{state['password']}@127.0.0.1:{state['port']}/{DATABASE}"

    def start(self, patience: float = 60) -> None:
        """Create the cluster if it does not exist, start it, and return when it takes connections.

        Raises `ServiceError` if PostgreSQL is not installed, the server ends, or it is not ready after `patience`
        seconds.
        """
        programs = _required_programs()
        if self.pid is None:
            self._end_leftovers()
            self._prepare(programs)
            command = [str(programs / "postgres"), "-D", str(self._data)]
            server = self._start_process(command, user=_server_user(), parent_death_signal=self.stop_signal)
            self._state.save(pid=server.pid)
        self._wait_until(self._has_database, patience)

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _prepare(self, programs: Path) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        user = _server_user()
        if user is not None:
            shutil.chown(self.directory, user, user_group(user))
        state = self._state.read()
        port = state.get("port")
        if port is None or not free_again(port):
            port = free_port()
        self._state.save(port=port, password=state.get("password") or secrets.token_urlsafe(18), pid=None)
        if not (self._data / "postgresql.conf").exists():
            self._create(programs, user)
        self._configure(port)

    def _create(self, programs: Path, user: str | None) -> None:
        password_file = self.directory / "password"
        write_private(password_file, self._state.read()["password"])
        if user is not None:
            shutil.chown(password_file, user)
        # What initdb writes can be made again; only what the server writes later must survive a power cut.
        options = ["--no-sync", "--encoding=UTF8", "--locale=C.UTF-8", "--auth=scram-sha-256"]
        command = [str(programs / "initdb"), "-D", str(self._data), "-U", USER, f"--pwfile={password_file}", *options]
        created = self._start_process(command, user=user).wait()
        password_file.unlink()
        if created != 0:
            shutil.rmtree(self._data, ignore_errors=True)
            raise ServiceError(f"initdb failed in {self.directory}:\n{tail(self.log)}")

    def _configure(self, port: int) -> None:
        short = len(os.fsencode(self.directory)) <= LONGEST_SOCKET_PATH - len("/.s.PGSQL.00000")
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": str(self.directory) if short else "",
            "max_connections": "250",
        }
        lines = [f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items()]
        (self._data / "postgresql.auto.conf").write_text("".join(lines))

    def _has_database(self) -> bool:
        """Create the database if the server takes connections; return whether it does."""
        address = self.url.removesuffix(DATABASE) + "postgres"
        with suppress(psycopg.OperationalError), psycopg.connect(address, autocommit=True, connect_timeout=5) as server:
            if not server.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                server.execute(f"CREATE DATABASE {DATABASE}")
            return True
        return False


def _server_user() -> str | None:
    """Return the user the server runs as; None for our own user, unless we are root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return "nobody"


def _required_programs() -> Path:
    programs = installed_programs()
    if programs is None:
        raise ServiceError("PostgreSQL is not installed. On Debian and Ubuntu: apt-get install postgresql")
    return programs
