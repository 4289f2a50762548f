"""A private RabbitMQ node in a directory of its own.

It shares nothing with a node of the system or of another checkout: own ports (on loopback only), own epmd,
own Erlang cookie, own data, own password. Debian's `rabbitmq-server` command changes the user, so the script
below it is started directly; that works as root and as anybody else.
"""

import base64
import json
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from script.services import rabbitmq_directory
from script.services.owned import (
    POLL_INTERVAL,
    ServiceError,
    belongs,
    end,
    end_all,
    is_paused,
    signal_owned,
    start_owned,
    tail,
)
from script.services.ports import answers
from script.services.rabbitmq_directory import USER, TlsFiles, required_scripts
from script.services.state import StateFile

#: Seconds a node may take to boot. 4 to 5 on two idle cores; a busy machine takes several times as long.
BOOT_PATIENCE = 120.0


class RabbitMQNode:
    """A node that lives in `directory`. Objects made for one directory mean the same node, everywhere.

    Whoever calls `start` also calls `stop` (or uses the node as a context manager). A `throwaway` node is
    killed rather than asked to stop: quicker, and nobody wants its messages. With `tls` it listens for amqps://
    as well, with these certificates.
    """

    def __init__(self, directory: Path, *, throwaway: bool = False, tls: TlsFiles | None = None) -> None:
        self.directory = directory.resolve()
        self.throwaway = throwaway
        self._tls = tls
        self._state = StateFile(self.directory / "node.json")
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "RabbitMQNode":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    # Addresses

    def url(self, vhost: str = "/") -> str:
        """The AMQP address of one of the node's vhosts. It stays the same over restarts."""
        return f"amqp://{USER}:{self.password}@127.0.0.1:{self.port}/{quote(vhost, safe='')}"

    def tls_url(self, vhost: str = "/", host: str = "localhost") -> str:
        """As `url`, by TLS. `host` is what the client calls the node, and expects in its certificate."""
        return f"amqps://{USER}:{self.password}@{host}:{self._ports['amqps']}/{quote(vhost, safe='')}"

    @property
    def port(self) -> int:
        """The AMQP port."""
        return self._ports["amqp"]

    @property
    def management_url(self) -> str:
        """Where the management interface answers, without user and password."""
        return f"http://127.0.0.1:{self._ports['management']}"

    @property
    def password(self) -> str:
        """The password of the node's one user, `warren`, an administrator."""
        return str(self._state.read()["password"])

    @property
    def pid(self) -> int | None:
        """The pid of the running Erlang machine, or None."""
        pid = self._state.read().get("pid")
        return pid if isinstance(pid, int) and belongs(pid, self.directory) else None

    @property
    def log(self) -> Path:
        """What the node prints while it boots; its own log is in `log/` beside it."""
        return self.directory / "output.log"

    # Life

    def start(self, patience: float = BOOT_PATIENCE) -> None:
        """Boot the node and return when it takes connections; at once if it runs already.

        Raises `ServiceError` if RabbitMQ is not installed, the node ends, or it is not ready after `patience`
        seconds.
        """
        self.launch()
        self.wait_until_ready(patience)

    def launch(self) -> None:
        """Begin to boot the node, if it does not run already, and return at once."""
        scripts = required_scripts()
        if self.pid is not None:
            self.resume()
        else:
            self._end_leftovers()
            rabbitmq_directory.prepare(self.directory, self._state, self._tls)
            self._start_epmd()
            self._start_node(scripts)

    def wait_until_ready(self, patience: float = BOOT_PATIENCE) -> None:
        """Return when the launched node takes connections. Errors as in `start`."""
        deadline = time.monotonic() + patience
        while not self._is_ready():
            if self.pid is None:
                self._end_leftovers()
                raise ServiceError(f"The RabbitMQ node ended while booting. {self.log} says:\n{tail(self.log)}")
            if time.monotonic() > deadline:
                self.stop()
                raise ServiceError(f"The RabbitMQ node was not ready in {patience:.0f} s:\n{tail(self.log)}")
            time.sleep(POLL_INTERVAL)

    def stop(self) -> None:
        """End the node and its epmd, whoever started them; nothing of it is left running."""
        pid = self.pid
        if pid is not None:
            self.resume()
            end(pid, self.directory, how=signal.SIGKILL if self.throwaway else signal.SIGTERM)
        self._end_leftovers()

    def kill(self) -> None:
        """kill -9, as a power cut would; `start` brings it back on the same port with its data.

        Queues just declared are written down before. RabbitMQ 3.10 keeps its newest declarations, and the list of its
        quorum queues, in memory for up to three seconds; one killed younger than that is gone, or never answers
        again: flaws of the broker's that would hide what a test of ours is after.
        """
        pid = self.pid
        if pid is None:
            raise ServiceError("The RabbitMQ node does not run: it cannot be killed.")
        if not is_paused(pid):
            # One that is only booting cannot be asked, and has declared nothing.
            with suppress(ServiceError):
                self.ctl("eval", "mnesia:sync_log(), [dets:sync(Table) || Table <- dets:all()].")
        end(pid, self.directory, how=signal.SIGKILL)
        self._collect()

    def restart(self) -> None:
        """Stop the node, a throwaway one by `kill`, and boot it again, on the same port and with its data."""
        if self.throwaway and self.pid is not None:
            self.kill()
        else:
            self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the node: connections stay open and nothing answers, until `resume`."""
        pid = self.pid
        if pid is None or not signal_owned(pid, self.directory, signal.SIGSTOP):
            raise ServiceError("The RabbitMQ node does not run: it cannot be paused.")
        # On a busy machine it may take another request before all its threads have stopped.
        while self.pid == pid and not is_paused(pid):
            time.sleep(POLL_INTERVAL)

    def resume(self) -> None:
        """Let a paused node go on; one that is not paused does not notice."""
        pid = self.pid
        if pid is not None:
            signal_owned(pid, self.directory, signal.SIGCONT)

    @contextmanager
    def memory_alarm(self) -> Iterator[None]:
        """Inside, the node believes that its memory is used up, and blocks every connection that publishes."""
        self.ctl("set_vm_memory_high_watermark", "0.0000001")
        try:
            yield
        finally:
            self.ctl("set_vm_memory_high_watermark", "0.4")

    # Asking it

    def read_certificates_again(self) -> None:
        """Make the node use what the files of `tls` hold now; it would keep the old ones for two minutes."""
        self.ctl("eval", "ssl:clear_pem_cache().")

    def ctl(self, *arguments: str, stdin: str = "", timeout: float = 60) -> str:
        """Run `rabbitmqctl` against this node and return what it printed (about a third of a second)."""
        done = subprocess.run(
            # In RabbitMQ 4 those that read a password fail, or hang, under --quiet.
            [required_scripts() / "rabbitmqctl", *([] if stdin else ["--quiet"]), *arguments],
            env=rabbitmq_directory.environment(self.directory, self._ports),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode != 0:
            complaint = done.stderr.strip() or done.stdout.strip()
            raise ServiceError(f"rabbitmqctl {' '.join(arguments)} failed: {complaint}")
        return done.stdout

    def api(self, method: str, path: str, body: Any = None, timeout: float = 10) -> Any:
        """Ask the management interface, for example `api("GET", "/queues/%2F")`; the decoded answer, or None.

        Raises `urllib.error.HTTPError` for a refusal and another `OSError` when the node does not answer.
        """
        credentials = base64.b64encode(f"{USER}:{self.password}".encode()).decode()
        request = urllib.request.Request(  # noqa: S310 (the address is our own)
            f"{self.management_url}/api{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Basic {credentials}", "Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=timeout) as response:  # noqa: S310
            content = response.read()
        return json.loads(content) if content else None

    def add_vhost(self, name: str) -> str:
        """Add a vhost and return its AMQP address."""
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.api("PUT", f"/vhosts/{quote(name, safe='')}", {})
        self.api("PUT", f"/permissions/{quote(name, safe='')}/{USER}", everything)
        return self.url(name)

    def delete_vhost(self, name: str) -> None:
        """Remove a vhost with everything in it."""
        self.api("DELETE", f"/vhosts/{quote(name, safe='')}")

    # How it starts and ends

    @property
    def _ports(self) -> dict[str, int]:
        ports: dict[str, int] = self._state.read()["ports"]
        return ports

    def _start_node(self, scripts: Path) -> None:
        node = start_owned(
            [scripts / "rabbitmq-server"],
            self.directory,
            log=self.log,
            environment=rabbitmq_directory.environment(self.directory, self._ports),
            parent_death_signal=signal.SIGKILL if self.throwaway else signal.SIGTERM,
        )
        self._children.append(node)
        self._state.save(pid=node.pid)

    def _start_epmd(self) -> None:
        """Run the port mapper as a child: left to itself, Erlang leaves one behind that nobody stops."""
        epmd = shutil.which("epmd")
        if epmd is None:
            raise ServiceError("epmd is missing: it comes with Erlang, which RabbitMQ needs.")
        port = self._ports["epmd"]
        command = [epmd, "-address", "127.0.0.1", "-port", str(port)]
        process = start_owned(command, self.directory, log=self.log, parent_death_signal=signal.SIGKILL)
        self._children.append(process)
        deadline = time.monotonic() + 10
        while not answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ServiceError(f"epmd, which RabbitMQ needs, did not start on port {port}:\n{tail(self.log)}")
            time.sleep(POLL_INTERVAL)

    def _is_ready(self) -> bool:
        """The listener is the last thing a node opens, when its queues have been recovered. It is known to the node a
        moment before somebody can connect."""
        try:
            self.api("GET", f"/health/checks/port-listener/{self.port}", timeout=2)
        except (OSError, ValueError):
            return False
        return answers(self.port)

    def _end_leftovers(self) -> None:
        """End what carries this directory's mark: epmd, and whatever a killed Erlang machine left."""
        end_all(self.directory, how=signal.SIGKILL)
        self._collect()

    def _collect(self) -> None:
        self._children = [child for child in self._children if child.poll() is None]
