"""A private PostgreSQL cluster in a directory of its own, with its own port (on loopback) and password."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psycopg

from script.services.owned import (
    POLL_INTERVAL,
    ServiceError,
    belongs,
    end,
    end_all,
    is_paused,
    owned_pids,
    signal_owned,
    start_owned,
    tail,
    user_group,
)
from script.services.ports import free_again, free_port
from script.services.state import StateFile, write_private

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


class PostgreSQLCluster:
    """A cluster that lives in `directory`. Objects made for one directory mean the same cluster, everywhere.

    PostgreSQL refuses to run as root: root's clusters run as the user `postgres` (or `nobody`), who must be
    able to reach the directory. Durability is not weakened: `fsync` stays on.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self._state = StateFile(self.directory / "cluster.json")
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "PostgreSQLCluster":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The value of DATABASE_URL for the cluster's database."""
        state = self._state.read()
        return f"postgres://{USER}:{state['password']}@127.0.0.1:{state['port']}/{DATABASE}"

    @property
    def pid(self) -> int | None:
        """The pid of the running server, or None."""
        pid = self._state.read().get("pid")
        return pid if isinstance(pid, int) and belongs(pid, self.directory) else None

    @property
    def log(self) -> Path:
        """What initdb and the server print."""
        return self.directory / "output.log"

    def start(self, patience: float = 60) -> None:
        """Create the cluster if it is not there, start it, and return when it takes connections.

        Raises `ServiceError` if PostgreSQL is not installed, the server ends, or it is not ready after
        `patience` seconds.
        """
        programs = _required_programs()
        if self.pid is None:
            self._end_leftovers()
            self._prepare(programs)
            self._server = start_owned(
                [programs / "postgres", "-D", self._data],
                self.directory,
                log=self.log,
                user=_server_user(),
                # A fast shutdown: sessions are ended, nothing is lost.
                parent_death_signal=signal.SIGINT,
            )
            self._state.save(pid=self._server.pid)
        self._wait_until_ready(patience)

    def stop(self) -> None:
        """End the server, whoever started it; its sessions are ended, what they committed stays."""
        if self.pid is not None:
            end(self.pid, self.directory, how=signal.SIGINT)
        self._end_leftovers()

    def kill(self) -> None:
        """kill -9 of the server and all its sessions, as a power cut would; `start` brings it back on the same port.

        What was committed stays, what was under way is rolled back.
        """
        if self.pid is None:
            raise ServiceError("The PostgreSQL server does not run: it cannot be killed.")
        end(self.pid, self.directory, how=signal.SIGKILL)
        self._end_leftovers()

    def pause(self) -> None:
        """Freeze the server and its sessions: connections stay open and nothing answers, until `resume`."""
        if self.pid is None:
            raise ServiceError("The PostgreSQL server does not run: it cannot be paused.")
        # The server first, so that it starts no session in between.
        signal_owned(self.pid, self.directory, signal.SIGSTOP)
        # On a busy machine each may take another step before it stops.
        while running := [pid for pid in owned_pids(self.directory) if not is_paused(pid)]:
            for pid in running:
                signal_owned(pid, self.directory, signal.SIGSTOP)
            time.sleep(POLL_INTERVAL)

    def resume(self) -> None:
        """Let a paused server go on; one that is not paused does not notice."""
        for pid in owned_pids(self.directory):
            signal_owned(pid, self.directory, signal.SIGCONT)

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
        created = start_owned(
            [programs / "initdb", "-D", self._data, "-U", USER, f"--pwfile={password_file}", *options],
            self.directory,
            log=self.log,
            user=user,
        ).wait()
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

    def _wait_until_ready(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        while True:
            try:
                return self._create_database()
            except psycopg.OperationalError as error:
                if self._server is not None:
                    self._server.poll()
                if self.pid is None:
                    reason = f"PostgreSQL ended while starting. {self.log} says:\n{tail(self.log)}"
                    raise ServiceError(reason) from error
                if time.monotonic() > deadline:
                    self.stop()
                    raise ServiceError(f"PostgreSQL was not ready in {patience:.0f} s: {error}") from error
            time.sleep(POLL_INTERVAL)

    def _create_database(self) -> None:
        address = self.url.removesuffix(DATABASE) + "postgres"
        with psycopg.connect(address, autocommit=True, connect_timeout=5) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                connection.execute(f"CREATE DATABASE {DATABASE}")

    def _end_leftovers(self) -> None:
        end_all(self.directory, how=signal.SIGQUIT)
        if self._server is not None:
            self._server.poll()


def _server_user() -> str | None:
    """Whom the server runs as: None for ourselves, unless we are root."""
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
