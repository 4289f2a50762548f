"""What must be true after every step, and once everything has healed: read from database, broker and gateways alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from django.contrib.auth.models import Group

from messaging.models import Effect, InboxMessage, OutboxMessage
from script.laws import Tables, Where, handled_twice, read_rows
from tests.faults.model.world import ATTEMPTS, CONSUMERS, World

Out = OutboxMessage.State
In = InboxMessage.State
Origin = OutboxMessage.Origin


class Judge:
    """Checks a world after each step, and remembers the step before."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.attempts: dict[Where, int] = {}
        self._read_at = -1
        #: Messages that were dead once: what came after them did not have to wait.
        self.were_dead: set[Where] = set()
        #: Messages that were replayed: how often they had failed before.
        self.replayed: dict[Where, int] = {}

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
            self._sent_again_once,
            self._effects_are_as_the_ledger_says,
        ):
            invariant()

    def look_at_the_end(self) -> None:
        """Check what is true once everything has healed, and nothing moves any more."""
        self._read()
        for where in self.wheres():
            self.expect(self.is_settled(where), "stuck", f"{where} is {self.inbox.get(where)}")
        for row in self.tables.to_publish():
            self.expect(False, "stuck", f"{row} waits")
        for queue in self.world.broker.queues:
            self.expect(not self.world.broker.copies(queue), "stuck", f"something is left in {queue}")
        for effect in self.effects:
            self.expect(effect["state"] not in Effect.OPEN, "effect lost", f"{effect} is left")

    def moves(self) -> bool:
        """Whether something is left that goes on by itself."""
        self._read()
        return bool(self.tables.moving() or any(self.world.broker.copies(queue) for queue in self.world.broker.queues))

    def may_forget(self) -> bool:
        """Whether time may pass as long as messages are kept: no message waits for being reconciled."""
        self._read()
        broker = self.world.broker
        return not (
            broker.late
            or any(link.unread for link in broker.links)
            or any(broker.copies(queue) for queue in broker.queues)
            or any(where in self.world.dropped and not self.is_settled(where) for where in self.wheres())
        )

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """Inside, what is done with may be pruned; see afterwards that nothing else was."""
        self._read()
        outbox, inbox, effects = self.outbox, self.inbox, self.effects
        settled = {where for where in self.wheres() if self.is_settled(where)}
        self.world.forgotten |= settled
        yield
        self._read()
        self.world.forgotten -= self.inbox.keys()
        for row in outbox:
            if row["state"] not in {Out.PUBLISHED, Out.CANCELLED}:
                self.expect(row["id"] in {each["id"] for each in self.outbox}, "retention", f"{row} was pruned")
        for where, row in inbox.items():
            if where not in self.inbox:
                over = row["state"] in {In.HANDLED, In.DISCARDED} and not self.rows_of[where[1]]
                self.expect(over, "retention", f"{row} was pruned, and could come again: {self.rows_of[where[1]]}")
        for effect in effects:
            if effect["state"] != Effect.State.DONE:
                self.expect(effect["id"] in {each["id"] for each in self.effects}, "retention", f"{effect} was pruned")

    def unsettled_effects(self) -> list[Effect]:
        """Return what a person could settle."""
        return list(Effect.objects.filter(state__in=[Effect.State.UNKNOWN, Effect.State.FAILED]).order_by("pk"))

    def has_unsettled_effects(self) -> bool:
        """Whether there is an effect that a person could settle."""
        return any(row["state"] in {Effect.State.UNKNOWN, Effect.State.FAILED} for row in self.effects)

    def has_open_rows(self) -> bool:
        """Whether something is left to publish."""
        return bool(self.tables.to_publish())

    def has_open_effects(self) -> bool:
        """Whether something is left to the upkeep."""
        return any(row["state"] in Effect.OPEN for row in self.effects) or any(
            row["state"] == In.WAITING for row in self.inbox.values()
        )

    def dead(self) -> set[Where]:
        """Which messages are dead."""
        self._read()
        return {where for where, row in self.inbox.items() if row["state"] == In.DEAD}

    def forgive(self, before: set[Where]) -> None:
        """What is not dead any more, as it was `before`, begins anew."""
        for where in before - self.dead():
            self.replayed[where] = self.failures[where]
            self.world.may_be_dead.pop(where, None)
            self.world.deaths.pop(where, None)

    # --- what there is ---------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read everything, if a transaction has committed since it was read last."""
        if self._read_at == self.world.commits:
            return
        self._read_at = self.world.commits
        self.tables = Tables()
        self.outbox, self.inbox, self.effects = self.tables.outbox, self.tables.inbox, self.tables.effects
        self.rows_of = self.tables.rows_of
        self.failures = Counter(
            {where: tried["failed"] + tried["rejected"] for where, tried in self.tables.outcomes.items()}
        )
        #: The rows that handlers left, for each message.
        self.notes: dict[Where, list[int]] = defaultdict(list)
        for row in read_rows(Group, "id", "name"):
            consumer, message_id, _ = row["name"].split()
            self.notes[consumer, message_id].append(row["id"])
        self.were_dead |= {where for where, row in self.inbox.items() if row["state"] in {In.DEAD, In.DISCARDED}}
        self.were_dead |= {where for where in self.wheres() if self._is_given_up(where)}

    def wheres(self) -> Iterator[Where]:
        for message_id in self.world.orders:
            for consumer in CONSUMERS:
                yield consumer.name, message_id

    def is_settled(self, where: Where) -> bool:
        if where in self.inbox:
            return self.tables.is_settled(where)
        return where in self.world.forgotten or self._is_given_up(where)

    def _is_given_up(self, where: Where) -> bool:
        """Whether it is never published: the broker refuses it, or a person cancelled it."""
        return any(
            each["state"] in {Out.FAILED, Out.CANCELLED} and each["consumer"] in {"", where[0]}
            for each in self.rows_of[where[1]]
        )

    def expect(self, truth: object, invariant: str, what: str) -> None:
        if not truth:
            self.world.violated(invariant, what)

    # --- what must be true -----------------------------------------------------------------------------------

    def _no_ghost(self) -> None:
        known = self.world.orders.keys()
        for message_id in {row["message_id"] for row in self.outbox} | {where[1] for where in self.notes}:
            self.expect(message_id in known, "ghost", f"{message_id} was never committed")

    def _at_most_once(self) -> None:
        for where in handled_twice(self._runs()):
            self.expect(False, "twice", f"{where} was handled {len(self.notes[where])} times")

    def _runs(self) -> dict[Where, int]:
        return {where: len(notes) for where, notes in self.notes.items()}

    def _nothing_lost(self) -> None:
        for where in self.tables.handled_without_a_run(self._runs(), [each.name for each in CONSUMERS]):
            self.expect(False, "lost", f"{where} counts as handled, and nothing came of it")
        for where in self.wheres():
            row = self.inbox.get(where)
            state = row["state"] if row else None
            if state in {In.HANDLED, In.EFFECTS_DUE}:
                continue
            if self.notes[where]:
                self.expect(where in self.world.forgotten, "fence", f"{where} was handled, and is {state}")
            elif not self.is_settled(where):
                comes = where in self.world.dropped or state == In.WAITING or self._is_on_its_way(where)
                self.expect(comes, "lost", f"{where} is {row}, and nothing brings it: {self.rows_of[where[1]]}")

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
                self.expect(row["id"] in self.world.broker.confirmed, "mark", f"{row}: no queue confirmed that")
            elif row["state"] == Out.FAILED:
                order = self.world.orders[row["message_id"]]
                self.expect(order.event.nature == "refused", "mark", f"{row}: it was not the guilty one")
            elif row["state"] == Out.CANCELLED:
                self.expect(row["message_id"] in self.world.cancelled, "mark", f"{row}: no operator cancelled it")

    def _attempts_grow_and_end(self) -> None:
        for where, row in self.inbox.items():
            self.expect(row["attempt"] >= self.attempts.get(where, 1), "attempts", f"{where} went back: {row}")
            self.attempts[where] = row["attempt"]
        for where, count in self.failures.items():
            since = count - self.replayed.get(where, 0)
            self.expect(since <= ATTEMPTS, "attempts", f"{where} failed {since} times")
            if since >= ATTEMPTS:
                self.world.may_be_dead.setdefault(where, "it failed as often as it may")

    def _dead_for_a_reason(self) -> None:
        for where, row in self.inbox.items():
            if row["state"] == In.DISCARDED:
                self.expect(where in self.world.discarded, "dead", f"{where} is discarded, but no operator did that")
            if row["state"] == In.DEAD:
                self.expect(where in self.world.may_be_dead, "dead", f"{where} is dead without a reason")

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
        self.expect(handled == sorted(handled), "order", f"messages of {key} overtook each other: {wheres}")
        waiting = [not self.is_settled(where) for where in wheres]
        after_those = wheres[waiting.index(True) :] if any(waiting) else []
        early = [where for where in after_those if self.notes[where]]
        self.expect(not early, "order", f"{early} of {key} did not wait for {after_those[:1]}")

    def _sent_again_once(self) -> None:
        waiting = Counter(
            (row["consumer"], row["message_id"], row["attempt"], row["origin"])
            for row in self.outbox
            # Whose turn has come may have to wait once more, and have its turn again.
            if row["state"] in {Out.PENDING, Out.UNROUTABLE} and row["origin"] not in {Origin.EVENT, Origin.TURN}
        )
        for where, count in waiting.items():
            self.expect(count == 1, "replay", f"{where} is sent again {count} times at once")

    def _effects_are_as_the_ledger_says(self) -> None:
        for effect in self.effects:
            state, key = effect["state"], ":".join((effect["message_id"], effect["consumer"], effect["name"]))
            done = self.world.gateways[effect["name"]].done[key]
            about = f"{key} is {state}, and was done {done} times"
            if state == Effect.State.DONE:
                self.expect(done == 1, "effect untrue", about)
            elif state == Effect.State.UNKNOWN:
                self.expect(key in self.world.doubtful | self.world.overdue, "effect unknown", about)
            elif state in {Effect.State.INTENDED, Effect.State.FAILED}:
                self.expect(done == 0, "effect untrue", about)
        intended = {(effect["consumer"], effect["message_id"]) for effect in self.effects}
        for where, notes in self.notes.items():
            if notes and where[0] == "texts" and where not in self.world.forgotten:
                self.expect(where in intended, "effect lost", f"{where} was handled, and its effect is not written")
