"""What must be true after every step, and once everything has healed: read from database, broker and gateways alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from django.contrib.auth.models import Group
from django.db import connection, models

from messaging.models import DeliveryAttempt, Effect, InboxMessage, OutboxMessage
from tests.faults.model.world import ATTEMPTS, CONSUMERS, World

Out = OutboxMessage.State
In = InboxMessage.State

Where = tuple[str, str]


class Judge:
    """Looks at a world after each step; remembers what it saw the step before."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.attempts: dict[Where, int] = {}
        self._read_at = -1
        #: Messages that were dead once: what came after them did not have to wait.
        self.were_dead: set[Where] = set()

    def look(self) -> None:
        """Check everything that is true at any time."""
        self._read()
        for invariant in (
            self._no_ghost,
            self._at_most_once,
            self._nothing_lost,
            self._marked_only_if_routed,
            self._attempts_grow_and_end,
            self._dead_for_a_reason,
            self._in_order,
            self._effects_are_as_the_ledger_says,
        ):
            invariant()

    def look_at_the_end(self) -> None:
        """Check what is true once everything has healed, and nothing moves any more."""
        self._read()
        for where in self._wheres():
            self._expect(self._is_settled(where), "stuck", f"{where} is {self.inbox.get(where)}")
        for row in self.outbox:
            self._expect(row["state"] not in {Out.PENDING, Out.UNROUTABLE}, "stuck", f"{row} waits")
        for queue in self.world.broker.queues:
            self._expect(not self.world.broker.copies(queue), "stuck", f"something is left in {queue}")
        for effect in self.effects:
            self._expect(effect["state"] not in Effect.OPEN, "effect lost", f"{effect} is left")

    def is_quiet(self) -> bool:
        """Whether nothing is left that would move by itself."""
        self._read()
        return not (
            any(row["state"] in {Out.PENDING, Out.UNROUTABLE} for row in self.outbox)
            or any(row["state"] in {In.RETRYING, In.WAITING, In.EFFECTS_DUE} for row in self.inbox.values())
            or any(self.world.broker.copies(queue) for queue in self.world.broker.queues)
        )

    def has_open_rows(self) -> bool:
        """Whether something is left to publish."""
        return any(row["state"] in {Out.PENDING, Out.UNROUTABLE} for row in self.outbox)

    def has_open_effects(self) -> bool:
        """Whether something is left to sweep."""
        return any(row["state"] in Effect.OPEN for row in self.effects) or any(
            row["state"] == In.WAITING for row in self.inbox.values()
        )

    # --- what there is ---------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read everything, if a transaction has committed since it was read last."""
        if self._read_at == self.world.commits:
            return
        self._read_at = self.world.commits
        self.outbox = _rows(OutboxMessage, "id", "message_id", "consumer", "state", "attempt")
        self.rows_of: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in self.outbox:
            self.rows_of[row["message_id"]].append(row)
        inbox = _rows(InboxMessage, "id", "consumer", "message_id", "state", "attempt")
        self.inbox: dict[Where, dict[str, Any]] = {(row["consumer"], row["message_id"]): row for row in inbox}
        wheres = {row["id"]: (row["consumer"], row["message_id"]) for row in inbox}
        tried = _rows(DeliveryAttempt, "inbox_message_id", "outcome")
        self.failures = Counter(
            wheres[row["inbox_message_id"]] for row in tried if row["outcome"] in {"failed", "rejected"}
        )
        self.effects = _rows(Effect, "consumer", "message_id", "name", "state")
        #: The rows that handlers left, for each message.
        self.notes: dict[Where, list[int]] = defaultdict(list)
        for row in _rows(Group, "id", "name"):
            consumer, message_id, _ = row["name"].split()
            self.notes[consumer, message_id].append(row["id"])
        self.were_dead |= {where for where, row in self.inbox.items() if row["state"] in {In.DEAD, In.DISCARDED}}

    def _wheres(self) -> Iterator[Where]:
        for message_id in self.world.orders:
            for consumer in CONSUMERS:
                yield consumer.name, message_id

    def _is_settled(self, where: Where) -> bool:
        row = self.inbox.get(where)
        if row is not None:
            return row["state"] in InboxMessage.SETTLED
        return where in self.world.forgotten or any(
            each["state"] in {Out.FAILED, Out.CANCELLED} for each in self.rows_of[where[1]]
        )

    def _expect(self, truth: object, invariant: str, what: str) -> None:
        if not truth:
            self.world.violated(invariant, what)

    # --- what must be true -----------------------------------------------------------------------------------

    def _no_ghost(self) -> None:
        known = self.world.orders.keys()
        for message_id in {row["message_id"] for row in self.outbox} | {where[1] for where in self.notes}:
            self._expect(message_id in known, "ghost", f"{message_id} was never committed")

    def _at_most_once(self) -> None:
        for where, notes in self.notes.items():
            self._expect(len(notes) <= 1, "twice", f"{where} was handled {len(notes)} times")

    def _nothing_lost(self) -> None:
        for where in self._wheres():
            row = self.inbox.get(where)
            state = row["state"] if row else None
            if state in {In.HANDLED, In.EFFECTS_DUE}:
                self._expect(self.notes[where], "lost", f"{where} counts as handled, and nothing came of it")
            elif self.notes[where]:
                self._expect(where in self.world.forgotten, "fence", f"{where} was handled, and is {state}")
            elif not self._is_settled(where):
                comes = where in self.world.dropped or state == In.WAITING or self._is_on_its_way(where)
                self._expect(comes, "lost", f"{where} is {row}, and nothing brings it: {self.rows_of[where[1]]}")

    def _is_on_its_way(self, where: Where) -> bool:
        """Whether an outbox row, or a copy in the queue, brings the attempt that is expected."""
        consumer, message_id = where
        row = self.inbox.get(where)
        for each in self.rows_of[message_id]:
            goes_there = each["state"] in {Out.PENDING, Out.UNROUTABLE} and each["consumer"] in {"", consumer}
            if goes_there and (row is None or row["attempt"] == each["attempt"]):
                return True
        broker = self.world.broker
        copies = [*broker.copies(f"model.{consumer}"), *broker.given_up(consumer)]
        return any(copy.message_id == message_id and (row is None or row["attempt"] == copy.attempt) for copy in copies)

    def _marked_only_if_routed(self) -> None:
        for row in self.outbox:
            if row["state"] == Out.PUBLISHED:
                self._expect(row["id"] in self.world.broker.confirmed, "mark", f"{row}: nobody confirmed that")
            elif row["state"] == Out.FAILED:
                order = self.world.orders[row["message_id"]]
                self._expect(order.event.nature == "refused", "mark", f"{row}: it was not the guilty one")

    def _attempts_grow_and_end(self) -> None:
        for where, row in self.inbox.items():
            self._expect(row["attempt"] >= self.attempts.get(where, 1), "attempts", f"{where} went back: {row}")
            self.attempts[where] = row["attempt"]
        for where, count in self.failures.items():
            limit = ATTEMPTS * (1 + self.world.replays[where])
            self._expect(count <= limit, "attempts", f"{where} failed {count} times")
            if count >= limit:
                self.world.may_be_dead.setdefault(where, "it failed as often as it may")

    def _dead_for_a_reason(self) -> None:
        for where, row in self.inbox.items():
            if row["state"] == In.DEAD:
                self._expect(where in self.world.may_be_dead, "dead", f"{where} is dead without a reason")

    def _in_order(self) -> None:
        keys: dict[str, list[str]] = defaultdict(list)
        for order in self.world.orders.values():
            if order.key:
                keys[order.key].append(order.message_id)
        for consumer in CONSUMERS:
            for key, message_ids in keys.items():
                self._in_order_at(key, [(consumer.name, message_id) for message_id in message_ids])

    def _in_order_at(self, key: str, wheres: list[Where]) -> None:
        wheres = [where for where in wheres if where not in self.were_dead]
        handled = [self.notes[where][0] for where in wheres if self.notes[where]]
        self._expect(handled == sorted(handled), "order", f"messages of {key} overtook each other: {wheres}")
        waiting = [not self._is_settled(where) for where in wheres]
        after_those = wheres[waiting.index(True) :] if any(waiting) else []
        early = [where for where in after_those if self.notes[where]]
        self._expect(not early, "order", f"{early} of {key} did not wait for {after_those[:1]}")

    def _effects_are_as_the_ledger_says(self) -> None:
        for effect in self.effects:
            state, key = effect["state"], ":".join((effect["message_id"], effect["consumer"], effect["name"]))
            done = self.world.gateways[effect["name"]].done[key]
            about = f"{key} is {state}, and was done {done} times"
            if state == Effect.State.DONE:
                self._expect(done == 1, "effect untrue", about)
            elif state == Effect.State.UNKNOWN:
                self._expect(key in self.world.doubtful, "effect unknown", about)
            elif state in {Effect.State.INTENDED, Effect.State.FAILED}:
                self._expect(done == 0, "effect untrue", about)
        intended = {(effect["consumer"], effect["message_id"]) for effect in self.effects}
        for where, notes in self.notes.items():
            if notes and where[0] == "texts" and where not in self.world.forgotten:
                self._expect(where in intended, "effect lost", f"{where} was handled, and its effect is not written")


def _rows(model: type[models.Model], *columns: str) -> list[dict[str, Any]]:
    """Every row, by id. Not through Django's queries: this is asked after every step."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(columns)} FROM {model._meta.db_table} ORDER BY id")
        return [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]
