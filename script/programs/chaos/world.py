"""The world of a chaos run: a whole shop, private, in one temporary folder."""

import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import django

from script.environment import ROOT, documented_variables
from script.programs.chaos.database import Database, open_database
from script.services import packages
from script.services.amqp import connect, consumer_count
from script.services.owned import ServiceError
from script.services.ports import answers, free_port
from script.services.rabbitmq import RabbitMQNode
from script.services.rabbitmq_directory import installed_scripts
from script.services.sms_gateway import SmsGateway
from script.services.supervision import Program, Supervisor
from script.services.tcp_proxy import TcpProxy
from script.shopper import Shopper

SETTINGS = "script.programs.chaos.settings"
VHOST = "chaos"
#: The consumers, by the process that runs them.
CONSUMERS = {"sms": ("sms",), "gifts": ("red_packet", "naive")}
QUEUES = ("orders.sms", "orders.red_packet", "naive.naive", "rpc.shipping.quote")
#: Kinds of SMS gateway: sends one text per key; can be asked whether a key was sent; neither.
HONOURS_KEYS, CAN_BE_ASKED, DEAF = "honours-keys", "can-be-asked", "deaf"
#: Seconds that the shop waits for the gateway.
GATEWAY_TIMEOUT = 2.0
#: Seconds that everything may take to come up, and to stop.
PATIENCE = 120.0
STOP_PATIENCE = 15.0


@dataclass(frozen=True)
class World:
    """Everything that can be broken. Only `tend` starts it again."""

    directory: Path
    node: RabbitMQNode
    #: The product's way to the broker.
    broker_line: TcpProxy
    database: Database
    gateway: SmsGateway
    port: int
    processes: Supervisor
    #: The environment of these processes.
    environment: Mapping[str, str]
    _down_until: dict[str, float] = field(default_factory=dict)
    _lost_vhost: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """The shop's address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def members(self) -> Mapping[str, Program]:
        """The product's processes, by name."""
        return self.processes.programs

    def named(self, prefix: str) -> list[Program]:
        """The processes of that kind: web, consumer, relay, rpc."""
        return [member for name, member in self.members.items() if name.startswith(prefix)]

    def keep_down(self, service: str, seconds: float) -> None:
        """Let `tend` start the broker, database or gateway only after that time."""
        self._down_until[service] = time.monotonic() + seconds

    def wipe_broker(self) -> None:
        """Kill the broker and delete its data. It returns empty, and `tend` adds its vhost again."""
        self.keep_down("broker", PATIENCE)
        self.node.kill()
        shutil.rmtree(self.node.directory / "data")
        self._lost_vhost.set()
        self.keep_down("broker", 0)

    def tend(self) -> None:
        """Start whatever ended. The thread that made the world calls it again and again; it takes a moment at most."""
        if self.node.pid is None and self._may_start("broker"):
            self.node.launch()
        if self._lost_vhost.is_set() and answers(self.node.port):
            with suppress(OSError):
                self.node.add_vhost(VHOST)
                self._lost_vhost.clear()
        cluster = self.database.cluster
        if cluster is not None and cluster.pid is None and self._may_start("database"):
            cluster.start()
        if self.gateway.pid is None and self._may_start("gateway"):
            self.gateway.start()
        self.processes.tend()

    def _may_start(self, service: str) -> bool:
        return time.monotonic() >= self._down_until.get(service, 0.0)

    def tend_until(self, condition: Callable[[], bool], seconds: float, every: float = 0.1) -> bool:
        """Tend until `condition()`. Return False if it was not true within `seconds`."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.tend()
            time.sleep(every)
        return True

    def is_whole(self) -> bool:
        """Whether everything runs, the shop answers, and each queue has a consumer."""
        runs = all(member.pid for member in self.members.values())
        return runs and self.shop_answers() and self.all_queues_have_consumers()

    def shop_answers(self) -> bool:
        """Whether the shop answers: gunicorn takes connections before the shop is loaded."""
        try:
            return Shopper(self.url, timeout=5).get("/healthz").status == 200
        except OSError:
            return False

    def all_queues_have_consumers(self) -> bool:
        """Whether each queue has a consumer."""
        try:
            with connect(self.node.url(VHOST)) as connection:
                return all(consumer_count(connection, queue) for queue in QUEUES)
        except ServiceError:
            return False

    def queued(self) -> int | None:
        """Messages in all queues, unacknowledged ones included; None while the broker does not answer."""
        try:
            lines = self.node.ctl("list_queues", "-p", VHOST, "messages").split()
        except (ServiceError, OSError, subprocess.TimeoutExpired):
            return None
        return sum(int(line) for line in lines if line.isdigit())


@contextmanager
def private_world(
    stack: ExitStack, directory: Path, *, database: str, pieces: Mapping[str, int], gateway: str, settings: str
) -> Iterator[World]:
    """A running world in `directory`. `stack` ends its services; Django in this process uses its database.

    Raises `ServiceError` if something cannot be started.
    """
    chosen = open_database(stack, database, directory)
    if not installed_scripts():
        packages.install("rabbitmq-server")
    node = RabbitMQNode(directory / "rabbitmq", throwaway=True)
    stack.callback(node.stop)
    node.launch()
    line = stack.enter_context(TcpProxy(lambda: node.port))
    sms = SmsGateway(directory / "gateway", honours_keys=gateway == HONOURS_KEYS, can_be_asked=gateway != DEAF)
    stack.enter_context(sms)
    _set_up_django(chosen, pieces)
    node.wait_until_ready()
    broker_url = node.add_vhost(VHOST).replace(f":{node.port}/", f":{line.port}/")
    environment = {
        **_environment(chosen.product_url),
        **sms.environment(timeout=GATEWAY_TIMEOUT),
        "AMQP_URL": broker_url,
        "DJANGO_SETTINGS_MODULE": settings,
    }
    port = free_port()
    processes = Supervisor(
        directory / "processes", ROOT, commands(port, copies=2 if chosen.kind == "postgresql" else 1), environment
    )
    world = World(directory, node, line, chosen, sms, port, processes, environment)
    try:
        if not world.tend_until(world.is_whole, PATIENCE, every=0.2):
            raise ServiceError(f"the world is not whole after {PATIENCE:.0f} s:\n{processes.log_ends()}", exit_code=1)
        yield world
    finally:
        processes.stop(STOP_PATIENCE)


def commands(port: int, copies: int) -> dict[str, Sequence[str]]:
    """Return the commands of the product's processes, by name; `copies` of each consumer."""
    manage = (sys.executable, "manage.py")
    web = (str(Path(sys.executable).with_name("gunicorn")), "project.wsgi", f"--bind=127.0.0.1:{port}")
    found: dict[str, Sequence[str]] = {
        "web": (*web, "--workers=2", "--worker-class=gthread", "--threads=4", "--no-control-socket"),
        "relay": (*manage, "run_relay"),
        "rpc": (*manage, "run_rpc_worker"),
    }
    for name, consumers in CONSUMERS.items():
        for number in range(1, copies + 1):
            found[f"consumer-{name}-{number}"] = (*manage, "run_consumer", *consumers)
    return found


def _environment(database_url: str) -> dict[str, str]:
    """Return the documented defaults, as in production, whatever the developer's .env says."""
    return {
        **os.environ,
        **documented_variables(),
        "DATABASE_URL": database_url,
        "DEBUG": "0",
        "SECRET_KEY": secrets.token_urlsafe(32),
        "RELAY_THREAD": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _set_up_django(database: Database, pieces: Mapping[str, int]) -> None:
    """Create tables, products and a campaign. After that this process may read the database."""
    os.environ.update(
        {**_environment(database.url), "DJANGO_SETTINGS_MODULE": SETTINGS, "AMQP_URL": "amqp://127.0.0.1:1/"}
    )
    django.setup()
    from django.core.management import call_command
    from django.db import connections
    from django.utils import timezone

    from orders.models import Campaign, Product

    call_command("migrate", run_syncdb=True, verbosity=0, interactive=False)
    Product.objects.bulk_create(
        Product(sku=slug.upper(), slug=slug, name=slug.title(), price=Decimal("38.00"), stock=stock, weight_grams=250)
        for slug, stock in pieces.items()
    )
    Campaign.objects.create(
        name="Chaos", budget=9_999_999, min_amount=1, max_amount=5, ends_at=timezone.now() + timedelta(days=30)
    )
    connections.close_all()
