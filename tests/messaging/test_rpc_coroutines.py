"""Calls from coroutines, without a broker."""

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from messaging import rpc


def test_a_call_from_a_coroutine_ends_in_its_time_though_every_thread_of_the_event_loop_is_busy(settings: Any) -> None:
    release = threading.Event()

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, release.wait)
        try:
            with pytest.raises(rpc.NoBroker):
                await asyncio.wait_for(rpc.acall("fib", 3, timeout=0.2), 10)
        finally:
            release.set()
            await busy

    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": [f"amqp://127.0.0.1:{silent.getsockname()[1]}/"]}
        asyncio.run(ask())
