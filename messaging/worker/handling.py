"""What happens to one delivery: decode → inbox → handler → decide. Here alone it is decided."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum
from functools import partial

import structlog
from django.db import DatabaseError, DataError, IntegrityError, InterfaceError, InternalError, OperationalError

from messaging import conf, database, encoding, outbox
from messaging.consumers import Consumer
from messaging.events import Event
from messaging.exceptions import Reject, Undecodable
from messaging.logs import get_logger
from messaging.message import Delivery, Message
from messaging.models import DeliveryAttempt, InboxMessage, OutboxMessage
from messaging.retry import rest_after
from messaging.validation import functions
from messaging.worker import inbox, ledger, ordering
from messaging.worker import time_limit as watchdog

log = get_logger(__name__)

#: A deadlock or a lock timeout is nobody's fault: this many tries before it counts as a failed attempt.
CONTENTION_TRIES = 3
#: Under REPEATABLE READ and SERIALIZABLE it is usual, and ends with a pause that grows, up to so many seconds.
SERIALIZATION_TRIES = 20
LONGEST_CONTENTION = 0.5
#: A message whose handling was started this often, and never ended, kills its process.
CRASH_LIMIT = 3
#: A message whose handler was called, and lost the connection to the database, this often has failed.
LOSS_LIMIT = 3


class Verdict(StrEnum):
    """What became of a delivery. Each is acknowledged: the rest of its story is in the database."""

    HANDLED = "handled"
    DUPLICATE = "duplicate"
    RETRYING = "retrying"
    #: Put aside until the earlier messages of its ordering key are settled.
    WAITING = "waiting"
    DEAD = "dead"
    #: A broadcast that failed in this process; nothing remembers it.
    DROPPED = "dropped"


class DatabaseAway(Exception):
    """The database cannot be reached, or takes no rows. Nothing was decided, no attempt counts; the delivery stays
    unacknowledged."""


class ConnectionLost(Exception):
    """The connection to the database ended each time that a message was handled, and it is not the database's fault
    alone: others got an answer in between."""


def handle(consumer: Consumer, delivery: Delivery) -> Verdict:
    """Handle one delivery to the end and return its verdict, which is committed when this returns.

    Raises DatabaseAway, and nothing else that a message or a handler can cause.
    """
    with structlog.contextvars.bound_contextvars(**_context(delivery)):
        started = time.monotonic()
        try:
            verdict = _way(consumer)(consumer, delivery)
        except DatabaseAway:
            database.connect_anew()
            raise
        except Exception as error:
            if not _is_of_the_message(error):
                raise DatabaseAway(str(error).strip()) from error
            verdict = _bury_bare(delivery, error)
        if verdict in {Verdict.HANDLED, Verdict.DUPLICATE, Verdict.WAITING}:  # a failure has said more already
            log.info(f"message.{verdict}", milliseconds=_milliseconds(started))
        return verdict


def handle_together(consumer: Consumer, deliveries: Sequence[Delivery]) -> list[Verdict] | None:
    """Handle several deliveries in one transaction; None where one failed, and all were rolled back.

    Without savepoints: one costs more than it saves. The caller then handles each in its own transaction, where
    the failing one alone is counted. Raises DatabaseAway, before any handler was called.
    """
    try:
        with database.atomic(for_handler=True):
            verdicts = [_run_one_of(consumer, delivery) for delivery in deliveries]
    except DatabaseAway:
        database.connect_anew()
        raise
    except Exception as error:
        # Once a handler was called it may be what ended the connection: each shows alone.
        if not any(each.tries.called for each in deliveries) and database.is_away(error):
            raise DatabaseAway(str(error).strip()) from error
        log.info("batch.rolled_back", consumer=consumer.name, deliveries=len(deliveries), reason=inbox.describe(error))
        return None
    for delivery, verdict in zip(deliveries, verdicts, strict=True):
        log.info(f"message.{verdict}", batch=len(deliveries), **_context(delivery))
    return verdicts


def _run_one_of(consumer: Consumer, delivery: Delivery) -> Verdict:
    delivery.tries.called = False
    with structlog.contextvars.bound_contextvars(**_context(delivery)):
        return _run(consumer, delivery, _decode(consumer, delivery))


def _way(consumer: Consumer) -> Callable[[Consumer, Delivery], Verdict]:
    if consumer.broadcast:
        return _run_broadcast
    return _handle if consumer.fenced else _run_unfenced


def _handle(consumer: Consumer, delivery: Delivery) -> Verdict:
    # Without an id each delivery of it would begin a count of its own; the queue's delivery limit ends those.
    if delivery.redelivered and delivery.identified:
        verdict = _count_start(delivery)
        if verdict is not None:
            return verdict
    started = time.monotonic()
    try:
        event = _decode(consumer, delivery)
        return _try(delivery, partial(_run, consumer, delivery, event))
    except DatabaseAway:
        raise
    except Exception as error:
        return _failed(consumer, delivery, error, time.monotonic() - started)


def _decode(consumer: Consumer, delivery: Delivery) -> Event:
    if len(delivery.message.body) > conf.get().max_body_bytes:
        raise Undecodable(f"the body has {len(delivery.message.body)} bytes, over the limit of MAX_BODY_BYTES")
    _ = delivery.message.attempt  # an attempt header that is no number makes the message dead
    with _thread_goes_on("reading the message"):  # by code of the project's: validators, an upcast
        event = encoding.decode(delivery.message)
    if not consumer.wants(event.event_type):
        raise Undecodable(f"consumer {consumer.name} does not handle {event.event_type}; see the queue's bindings")
    return event


def _try(delivery: Delivery, run: Callable[[], Verdict]) -> Verdict:
    """Run `run` in a transaction, again where nothing but contention or a lost connection was in its way.

    Raises DatabaseAway, ConnectionLost, and whatever else `run` raises.
    """
    mine = delivery.tries
    tried = 0
    why: Exception | None = None
    while mine.losses < LOSS_LIMIT:
        tried += 1
        mine.called = committing = False
        opened = None
        try:
            with database.atomic(for_handler=True):
                opened = database.connection().connection
                verdict = run()
                committing = True
            return verdict
        except DatabaseAway:
            raise
        except Exception as error:
            why = error
            if database.is_lost(error, opened):
                mine.losses += mine.called
                if (tried >= CONTENTION_TRIES and mine.losses < LOSS_LIMIT) or not database.answers():
                    raise DatabaseAway(str(error).strip()) from error
            elif committing and database.takes_no_rows(error):
                raise DatabaseAway(str(error).strip()) from error
            elif database.is_serialization_failure(error) and tried < SERIALIZATION_TRIES:
                # Those that met would meet again, were all to begin at once.
                time.sleep(random.uniform(0, min(0.01 * 2**tried, LONGEST_CONTENTION)))  # noqa: S311
            elif tried >= CONTENTION_TRIES or not isinstance(error, OperationalError):
                raise
            log.info("message.contention", reason=inbox.describe(error))
    raise ConnectionLost(
        f"its connection to the database ended {mine.losses} times while it was handled; does the handler close it, "
        f"or take longer than the database allows? {inbox.describe(why) if why else ''}".rstrip()
    ) from why


@contextmanager
def _no_fault_of_the_message(*, handled: bool) -> Iterator[None]:
    """Inside are statements of ours. A handler's may fail in another database, or for what they want of it.

    Where the database takes no rows from us, raises DatabaseAway at once: were it over when the failure is recorded,
    the message would have lost an attempt for nothing. Not where it may only read once the message is `handled`: the
    handler may have said so.
    """
    try:
        yield
    except (InternalError, OperationalError) as error:
        if database.takes_no_rows(error) or (database.is_read_only(error) and not handled):
            raise DatabaseAway(str(error).strip()) from error
        raise


def _run(consumer: Consumer, delivery: Delivery, event: Event) -> Verdict:
    """Run the handler behind the fence, inside the caller's transaction."""
    started = time.monotonic()
    delivery.intended.clear()  # of a try that was rolled back
    with _no_fault_of_the_message(handled=False):
        if ordering.must_wait(consumer, delivery):
            return Verdict.DUPLICATE if inbox.wait(delivery) is None else Verdict.WAITING
        row = inbox.admit(delivery)
    if row is None:
        return Verdict.DUPLICATE
    _call(consumer, event, delivery)
    database.guard_callbacks(partial(_callback_failed, delivery, row))
    with _no_fault_of_the_message(handled=True):
        ledger.write(row.pk, delivery.consumer, delivery.message_id, delivery.intended)
        inbox.record(row, delivery, DeliveryAttempt.Outcome.HANDLED, seconds=time.monotonic() - started)
        ordering.release_next(consumer, delivery.message.ordering_key)
    return Verdict.HANDLED


def _call(consumer: Consumer, event: Event | None, delivery: Delivery) -> None:
    """Call the handler, within its time. Work that it returned instead of doing it is a failure."""

    def run() -> None:
        # Typed to return nothing, but it is a project's.
        answer: object = consumer.handler(event, delivery)  # type: ignore[func-returns-value]
        functions.require_run(answer, "the handler")

    delivery.tries.called, delivery.tries.returned = True, False
    with _thread_goes_on("the handler"):
        watchdog.run(
            run,
            seconds=consumer.handler_timeout,
            name=f"{consumer.name} {delivery.message_id}",
        )
    delivery.tries.returned = True


@contextmanager
def _thread_goes_on(what: str) -> Iterator[None]:
    """Make what would end the thread (`sys.exit`, a cancelled coroutine, the KeyboardInterrupt of a program that was
    run) a failure like another: the consumer would hold its deliveries and handle none."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"{what} tried to end its thread: {inbox.describe(error)}") from error


def _callback_failed(delivery: Delivery, row: InboxMessage | None, callback: str, error: BaseException) -> None:
    """Say that a callback of `on_commit` failed, in the log and in the message's story. The message is handled."""
    reason = inbox.describe(error)
    log.error("message.callback_failed", **_context(delivery), callback=callback, reason=reason, exc_info=error)
    if row is None:
        return
    try:
        inbox.add_error(row, delivery, f"after the commit, in {callback}: {reason}")
    except (DatabaseError, InterfaceError) as refused:
        log.warning("message.callback_not_recorded", **_context(delivery), reason=inbox.describe(refused))


def _count_start(delivery: Delivery) -> Verdict | None:
    """Commit the start of a message that came before; return a verdict where it must not run."""
    with database.atomic():
        row = inbox.start(delivery)
        if row is None:
            return Verdict.DUPLICATE
        if row.starts > 1:
            inbox.record(row, delivery, DeliveryAttempt.Outcome.CRASHED)
        if row.starts <= CRASH_LIMIT:
            return None
        reason = f"its handling was started {row.starts - 1} times and never ended: it kills its process"
        inbox.bury(delivery, reason)
    log.error("message.dead", reason=reason)
    return Verdict.DEAD


def _failed(consumer: Consumer, delivery: Delivery, error: Exception, seconds: float) -> Verdict:
    """Record the failure and what follows from it, retry or death, in one transaction."""
    rejected = isinstance(error, Undecodable | Reject)
    # Before the transaction: the text of an error, and a policy, are the project's code, and may break a transaction.
    described, trace = inbox.describe(error), inbox.trace(error)
    reason = (functions.text_of(error) if rejected else "") or described
    rest = rest_after(consumer.retry, delivery.attempt - inbox.attempts_before(delivery), error)
    with database.atomic():
        ordering.lock(consumer, delivery.message.ordering_key)
        row = inbox.bury(delivery, reason) if rest is None else inbox.expect_next(delivery, reason)
        if row is None:
            if delivery.tries.called:
                # Another process took the message meanwhile; or it counts as handled, as the handler sent a COMMIT.
                log.error("message.failure_not_counted", reason=reason, exc_info=error)
            return Verdict.DUPLICATE
        outcome = DeliveryAttempt.Outcome.REJECTED if rejected else DeliveryAttempt.Outcome.FAILED
        inbox.record(row, delivery, outcome, seconds=seconds, error=described, traceback=trace)
        if rest is None:
            ordering.release_next(consumer, delivery.message.ordering_key)
        else:
            outbox.resend(
                row, consumer=row.consumer, queue=delivery.queue, origin=OutboxMessage.Origin.RETRY, delay=rest
            )
    if rest is None:
        log.error("message.dead", reason=reason)
        return Verdict.DEAD
    log.warning("message.failed", reason=reason, again_in_seconds=round(rest / timedelta(seconds=1), 1))
    return Verdict.RETRYING


def _run_unfenced(consumer: Consumer, delivery: Delivery) -> Verdict:
    return _try(delivery, partial(_pass_on, consumer, delivery))


def _pass_on(consumer: Consumer, delivery: Delivery) -> Verdict:
    _call(consumer, None, delivery)
    database.guard_callbacks(partial(_callback_failed, delivery, None))
    return Verdict.HANDLED


def _run_broadcast(consumer: Consumer, delivery: Delivery) -> Verdict:
    """Run the handler for this process. Others run it too, so that there is no inbox row and nothing to try again."""
    try:
        event = _decode(consumer, delivery)
        return _try(delivery, partial(_listen, consumer, delivery, event))
    except DatabaseAway:
        raise
    except Exception as error:
        log.exception("broadcast.dropped", reason=inbox.describe(error))
        return Verdict.DROPPED


def _listen(consumer: Consumer, delivery: Delivery, event: Event) -> Verdict:
    delivery.intended.clear()  # of a try that was rolled back
    _call(consumer, event, delivery)
    database.guard_callbacks(partial(_callback_failed, delivery, None))
    if delivery.intended:
        raise RuntimeError("a broadcast intends no effects: each process would")
    return Verdict.HANDLED


def _is_of_the_message(error: Exception) -> bool:
    """Whether a failure could not be recorded for what is in the message. All else is the database's: gone, locked for
    too long, read-only, full, not migrated. It may be over in a moment, and the message is as good as any."""
    return not isinstance(error, DatabaseError | InterfaceError) or isinstance(error, DataError | IntegrityError)


def _bury_bare(delivery: Delivery, error: Exception) -> Verdict:
    """Make a message dead whose failure could not be recorded: something in it that the database will not store.

    Raises DatabaseAway where even a bare row cannot be written (tables missing, disk full): that is no message's
    fault, and to go on would lose them all.
    """
    log.exception("message.not_recorded")
    bare = replace(delivery, message=Message(body=delivery.message.body, id=delivery.message_id))
    try:
        with database.atomic():
            moved = inbox.bury(bare, f"its failure could not be recorded: {inbox.describe(error)}")
    except Exception as refused:
        raise DatabaseAway(f"it takes no rows: {refused}".strip()) from refused
    return Verdict.DUPLICATE if moved is None else Verdict.DEAD


def _context(delivery: Delivery) -> dict[str, str | int]:
    context: dict[str, str | int] = {
        "message_id": delivery.message_id,
        "type": delivery.message.type,
        "consumer": delivery.consumer,
        "attempt": delivery.attempt,
    }
    if delivery.message.request_id:
        context["request_id"] = delivery.message.request_id
    return context


def _milliseconds(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 1)
