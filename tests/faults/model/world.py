"""The world of the model test: processes that run the product's own code step by step, and die between any two steps.

Nothing here runs on its own: one process at a time makes one step, on the test's thread. A step passes *boundaries*
(the begin and the end of each transaction, each message sent, confirmed or acknowledged, each request to a gateway),
and at any of them the process may die. What it had in memory is then gone; the database and the broker go on.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from django.apps import apps
from django.contrib.auth.models import Group
from django.db import DatabaseError, InterfaceError, OperationalError, connection, models, transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from messaging import conf, effects, outbox
from messaging.actions.selection import Selection
from messaging.actions.settle import Decision, settle
from messaging.broker import channels, publisher
from messaging.broker import connection as connections_to_the_broker
from messaging.broker.queue_answers import QueueAnswer
from messaging.consumers import Consumer
from messaging.effects import EffectKind, Sending
from messaging.events import Event
from messaging.exceptions import BrokerUnavailable, NotDone, NotFound, Reject, RetryLater
from messaging.message import Delivery
from messaging.models import Effect, EmptyQueue, InboxMessage, OutboxMessage
from messaging.reconcile import empty_queues
from messaging.relay import declaring, flow, leases, relay
from messaging.relay import thread as relay_thread
from messaging.relay.leases import Mark
from messaging.relay.relay import Relay
from messaging.retry import RetryPolicy
from messaging.worker import consumer_threads, database_wait, dead_letters, effect_runner, ledger, service
from messaging.worker.handling import CRASH_LIMIT
from messaging.worker.ledger import AttemptResult, Claimed
from messaging.worker.worker import Worker
from tests.faults.model.broker import Broker, Copy, Link
from tests.support.consuming import look_after, registered

OPERATOR = "an operator"
#: Attempts of each consumer and effect.
ATTEMPTS = 3
RETRY = RetryPolicy(max_attempts=ATTEMPTS, first_delay=timedelta(seconds=10), jitter=0)

SETTINGS = {
    "APP_ID": "model",
    "RELAY_THREAD": True,
    # Real time: each answer comes at once here, or never.
    "PUBLISH_TIMEOUT": 0.001,
    "LEASE": 30,
}
LEASE_OVER = timedelta(seconds=31)


class Violation(AssertionError):
    """Something that must always be true is not. `invariant` is its name."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant


class Crash(BaseException):
    """The process that makes the present step is dead."""


#: What can happen in the middle of a step: its process dies; the database will not; or something else happens, and then
#: it goes on.
DIES, REFUSED, BROKEN = "it dies", "the database refuses", "the database breaks off"
MEANWHILES = (
    DIES,
    REFUSED,
    BROKEN,
    "the other publishes",
    "the other consumes",
    "the other's upkeep",
    "time passes",
    "replayed",
    "cancelled",
    "reconciled",
)


@dataclass(frozen=True)
class Fault:
    """What happens at the `at`-th boundary of a step."""

    at: int
    what: str = DIES


# --- What the processes do ---------------------------------------------------------------------------------


class Ordered(Event, type="model.ordered"):
    """Something was ordered. `nature`: what is odd about it; `effects`: which the second consumer intends."""

    number: int
    nature: str = ""
    effects: str = "keyed"


#: What can be odd about an order: nothing; its handler kills the process; the broker refuses it for its size.
NATURES = ("", "", "", "kills", "refused")
EFFECTS = ("keyed", "asked", "blind")
#: What an order may want.
WISHES = ("blind", "keyed", "asked blind", "keyed asked blind")
#: How a handler can end.
ENDINGS = ("well", "fails", "rejects", "wants it later")
#: How a gateway can answer.
ANSWERS = (
    "done",
    "never",
    "not now",
    "later",
    "done, and hangs up",
    "hangs up",
)


@dataclass(frozen=True)
class Order:
    """One event whose transaction has committed."""

    message_id: str
    event: Ordered
    key: str


class Stage:
    """Holds the current world: handlers and gateways are declared once, for all worlds."""

    world: World


def _stock(event: Ordered, delivery: Delivery) -> None:
    Stage.world.handle(event, delivery)


def _texts(event: Ordered, delivery: Delivery) -> None:
    Stage.world.handle(event, delivery)


STOCK = Consumer(name="stock", queue="model.stock", events=(Ordered,), handler=_stock, retry=RETRY, batch=3)
TEXTS = Consumer(name="texts", queue="model.texts", events=(Ordered,), handler=_texts, retry=RETRY, batch=2)
CONSUMERS = (STOCK, TEXTS)
BURIER = "dead_letters"


def _kind(name: str, **changes: Any) -> EffectKind:
    return EffectKind(name=name, send=lambda sending: Stage.world.gateways[name].send(sending), retry=RETRY, **changes)


KINDS = (
    _kind("keyed", honours_keys=lambda: True),
    _kind("asked", ask=lambda sending: Stage.world.gateways["asked"].ask(sending)),
    _kind("blind"),
)


class Gateway:
    """An outside service. It does what it is asked to, and does not always say so."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        #: How often it did each thing.
        self.done: Counter[str] = Counter()

    def send(self, sending: Sending) -> str:
        world, key = self.world, sending.key
        world.boundary("gateway")
        if self.name == "blind" and key in world.doubtful and key not in world.may_be_repeated:
            world.violated("effect twice", f"{key} may have been done, and was sent again")
        if self.name == "keyed" and self.done[key]:
            return f"done {key}"
        answer = world.answer
        if answer.startswith("done"):
            self.done[key] += 1
            if self.done[key] > 1:
                world.violated("effect twice", key)
        if answer.endswith("hangs up"):
            world.doubt({key})
            raise ConnectionResetError(answer)
        world.boundary("gateway answered")
        match answer:
            case "never":
                raise Reject(answer)
            case "not now":
                raise NotDone(answer)
            case "later":
                raise RetryLater(answer, after=timedelta(seconds=20))
        return f"done {key}"

    def ask(self, sending: Sending) -> str | None:
        self.world.boundary("gateway asked")
        return f"done {sending.key}" if self.done[sending.key] else None


# --- Processes ---------------------------------------------------------------------------------------------


class _Alive:
    """In the place of the relay's thread: the test makes its steps."""

    def is_alive(self) -> bool:
        return True

    def join(self, timeout: float) -> None:
        """Return at once: it does nothing."""


class _AtOnce:
    """In the place of an effect's thread: on the test's own thread the order of events is not left to chance."""

    def __init__(self, *, target: Callable[[], None], **_: Any) -> None:
        self._target = target

    def start(self) -> None:
        self._target()

    def join(self, timeout: float) -> None:
        """Return at once: it ran in `start`."""


class Process:
    """A process of the project: it commits, publishes and consumes, as a web worker and a consumer in one."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.dead = False
        self.stopping = False
        self.fault: Fault | None = None
        self.passed = 0
        #: Keys of the effects that it is about to carry out, or has, without having said so.
        self.claimed: set[str] = set()
        self.relay = Relay()
        # The clock is the world's: what it would sleep away passes at once.
        self.relay._wait = self._wait  # type: ignore[method-assign]
        self.worker = Worker([*CONSUMERS, dead_letters.consumer()])
        self.consumers = {each.consumer.name: each for each in self.worker.consumers}
        for each in self.worker.consumers:
            each._wait._writer = None  # one step at a time: no other thread writes
        self.home: Any = relay_thread.RelayThread()
        self.home.long_lived = True
        self.home.relay, self.home.thread = self.relay, _Alive()

    def connect(self) -> None:
        """Connect what is not connected, if the broker is there."""
        self.relay._publisher.connection.start()
        self.worker._connection.start()

    @property
    def links(self) -> list[Any]:
        return [self.relay._publisher.connection, self.worker._connection]

    def unacked(self, consumer: str) -> list[Copy]:
        """What it was handed by this consumer's queue and has not acknowledged."""
        channel: Any = self.consumers[consumer].subscription._channel
        return list(channel.unacked.values()) if channel else []

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """In the place of the relay's own: the time it would wait has passed."""
        if not condition():
            self.world.clock += max(0.0, seconds)


# --- The world ---------------------------------------------------------------------------------------------


@dataclass
class World:
    """The state of everything, known without asking the product."""

    broker: Broker = field(init=False)
    processes: dict[str, Process] = field(default_factory=dict)
    gateways: dict[str, Gateway] = field(default_factory=dict)
    #: Monotonic time, as relays see it. The database's clock is its own: its rows are moved into the past.
    clock: float = 1000.0
    check: Callable[[], None] = lambda: None
    #: Lets something happen in the middle of a step: what, to whom, and where.
    meanwhile: Callable[[str, str, str], None] = lambda *_: None

    #: Message id → order, in the order of the commits.
    orders: dict[str, Order] = field(default_factory=dict)
    #: How the next handlers and gateways behave.
    endings: list[str] = field(default_factory=list)
    answer: str = "done"

    #: (consumer, message id) of copies that the broker lost: only reconciling has to bring them back.
    dropped: set[tuple[str, str]] = field(default_factory=set)
    #: (consumer, message id) that may be dead: why.
    may_be_dead: dict[tuple[str, str], str] = field(default_factory=dict)
    #: (consumer, message id) → deaths of processes that held it.
    deaths: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: Keys of effects in doubt: only a person may have them sent again.
    doubtful: set[str] = field(default_factory=set)
    #: Keys of effects whose sender took longer than allowed.
    overdue: set[str] = field(default_factory=set)
    #: Keys of these that a person declared not done.
    may_be_repeated: set[str] = field(default_factory=set)
    #: Outbox row → message id that it was published with.
    sent: dict[int, str] = field(default_factory=dict)
    #: Message ids that an operator cancelled, and (consumer, message id) that an operator discarded.
    cancelled: set[str] = field(default_factory=set)
    discarded: set[tuple[str, str]] = field(default_factory=set)
    #: (consumer, message id), settled, that were forgotten by pruning.
    forgotten: set[tuple[str, str]] = field(default_factory=set)

    #: Transactions that have committed.
    commits: int = 0
    #: Called by the next commit.
    at_commit: Callable[[], None] | None = None

    violation: Violation | None = None
    _current: Process | None = None
    _notes: int = 0

    def __post_init__(self) -> None:
        self.broker = Broker(self)
        self.gateways = {name: Gateway(self, name) for name in EFFECTS}

    def violated(self, invariant: str, what: str) -> None:
        """Note that something is not as it must be. Raised after the step: the product would catch it."""
        if self.violation is None:
            self.violation = Violation(invariant, what)

    # --- steps -----------------------------------------------------------------------------------------------

    def process(self, name: str) -> Process:
        """Return the process of that name, started if it is not running."""
        if name not in self.processes:
            self.processes[name] = Process(self, name)
        self.processes[name].connect()
        return self.processes[name]

    def run(self, name: str, step: Callable[[Process], Any], fault: Fault | None = None) -> Any:
        """Let a process make one step, which `fault` may end or interrupt; then look at everything."""
        process = self.process(name)
        process.fault, process.passed = fault, 0
        before, self._current, relay_thread._mine = self._current, process, process.home
        result = None
        try:
            result = step(process)
        except Crash:
            pass
        finally:
            self._current = before
            process.fault = None
        if process.dead:
            self.bury(process)
        self.look()
        return result

    def look(self) -> None:
        """Check what must always be true. Raises Violation, though not into the product's hands."""
        if connection.errors_occurred:
            connection.close_if_unusable_or_obsolete()
        if self.violation is None:
            self.check()
        if self.violation is not None and self._current is None:
            raise self.violation

    def boundary(self, what: str) -> None:
        """A point between two steps. Raises Crash where the process dies there, or did before."""
        process = self._current
        if process is None:
            return
        if process.dead:
            raise Crash(what)
        process.passed += 1
        fault = process.fault
        if fault is None or process.passed < fault.at:
            return
        if fault.what == DIES:
            process.dead = True
            raise Crash(what)
        if fault.what == REFUSED:
            if what in {"begin", "before commit"}:
                process.fault = None
                raise OperationalError("not now")  # a deadlock, a lock that others hold
        elif fault.what == BROKEN:
            # SQLite is in the process: nothing lies between them that could break.
            if what in {"begin", "before commit", "committed"} and connection.vendor == "postgresql":
                process.fault = None
                _break_connection()
        elif connection.get_autocommit() and not connection.in_atomic_block:  # nothing comes between its statements
            process.fault = None
            self.meanwhile(fault.what, process.name, what)

    @property
    def is_dying(self) -> bool:
        """Whether the process that makes the present step was killed in it."""
        return self._current is not None and self._current.dead

    def die(self) -> None:
        """The handler kills its process."""
        assert self._current
        self._current.dead = True
        raise Crash("killed")

    def bury(self, process: Process) -> None:
        """The process is gone with all it had in memory: the broker and the database notice."""
        process.dead = True
        _roll_back()
        for consumer in [each.name for each in CONSUMERS]:
            for held in process.unacked(consumer):
                where = (consumer, held.message_id)
                self.deaths[where] += 1
                if self.deaths[where] >= CRASH_LIMIT:
                    self.may_be_dead[where] = "processes died of it"
        for link in process.links:
            link.vanish()
        self.doubt(process.claimed)
        self.processes.pop(process.name, None)

    def place(self, process: Process, events: Sequence[Ordered], *, key: str = "", commit: bool = True) -> None:
        """Commit `events`, or roll them back."""
        rows: list[Any] = []

        def committed() -> None:
            for event, row in zip(events, rows, strict=True):
                self.orders[row.message_id] = Order(row.message_id, event, key)

        try:
            # The customer is told that it did not work.
            with suppress(DatabaseError, InterfaceError), transaction.atomic():
                rows += outbox.add(*events, ordering_key=key)
                self.at_commit = committed
                if not commit:
                    transaction.set_rollback(True)
        finally:
            self.at_commit = None  # where it died before

    def relay_step(self, process: Process) -> None:
        """One step of the relay: what is due is claimed and published, and marked if that is due."""
        with suppress(DatabaseError, InterfaceError, BrokerUnavailable):  # it rests, and has another step
            process.relay._step()

    def deliver(self, process: Process, consumer: str, count: int = 3) -> int:
        """The broker hands the process what waits for one of its consumers."""
        process.worker._open_closed()
        channel: Any = process.consumers[consumer].subscription._channel
        return self.broker.deliver(channel, count) if channel else 0

    def work(self, process: Process, consumer: str) -> bool:
        """The consumer takes what has arrived, one batch of it at most; return whether there was anything."""
        here = process.consumers[consumer]
        if here._arrivals.empty():
            return False
        arrivals = here._next()
        if arrivals:
            here._handle_all(arrivals)
        return True

    def upkeep(self, process: Process) -> None:
        """The upkeep of a worker runs once."""
        with suppress(DatabaseError, InterfaceError):  # it runs again
            look_after(CONSUMERS)

    def operate(self, name: str, operation: Callable[[], Any], fault: Fault | None = None) -> Any:
        """An operator's action; it may fail because database or broker are away."""

        def step(_: Process) -> Any:
            with suppress(DatabaseError, InterfaceError, BrokerUnavailable):
                return operation()
            return None

        return self.run(name, step, fault)

    # --- what people do --------------------------------------------------------------------------------------

    def settle(self, effect: Effect, *, give_up: bool) -> None:
        """A person asks the outside, and records the outcome of an effect."""
        if self.gateways[effect.name].done[effect.key]:
            decision = Decision.DONE
        else:
            decision = Decision.GIVE_UP if give_up else Decision.NOT_DONE
            self.may_be_repeated.add(effect.key)
        settle.run(Selection(effect_rows=[effect.pk]), by=OPERATOR, decision=decision)

    # --- what happens to processes ---------------------------------------------------------------------------

    def stop(self, process: Process) -> None:
        """It gets SIGTERM, and stops in order."""
        process.stopping = True
        for each in process.worker.consumers:
            each.stop()
            each._requeue_the_rest()
        process.relay.stop(3.0)
        process.relay.run()
        for link in process.links:
            link.stop()
        self.processes.pop(process.name)

    def pass_time(self, time: timedelta) -> None:
        """Time passes: move every time in the database into the past."""
        self.clock += time.total_seconds()
        if time < timedelta(seconds=1):
            return
        for model in apps.get_app_config("messaging").get_models():
            times = [each.name for each in model._meta.fields if isinstance(each, models.DateTimeField)]
            if times:
                model._default_manager.update(**{name: F(name) - time for name in times})
        for queue in EmptyQueue.objects.all():
            queue.young = [(datetime.fromisoformat(text) - time).isoformat() for text in queue.young]
            queue.save(update_fields=["young"])

    def doubt(self, keys: set[str]) -> None:
        """These effects are in doubt."""
        self.doubtful |= keys
        self.may_be_repeated -= keys

    def note_doubts(self) -> None:
        """Note the effects whose sender took longer than it may: their outcome is unknown."""
        late = Effect.objects.filter(state=Effect.State.SENDING, sending_until__lte=Now())
        self.overdue.update(each.key for each in late)

    def has_marks(self) -> bool:
        """Whether a relay has published something that it has not marked yet."""
        return any(process.relay._marks for process in self.processes.values())

    def has_arrivals(self) -> bool:
        """Whether a process holds something that it has not handled yet."""
        return any(
            not each._arrivals.empty() for process in self.processes.values() for each in process.worker.consumers
        )

    def end_alarms(self) -> None:
        for link in list(self.broker.links):
            if link.blocked:
                link.unblock()

    def give_up(self, consumer: str) -> None:
        """What waits in the queue is over its limit: the broker moves it to the queue of dead letters."""
        for gone in self.broker.give_up(f"model.{consumer}", f"model.{BURIER}"):
            self.may_be_dead[consumer, gone.message_id] = "the broker gave it up"

    def drop(self, consumer: str, copies: Sequence[Copy]) -> None:
        """The broker has lost these copies."""
        self.dropped.update((consumer, each.message_id) for each in copies)

    # --- what the product calls ------------------------------------------------------------------------------

    def handle(self, event: Ordered, delivery: Delivery) -> None:
        """The handler of both consumers: a row that would show if it was left twice, and perhaps an effect."""
        self.boundary("handler")
        where = (delivery.consumer, delivery.message_id)
        if event.nature == "kills" and delivery.consumer == "stock":
            self.die()
        self._notes += 1
        Group.objects.create(name=f"{delivery.consumer} {delivery.message_id} {self._notes}")
        match self.endings.pop(0) if self.endings else "well":
            case "fails":
                raise ValueError("it failed")
            case "rejects":
                self.may_be_dead[where] = "its handler rejected it"
                raise Reject("never")
            case "wants it later":
                raise RetryLater("not now", after=timedelta(seconds=20))
        if delivery.consumer == "texts":
            for each in event.effects.split():
                delivery.effect(each, {"number": event.number})

    def is_refused(self, sent: Copy) -> bool:
        """Whether the broker closes the channel over this message."""
        order = self.orders.get(sent.message_id)
        return order is not None and order.event.nature == "refused"

    def passed_by(self, sent: Copy, queues: set[str]) -> None:
        """A message came to some queues: those that were not bound do not get it, and the broker says nothing."""
        for each in CONSUMERS:
            if each.queue not in queues:
                self.drop(each.name, [sent])

    def was_sent(self, sent: Copy) -> None:
        """A message has left a process."""
        order = self.orders.get(sent.message_id)
        if order is None:
            self.violated("ghost", f"{sent.message_id} was published, and never committed")
        elif self.sent.setdefault(sent.outbox_id, sent.message_id) != sent.message_id or (
            Ordered.model_validate_json(sent.body) != order.event
        ):
            self.violated("identity", f"outbox row {sent.outbox_id} was published as something else")

    def is_acked(self, queue: str, acked: Copy) -> None:
        """A delivery is about to be acknowledged: what came of it must be in the database."""
        if connection.in_atomic_block:
            self.violated("ack", f"{acked.message_id} was acknowledged inside a transaction")
        consumer = _consumer_of(queue, acked)
        if consumer and not self.is_recorded(consumer, acked.message_id):
            self.violated("ack", f"{acked.message_id} was acknowledged at {consumer} without an inbox row")

    def is_recorded(self, consumer: str, message_id: str) -> bool:
        """Whether the inbox knows the message."""
        return InboxMessage.objects.filter(consumer=consumer, message_id=message_id).exists()

    def is_given_back(self, queue: str) -> None:
        """Only a stopping process requeues a delivery; otherwise it is a fault of the product."""
        if self._current is not None and not self._current.stopping:
            self.violated("fault", f"a delivery of {queue} was given back")


def _consumer_of(queue: str, copy: Copy) -> str:
    if queue.endswith(BURIER):
        queue = copy.properties.headers["x-death"][0]["queue"]
    return next((each.name for each in CONSUMERS if each.queue == queue), "")


# --- Setting it up -----------------------------------------------------------------------------------------


def _link(*arguments: Any, **callbacks: Any) -> Link:
    """What the product takes for a connection, to the broker of the present world."""
    return Link(Stage.world.broker, *arguments, **callbacks)


@contextmanager
def stage(settings: Any) -> Iterator[None]:
    """Inside, the project has the model's consumers and effects, and worlds can be made."""
    settings.MESSAGING = {**settings.MESSAGING, **SETTINGS}
    connection.ensure_connection()  # opening it commits, and there is no world yet
    with ExitStack() as stack:
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable()
        stack.enter_context(registered(*CONSUMERS))
        stack.enter_context(patch.object(conf, "CLAIM_BATCH", 3))
        stack.enter_context(effects.registry.temporary(*KINDS))
        stack.enter_context(patch.object(relay_thread, "_mine", relay_thread._mine))
        for module in (channels, service, connections_to_the_broker):
            stack.enter_context(patch.object(module, "Connection", _link))
        stack.enter_context(patch.object(leases, "write", _watched(leases.write)))
        stack.enter_context(patch.object(ledger, "claim", _remembered(ledger.claim)))
        stack.enter_context(patch.object(ledger, "note", _forgotten(ledger.note)))
        clock = SimpleNamespace(monotonic=lambda: Stage.world.clock, time=time.time)
        for module in (relay, flow, declaring, leases, publisher, outbox, ledger, effect_runner):
            stack.enter_context(patch.object(module, "time", clock))
        stack.enter_context(patch.object(declaring, "Thread", _AtOnce))
        stack.enter_context(
            patch.object(effect_runner, "threading", SimpleNamespace(Thread=_AtOnce, Event=threading.Event))
        )
        stack.enter_context(patch.object(effect_runner, "connections", SimpleNamespace(close_all=lambda: None)))
        for module, name in (
            (consumer_threads, "LINGER"),
            (consumer_threads, "FAULT_PAUSE"),
            (database_wait, "DATABASE_PAUSE"),
            (empty_queues, "PAUSE"),
        ):
            stack.enter_context(patch.object(module, name, 0.0))
        stack.enter_context(patch.object(empty_queues, "ask_queues", _answers))
        stack.enter_context(_boundaries_at_transactions())
        if connection.vendor == "sqlite":
            with connection.cursor() as cursor:
                cursor.execute("PRAGMA synchronous = OFF")  # no power cut happens here
        yield


def _answers(link: Link, names: list[str], *, quorum: set[str]) -> dict[str, QueueAnswer]:
    """What the queues of the model tell: each answers."""
    found = {}
    for name in names:
        try:
            found[name] = QueueAnswer(ready=link.call("queue_declare", queue=name, passive=True).messages)
        except NotFound as refusal:
            found[name] = QueueAnswer(refusal=refusal)
    return found


def new_world() -> World:
    """An empty world, and an empty database."""
    Stage.world = World()
    with transaction.atomic():
        for model in (*reversed(list(apps.get_app_config("messaging").get_models())), Group):
            model._default_manager.all().delete()
    return Stage.world


@contextmanager
def _boundaries_at_transactions() -> Iterator[None]:
    """Make the begin and the commit of each transaction boundaries, with the commit itself between two of them."""
    commit, set_autocommit = connection._commit, connection.set_autocommit

    def watched_commit() -> None:
        try:
            Stage.world.boundary("before commit")
        except Crash:
            connection._rollback()  # Django's way out on SQLite would commit
            raise
        commit()
        Stage.world.commits += 1
        if Stage.world.at_commit:
            Stage.world.at_commit()
            Stage.world.at_commit = None
        Stage.world.boundary("committed")

    def watched_set_autocommit(autocommit: bool, *arguments: Any, **options: Any) -> None:
        if not autocommit:
            Stage.world.boundary("begin")
            Stage.world.at_commit = None  # of one that was rolled back
        set_autocommit(autocommit, *arguments, **options)
        if autocommit and sys.exception() is None:
            Stage.world.boundary("after the transaction")

    with patch.object(connection, "_commit", watched_commit), \
         patch.object(connection, "set_autocommit", watched_set_autocommit):  # fmt: skip
        yield


def _break_connection() -> None:
    """The connection to the database ends. Raises what Django does then."""
    connection.connection.close()
    connection.errors_occurred = True
    raise OperationalError("the connection is gone")


def _roll_back() -> None:
    """Leave the database as a process does that dies: what it had not committed is gone."""
    connection.run_on_commit = []
    connection.run_commit_hooks_on_set_autocommit_on = False
    connection.in_atomic_block = connection.needs_rollback = False
    connection.savepoint_ids, connection.atomic_blocks = [], []
    if not connection.is_usable():
        connection.close()
    elif not connection.get_autocommit():
        connection._rollback()
        connection.set_autocommit(True)


def _watched(write: Callable[[Sequence[Mark]], None]) -> Callable[[Sequence[Mark]], None]:
    """Let marks be written, and check that none counts after its lease has ended."""

    def states(ids: list[int]) -> dict[int, Any]:
        rows = OutboxMessage.objects.filter(pk__in=ids).values_list("pk", "lease_token", "state", "publish_attempts")
        return {pk: (token, *rest) for pk, token, *rest in rows}

    def watched(marks: Sequence[Mark]) -> None:
        process = Stage.world._current
        if process and process.fault and process.fault.what not in {DIES, REFUSED, BROKEN}:
            process.fault = None  # nothing shall come between the two looks but the marks themselves
        before = states([mark.row.pk for mark in marks])
        # One that was pruned meanwhile is not there at all; one may be marked twice, by an old lease and by a new one.
        held = {mark.row.pk for mark in marks if before.get(mark.row.pk, (None,))[0] == mark.row.lease_token}
        stale = sorted({mark.row.pk for mark in marks} - held)
        write(marks)
        if stale and states(stale) != {pk: before[pk] for pk in stale if pk in before}:
            Stage.world.violated("lease", f"a mark of rows {stale} counted after their leases had ended")

    return watched


def _remembered(claim: Callable[[Q, int], list[Claimed]]) -> Callable[[Q, int], list[Claimed]]:
    """Let effects be claimed, and remember by whom."""

    def remembered(which: Q, limit: int) -> list[Claimed]:
        claimed = claim(which, limit)
        if process := Stage.world._current:
            process.claimed.update(each.row.key for each in claimed)
        return claimed

    return remembered


def _forgotten(note: Callable[[Sequence[tuple[Claimed, AttemptResult]]], None]) -> Callable[..., None]:
    """Let outcomes of effects be noted, and forget who claimed them."""

    def forgotten(results: Sequence[tuple[Claimed, AttemptResult]]) -> None:
        note(results)
        if process := Stage.world._current:
            process.claimed -= {claimed.row.key for claimed, _ in results}

    return forgotten
