"""Parameters: an address that was read, as pika takes it."""

from __future__ import annotations

import pika

from messaging.validation import tls
from messaging.validation.addresses import BrokerAddress


def parameters_of(
    address: BrokerAddress, *, ca_file: str = "", cert_file: str = "", key_file: str = ""
) -> pika.ConnectionParameters:
    """Return pika's parameters for one attempt to connect to `address`, by TLS where it says so.

    The files are read anew each time: certificates are exchanged while processes run. Raises ValueError for one that
    cannot be used.
    """
    parameters = pika.ConnectionParameters(
        host=address.host,
        port=address.port,
        virtual_host=address.vhost,
        credentials=pika.PlainCredentials(address.user, address.password),
        connection_attempts=1,
    )
    if address.tls:
        context = tls.context(ca_file, cert_file, key_file)
        parameters.ssl_options = pika.SSLOptions(context, server_hostname=address.host)
    if address.heartbeat is not None:
        parameters.heartbeat = address.heartbeat
    if address.frame_max is not None:
        parameters.frame_max = address.frame_max
    if address.channel_max is not None:
        parameters.channel_max = address.channel_max
    return parameters
