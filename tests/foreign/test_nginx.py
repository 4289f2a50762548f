"""nginx, set up as `nginx.conf` says, in front of a web process."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from script.services.foreign_clients import installed_nginx
from script.services.ports import free_port
from script.shopper import Shopper
from tests.support.environment import ROOT
from tests.support.processes import ProcessStarter
from tests.support.waiting import eventually

NGINX = installed_nginx() or ""
#: Many times the threads of the web process.
SLOW_VISITORS = 64
HALF_SENT = {
    "headers": b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
    "body": b"POST /cart/add/tea/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    b"Content-Length: 1000\r\n\r\nquantity=",
}

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.skipif(not NGINX, reason="nginx is missing")]


@pytest.fixture
def proxy(run_process: ProcessStarter, tmp_path: Path) -> Iterator[int]:
    """The port of an nginx in front of a web process of four threads."""
    web, port = run_process.web(PROXIES="1"), free_port()
    written = (ROOT / "nginx.conf").read_text()
    configuration = tmp_path / "nginx.conf"
    here = written.replace("server web:8000;", f"server {web.url.removeprefix('http://')};")
    configuration.write_text(here.replace("listen 8080;", f"listen 127.0.0.1:{port};"))
    command = [NGINX, "-c", str(configuration), "-g", f"pid {tmp_path}/nginx.pid; daemon off;"]
    tested = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
    nginx = run_process.program(*command)
    eventually(lambda: _listens(port), report=lambda: nginx.output)
    yield port
    assert nginx.stop() == 0


def _listens(port: int) -> bool:
    with socket.socket() as line:
        return line.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("half_sent", HALF_SENT)
def test_slow_visitors_hold_no_thread_of_the_web_process(proxy: int, half_sent: str) -> None:
    with ExitStack() as stack:
        for _ in range(SLOW_VISITORS):
            line = stack.enter_context(socket.create_connection(("127.0.0.1", proxy), 5))
            line.sendall(HALF_SENT[half_sent])

        assert Shopper(f"http://127.0.0.1:{proxy}", timeout=8).get("/accounts/sign-in/").status == 200
