"""How many calls a second does one process make, of 500 bytes there and back: one caller here, 50 in `rpc_many`?

Warren's callers are threads, FastStream's are coroutines: each calls again once it has its reply. Celery and nameko
send a call for each caller at once, collect the replies, and begin anew: that is quicker for them. The limit is a
client and a server in C, of one thread each, with a call open for each caller; they do on the broker what Warren does.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from benchmarks.harness.benchmark import Benchmark, Variant
from benchmarks.harness.clients import c_program, is_consumed, manage, running
from benchmarks.harness.window import Measured, Window, percentiles, require, wait_for

TEXT = "x" * 500
WARM_UP = 20


def warren(callers: int, count: int) -> Measured:
    """Call from threads; `run_rpc_worker` answers."""
    from messaging import rpc

    def call() -> str:
        return str(rpc.call("echo", {"text": TEXT}, timeout=30))

    with running(*manage("run_rpc_worker", "echo")), ThreadPoolExecutor(callers) as pool:
        wait_for(lambda: is_consumed("rpc.echo"), every=0.2)
        for _ in range(WARM_UP):
            call()
        window, seconds = Window(), []
        window.start()
        for each in pool.map(lambda _: _timed(call), range(count)):
            seconds.append(each)
        window.stop()
        return _measured(window, seconds)


def c(callers: int, count: int) -> Measured:
    """Call from C; a second process answers."""
    with running(*c_program("rpc", "serve", "limit", callers)):
        wait_for(lambda: is_consumed("limit"), every=0.1)
        window = Window()
        window.start()
        command = c_program("rpc", "call", "limit", count, callers, TEXT)
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        window.stop()
    figures, *each = done.stdout.splitlines()
    seconds, cpu = map(float, figures.split())
    require(count, len(each), "replies")
    return window.measured(count, seconds=seconds, client=cpu, more=percentiles(list(map(float, each))))


def faststream(callers: int, count: int) -> Measured:
    """Call from coroutines."""
    with running(sys.executable, "-m", "benchmarks.shop.answering"):
        wait_for(lambda: is_consumed("faststream.echo"), every=0.2)
        return asyncio.run(_faststream(callers, count))


async def _faststream(callers: int, count: int) -> Measured:
    from faststream.rabbit import RabbitBroker

    async with RabbitBroker(os.environ["AMQP_URL"]) as broker:
        seconds: list[float] = []

        async def caller(calls: int) -> None:
            for _ in range(calls):
                start = time.perf_counter()
                reply = await broker.request(TEXT, "faststream.echo", timeout=60)
                require(len(TEXT), len(await reply.decode()), "bytes of the reply")
                seconds.append(time.perf_counter() - start)

        await caller(WARM_UP)
        seconds.clear()
        window = Window()
        window.start()
        await asyncio.gather(*(caller(count // callers) for _ in range(callers)))
        window.stop()
    return _measured(window, seconds)


def nameko(callers: int, count: int) -> Measured:
    """Call through a standalone proxy."""
    from nameko.standalone.rpc import ClusterRpcProxy

    url = os.environ["AMQP_URL"]
    service = (sys.executable, "-m", "nameko", "run", "--broker", url, "benchmarks.shop.answering")
    with running(*service):
        wait_for(lambda: is_consumed("rpc-echo"), every=0.2)
        with ClusterRpcProxy({"AMQP_URI": url}, timeout=60) as proxy:
            return _bursts(callers, count, lambda: partial(proxy.echo.echo.call_async(TEXT).result))


def celery(callers: int, count: int) -> Measured:
    """Send tasks and get their results by the backend `rpc://`."""
    from benchmarks.shop.celery import echo

    options = ("--pool=solo", "--without-gossip", "--without-mingle", "--without-heartbeat")
    with running(sys.executable, "-m", "celery", "-A", "benchmarks.shop.celery", "worker", *options):
        return _bursts(callers, count, lambda: partial(echo.apply_async((TEXT,)).get, timeout=60))


def _bursts(callers: int, count: int, send: Callable[[], Callable[[], Any]]) -> Measured:
    """Send a call for each caller, then wait for all replies; again and again."""
    for _ in range(WARM_UP):
        send()()
    seconds: list[float] = []
    window = Window()
    window.start()
    for _ in range(count // callers):
        start = time.perf_counter()
        for reply in [send() for _ in range(callers)]:
            require(len(TEXT), len(reply()), "bytes of the reply")
            seconds.append(time.perf_counter() - start)
    window.stop()
    return _measured(window, seconds)


def _timed(call: Callable[[], str]) -> float:
    start = time.perf_counter()
    require(len(TEXT), len(call()), "bytes of the reply")
    return time.perf_counter() - start


def _measured(window: Window, seconds: list[float]) -> Measured:
    return window.measured(len(seconds), more=percentiles(seconds))


def benchmark(callers: int, count: int) -> Benchmark:
    """Return the benchmark for so many callers."""
    variants = {"C": c, "Celery": celery, "FastStream": faststream, "nameko": nameko, "Warren": warren}
    return Benchmark(
        question=f"RPC: calls of 500 bytes, callers: {callers}",
        unit="calls",
        reference="Celery",
        count=count,
        quick_count=count // 8,
        minutes=3,
        variants=tuple(
            Variant(name, partial(run, callers), environment={"BENCH_TUNED": "1"}, warren=name == "Warren")
            for name, run in variants.items()
        ),
    )


BENCHMARK = benchmark(1, 2_500)
