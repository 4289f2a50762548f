"""What an RPC client's connection keeps of the replies that it has passed on."""

from unittest.mock import Mock

import pika
from pika import spec

from messaging.rpc.connection import RpcConnection


def test_nothing_is_kept_of_a_reply_which_is_acknowledged_as_it_arrives() -> None:
    channel, mine = Mock(is_open=True), RpcConnection()
    mine.active = True
    mine._channel_opened(channel)
    for tag in range(1, 4):
        properties = pika.BasicProperties(correlation_id=str(tag))
        mine._arrived(mine._opened, channel, spec.Basic.Deliver("replies", tag), properties, b"{}")

    assert mine.ignored_replies == 3
    assert not mine._acks._unsettled
