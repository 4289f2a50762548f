"""The database dies, freezes, is locked, full or set back; nothing is half done, nothing is given up for it."""

import os
import resource
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connection, connections
from django.db.models import F
from django.utils import timezone

from messaging.models import InboxMessage, OutboxMessage
from messaging.reconcile.findings import Trouble
from messaging.reconcile.reconcile import reconcile
from orders.models import Order, Product, RedPacket, TextMessage
from script.services.postgresql import PostgreSQLCluster
from tests.faults import notebook
from tests.faults.shop import (
    CONSUMING,
    SOON,
    Shop,
    assert_each_once,
    environment,
    everything_arrived,
    open_shop,
    place,
    shop_at_work,
    situation,
)
from tests.support import failpoints
from tests.support.amqp import queue_length
from tests.support.consuming import Noted, notes, outcomes_of_attempts
from tests.support.environment import database_url
from tests.support.processes import ProcessStarter
from tests.support.repeats import repeats
from tests.support.running import InThread, add, running_relay
from tests.support.waiting import eventually, seconds_pass

ANN = {"name": "Ann Shopper", "phone": "13800138000"}
ON_POSTGRESQL = pytest.mark.only_on("postgresql")
ON_SQLITE = pytest.mark.only_on("sqlite")


@pytest.fixture(autouse=True)
def impatience(request: pytest.FixtureRequest, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test itself runs is as impatient as the processes are."""
    request.getfixturevalue("vhost")
    failpoints.lower(settings, monkeypatch, **SOON)


def assert_no_attempt_was_counted() -> None:
    """Each message was handled at its first attempt: the database's faults are not the message's."""
    assert set(outcomes_of_attempts()) == {(1, "handled")}


def assert_refused_properly(shop: Shop) -> None:
    """Each refusal is a 503, which says when to try again."""
    assert [refusal for refusal in shop.refused if "503" not in refusal] == []


# --- Killed and started again ------------------------------------------------------------------------------


@ON_POSTGRESQL
def test_a_database_killed_under_load_and_started_again_costs_no_message_and_no_attempt(
    breakable_database: PostgreSQLCluster, run_process: ProcessStarter, product: Product
) -> None:
    """F41. When one session is killed, PostgreSQL ends all others and replays its log."""
    shop = open_shop(run_process, product.slug)
    with shop.shopping():
        for _ in repeats(short=1):
            shop.bought(4)
            os.kill(any_session(), signal.SIGKILL)
            shop.bought(2)
            breakable_database.kill()
            shop.refuses(2)
            breakable_database.start()
            shop.bought(2)
    connections.close_all()
    shop.assert_promises_are_kept()
    assert_refused_properly(shop)
    assert_no_attempt_was_counted()
    assert all(process.is_alive for process in shop.processes)


def any_session() -> int:
    """The process of a session of the database that is not the test's own."""
    connections.close_all()
    with closing(psycopg.connect(database_url())) as looking:
        found = looking.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "ORDER BY query_start DESC LIMIT 1"
        ).fetchone()
    assert found
    return int(found[0])


# --- Frozen, locked ----------------------------------------------------------------------------------------


@ON_POSTGRESQL
def test_a_frozen_database_stops_no_heartbeat_and_everything_arrives_when_it_thaws(
    breakable_database: PostgreSQLCluster, run_process: ProcessStarter, product: Product
) -> None:
    """F42. RabbitMQ ends a connection that is silent for two of its heartbeats."""
    shop = open_shop(run_process, product.slug, **environment(HEARTBEAT=1))
    with shop.shopping():
        shop.bought(3)
        breakable_database.pause()
        seconds_pass(3.5)
        breakable_database.resume()
        shop.bought(3)
    shop.assert_everything_arrives_once()
    shop.assert_unharmed(slowest=60)
    assert not any("amqp.lost" in process.output for process in shop.processes)
    assert_no_attempt_was_counted()


def test_a_locked_table_is_waited_for_and_at_last_orders_are_refused_properly_and_no_message_fails(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    """F43: the outbox on PostgreSQL, the whole database on SQLite."""
    shop = open_shop(run_process, product.slug, **environment(impatient_with_locks))
    with shop.shopping():
        shop.bought(2)
        with locked():
            seconds_pass(1)
        shop.bought(2)
    shop.assert_unharmed(slowest=60)
    shopper, checkout = shop.visitor()
    with locked():
        page = shopper.press_button(checkout, **ANN)
        assert page.status == 503
        assert "you pay only once" in page.text
    assert Order.objects.count() == len(shop.numbers)
    shop.numbers.append(shopper.place_order(page))
    shop.assert_everything_arrives_once()
    assert_no_attempt_was_counted()


def impatient_with_locks() -> None:
    """In a process: wait three seconds for a lock at most."""
    options = connections.settings["default"]["OPTIONS"]
    if connection.vendor == "sqlite":
        options["timeout"] = 3
    else:
        options["options"] = "-c lock_timeout=3000"


@contextmanager
def locked() -> Iterator[None]:
    """Inside, another session holds a lock that every order needs."""
    if connection.vendor == "sqlite":
        with closing(sqlite3.connect(connection.settings_dict["NAME"], timeout=20, isolation_level=None)) as holding:
            holding.execute("BEGIN EXCLUSIVE")
            yield
            holding.execute("ROLLBACK")
    else:
        with closing(psycopg.connect(database_url())) as holding:
            holding.execute(f"LOCK TABLE {OutboxMessage._meta.db_table} IN ACCESS EXCLUSIVE MODE")
            yield
            holding.rollback()


@ON_SQLITE
def test_four_shoppers_four_consumers_and_a_relay_share_sqlites_one_writer(
    vhost: str, run_process: ProcessStarter, product: Product, caplog: pytest.LogCaptureFixture
) -> None:
    """F44."""
    shop = open_shop(run_process, product.slug, RELAY_THREAD="0")
    shop.consumers.append(run_process("run_consumer", "sms", "red_packet", RELAY_THREAD="0", **environment()))
    shop.consumers[1].wait_for_line(CONSUMING, 30)
    with running_relay():
        shoppers = [InThread(lambda: [shop.buy() for _ in repeats(short=4, full=250)], "shopper") for _ in range(4)]
        for shopper in shoppers:
            shopper.join(600)
        shop.assert_everything_arrives_once()
    shop.assert_unharmed(slowest=20)
    assert not any("database is locked" in said for said in [caplog.text, *(each.output for each in shop.processes)])
    assert_no_attempt_was_counted()


# --- Full --------------------------------------------------------------------------------------------------


@ON_SQLITE
def test_a_full_disk_refuses_orders_properly_and_acknowledges_nothing(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    """F45. No file may grow: each write of SQLite's fails, as it does on a full disk."""
    shop = open_shop(run_process, product.slug)
    shopper, checkout = shop.visitor()
    pids = [shop.consumers[0].pid, *children(shop.web.pid)]
    with no_room_for(pids):
        page = shopper.press_button(checkout, **ANN)
        assert page.status == 503
        shop.numbers.append(place(product).number)
        with running_relay():
            eventually(lambda: not OutboxMessage.objects.exclude(state="published").exists())
        shop.consumers[0].wait_for_line("consumer.database_away", 30)
        assert not InboxMessage.objects.exists()
    assert Order.objects.count() == 1
    shop.numbers.append(shopper.place_order(page))
    shop.assert_everything_arrives_once()
    assert_no_attempt_was_counted()


@contextmanager
def no_room_for(pids: list[int]) -> Iterator[None]:
    """Inside, these processes cannot write to any file."""
    before = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids}
    for pid, (_, hard) in before.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        for pid, limits in before.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@ON_POSTGRESQL
def test_a_database_that_turns_read_only_refuses_orders_properly_and_acknowledges_nothing(
    breakable_database: PostgreSQLCluster, run_process: ProcessStarter, product: Product
) -> None:
    """F45, as hosted PostgreSQL does it before its disk is full."""
    shop = open_shop(run_process, product.slug, RELAY_THREAD="0")
    shop.consumers[0].send(signal.SIGSTOP)  # so that its message is still to be handled then
    with running_relay():
        shop.buy()
        eventually(lambda: OutboxMessage.objects.get().state == "published", 60, report=situation)
        shopper, checkout = shop.visitor()
        with read_only():
            shop.consumers[0].send(signal.SIGCONT)
            assert shopper.press_button(checkout, **ANN).status == 503
            shop.consumers[0].wait_for_line("consumer.database_away", 30)
            assert not InboxMessage.objects.exists()
        assert Order.objects.count() == 1
        shop.numbers.append(shopper.place_order(checkout))
        shop.assert_everything_arrives_once()
    assert_no_attempt_was_counted()


@contextmanager
def read_only() -> Iterator[None]:
    """Inside, the server takes no writes."""
    with closing(psycopg.connect(database_url(), autocommit=True)) as operator:
        operator.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        operator.execute("SELECT pg_reload_conf()")
        # All connections are told at the same time; each heeds it before its next command.
        eventually(lambda: operator.execute("SHOW default_transaction_read_only").fetchone() == ("on",))
        try:
            yield
        finally:
            operator.execute("ALTER SYSTEM RESET default_transaction_read_only")
            operator.execute("SELECT pg_reload_conf()")


# --- Set back ----------------------------------------------------------------------------------------------


def test_after_an_older_backup_effects_follow_the_database_and_what_it_misses_is_found(
    request: pytest.FixtureRequest, vhost: str, product: Product, settings: Any, tmp_path: Path
) -> None:
    """F46. Orders that vanished get no effects; messages handled after the backup are handled again, once."""
    settings.MESSAGING = {**settings.MESSAGING, "RECONCILE_AFTER": 0.001}
    with shop_at_work():
        early = [place(product) for _ in range(2)]
        eventually(everything_arrived, report=situation)
    waiting = place(product)
    with running_relay():
        eventually(lambda: OutboxMessage.objects.get(subject=waiting.number).state == "published")

    restore = backed_up(tmp_path)
    with shop_at_work():
        vanished = [place(product) for _ in range(3)]
        eventually(everything_arrived, report=situation)
    on_its_way = place(product)
    with running_relay():
        eventually(lambda: OutboxMessage.objects.get(subject=on_its_way.number).state == "published")
    restore()

    assert set(Order.objects.values_list("number", flat=True)) == {order.number for order in [*early, waiting]}
    with shop_at_work():
        eventually(lambda: InboxMessage.objects.filter(state="dead").count() == 2)
        eventually(lambda: not queue_length(vhost, "orders.sms") + queue_length(vhost, "orders.red_packet"))
        lost = eventually(lambda: reconcile(repair=True, by="test").of(Trouble.LOST))
        assert {(finding.subject, finding.consumer) for finding in lost} <= {
            (waiting.number, "sms"), (waiting.number, "red_packet")
        }  # fmt: skip
        eventually(lambda: InboxMessage.objects.filter(subject=waiting.number, state="handled").count() == 2)
        later = place(product)
        eventually(lambda: TextMessage.objects.filter(order=later).exists())
        eventually(everything_arrived_but_for_the_dead, report=situation)

    dead = InboxMessage.objects.filter(state="dead")
    assert {row.reason for row in dead} == {f"There is no order {on_its_way.number}."}
    dead.delete()
    assert_each_once()
    assert Order.objects.count() == 4
    assert not TextMessage.objects.filter(body__contains=vanished[0].number).exists()
    assert RedPacket.objects.count() <= 4


def everything_arrived_but_for_the_dead() -> bool:
    handled = InboxMessage.objects.filter(state="handled").count()
    return handled == 2 * Order.objects.count() and not OutboxMessage.objects.exclude(state="published").exists()


def backed_up(directory: Path) -> Callable[[], None]:
    """Make a backup of the database, and return a function that restores it. No other session may use it."""
    connections.close_all()
    if connection.vendor == "sqlite":
        copy = directory / "backup.sqlite3"
        _copy(connection.settings_dict["NAME"], copy)
        return lambda: _copy(copy, connection.settings_dict["NAME"])
    name = connection.settings_dict["NAME"]
    _in_template(f'CREATE DATABASE "{name}_backup" TEMPLATE "{name}"')

    def restore() -> None:
        connections.close_all()
        _in_template(f'DROP DATABASE "{name}" WITH (FORCE)', f'ALTER DATABASE "{name}_backup" RENAME TO "{name}"')

    return restore


def _copy(source: str | Path, target: str | Path) -> None:
    connections.close_all()
    with closing(sqlite3.connect(source)) as reading, closing(sqlite3.connect(target, timeout=20)) as writing:
        reading.backup(writing)


def _in_template(*statements: str) -> None:
    address = database_url().rpartition("/")[0] + "/postgres"
    with closing(psycopg.connect(address, autocommit=True)) as operator:
        for statement in statements:
            operator.execute(statement)


# --- The clock ---------------------------------------------------------------------------------------------


def clock_that_jumps_at_a_signal() -> None:
    """In a process: SIGUSR1 sets the time of day a day ahead, SIGUSR2 a day back."""
    now, second, nanosecond = timezone.now, time.time, time.time_ns

    def jump(number: int, _: object) -> None:
        seconds = 86_400 if number == signal.SIGUSR1 else -86_400
        timezone.now = lambda: now() + timedelta(seconds=seconds)
        time.time = lambda: second() + seconds
        time.time_ns = lambda: nanosecond() + int(seconds * 1_000_000_000)
        print("the clock has jumped", flush=True)

    signal.signal(signal.SIGUSR1, jump)
    signal.signal(signal.SIGUSR2, jump)


def test_a_clock_that_jumps_by_a_day_makes_nothing_due_and_nothing_late(
    vhost: str, run_process: ProcessStarter
) -> None:
    """F73. The database's clock decides what is due; durations are those of a clock that does not jump."""
    process = run_process("run_consumer", "notes", **environment(notebook.opened, clock_that_jumps_at_a_signal))
    process.wait_for_line(CONSUMING, 30)
    add(Noted(text="before"))
    eventually(lambda: notes("before") == 1)
    add(Noted(text="tomorrow's"), delay=timedelta(hours=20))
    [leased] = add(Noted(text="of another relay"), delay=timedelta(hours=20))
    OutboxMessage.objects.filter(pk=leased.pk).update(publish_at=F("created_at"), lease_until=F("publish_at"))

    def assert_nothing_changes(jump: signal.Signals, times: int) -> None:
        [soon] = add(Noted(text="soon"), delay=timedelta(seconds=1))
        process.send(jump)
        eventually(lambda: process.output.count("the clock has jumped") == times)
        add(Noted(text="flaky"))
        eventually(lambda: notes("flaky") == notes("soon") == times)
        eventually(lambda: OutboxMessage.objects.get(pk=soon.pk).state == "published")
        soon.refresh_from_db()
        assert soon.published_at is not None
        assert timedelta(0) <= soon.published_at - soon.publish_at < timedelta(hours=1)

    assert_nothing_changes(signal.SIGUSR1, 1)
    assert_nothing_changes(signal.SIGUSR2, 2)
    assert (notes("tomorrow's"), notes("of another relay"), notes()) == (0, 0, 5)
    assert not InboxMessage.objects.exclude(state="handled").exists()
    assert "amqp.lost" not in process.output
    assert process.stop() == 0


@ON_POSTGRESQL
@pytest.mark.django_db
def test_a_database_that_vanishes_without_a_word_is_given_up_within_a_minute() -> None:
    """No test can pull the plug, so this asks the kernel for its limits. Its defaults are hours."""
    connection.ensure_connection()
    with socket.socket(fileno=os.dup(connection.connection.pgconn.socket)) as line:
        asked = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT]
        idle, interval, probes, unanswered = (line.getsockopt(socket.IPPROTO_TCP, which) for which in asked)
        assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert 0 < idle + interval * probes < 60
    assert 0 < unanswered < 60_000
