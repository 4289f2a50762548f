"""Consumers die at the worst moment, hang, are stopped and replaced; each message they held is handled once."""

import json
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from messaging import conf
from messaging.actions.replay import replay
from messaging.actions.selection import Selection
from messaging.message import Delivery, new_id
from messaging.models import InboxMessage, OutboxMessage
from messaging.worker import handling
from orders.models import Product
from tests.faults import notebook
from tests.faults.shop import CONSUMING, environment, open_shop
from tests.support import failpoints
from tests.support.amqp import queue_length, send
from tests.support.consuming import Noted, a_consumer, a_message, notes, outcomes_of_attempts, registered
from tests.support.processes import ProcessStarter, RunningProcess
from tests.support.repeats import repeats
from tests.support.running import RunningWorker, add, declare_queues, running_relay, running_worker, take_all
from tests.support.waiting import eventually, seconds_pass

QUEUE = "tests.notes"
#: As the processes of `reading` have it.
NOTES = a_consumer(notebook.write_down, retry=notebook.QUICKLY)


@pytest.fixture
def relay(vhost: str, transactional_db: None, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A healthy relay, and the queue of notes; only consumers die here."""
    settings.MESSAGING = {**settings.MESSAGING, "LEASE": 3, "PUBLISH_TIMEOUT": 1}
    monkeypatch.setattr(conf, "POLL_INTERVAL", 0.1)
    with registered(NOTES):
        declare_queues(NOTES)
        with running_relay():
            yield


@pytest.fixture
def reading(relay: None, run_process: ProcessStarter) -> Callable[..., RunningProcess]:
    """Starts a process that takes notes."""

    def start(
        *faults: Any, code: Any = notebook.opened, options: tuple[str, ...] = (), **messaging: Any
    ) -> RunningProcess:
        variables = environment(code, *faults, **messaging)
        return run_process("run_consumer", "notes", *options, RELAY_THREAD="0", **variables)

    return start


Reading = Callable[..., RunningProcess]


def read_the_rest() -> Counter[Any]:
    """Let a healthy worker in this process take what is left; what it did."""
    return RunningWorker([NOTES], burst=True).join(60).counts


def outcomes() -> Counter[str]:
    return Counter(InboxMessage.objects.values_list("state", flat=True))


def wait_for_notes(count: int) -> None:
    eventually(lambda: notes() >= count, 30, every=0.001)


def assert_each_note_once(texts: list[str]) -> None:
    assert {text: notes(text) for text in texts} == dict.fromkeys(texts, 1)
    assert outcomes() == {"handled": len(texts)}
    # Marks follow their publish by a moment.
    eventually(lambda: not OutboxMessage.objects.exclude(state="published").exists())


# --- Killed at the worst moment ----------------------------------------------------------------------------


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("point", "left_over"),
    # The acknowledgement of the one before may have died with the process that gave it.
    [("handled-not-committed", ["handled"]), ("committed-not-acked", ["duplicate"])],
)
def test_a_consumer_killed_around_its_commit_handles_each_message_once(
    point: str, left_over: list[str], vhost: str, reading: Reading
) -> None:
    """F54, F55. Each process dies of its first new message, behind the one that killed the process before."""
    texts = [f"m{number}" for number in repeats(short=2)]
    for text in texts:
        add(Noted(text=text))
        assert failpoints.crashed(reading(point).wait())

    counts = read_the_rest()

    assert set(left_over) <= set(counts) <= {*left_over, "duplicate"}
    assert_each_note_once(texts)
    assert queue_length(vhost, QUEUE) == 0


def test_a_consumer_killed_between_the_commit_of_a_retry_and_the_ack_retries_once(vhost: str, reading: Reading) -> None:
    """F71. The first attempt is redelivered, and is a duplicate; the second comes from the outbox."""
    texts = [f"flaky {number}" for number in repeats(short=1)]
    for text in texts:
        add(Noted(text=text))
        assert failpoints.crashed(reading("committed-not-acked").wait())

    with running_worker(NOTES):
        eventually(lambda: outcomes() == {"handled": len(texts)})
        eventually(lambda: queue_length(vhost, QUEUE) == 0)
    assert_each_note_once(texts)
    for row in InboxMessage.objects.all():
        assert outcomes_of_attempts(pk=row.pk) == [(1, "failed"), (2, "handled")]
    assert OutboxMessage.objects.count() == 2 * len(texts)


def test_consumers_killed_at_any_moment_under_load_lose_and_double_nothing(vhost: str, reading: Reading) -> None:
    """Random moments beside the chosen ones."""
    texts: list[str] = []
    for number in repeats(short=2):
        new = [f"m{number}-{place}" for place in range(60)]
        texts += new
        add(*[Noted(text=text) for text in new])
        process = reading()
        wait_for_notes(len(texts) - 40)
        process.kill()

    read_the_rest()
    assert_each_note_once(texts)


@pytest.mark.parametrize(
    ("poison", "how", "code"),
    [("abort", signal.SIGABRT, notebook.opened), ("oom", signal.SIGKILL, notebook.opened_for_batches)],
)
def test_a_message_that_kills_its_process_ends_dead_and_its_neighbours_are_handled(
    poison: str,
    how: signal.Signals,
    code: Callable[[], None],
    vhost: str,
    reading: Reading,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F72. A supervisor need only start the process again. That three counted starts are the limit is a unit test."""
    good = [f"m{number}" for number in range(20)]
    send(vhost, QUEUE, *[a_message(text) for text in [*good[:10], f"{poison} now", *good[10:]]])

    # The first delivery is not counted before it is handled, the second is.
    for _ in range(2):
        assert reading(notebook.given_up_soon, code=code, options=("--burst",)).wait() == -how
    monkeypatch.setattr(handling, "CRASH_LIMIT", 1)
    read_the_rest()

    assert {text: notes(text) for text in good} == dict.fromkeys(good, 1)
    assert notes(f"{poison} now") == 0
    dead = InboxMessage.objects.exclude(state="handled").get()
    assert (dead.state, dead.starts) == ("dead", 2)
    assert "it kills its process" in dead.reason
    assert outcomes_of_attempts(pk=dead.pk) == [(1, "crashed")]
    assert queue_length(vhost, QUEUE) == 0


# --- Handlers that take their time -------------------------------------------------------------------------


def test_a_handler_longer_than_three_heartbeats_harms_nobody(
    vhost: str, relay: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F58, for a handler that ends. RabbitMQ closes a connection after two missed heartbeats."""
    monkeypatch.setattr(conf, "HEARTBEAT", 1)

    def slow(event: Noted, delivery: Delivery) -> None:
        seconds_pass(3.5)

    send(vhost, QUEUE, a_message("slow one"))
    with running_worker(a_consumer(slow)) as worker:
        eventually(lambda: outcomes() == {"handled": 1}, 40)
        assert worker._connection.generation == 1
    assert worker.tally.counts == {"handled": 1}
    assert outcomes_of_attempts() == [(1, "handled")]


def test_a_handler_that_hangs_is_ended_retried_and_given_up_while_others_go_on(
    vhost: str, relay: None, settings: Any
) -> None:
    """F58."""
    settings.MESSAGING = {**settings.MESSAGING, "HANDLER_TIMEOUT": 0.3}
    send(vhost, QUEUE, a_message("hang on"))
    with running_worker(NOTES) as worker:
        eventually(lambda: outcomes() == {"retrying": 1}, 30)
        good = [f"m{number}" for number in range(5)]
        send(vhost, QUEUE, *[a_message(text) for text in good])
        eventually(lambda: outcomes() == {"handled": 5, "dead": 1}, 40)
        assert worker._connection.generation == 1

    assert {text: notes(text) for text in good} == dict.fromkeys(good, 1)
    assert notes("hang on") == 0
    assert "HandlerTimeout" in InboxMessage.objects.get(state="dead").reason
    assert outcomes_of_attempts(state="dead") == [(1, "failed"), (2, "failed"), (3, "failed")]


def test_a_handler_that_cannot_be_ended_ends_its_process_and_is_dead_in_the_end(
    vhost: str, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F58, where the handler waits for a lock and cannot notice. Its supervisor starts the process again."""
    send(vhost, QUEUE, a_message("stuck"), a_message("good"))

    for _ in range(2):
        consumer = reading(notebook.given_up_soon, options=("--burst",), HANDLER_TIMEOUT=0.3, HANDLER_GRACE=0.3)
        assert consumer.wait() == 1
        assert "handler.stuck" in consumer.output
        assert "in write_down" in consumer.output
    monkeypatch.setattr(handling, "CRASH_LIMIT", 1)
    read_the_rest()

    assert outcomes() == {"handled": 1, "dead": 1}
    assert (notes("good"), notes("stuck")) == (1, 0)


# --- Stopping and starting ---------------------------------------------------------------------------------


def test_sigterm_under_a_backlog_finishes_what_was_begun_and_gives_the_rest_back(vhost: str, reading: Reading) -> None:
    """F57."""
    messages = [a_message(f"m{number}") for number in range(len(repeats(short=500, full=5000)))]
    send(vhost, QUEUE, *messages)
    consumer = reading()
    wait_for_notes(20)

    # Below STOP_TIMEOUT by far: one handler's time, and not the backlog's.
    assert consumer.stop(timeout=15) == 0

    handled = Counter(InboxMessage.objects.values_list("message_id", "state"))
    left = take_all(vhost, QUEUE)
    assert set(handled) | {(properties.message_id, "handled") for properties, _ in left} == {
        (message.id, "handled") for message in messages
    }
    assert len(handled) + len(left) == len(messages)
    assert left, "it stopped in the middle"
    assert notes() == len(handled)
    assert max((properties.headers or {}).get("x-delivery-count", 0) for properties, _ in left) <= 1


def test_a_rolling_restart_and_killed_web_servers_under_load_lose_and_double_nothing(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    """SIGTERM for consumer, relay and RPC worker, each once its successor runs; SIGHUP for the web server. Then SIGKILL
    for the web server and all its workers, at any moment: what visitors were told is committed."""
    shop = open_shop(run_process, product.slug)
    shop.consumers += [run_process(command, **environment()) for command in ("run_relay", "run_rpc_worker")]
    old = list(shop.consumers)
    with shop.shopping(orders_per_second=5):
        successors = [run_process(*process.command[2:], **environment()) for process in old]
        shop.consumers += successors
        for process, successor in zip(old, successors, strict=True):
            successor.wait_for_line(CONSUMING if "run_consumer" in process.command else "amqp.connected", 30)
            assert process.stop() == 0
            shop.consumers.remove(process)
            shop.bought(3)
        shop.web.send(signal.SIGHUP)
        eventually(lambda: len(re.findall("Booting worker", shop.web.output)) == 2, 30)
        eventually(lambda: "Worker exiting" in shop.web.output, 40)
        shop.bought(5)
    shop.assert_everything_arrives_once()
    # While the new worker boots, visitors wait in the queue of the port: none is refused.
    shop.assert_unharmed(slowest=60)

    for _ in repeats(short=1):
        with shop.shopping(orders_per_second=20):
            shop.bought(5)
            shop.web.kill()
        shop.web = run_process.web(**environment())
    shop.assert_promises_are_kept()


# --- Old and new code side by side -------------------------------------------------------------------------


def test_old_and_new_code_side_by_side_handle_both_versions_of_an_event_once(vhost: str, reading: Reading) -> None:
    """During a deployment both take from one queue. What the old code, here in this process, cannot understand is dead,
    says so, and is replayed when the old code is gone."""
    older = [f"m{number}" for number in range(20)]
    newer = [f"n{number}" for number in range(20)]
    # One at a time, so that both get some.
    new = reading(code=notebook.second_edition_opened, PREFETCH=1)
    new.wait_for_line(CONSUMING)
    with running_worker(NOTES, prefetch=1):
        for first, second in zip(older, newer, strict=True):
            add(Noted(text=first))
            write_second_edition(second)
        eventually(lambda: InboxMessage.objects.count() == 40, report=lambda: new.output)
        eventually(lambda: set(outcomes()) <= {"handled", "dead"})

    dead = list(InboxMessage.objects.filter(state="dead"))
    assert dead, "the old code got none of the new events"
    assert {row.version for row in dead} == {2}
    assert all("newer than this code's 1; replay it" in row.reason for row in dead)
    assert InboxMessage.objects.filter(state="handled", version=2).exists(), "the new code got none of the new events"
    replay.run(Selection(consumer="notes"), by="ann")
    eventually(lambda: outcomes() == {"handled": 40}, report=lambda: new.output)
    assert_each_note_once([*older, *newer])


def write_second_edition(text: str) -> None:
    """Commit an event as the next release's code does."""
    OutboxMessage.objects.create(
        message_id=new_id(),
        type="test.noted",
        version=2,
        exchange="orders.events",
        routing_key="test.noted",
        body=json.dumps({"words": text, "author": "Ann"}).encode(),
    )
