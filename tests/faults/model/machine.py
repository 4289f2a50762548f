"""The rules: what can happen next. Hypothesis draws them in any order, and shrinks what it finds."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from messaging.actions.cancel import cancel
from messaging.actions.discard import discard
from messaging.actions.prune import prune
from messaging.actions.publish_now import publish_now
from messaging.actions.replay import replay
from messaging.actions.selection import Selection
from messaging.reconcile import reconcile
from messaging.reconcile.findings import Trouble
from tests.faults.model import world as worlds
from tests.faults.model.broker import WEATHERS, Weather
from tests.faults.model.invariants import Judge
from tests.faults.model.world import ANSWERS, CONSUMERS, ENDINGS, MEANWHILES, NATURES, OPERATOR, WISHES, Fault, Ordered

#: More orders would not find more.
ORDERS = 8
#: With more of it nothing else would happen.
TROUBLES = 6
#: Times that something may be lost again before it comes through.
CYCLES = 6
EVERYTHING = Selection()
RECONCILE = partial(reconcile.reconcile, repair=True, by=OPERATOR)
#: Rounds in which everything must have come to rest once nothing fails any more.
ROUNDS = 20

names = st.sampled_from(["a", "b"])
queues = st.sampled_from([each.name for each in CONSUMERS])
effects = st.sampled_from(WISHES)
keys = st.sampled_from(["", "", "key"])
faults = st.builds(
    lambda at, what: Fault(at, what) if at > 0 else None,
    st.integers(-24, 14),
    st.sampled_from([MEANWHILES[0], MEANWHILES[0], MEANWHILES[0], *MEANWHILES]),
)
weathers = st.builds(Weather, st.sampled_from(WEATHERS), st.sampled_from([0, 0, 0, 1, 2]))
endings = st.lists(st.sampled_from(ENDINGS), min_size=1, max_size=3)
answers = st.sampled_from(ANSWERS)
times = st.sampled_from([timedelta(seconds=11), worlds.LEASE_OVER, timedelta(seconds=70)])


class Journey(RuleBasedStateMachine):
    """Orders on their way from a transaction to their effects, through everything that can happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.world = worlds.new_world()
        self.judge = Judge(self.world)
        self.world.check = self.judge.look
        self.world.meanwhile = self._meanwhile
        self.number = self.troubles = 0

    def _events(self, count: int, nature: str, effect: str) -> list[Ordered]:
        first, self.number = self.number, self.number + count
        return [Ordered(number=first + each, nature=nature, effects=effect) for each in range(count)]

    def _may_trouble(self) -> bool:
        return self.troubles < TROUBLES

    def _may_order(self) -> bool:
        return len(self.world.orders) < ORDERS

    # --- one step ----------------------------------------------------------------------------------------------

    @initialize(name=names, count=st.integers(1, 3), effect=effects, key=keys)
    def first_orders(self, name: str, count: int, effect: str, key: str) -> None:
        self.place(name, count, "", effect, key, True, None)
        self.publish(name, Weather(), None)

    @precondition(_may_order)
    @rule(
        name=names,
        count=st.integers(1, 3),
        nature=st.sampled_from(NATURES),
        effect=effects,
        key=keys,
        commit=st.sampled_from([True, True, False]),
        fault=faults,
    )
    def place(
        self, name: str, count: int, nature: str, effect: str, key: str, commit: bool, fault: Fault | None
    ) -> None:
        """One order with something odd about it, perhaps, and others with nothing; or none, if it is rolled back."""
        events = [*self._events(1, nature, effect), *self._events(count - 1, "", effect)]
        self.world.run(name, lambda process: self.world.place(process, events, key=key, commit=commit), fault)

    @precondition(lambda self: self.judge.has_open_rows())
    @rule(name=names, weather=weathers, fault=faults)
    def publish(self, name: str, weather: Weather, fault: Fault | None) -> None:
        self.world.broker.weather = weather
        self.world.run(name, self.world.relay_step, fault)
        self.world.broker.weather = Weather()

    @precondition(lambda self: self.world.has_marks())
    @rule(name=names, fault=faults)
    def mark(self, name: str, fault: Fault | None) -> None:
        self.world.pass_time(timedelta(seconds=0.1))
        self.world.run(name, self.world.relay_step, fault)

    @precondition(lambda self: self.world.broker.has_ready())
    @rule(name=names, consumer=queues, count=st.integers(1, 3))
    def deliver(self, name: str, consumer: str, count: int) -> None:
        self.world.run(name, lambda process: self.world.deliver(process, consumer, count))

    @precondition(lambda self: self.world.has_arrivals())
    @rule(name=names, consumer=queues, endings=endings, answer=answers, fault=faults)
    def work(self, name: str, consumer: str, endings: list[str], answer: str, fault: Fault | None) -> None:
        self._work(name, consumer, endings, answer, fault)

    def _work(self, name: str, consumer: str, endings: list[str], answer: str, fault: Fault | None) -> bool:
        self.world.endings, self.world.answer = list(endings), answer
        worked = self.world.run(name, lambda process: self.world.work(process, consumer), fault)
        self.world.endings, self.world.answer = [], "done"
        return bool(worked)

    @precondition(lambda self: self.judge.has_open_effects())
    @rule(name=names, answer=answers, fault=faults)
    def upkeep(self, name: str, answer: str, fault: Fault | None) -> None:
        self.world.answer = answer
        self.world.run(name, self.world.upkeep, fault)
        self.world.answer = "done"

    @rule(time=times, names=st.sets(names))
    def time_passes(self, time: timedelta, names: set[str]) -> None:
        """Time passes, and some relays notice."""
        self._pass_time(time)
        self.world.look()
        for name in sorted(names):
            self.publish(name, Weather(), None)

    # --- several at once: single steps seldom get far ----------------------------------------------------------

    @precondition(_may_order)
    @rule(name=names, count=st.integers(1, 3), nature=st.sampled_from(NATURES), effect=effects, key=keys,
          commit=st.sampled_from([True, True, False]), weather=weathers)  # fmt: skip
    def place_and_publish(
        self, name: str, count: int, nature: str, effect: str, key: str, commit: bool, weather: Weather
    ) -> None:
        self.place(name, count, nature, effect, key, commit, None)
        self.publish(name, weather, None)
        self.mark(name, None)

    @precondition(_may_order)
    @rule(name=names, effect=effects, key=keys, consumer=queues, endings=endings, answer=answers, fault=faults)
    def whole_journey(
        self, name: str, effect: str, key: str, consumer: str, endings: list[str], answer: str, fault: Fault | None
    ) -> None:
        self.place_and_publish(name, 1, "", effect, key, True, Weather())
        self.deliver_and_handle(name, consumer, endings, answer, fault)

    @precondition(_may_order)
    @rule(name=names, effect=effects, key=keys)
    def publish_unbound(self, name: str, effect: str, key: str) -> None:
        """The bindings are removed by hand, and the relay has not noticed yet."""
        self.publish(name, Weather(), None)
        self.world.broker.bindings.clear()
        self.place_and_publish(name, 1, "", effect, key, True, Weather())

    @precondition(lambda self: self._may_trouble() and self.judge.has_open_rows())
    @rule(name=names, consumer=queues)
    def publish_without_a_queue(self, name: str, consumer: str) -> None:
        """A queue is deleted by hand, and its resting rows are published now; the relay has not noticed yet."""
        self.publish(name, Weather(), None)
        self.broker_trouble(None, "loses a queue", consumer)
        self.publish_now(name, None)
        self.publish(name, Weather(), None)
        self.mark(name, None)

    @precondition(lambda self: self.world.broker.has_ready())
    @rule(name=names, consumer=queues, endings=endings, answer=answers, fault=faults)
    def deliver_and_handle(
        self, name: str, consumer: str, endings: list[str], answer: str, fault: Fault | None
    ) -> None:
        self.deliver(name, consumer, 3)
        self.work(name, consumer, endings, answer, fault)

    @precondition(lambda self: self.judge.has_open_rows())
    @rule(one=names, fault=faults, weather=weathers)
    def publish_too_slowly(self, one: str, fault: Fault | None, weather: Weather) -> None:
        """A relay is frozen between a publish and its mark, and the other takes over."""
        self.publish(one, weather, None)
        self.time_passes(worlds.LEASE_OVER, set())
        self.publish(_other(one), Weather(), None)
        self.mark(one, fault)

    @precondition(lambda self: self._may_trouble() and self.world.broker.has_ready())
    @rule(one=names, consumer=queues)
    def lose_the_connection_while_holding(self, one: str, consumer: str) -> None:
        """What was handed out comes again, some of it to another process; then the first goes on."""
        self.troubles += 1
        self.deliver(one, consumer, 3)
        self.cut(one, 1)
        self.deliver(_other(one), consumer, 1)
        self.deliver(one, consumer, 3)
        self.work(one, consumer, [], "done", None)

    def _meanwhile(self, what: str, name: str, where: str) -> None:
        """Something happens in the middle of a step of another process."""
        other = _other(name)
        match what:
            case "the other publishes":
                self.publish(other, Weather(), None)
            case "the other consumes":
                for each in CONSUMERS:
                    self.deliver(other, each.name, 3)
                    self.work(other, each.name, [], "done", None)
            case "the other's upkeep":
                self.upkeep(other, "done", None)
            case "time passes" if not where.startswith("gateway"):
                # How a gateway treats a request that was frozen on its way for so long is undefined.
                self._pass_time(worlds.LEASE_OVER)
                self.upkeep(other, "done", None)
                self.publish(other, Weather(), None)
            case "replayed":
                self.replay(other, None)
            case "cancelled":
                for message_id in list(self.world.orders)[-2:]:
                    self._cancel(other, message_id, None)
            case "reconciled":
                self.reconcile(other, None)

    # --- what people do ----------------------------------------------------------------------------------------

    @precondition(lambda self: self.judge.dead())
    @rule(name=names, fault=faults)
    def replay(self, name: str, fault: Fault | None) -> None:
        before = self.judge.dead()
        self.world.operate(name, lambda: replay.run(EVERYTHING, by=OPERATOR), fault)
        self.judge.forgive(before)

    @precondition(lambda self: self._may_trouble() and self.judge.dead())
    @rule(name=names, fault=faults)
    def discard(self, name: str, fault: Fault | None) -> None:
        self.troubles += 1
        self.world.discarded |= self.judge.dead()
        self.world.operate(name, lambda: discard.run(EVERYTHING, by=OPERATOR), fault)

    @precondition(lambda self: self._may_trouble() and self.judge.has_open_rows())
    @rule(name=names, data=st.data(), fault=faults)
    def cancel(self, name: str, data: st.DataObject, fault: Fault | None) -> None:
        self.troubles += 1
        self._cancel(name, data.draw(st.sampled_from(list(self.world.orders))), fault)

    def _cancel(self, name: str, message_id: str, fault: Fault | None) -> None:
        self.world.cancelled.add(message_id)
        allowed = {(each.name, message_id) for each in CONSUMERS} - self.world.may_be_dead.keys()
        self.world.may_be_dead.update(dict.fromkeys(allowed, "an operator cancelled it"))
        self.world.operate(name, lambda: cancel.run(Selection(message_ids=[message_id]), by=OPERATOR), fault)
        for where in allowed - self.judge.dead():
            self.world.may_be_dead.pop(where, None)

    @precondition(lambda self: self.judge.has_open_rows())
    @rule(name=names, fault=faults)
    def publish_now(self, name: str, fault: Fault | None) -> None:
        self.world.operate(name, lambda: publish_now.run(EVERYTHING, by=OPERATOR), fault)

    @precondition(lambda self: self.judge.has_unsettled_effects())
    @rule(name=names, data=st.data(), give_up=st.booleans(), fault=faults)
    def settle(self, name: str, data: st.DataObject, give_up: bool, fault: Fault | None) -> None:
        effect = data.draw(st.sampled_from(self.judge.unsettled_effects()))
        self.world.operate(name, lambda: self.world.settle(effect, give_up=give_up), fault)

    @rule(name=names, fault=faults)
    def reconcile(self, name: str, fault: Fault | None) -> None:
        self.world.operate(name, RECONCILE, fault)

    @precondition(_may_trouble)
    @rule(name=names, days=st.sampled_from([11, 15, 91]), fault=faults)
    def prune_after_a_long_time(self, name: str, days: int, fault: Fault | None) -> None:
        """Everything that arrived is handled, a row rests in the outbox, and then days pass."""
        self.troubles += 1
        for consumer in CONSUMERS:
            self._drain(name, consumer.name)
        if self._may_order():
            self.place(name, 1, "", "keyed", "", True, None)
        if not self.judge.may_forget():
            return
        self._pass_time(timedelta(days=days))
        self.world.look()
        with self.judge.forgetting():
            self.world.operate(name, lambda: prune.run(), fault)

    # --- what happens to processes and to the broker -----------------------------------------------------------

    @precondition(_may_trouble)
    @rule(name=names, how=st.sampled_from(["killed", "stopped", "cut 0", "cut 1"]))
    def trouble(self, name: str, how: str) -> None:
        if name not in self.world.processes:
            return
        self.troubles += 1
        if how == "killed":
            self.world.bury(self.world.processes[name])
        elif how == "stopped":
            self.world.run(name, self.world.stop)
        else:
            self.cut(name, int(how[-1]))
        self.world.look()

    def cut(self, name: str, which: int) -> None:
        if name in self.world.processes:
            self.world.processes[name].links[which].lose("the network was cut")

    @precondition(_may_trouble)
    @rule(data=st.data(), what=st.sampled_from(["restarts", "stops", "starts", "reads on", "reads late", "copies",
                                                "loses all bindings", "loses a binding", "gives up", "is purged",
                                                "loses one", "loses a queue"]), consumer=queues)  # fmt: skip
    def broker_trouble(self, data: st.DataObject | None, what: str, consumer: str) -> None:
        self.troubles += 1
        broker, queue = self.world.broker, f"model.{consumer}"
        match what:
            case "restarts":
                broker.stop()
                broker.start()
            case "stops":
                broker.stop()
            case "starts":
                broker.start()
            case "reads on":
                self.world.end_alarms()
            case "reads late":
                broker.let_late_ones_arrive()
            case "copies" if data:  # as if something had been published again: without the flag
                broker.copy_one(lambda copies: data.draw(st.sampled_from(copies)))
            case "loses all bindings":
                broker.bindings.clear()
            case "loses a binding":
                broker.unbind(queue)
            case "is purged" if queue in broker.queues:
                self.world.drop(consumer, broker.purge(queue))
            case "loses one" if queue in broker.queues:
                self.world.drop(consumer, broker.take_out_one(queue))
            case "loses a queue" if queue in broker.queues:
                self.world.drop(consumer, broker.delete_queue(queue))
            case "gives up":
                self.world.give_up(consumer)
        self.world.look()

    # --- the end -----------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if self.world.violation is None:
            self.heal()
            self.judge.look_at_the_end()
            self.world.look()

    def heal(self) -> None:
        """Nothing fails any more: everything must come to rest, and what the broker lost is sent again."""
        self.world.broker.start()
        self.world.end_alarms()
        self.world.broker.let_late_ones_arrive()
        for _ in range(CYCLES):
            self._come_to_rest()
            # A queue counts as empty only if it was so twice.
            if not self._reconcile_later() + self._reconcile_later():
                break

    def _reconcile_later(self) -> int:
        """Reconcile after a while; return how many were sent again."""
        self._pass_time(timedelta(seconds=1000))  # beyond RECONCILE_AFTER and RECONCILE_INTERVAL
        lost = {where for where in self.judge.wheres() if not self.judge.is_settled(where)}
        report = self.world.operate("a", RECONCILE)
        named = {(each.consumer, each.message_id) for each in report.of(Trouble.LOST)}
        self.judge.expect(named <= lost, "replay", f"{named - lost} were not lost, and sent again")
        self.judge.expect(lost & named <= self.world.dropped, "lost", f"{named - self.world.dropped}")
        return int(report.sent_again)

    def _come_to_rest(self) -> None:
        world = self.world
        for _ in range(ROUNDS):
            for name in ("a", "b"):
                world.run(name, world.relay_step)
                world.pass_time(timedelta(seconds=0.1))
                world.run(name, world.relay_step)
                for consumer in (*(each.name for each in CONSUMERS), worlds.BURIER):
                    self._drain(name, consumer)
                world.run(name, world.upkeep)
            if not self.judge.moves():
                return
            self._pass_time(timedelta(seconds=70))

    def _pass_time(self, time: timedelta) -> None:
        self.world.pass_time(time)
        self.world.note_doubts()

    def _drain(self, name: str, consumer: str) -> None:
        for _ in range(ROUNDS):
            delivered = self.world.run(name, lambda process: self.world.deliver(process, consumer, 10))
            if not (self._work(name, consumer, [], "done", None) or delivered):
                return


def _other(name: str) -> str:
    return "b" if name == "a" else "a"
