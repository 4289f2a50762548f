"""Running handlers in the caller's transaction: decode → fence → handler → finish. What a failure comes to is decided
by `handling`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from django.db import DatabaseError, InterfaceError

from messaging import conf, database, encoding
from messaging.consumers import Consumer
from messaging.events import Event
from messaging.exceptions import Undecodable
from messaging.logs import get_logger
from messaging.message import OUTBOX_ID_HEADER, Delivery
from messaging.validation import callbacks, functions
from messaging.worker import fence, inbox, ledger, ordering, time_limit
from messaging.worker.database_wait import own_statements
from messaging.worker.fence import Admitted
from messaging.worker.log_context import context_of, named_in_log
from messaging.worker.verdict import Verdict

log = get_logger(__name__)


def decode(consumer: Consumer, delivery: Delivery) -> Event:
    """Return the event that a delivery brings. Raises Undecodable, and what the project's validation raises."""
    if len(delivery.message.body) > conf.get().max_body_bytes:
        raise Undecodable(f"the body has {len(delivery.message.body)} bytes, over the limit of MAX_BODY_BYTES")
    _ = delivery.message.attempt  # an attempt header that is no number makes the message dead
    with _keeps_its_thread("reading the message"):  # by code of the project: validators, an upcast
        event = encoding.decode(delivery.message)
    if not consumer.wants(event.event_type):
        raise Undecodable(f"consumer {consumer.name} does not handle {event.event_type}; see the queue's bindings")
    return event


def run(consumer: Consumer, delivery: Delivery, event: Event | None) -> Verdict:
    """Run the handler, only if the inbox row expects the delivery where there is one."""
    admitted = _admit(consumer, delivery)
    if isinstance(admitted, Verdict):
        return admitted
    _call(consumer, [event], [delivery])
    _finish(consumer, [delivery], [admitted] if admitted else [])
    return Verdict.HANDLED


def run_together(consumer: Consumer, deliveries: Sequence[Delivery]) -> list[Verdict]:
    """Run the handler for each, or once for all that may run if it takes a whole batch."""
    for each in deliveries:
        each.tries.called = False
    events = []
    for each in deliveries:
        with named_in_log(each):
            events.append(decode(consumer, each))
    admissions = _admit_all(consumer, deliveries)
    runs = [number for number, admitted in enumerate(admissions) if not isinstance(admitted, Verdict)]
    for batch in [runs] if consumer.whole_batch and runs else [[number] for number in runs]:
        some = [deliveries[number] for number in batch]
        with named_in_log(*some):
            _call(consumer, [events[number] for number in batch], some)
    ran = [deliveries[number] for number in runs]
    _finish(consumer, ran, [admitted for admitted in admissions if isinstance(admitted, Admitted)])
    return [each if isinstance(each, Verdict) else Verdict.HANDLED for each in admissions]


def _admit_all(consumer: Consumer, deliveries: Sequence[Delivery]) -> list[Admitted | Verdict | None]:
    """Admit new messages by one statement, and the others one by one."""
    new = [each for each in deliveries if consumer.fenced and _is_new(each)]
    with own_statements(handled=False):
        at_once = fence.admit_new(new)
    admissions: list[Admitted | Verdict | None] = []
    begun: set[str] = set()
    for each in deliveries:
        if each.message_id in at_once:
            # Once: a second delivery of the message in the same batch is a duplicate.
            if not _is_new(each) or each.message_id in begun:
                admissions.append(Verdict.DUPLICATE)
                continue
            begun.add(each.message_id)
            admissions.append(at_once[each.message_id])
        else:
            admissions.append(_admit(consumer, each))
    return admissions


def _has_row(delivery: Delivery) -> bool:
    """Whether a failure or a start of this message was recorded, or may have been: it was sent again."""
    sent_again = not delivery.exchange and OUTBOX_ID_HEADER in delivery.message.headers
    return delivery.attempt > 1 or delivery.tries.counted or sent_again


def _is_new(delivery: Delivery) -> bool:
    """Whether this is the first attempt at a message that waits for no other."""
    return delivery.attempt == 1 and not delivery.message.ordering_key


def _admit(consumer: Consumer, delivery: Delivery) -> Admitted | Verdict | None:
    """Return the delivery's inbox row, or the verdict if it must not run; None if it runs without a row."""
    if not (consumer.fenced or (consumer.records_failures and _has_row(delivery))):
        return None
    with own_statements(handled=False):
        if consumer.fenced and ordering.must_wait(consumer, delivery):
            return Verdict.DUPLICATE if inbox.wait(delivery) is None else Verdict.WAITING
        return fence.admit(delivery) or Verdict.DUPLICATE


def _call(consumer: Consumer, events: Sequence[Event | None], deliveries: Sequence[Delivery]) -> None:
    """Call the handler, within its time. Work that it returned instead of doing it is a failure."""

    def handler() -> None:
        # Typed to return nothing, but it is the project's code.
        takes = (events, deliveries) if consumer.whole_batch else (events[0], deliveries[0])
        answer: object = consumer.handler(*takes)  # type: ignore[func-returns-value]
        functions.require_run(answer, "the handler")

    for each in deliveries:
        each.intended.clear()  # of a try that was rolled back
        each.tries.called, each.tries.returned = True, False
    name = f"{consumer.name} {', '.join(each.message_id for each in deliveries[:3])}"
    started = time.monotonic()
    with _keeps_its_thread("the handler"):
        time_limit.run(handler, seconds=consumer.handler_timeout, name=name)
    _begin_again()
    seconds = (time.monotonic() - started) / len(deliveries)
    for each in deliveries:
        each.tries.returned, each.tries.seconds = True, seconds
    callbacks.guard(database.connection().run_on_commit, partial(_callback_failed, deliveries))


def _begin_again() -> None:
    """Begin a transaction where the handler ended ours by a ROLLBACK or COMMIT of its own, as PostgreSQL's driver does.

    SQLite would commit each statement that follows: what the other handlers of the batch write, although the batch is
    rolled back and they run again.
    """
    here = database.connection()
    if here.vendor == "sqlite" and not (here.closed_in_transaction or here.connection.in_transaction):
        with here.cursor() as cursor:
            cursor.execute("BEGIN")


def _finish(consumer: Consumer, ran: Sequence[Delivery], admitted: Sequence[Admitted]) -> None:
    """Write down what the handlers took and intended, and release what waits for these messages."""
    if not consumer.fenced and any(each.intended for each in ran):
        raise RuntimeError(
            "a broadcast, or a consumer with fenced=False, intends no effects: its handler may run twice"
        )
    if not admitted:
        return
    with own_statements(handled=True):
        fence.finish(admitted)
        for each in admitted:
            delivery = each.delivery
            ledger.write(each.row_id, delivery.consumer, delivery.message_id, delivery.intended)
            if consumer.fenced:
                ordering.release_next(consumer, delivery.message.ordering_key)


@contextmanager
def _keeps_its_thread(what: str) -> Iterator[None]:
    """Make sys.exit(), a cancelled coroutine and the like a failure. They would end the thread, and the consumer would
    hold its deliveries and handle none."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"{what} tried to end its thread: {inbox.describe(error)}") from error


def _callback_failed(deliveries: Sequence[Delivery], callback: str, error: BaseException) -> None:
    """Record that a callback of `on_commit` failed, in the log and in the messages' history. They are handled."""
    reason = inbox.describe(error)
    for each in deliveries:
        log.error("message.callback_failed", **context_of(each), callback=callback, reason=reason, exc_info=error)
        try:
            inbox.add_error(each, f"after the commit, in {callback}: {reason}")
        except (DatabaseError, InterfaceError) as refused:
            log.warning("message.callback_not_recorded", **context_of(each), reason=inbox.describe(refused))
