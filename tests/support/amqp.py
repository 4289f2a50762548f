"""A plain client, by which tests look into the broker and change it without Warren."""

from collections.abc import Iterator
from contextlib import contextmanager

import pika
from pika.adapters.blocking_connection import BlockingChannel

from messaging.broker.properties import to_pika
from messaging.message import Message
from messaging.models import OutboxMessage
from messaging.relay.destinations import publishing_of
from messaging.validation.addresses import broker_address
from script.services.rabbitmq import RabbitMQNode


@contextmanager
def plain_channel(url: str, *, confirms: bool = True) -> Iterator[BlockingChannel]:
    """A channel of a blocking connection to `url`, in confirm mode unless told otherwise."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = connection.channel()
        if confirms:
            channel.confirm_delivery()
        yield channel
    finally:
        if connection.is_open:
            connection.close()


def send(url: str, queue: str, *messages: Message) -> None:
    """Put messages into one queue."""
    with plain_channel(url) as channel:
        for message in messages:
            channel.basic_publish("", queue, message.body, to_pika(message), mandatory=True)


def deliver(url: str, queue: str, row: OutboxMessage, *, copies: int = 1) -> None:
    """Put the message of an outbox row into one queue, as the relay would, `copies` times."""
    send(url, queue, *[publishing_of(row).message] * copies)


def queue_length(url: str, queue: str) -> int:
    """How many messages wait in a queue, those with consumers not counted."""
    with plain_channel(url) as channel:
        return channel.queue_declare(queue, passive=True).method.message_count


def messages_left(node: RabbitMQNode, url: str) -> dict[str, int]:
    """The queues that hold messages, waiting or with consumers, and how many, as the broker last counted."""
    vhost = broker_address(url).vhost
    lines = node.ctl("list_queues", "-q", "-p", vhost, "name", "messages").splitlines()
    counts = [line.split("\t") for line in lines if "\t" in line]
    # It counts each queue by itself, and one whose process does not answer not at all.
    return {name: int(count or -1) for name, count in counts if name != "name" and count != "0"}


def unacknowledged(node: RabbitMQNode, url: str, queue: str) -> int:
    """How many messages of the queue are with consumers, as the broker last counted."""
    vhost = broker_address(url).vhost
    lines = node.ctl("list_queues", "-q", "-p", vhost, "name", "messages_unacknowledged").splitlines()
    counts = dict(line.split("\t") for line in lines if "\t" in line)
    return int(counts[queue]) if counts.get(queue, "").isdigit() else 0
