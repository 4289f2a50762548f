"""Whether a management API belongs to the broker that an AMQP connection leads to.

By default it is looked for at the usual port of the broker's host, where another broker may answer.
"""

from __future__ import annotations

import time

from messaging.broker.connection import Connection
from messaging.broker.management import Management, ManagementUnavailable
from messaging.exceptions import OperationRefused

#: Seconds for which a node of a cluster may not know yet what was declared at another one.
NEWS_TRAVEL = 1.0
#: Seconds after which the management API knows a connection: it collects them every five.
CONNECTIONS_TRAVEL = 7.0
#: Seconds between two looks.
LOOK_EVERY = 0.2


def check_same_broker(management: Management, connection: Connection) -> None:
    """Raise ManagementUnavailable where it is another broker's, or does not answer.

    Clusters have names, but two brokers may have the same: by default it is made of the host's name. Then a queue of
    this connection's own shows it, which only the same broker knows; where this account may declare none, the
    connection itself. Neither depends on ports, which proxies change.
    """
    name = str(management.overview().get("cluster_name") or "")
    if name and connection.cluster and name != connection.cluster:
        raise ManagementUnavailable(
            f"{management.address} is the management API of another broker, {name}; AMQP_URL leads to "
            f"{connection.cluster} (set AMQP_MANAGEMENT_URL)"
        )
    if not _knows(management, connection):
        raise ManagementUnavailable(
            f"{management.address} is the management API of another broker: it does not know the connection by "
            "AMQP_URL (set AMQP_MANAGEMENT_URL)"
        )


def _knows(management: Management, connection: Connection) -> bool:
    try:
        arguments = {"x-queue-type": "classic"}
        declared = connection.call("queue_declare", queue="", exclusive=True, auto_delete=True, arguments=arguments)
    except OperationRefused:
        return _knows_connection(management, connection)
    queue = declared.queue
    try:
        deadline = time.monotonic() + NEWS_TRAVEL
        while not (known := management.knows_queue(queue)) and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY)
        return known
    finally:
        connection.call("queue_delete", queue=queue)


def _knows_connection(management: Management, connection: Connection) -> bool:
    if not management.shows_connections_of(connection.user):
        return True  # it cannot be told, and nothing speaks against it
    deadline = time.monotonic() + CONNECTIONS_TRAVEL
    while True:
        names = [(each.get("client_properties") or {}).get("connection_name") for each in management.connections()]
        if connection.name in names:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_EVERY)
