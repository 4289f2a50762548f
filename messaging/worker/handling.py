"""What happens to one delivery: decode → inbox → handler → decide. Only this file decides."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from django.db import DatabaseError, DataError, IntegrityError, InterfaceError

from messaging import conf, database, encoding, outbox
from messaging.consumers import Consumer
from messaging.exceptions import Reject, Undecodable
from messaging.logs import get_logger
from messaging.message import Delivery, Message, identity, new_id
from messaging.models import DeliveryAttempt, OutboxMessage
from messaging.retry import rest_after
from messaging.validation import functions
from messaging.worker import inbox, ordering, running
from messaging.worker.database_wait import DatabaseAway, in_transaction
from messaging.worker.log_context import context_of, named_in_log
from messaging.worker.verdict import Verdict

log = get_logger(__name__)

#: Starts of a message's handling that never ended, after which the message is dead: it kills its process.
CRASH_LIMIT = 3


def delivery_of(
    consumer: Consumer, message: Message, *, queue: str, exchange: str, routing_key: str, redelivered: bool
) -> Delivery:
    """Return the delivery of a message to a consumer, as its handler sees it."""
    message = encoding.named(message, routing_key)
    known_as = identity(message.id, message.app_id, own_app_id=conf.get().app_id)
    try:
        attempt = message.attempt
    except Undecodable:
        attempt = 1  # decoding fails again, and says what is wrong
    return Delivery(
        consumer=consumer.name,
        queue=queue,
        message=message,
        message_id=known_as or new_id(),
        attempt=attempt,
        identified=bool(known_as),
        redelivered=redelivered,
        exchange=exchange,
        routing_key=routing_key,
    )


def handle(consumer: Consumer, delivery: Delivery) -> Verdict:
    """Handle one delivery to the end and return its verdict, which is committed when this returns.

    Raises DatabaseAway, and nothing else that a message or a handler can cause.
    """
    with named_in_log(delivery):
        try:
            verdict = _decide(consumer, delivery)
        except DatabaseAway:
            database.reconnect()
            raise
        except Exception as error:
            if not _is_of_the_message(error):
                raise DatabaseAway(str(error).strip()) from error
            verdict = _bury_bare(delivery, error)
        _log(verdict, delivery)
        return verdict


def handle_together(consumer: Consumer, deliveries: Sequence[Delivery]) -> list[Verdict] | None:
    """Handle several deliveries in one transaction; None if one failed, and all were rolled back.

    Without savepoints: one costs more than it saves. The caller then handles each in its own transaction, where only
    the failing one is counted. Raises DatabaseAway before any handler was called.
    """
    try:
        with database.atomic(for_handler=True):
            verdicts = running.run_together(consumer, deliveries)
    except DatabaseAway:
        database.reconnect()
        raise
    except Exception as error:
        # Once a handler was called it may have ended the connection. Handled alone, each delivery shows that.
        if not any(each.tries.called for each in deliveries) and database.is_unreachable(error):
            raise DatabaseAway(str(error).strip()) from error
        log.info("batch.rolled_back", consumer=consumer.name, deliveries=len(deliveries), reason=inbox.describe(error))
        return None
    for delivery, verdict in zip(deliveries, verdicts, strict=True):
        _log(verdict, delivery, batch=len(deliveries))
    return verdicts


def _decide(consumer: Consumer, delivery: Delivery) -> Verdict:
    # Without an id each delivery would begin its own count. The queue's delivery limit ends those.
    if consumer.records_failures and delivery.redelivered and delivery.identified:
        verdict = _count_start(delivery)
        if verdict is not None:
            return verdict
    started = time.monotonic()
    try:
        event = running.decode(consumer, delivery) if consumer.events else None
        return in_transaction(delivery.tries, partial(running.run, consumer, delivery, event))
    except DatabaseAway:
        raise
    except Exception as error:
        if consumer.records_failures:
            return _failed(consumer, delivery, error, time.monotonic() - started)
        if not consumer.broadcast:
            raise
        # Other processes run the handler too, so there is no inbox row and no retry.
        log.exception("broadcast.dropped", reason=inbox.describe(error))
        return Verdict.DROPPED


def _count_start(delivery: Delivery) -> Verdict | None:
    """Commit the start of a redelivered message; return a verdict if it must not run."""
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
    """Record a failure and what follows from it, a retry or death, in one transaction."""
    rejected = isinstance(error, Undecodable | Reject)
    # Before the transaction: an error's text and a policy are code of the project, which may break a transaction.
    described, trace = inbox.describe(error), inbox.trace(error)
    reason = (functions.text_of(error) if rejected else "") or described
    rest = rest_after(consumer.retry, delivery.attempt - inbox.attempts_before(delivery), error)
    with database.atomic():
        ordering.lock(consumer, delivery.message.ordering_key)
        row = inbox.bury(delivery, reason) if rest is None else inbox.expect_next(delivery, reason)
        if row is None:
            if delivery.tries.called:
                # Another process took the message meanwhile, or it counts as handled because the handler committed.
                log.error("message.failure_not_counted", reason=reason, exc_info=error)
            return Verdict.DUPLICATE
        outcome = DeliveryAttempt.Outcome.REJECTED if rejected else DeliveryAttempt.Outcome.FAILED
        inbox.record(row, delivery, outcome, seconds=seconds, error=described, traceback=trace)
        if rest is None:
            ordering.release_next(consumer, delivery.message.ordering_key)
        else:
            origin, body = OutboxMessage.Origin.RETRY, delivery.message.body
            outbox.resend(row, consumer=row.consumer, queue=delivery.queue, origin=origin, delay=rest, body=body)
    if rest is None:
        log.error("message.dead", reason=reason)
        return Verdict.DEAD
    log.warning("message.failed", reason=reason, again_in_seconds=round(rest / timedelta(seconds=1), 1))
    return Verdict.RETRYING


def _is_of_the_message(error: Exception) -> bool:
    """Whether a failure could not be recorded because of the message's content.

    All else is the database's fault: unreachable, locked for too long, read-only, full, not migrated. That may pass.
    """
    return not isinstance(error, DatabaseError | InterfaceError) or isinstance(error, DataError | IntegrityError)


def _bury_bare(delivery: Delivery, error: Exception) -> Verdict:
    """Make a message dead whose failure could not be recorded: the database does not store something in it.

    Raises DatabaseAway if even a bare row cannot be written (tables missing, disk full). That is no message's fault,
    and to go on would lose them all.
    """
    log.exception("message.not_recorded")
    bare = replace(delivery, message=Message(body=delivery.message.body))
    try:
        with database.atomic():
            moved = inbox.bury(bare, f"its failure could not be recorded: {inbox.describe(error)}")
    except Exception as refused:
        raise DatabaseAway(f"it takes no rows: {refused}".strip()) from refused
    return Verdict.DUPLICATE if moved is None else Verdict.DEAD


def _log(verdict: Verdict, delivery: Delivery, **facts: Any) -> None:
    """Log what a delivery came to, unless that was logged where it happened. The worker sums what was handled."""
    if verdict is Verdict.HANDLED:
        if log.prints_debug:
            milliseconds = round(delivery.tries.seconds * 1000, 1)
            log.debug("message.handled", milliseconds=milliseconds, **facts, **context_of(delivery))
    elif verdict in {Verdict.DUPLICATE, Verdict.WAITING}:
        log.info(f"message.{verdict}", **facts, **context_of(delivery))
