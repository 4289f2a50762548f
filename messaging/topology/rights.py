"""Rights: an account that may enter the virtual host, and do nothing there."""

from __future__ import annotations

from messaging import conf, consumers
from messaging.broker.connection import Connection
from messaging.broker.declaring import may_declare, may_read, may_write
from messaging.topology import desired


def without_any_right(connection: Connection) -> str:
    """Return in words that this process's account may neither declare, nor publish, nor consume what the project uses;
    empty where it may do one of these.

    An account of one role has the rights of that role alone, so less than all is no fault. Raises BrokerUnavailable.
    """
    wanted = desired.topology(consumers.registered())
    for exchange in wanted.exchanges:
        if may_declare(connection, exchange.name, exchange.type) or may_write(connection, exchange.name):
            return ""
    if not wanted.exchanges or any(may_read(connection, queue.name) for queue in wanted.queues):
        return ""
    broker = conf.get().brokers[0]
    return (
        f"user {connection.user} may neither declare, publish nor consume what this project uses in the virtual host "
        f"{broker.vhost!r}: `manage.py mq grants` prints the rights to give"
    )
