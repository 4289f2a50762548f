"""The faults of script/chaos, by target."""

import os
import signal
import time
from contextlib import suppress
from urllib.parse import urlsplit

from script.programs.chaos.faults import Circumstances, Lasting, fault, needs, picked, wait, wait_for_orders
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
#: Share of requests that a misbehaving gateway spoils, and the longest delay of one.
GATEWAY_CHANCE = 0.5
GATEWAY_DELAY = 3.0
#: Seconds that a message may take from the queue to its end. A thawed process is killed within them.
AT_WORK = 0.15


# --- The product's processes -------------------------------------------------------------------------------


@fault("kill-web-worker", weight=6)
def kill_web_worker(world: World, now: Circumstances) -> None:
    needs(world.shop_answers())
    workers = world.members["web"].children
    if workers:
        with suppress(ProcessLookupError):
            os.kill(picked(workers, now), signal.SIGKILL)


@fault("kill-web", weight=2)
def kill_web(world: World, now: Circumstances) -> None:
    needs(world.shop_answers())
    world.members["web"].kill()


@fault("kill-consumer", weight=8)
def kill_consumer(world: World, now: Circumstances) -> None:
    picked(world.named("consumer"), now).kill()


@fault("kill-relay", weight=4)
def kill_relay(world: World, now: Circumstances) -> None:
    world.members["relay"].kill()


@fault("kill-rpc", weight=2)
def kill_rpc(world: World, now: Circumstances) -> None:
    world.members["rpc"].kill()


@fault("restart-something", weight=4)
def restart_something(world: World, now: Circumstances) -> None:
    """SIGTERM, as at a deploy."""
    picked(list(world.members.values()), now).terminate()


@fault("freeze-web", weight=2, seconds=(0.5, 4), target="web")
def freeze_web(world: World, now: Circumstances) -> Lasting:
    yield from _freeze(world.members["web"])


@fault("freeze-consumer", weight=3, seconds=(1, 12), target="consumers")
def freeze_consumer(world: World, now: Circumstances) -> Lasting:
    yield from _freeze(picked(world.named("consumer"), now))


@fault("freeze-relay", weight=3, seconds=(1, 12), target="relay")
def freeze_relay(world: World, now: Circumstances) -> Lasting:
    """Longer than its lease: another relay takes its rows, and its late marks must change nothing."""
    yield from _freeze(world.members["relay"])


@fault("kill-consumers-at-work", weight=4, seconds=(1, 4), target="consumers")
def kill_consumers_at_work(world: World, now: Circumstances) -> None:
    """Freeze them until messages have piled up, and kill them while they handle those."""
    consumers = world.named("consumer")
    needs(wait(world.all_queues_have_consumers, now))
    for consumer in consumers:
        consumer.freeze()
    now.pause(now.seconds)
    for consumer in consumers:
        consumer.thaw()
    time.sleep(AT_WORK * (0.2 + 0.8 * now.pick))
    for consumer in consumers:
        consumer.kill()


def _freeze(member: Program) -> Lasting:
    needs(member.freeze())
    yield
    member.thaw()


# --- RabbitMQ and the way to it ----------------------------------------------------------------------------


@fault("kill-broker", weight=2, seconds=(0, 3), target="broker")
def kill_broker(world: World, now: Circumstances) -> None:
    world.keep_down("broker", now.seconds)
    world.node.kill()
    wait(lambda: answers(world.node.port), now)


@fault("restart-broker", weight=1, seconds=(0, 3), target="broker")
def restart_broker(world: World, now: Circumstances) -> None:
    """Shut it down properly."""
    world.keep_down("broker", now.seconds)
    pid = world.node.pid
    if pid is not None:
        signal_owned(pid, world.node.directory, signal.SIGTERM)
        gone_within(pid, world.node.directory, 60)
    wait(lambda: answers(world.node.port), now)


@fault("freeze-broker", weight=3, seconds=(1, 8), target="broker")
def freeze_broker(world: World, now: Circumstances) -> Lasting:
    world.node.pause()
    yield
    world.node.resume()


@fault("freeze-and-kill-broker", weight=1, seconds=(1, 3), target="broker")
def freeze_and_kill_broker(world: World, now: Circumstances) -> None:
    """What was sent to it while it was frozen is gone, and no client learns that."""
    world.node.pause()
    wait_for_orders(now)
    now.pause(now.seconds)
    world.node.kill()
    wait(lambda: answers(world.node.port), now)


@fault("memory-alarm", weight=2, seconds=(2, 8), target="broker")
def memory_alarm(world: World, now: Circumstances) -> Lasting:
    with world.node.memory_alarm():
        yield


@fault("close-connections", weight=3, target="broker")
def close_connections(world: World, now: Circumstances) -> None:
    world.node.ctl("close_all_connections", "chaos")


@fault("cut-broker-line", weight=5, target="broker")
def cut_broker_line(world: World, now: Circumstances) -> None:
    world.broker_line.cut()


@fault("refuse-broker-line", weight=2, seconds=(1, 5), target="broker")
def refuse_broker_line(world: World, now: Circumstances) -> Lasting:
    world.broker_line.refuse()
    yield
    world.broker_line.heal()


@fault("stall-broker-line", weight=3, seconds=(1, 12), target="broker")
def stall_broker_line(world: World, now: Circumstances) -> Lasting:
    world.broker_line.stall()
    yield
    world.broker_line.heal()


@fault("copy-messages", weight=4)
def copy_messages(world: World, now: Circumstances) -> None:
    """Put copies of the newest published messages into the queues of their consumers."""
    from django.db import DatabaseError, connections

    from messaging import consumers
    from messaging.broker.properties import to_pika
    from messaging.models import OutboxMessage
    from messaging.relay.destinations import publishing_of

    needs(answers(world.node.port))
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
    """As by a person at the worst moment: no consumer runs, and messages have piled up."""
    consumers = world.named("consumer")
    for consumer in consumers:
        consumer.held_down = True
        consumer.kill()
    try:
        wait_for_orders(now)
        wait(lambda: bool(world.queued()), now)
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
    """Lose its disk."""
    world.wipe_broker()
    wait(lambda: answers(world.node.port), now)


# --- The database ------------------------------------------------------------------------------------------


@fault("lock-database", weight=3, seconds=(0.5, 4), target="database")
def lock_database(world: World, now: Circumstances) -> Lasting:
    with world.database.locked():
        yield


@fault("crash-database", weight=2, seconds=(0, 2), target="database", database="postgresql")
def crash_database(world: World, now: Circumstances) -> None:
    """Shut it down at once: open transactions are gone, and it recovers from its log."""
    cluster = world.database.cluster
    if cluster is not None and cluster.pid is not None:
        world.keep_down("database", now.seconds)
        signal_owned(cluster.pid, cluster.directory, signal.SIGQUIT)
        now.pause(now.seconds)
        wait(lambda: answers(urlsplit(cluster.url).port or 0), now)


@fault("end-database-sessions", weight=3, target="database", database="postgresql")
def end_database_sessions(world: World, now: Circumstances) -> None:
    world.database.end_sessions()


@fault("cut-database-line", weight=3, target="database", database="postgresql")
def cut_database_line(world: World, now: Circumstances) -> None:
    """A client that was committing does not learn the outcome."""
    if world.database.line is not None:
        world.database.line.cut()


@fault("stall-database-line", weight=2, seconds=(0.5, 4), target="database", database="postgresql")
def stall_database_line(world: World, now: Circumstances) -> Lasting:
    if line := world.database.line:
        line.stall()
        yield
        line.heal()


# --- The SMS gateway ---------------------------------------------------------------------------------------


@fault("gateway-misbehaves", weight=8, seconds=(3, 10), target="gateway")
def gateway_misbehaves(world: World, now: Circumstances) -> Lasting:
    # No client can handle a gateway that says "not sent", and sends the text afterwards.
    all_but_lies = [fault for fault in PASSING if fault is not GatewayFault.SEND_LATE]
    faults = all_but_lies if world.gateway.can_be_asked and not world.gateway.honours_keys else PASSING
    seed = int(now.pick * 1_000_000)
    world.gateway.misbehave_at_random(faults, chance=GATEWAY_CHANCE, seed=seed, seconds=GATEWAY_DELAY)
    yield
    world.gateway.behave()


@fault("kill-gateway", weight=2, seconds=(0, 3), target="gateway")
def kill_gateway(world: World, now: Circumstances) -> None:
    world.keep_down("gateway", now.seconds)
    world.gateway.kill()


@fault("freeze-gateway", weight=2, seconds=(1, 6), target="gateway")
def freeze_gateway(world: World, now: Circumstances) -> Lasting:
    world.gateway.pause()
    yield
    world.gateway.resume()
