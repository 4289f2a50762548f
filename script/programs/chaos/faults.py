"""What can go wrong: each fault breaks something, waits, and lets it go. What has ended `World.tend` starts again."""

import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import psycopg
from pika.exceptions import AMQPError

from script.programs.chaos.world import QUEUES, VHOST, World
from script.services.amqp import connect
from script.services.owned import ServiceError, gone_within, signal_owned
from script.services.ports import answers
from script.services.sms_gateway_ledger import PASSING
from script.services.sms_gateway_ledger import Fault as GatewayFault
from script.services.supervision import Program

#: Published messages of which `copy-messages` puts copies into their queues, and how many of each.
COPIED = 20
COPIES = 2
#: Share of requests that a misbehaving gateway spoils, and seconds by which it is late at most.
GATEWAY_CHANCE = 0.5
GATEWAY_DELAY = 3.0
#: Seconds that a message may take from the queue to its end: a process that thaws is killed within them.
AT_WORK = 0.15
#: Orders that have to be under way for something that throws messages away to have any.
SOME_ORDERS = 5
#: Seconds in which they come, if the shop takes orders at all.
ORDER_PATIENCE = 15.0
#: Seconds for which what is broken is given to come back, before something else may break it.
BOOT_PATIENCE = 60.0

Choice = TypeVar("Choice")

#: What cannot be broken because it is broken already, or cannot be reached for it.
UNREACHABLE = (ServiceError, OSError, AMQPError, psycopg.Error, sqlite3.Error, subprocess.TimeoutExpired)


@dataclass(frozen=True)
class Circumstances:
    """What a fault is given: which of several things it meets (0 to 1), how long it lasts, and a pause that ends
    early when everything is to be healed."""

    pick: float
    seconds: float
    pause: Callable[[float], bool]


@dataclass(frozen=True)
class Fault:
    """`do` breaks and heals; it raises one of `UNREACHABLE` where it cannot."""

    name: str
    do: Callable[[World, Circumstances], None]
    #: How often it comes, compared with others.
    weight: int
    #: It lasts from this many seconds to that many.
    seconds: tuple[float, float]
    #: Faults that break the same thing never overlap; empty: they may.
    target: str = ""
    #: Only with this kind of database.
    database: str = ""
    #: It throws messages away: it comes only if it is asked for, and only reconciling brings them back.
    loses: bool = False


FAULTS: dict[str, Fault] = {}


def fault(
    name: str,
    *,
    weight: int,
    seconds: tuple[float, float] = (0, 0),
    target: str = "",
    database: str = "",
    loses: bool = False,
) -> Callable[[Callable[[World, Circumstances], None]], Callable[[World, Circumstances], None]]:
    """Register the decorated function as a fault."""

    def register(do: Callable[[World, Circumstances], None]) -> Callable[[World, Circumstances], None]:
        FAULTS[name] = Fault(name, do, weight, seconds, target, database, loses)
        return do

    return register


def available(kind: str) -> list[str]:
    """The names of all faults that are possible with a private database of that kind, and throw nothing away."""
    return [each.name for each in FAULTS.values() if each.database in ("", kind) and not each.loses]


# --- The product's processes -------------------------------------------------------------------------------


@fault("kill-web-worker", weight=6)
def kill_web_worker(world: World, now: Circumstances) -> None:
    _needs(world.shop_answers())
    workers = world.members["web"].children
    if workers:
        with suppress(ProcessLookupError):
            os.kill(_picked(workers, now), signal.SIGKILL)


@fault("kill-web", weight=2)
def kill_web(world: World, now: Circumstances) -> None:
    _needs(world.shop_answers())
    world.members["web"].kill()


@fault("kill-consumer", weight=8)
def kill_consumer(world: World, now: Circumstances) -> None:
    _picked(world.named("consumer"), now).kill()


@fault("kill-relay", weight=4)
def kill_relay(world: World, now: Circumstances) -> None:
    world.members["relay"].kill()


@fault("kill-rpc", weight=2)
def kill_rpc(world: World, now: Circumstances) -> None:
    world.members["rpc"].kill()


@fault("restart-something", weight=4)
def restart_something(world: World, now: Circumstances) -> None:
    """SIGTERM, as at a deploy."""
    _picked(list(world.members.values()), now).terminate()


@fault("freeze-web", weight=2, seconds=(0.5, 4), target="web")
def freeze_web(world: World, now: Circumstances) -> None:
    _freeze(world.members["web"], now)


@fault("freeze-consumer", weight=3, seconds=(1, 12), target="consumers")
def freeze_consumer(world: World, now: Circumstances) -> None:
    _freeze(_picked(world.named("consumer"), now), now)


@fault("freeze-relay", weight=3, seconds=(1, 12), target="relay")
def freeze_relay(world: World, now: Circumstances) -> None:
    """Beyond its lease: another relay takes its rows, and what it marks when it thaws must change nothing."""
    _freeze(world.members["relay"], now)


@fault("kill-consumers-at-work", weight=4, seconds=(1, 4), target="consumers")
def kill_consumers_at_work(world: World, now: Circumstances) -> None:
    """Freeze them until work has piled up before them, and kill them in the middle of it."""
    consumers = world.named("consumer")
    _needs(_wait(world.all_queues_have_consumers, now))
    for consumer in consumers:
        consumer.freeze()
    now.pause(now.seconds)
    for consumer in consumers:
        consumer.thaw()
    time.sleep(AT_WORK * (0.2 + 0.8 * now.pick))
    for consumer in consumers:
        consumer.kill()


# --- RabbitMQ and the way to it ----------------------------------------------------------------------------


@fault("kill-broker", weight=2, seconds=(0, 3), target="broker")
def kill_broker(world: World, now: Circumstances) -> None:
    world.keep_down("broker", now.seconds)
    world.node.kill()
    _wait(lambda: answers(world.node.port), now)


@fault("restart-broker", weight=1, seconds=(0, 3), target="broker")
def restart_broker(world: World, now: Circumstances) -> None:
    """A proper shutdown."""
    world.keep_down("broker", now.seconds)
    pid = world.node.pid
    if pid is not None:
        signal_owned(pid, world.node.directory, signal.SIGTERM)
        gone_within(pid, world.node.directory, BOOT_PATIENCE)
    _wait(lambda: answers(world.node.port), now)


@fault("freeze-broker", weight=3, seconds=(1, 8), target="broker")
def freeze_broker(world: World, now: Circumstances) -> None:
    world.node.pause()
    try:
        now.pause(now.seconds)
    finally:
        world.node.resume()


@fault("freeze-and-kill-broker", weight=1, seconds=(1, 3), target="broker")
def freeze_and_kill_broker(world: World, now: Circumstances) -> None:
    """What was sent to it meanwhile is gone, and nobody was told."""
    world.node.pause()
    _wait_for_orders(now)
    now.pause(now.seconds)
    world.node.kill()
    _wait(lambda: answers(world.node.port), now)


@fault("memory-alarm", weight=2, seconds=(2, 8), target="broker")
def memory_alarm(world: World, now: Circumstances) -> None:
    with world.node.memory_alarm():
        now.pause(now.seconds)


@fault("close-connections", weight=3, target="broker")
def close_connections(world: World, now: Circumstances) -> None:
    world.node.ctl("close_all_connections", "chaos")


@fault("cut-broker-line", weight=5, target="broker")
def cut_broker_line(world: World, now: Circumstances) -> None:
    world.broker_line.cut()


@fault("refuse-broker-line", weight=2, seconds=(1, 5), target="broker")
def refuse_broker_line(world: World, now: Circumstances) -> None:
    world.broker_line.refuse()
    try:
        now.pause(now.seconds)
    finally:
        world.broker_line.heal()


@fault("stall-broker-line", weight=3, seconds=(1, 12), target="broker")
def stall_broker_line(world: World, now: Circumstances) -> None:
    world.broker_line.stall()
    try:
        now.pause(now.seconds)
    finally:
        world.broker_line.heal()


@fault("copy-messages", weight=4)
def copy_messages(world: World, now: Circumstances) -> None:
    """Put copies of the newest published messages into the queues of their consumers."""
    from django.db import DatabaseError, connections

    from messaging import consumers
    from messaging.broker.properties import to_pika
    from messaging.models import OutboxMessage
    from messaging.relay.destinations import publishing_of

    _needs(answers(world.node.port))
    try:
        newest = OutboxMessage.objects.filter(state=OutboxMessage.State.PUBLISHED, consumer="").order_by("-pk")
        rows = list(newest[:COPIED])
    except DatabaseError as error:
        raise ServiceError(str(error)) from error
    finally:
        connections.close_all()
    with connect(world.node.url(VHOST)) as connection:
        channel = connection.channel()
        for row in rows:
            message = publishing_of(row).message
            for consumer in consumers.registered():
                for _ in range(COPIES if consumer.wants(row.type) else 0):
                    channel.basic_publish("", consumer.queue, message.body, to_pika(message))
        channel.close()


# --- RabbitMQ, in ways that lose what it holds -------------------------------------------------------------


@fault("purge-queues", weight=2, target="broker", loses=True)
def purge_queues(world: World, now: Circumstances) -> None:
    """By a person, at the worst moment: while no consumer runs, and work has piled up."""
    consumers = world.named("consumer")
    for consumer in consumers:
        consumer.held_down = True
        consumer.kill()
    try:
        _wait_for_orders(now)
        _wait(lambda: bool(world.queued()), now)
        for queue in QUEUES:
            world.node.ctl("purge_queue", "-p", VHOST, queue)
    finally:
        for consumer in consumers:
            consumer.held_down = False


@fault("delete-queues", weight=2, target="broker", loses=True)
def delete_queues(world: World, now: Circumstances) -> None:
    for queue in QUEUES:
        world.node.ctl("delete_queue", "-p", VHOST, queue)


@fault("wipe-broker", weight=1, target="broker", loses=True)
def wipe_broker(world: World, now: Circumstances) -> None:
    """Its disk is gone."""
    world.wipe_broker()
    _wait(lambda: answers(world.node.port), now)


# --- The database ------------------------------------------------------------------------------------------


@fault("lock-database", weight=3, seconds=(0.5, 4), target="database")
def lock_database(world: World, now: Circumstances) -> None:
    with world.database.locked():
        now.pause(now.seconds)


@fault("crash-database", weight=2, seconds=(0, 2), target="database", database="postgresql")
def crash_database(world: World, now: Circumstances) -> None:
    """An immediate shutdown, as a crash: every transaction under way is gone, and the log is played back."""
    cluster = world.database.cluster
    if cluster is not None and cluster.pid is not None:
        world.keep_down("database", now.seconds)
        signal_owned(cluster.pid, cluster.directory, signal.SIGQUIT)
        now.pause(now.seconds)
        _wait(lambda: answers(urlsplit(cluster.url).port or 0), now)


@fault("end-database-sessions", weight=3, target="database", database="postgresql")
def end_database_sessions(world: World, now: Circumstances) -> None:
    world.database.end_sessions()


@fault("cut-database-line", weight=3, target="database", database="postgresql")
def cut_database_line(world: World, now: Circumstances) -> None:
    """Whoever was committing does not know what came of it."""
    if world.database.line is not None:
        world.database.line.cut()


@fault("stall-database-line", weight=2, seconds=(0.5, 4), target="database", database="postgresql")
def stall_database_line(world: World, now: Circumstances) -> None:
    line = world.database.line
    if line is not None:
        line.stall()
        try:
            now.pause(now.seconds)
        finally:
            line.heal()


# --- The SMS gateway ---------------------------------------------------------------------------------------


@fault("gateway-misbehaves", weight=8, seconds=(3, 10), target="gateway")
def gateway_misbehaves(world: World, now: Circumstances) -> None:
    # One that says "not sent", and sends it afterwards, can be outwitted by nobody who has only its word.
    all_but_lies = [fault for fault in PASSING if fault is not GatewayFault.SEND_LATE]
    faults = all_but_lies if world.gateway.can_be_asked and not world.gateway.honours_keys else PASSING
    seed = int(now.pick * 1_000_000)
    world.gateway.misbehave_at_random(faults, chance=GATEWAY_CHANCE, seed=seed, seconds=GATEWAY_DELAY)
    try:
        now.pause(now.seconds)
    finally:
        world.gateway.behave()


@fault("kill-gateway", weight=2, seconds=(0, 3), target="gateway")
def kill_gateway(world: World, now: Circumstances) -> None:
    world.keep_down("gateway", now.seconds)
    world.gateway.kill()


@fault("freeze-gateway", weight=2, seconds=(1, 6), target="gateway")
def freeze_gateway(world: World, now: Circumstances) -> None:
    world.gateway.pause()
    try:
        now.pause(now.seconds)
    finally:
        world.gateway.resume()


#: The names of those that throw messages away.
LOSING = frozenset(name for name, each in FAULTS.items() if each.loses)


# --- How -------------------------------------------------------------------------------------------------


def _needs(condition: bool) -> None:
    """Raises `ServiceError` where there is nothing to break: to kill again what still boots would only keep it away."""
    if not condition:
        raise ServiceError("it is broken already")


def _picked(choices: Sequence[Choice], now: Circumstances) -> Choice:
    return choices[int(now.pick * len(choices))]


def _freeze(member: Program, now: Circumstances) -> None:
    _needs(member.freeze())
    try:
        now.pause(now.seconds)
    finally:
        member.thaw()


def _wait_for_orders(now: Circumstances) -> None:
    """Wait until some more orders were committed, so that something is under way."""
    from django.db import DatabaseError, connections

    from orders.models import Order

    try:
        goal = Order.objects.count() + SOME_ORDERS
        _wait(lambda: Order.objects.count() >= goal, now, ORDER_PATIENCE)
    except DatabaseError:
        return  # it is being broken as well
    finally:
        connections.close_all()


def _wait(condition: Callable[[], bool], now: Circumstances, patience: float = BOOT_PATIENCE) -> bool:
    """Wait for what is about to come back; False if it does not, or everything is to be healed before."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline or now.pause(0.2):
            return False
    return True
