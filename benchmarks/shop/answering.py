"""The same procedure for FastStream and nameko. `python -m benchmarks.shop.answering` serves FastStream's."""

from __future__ import annotations

import asyncio
import os

from faststream import FastStream
from faststream.rabbit import RabbitBroker
from nameko.rpc import rpc

broker = RabbitBroker(os.environ["AMQP_URL"])


@broker.subscriber("faststream.echo")
async def echo(text: str) -> str:
    """Return what was sent."""
    return text


class Echo:
    """nameko's service."""

    name = "echo"

    @rpc
    def echo(self, text: str) -> str:
        """Return what was sent."""
        return text


if __name__ == "__main__":
    asyncio.run(FastStream(broker).run())
