"""A plain AMQP client, for a look at a broker."""

import logging
import os

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPError

from messaging.broker.errors import describe
from messaging.broker.wire import parameters_of
from messaging.validation.addresses import broker_address, hidden
from script.services.owned import ServiceError

#: Seconds that connecting may take.
CONNECT_TIMEOUT = 5

# It reports every failed attempt by itself; we say it once.
logging.getLogger("pika").setLevel(logging.CRITICAL)


def connect(addresses: str) -> pika.BlockingConnection:
    """Connect to the first of some AMQP addresses, separated by commas, that accepts us.

    Raises `ServiceError` with each address, without its password, and why not.
    """
    reasons = []
    for text in filter(None, (part.strip() for part in addresses.split(","))):
        try:
            address = broker_address(text)
        except ValueError as error:
            raise ServiceError(str(error), exit_code=2) from None
        parameters = parameters_of(address, **_tls_files())
        parameters.socket_timeout = parameters.stack_timeout = CONNECT_TIMEOUT
        try:
            return pika.BlockingConnection(parameters)
        except (AMQPError, AMQPConnectorException, OSError) as error:  # the second: no answer in time
            shown = hidden(text) if "@" in text else text
            reasons.append(f"{shown}: {describe(error, address)}")
    told = "; ".join(reasons)
    raise ServiceError(f"The broker in AMQP_URL cannot be reached. {told}. Unset AMQP_URL to use a private RabbitMQ.")


def _tls_files() -> dict[str, str]:
    return {name: os.environ.get(f"AMQP_TLS_{name.upper()}", "") for name in ("ca_file", "cert_file", "key_file")}


def consumer_count(connection: pika.BlockingConnection, queue: str) -> int:
    """How many consumers listen on a queue; 0 if it does not exist."""
    channel = connection.channel()
    try:
        count: int = channel.queue_declare(queue, passive=True).method.consumer_count
        channel.close()
    except AMQPError:  # a queue that is not there closes the channel
        return 0
    return count
