"""A private RabbitMQ node in a directory of its own.

It shares nothing with a node of the system or of another checkout: it has its own ports (on loopback only), epmd,
Erlang cookie, data and password. Debian's `rabbitmq-server` command changes the user, so the script below it is
started directly; that works for root and for any other user.
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
from script.services.owned import POLL_INTERVAL, ServiceError, is_paused, tail
from script.services.ports import answers
from script.services.rabbitmq_directory import USER, TlsFiles, required_scripts
from script.services.service import Service

#: Seconds a node may take to boot. 4 to 5 on two idle cores; a busy machine takes several times as long.
BOOT_PATIENCE = 120.0


class RabbitMQNode(Service):
    """A node that lives in a directory.

    A `throwaway` node is killed instead of stopped: that is quicker, and its messages are not needed. With `tls` it
    also listens for amqps://, with these certificates.
    """

    title = "The RabbitMQ node"
    state_file = "node.json"

    def __init__(self, directory: Path, *, throwaway: bool = False, tls: TlsFiles | None = None) -> None:
        super().__init__(directory)
        self.throwaway = throwaway
        self._tls = tls
        if throwaway:
            self.stop_signal = signal.SIGKILL

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
        """Return when the launched node takes connections. Raises the errors of `start`."""
        self._wait_until(self._is_ready, patience)

    def kill(self) -> None:
        """kill -9, as a power cut would; `start` brings it back on the same port with its data.

        New declarations are written to disk before. RabbitMQ 3.10 keeps its newest declarations, and the list of its
        quorum queues, in memory for up to three seconds. A queue younger than that would be gone after a kill, or never
        answer again: defects of the broker that would hide what a test of ours looks for.
        """
        if not is_paused(self._running("killed")):
            # A node that is still booting cannot be asked, and has declared nothing.
            with suppress(ServiceError):
                self.ctl("eval", "mnesia:sync_log(), [dets:sync(Table) || Table <- dets:all()].")
        super().kill()

    def restart(self) -> None:
        """Stop the node, a throwaway node by `kill`, and boot it again, on the same port and with its data."""
        if self.throwaway and self.pid is not None:
            self.kill()
        else:
            self.stop()
        self.start()

    @contextmanager
    def memory_alarm(self) -> Iterator[None]:
        """Inside, the node believes that its memory is used up, and blocks each connection that publishes."""
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
        # In RabbitMQ 4 those that read a password fail, or hang, under --quiet.
        return self._run("rabbitmqctl", *([] if stdin else ["--quiet"]), *arguments, stdin=stdin, timeout=timeout)

    def enable_plugin(self, name: str) -> None:
        """Enable one of RabbitMQ's own plugins until the node stops."""
        self._run("rabbitmq-plugins", "--quiet", "enable", name)

    def _run(self, program: str, *arguments: str, stdin: str = "", timeout: float = 60) -> str:
        done = subprocess.run(
            [required_scripts() / program, *arguments],
            env=rabbitmq_directory.environment(self.directory, self._ports),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode != 0:
            complaint = done.stderr.strip() or done.stdout.strip()
            raise ServiceError(f"{program} {' '.join(arguments)} failed: {complaint}")
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
        environment = rabbitmq_directory.environment(self.directory, self._ports)
        command = [scripts / "rabbitmq-server"]
        node = self._start_process(command, environment=environment, parent_death_signal=self.stop_signal)
        self._state.save(pid=node.pid)

    def _start_epmd(self) -> None:
        """Run the port mapper as a child: by itself, Erlang starts one that is never stopped."""
        epmd = shutil.which("epmd")
        if epmd is None:
            raise ServiceError("epmd is missing: it comes with Erlang, which RabbitMQ needs.")
        port = self._ports["epmd"]
        command = [epmd, "-address", "127.0.0.1", "-port", str(port)]
        process = self._start_process(command, parent_death_signal=signal.SIGKILL)
        deadline = time.monotonic() + 10
        while not answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ServiceError(f"epmd, which RabbitMQ needs, did not start on port {port}:\n{tail(self.log)}")
            time.sleep(POLL_INTERVAL)

    def _is_ready(self) -> bool:
        """Ask for the listener: a node opens it last, when its queues have been recovered. The node reports it a moment
        before it takes connections."""
        try:
            self.api("GET", f"/health/checks/port-listener/{self.port}", timeout=2)
        except (OSError, ValueError):
            return False
        return answers(self.port)
