"""The demo's broker: the given one, or a private one."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from script.programs.commands import say
from script.services import packages
from script.services.owned import ServiceError
from script.services.rabbitmq import RabbitMQNode
from script.services.rabbitmq_directory import installed_scripts

NO_BROKER = """\
there is no RabbitMQ. One of these helps:
  - install it, and it will be run privately: apt-get install rabbitmq-server (Debian, Ubuntu; as root)
  - name a running one: AMQP_URL=amqp://user:password@host:5672/vhost script/demo
  - install Docker with its compose plugin"""


@contextmanager
def demo_broker(root: Path) -> Iterator[RabbitMQNode | None]:
    """Inside, AMQP_URL names a broker. Yields the node, still booting, if it is a private one; then
    AMQP_MANAGEMENT_URL names its management API.

    Raises `ServiceError` if no broker is available.
    """
    if os.environ.get("AMQP_URL"):
        yield None
    elif installed_scripts() or packages.may_install():
        if not installed_scripts():
            packages.install("rabbitmq-server")
        node = RabbitMQNode(root / "var" / "rabbitmq")
        say("Starting a private RabbitMQ in var/rabbitmq ...")
        try:
            node.launch()
            os.environ["AMQP_URL"] = node.url()
            os.environ["AMQP_MANAGEMENT_URL"] = node.management_url
            yield node
        finally:
            node.stop()
    elif _compose_works():
        with _composed_broker():
            yield None
    else:
        raise ServiceError(NO_BROKER)


def _compose_works() -> bool:
    if shutil.which("docker") is None:
        return False
    try:
        return all(_docker(*question).returncode == 0 for question in (["compose", "version"], ["info"]))
    except (OSError, subprocess.TimeoutExpired):
        return False


@contextmanager
def _composed_broker() -> Iterator[None]:
    say("Starting the RabbitMQ of compose.yaml ...")
    started = _docker("compose", "up", "--detach", "--wait", "rabbitmq", timeout=600)
    if started.returncode != 0:
        raise ServiceError(f"docker compose could not start RabbitMQ: {started.stderr.strip()}")
    try:
        address = _docker("compose", "port", "rabbitmq", "5672").stdout.strip().replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        os.environ["AMQP_URL"] = f"amqp://warren:warren@{address}/%2F"
        yield
    finally:
        _docker("compose", "stop", "rabbitmq", timeout=60)


def _docker(*arguments: str, timeout: float = 20) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["docker", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
