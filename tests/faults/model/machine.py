"""The rules: what can happen next. Hypothesis draws them in any order, and shrinks what it finds."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.faults.model import world as worlds
from tests.faults.model.broker import WEATHERS, Weather
from tests.faults.model.invariants import Judge
from tests.faults.model.world import ANSWERS, CONSUMERS, EFFECTS, ENDINGS, NATURES, Fault, Ordered

#: More orders would not find more.
ORDERS = 8
#: With more of it nothing else would happen.
TROUBLES = 6
#: Rounds in which everything must have come to rest once nothing fails any more.
ROUNDS = 20

names = st.sampled_from(["a", "b"])
queues = st.sampled_from([each.name for each in CONSUMERS])
effects = st.sampled_from(EFFECTS)
keys = st.sampled_from(["", "", "key"])
faults = st.integers(-24, 12).map(lambda at: Fault(at) if at > 0 else None)
weathers = st.builds(Weather, st.sampled_from(WEATHERS), st.sampled_from([0, 0, 0, 1, 2]))
endings = st.lists(st.sampled_from(ENDINGS), max_size=3)
answers = st.sampled_from(ANSWERS)
times = st.sampled_from([timedelta(seconds=11), worlds.LEASE_OVER, timedelta(seconds=70)])


class Journey(RuleBasedStateMachine):
    """Orders on their way from a transaction to their effects, through everything that can happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.world = worlds.new_world()
        self.judge = Judge(self.world)
        self.world.check = self.judge.look
        self.number = self.troubles = 0

    def _events(self, count: int, nature: str, effect: str) -> list[Ordered]:
        first, self.number = self.number, self.number + count
        return [Ordered(number=first + each, nature=nature, effect=effect) for each in range(count)]

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
        self.world.run(name, self.world.turn, fault)
        self.world.broker.weather = Weather()

    @precondition(lambda self: self.world.has_marks())
    @rule(name=names, fault=faults)
    def mark(self, name: str, fault: Fault | None) -> None:
        self.world.pass_time(timedelta(seconds=0.1))
        self.world.run(name, self.world.turn, fault)

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
    def sweep(self, name: str, answer: str, fault: Fault | None) -> None:
        self.world.answer = answer
        self.world.run(name, self.world.sweep, fault)
        self.world.answer = "done"

    @rule(time=times, names=st.sets(names))
    def time_passes(self, time: timedelta, names: set[str]) -> None:
        """Time passes, and some relays notice."""
        self.world.pass_time(time)
        self.world.note_doubts()
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
        """Somebody removes the bindings, and the relay has not noticed yet."""
        self.publish(name, Weather(), None)
        self.world.broker.bindings.clear()
        self.place_and_publish(name, 1, "", effect, key, True, Weather())

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
                                                "is unbound", "gives up"]), consumer=queues)  # fmt: skip
    def broker_trouble(self, data: st.DataObject, what: str, consumer: str) -> None:
        self.troubles += 1
        broker = self.world.broker
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
            case "copies":  # as if something had been published again: without the flag
                broker.copy_one(lambda copies: data.draw(st.sampled_from(copies)))
            case "is unbound":
                broker.bindings.clear()
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
        """Nothing fails any more: everything must come to rest."""
        world = self.world
        world.broker.start()
        world.end_alarms()
        world.broker.let_late_ones_arrive()
        for _ in range(ROUNDS):
            for name in ("a", "b"):
                world.run(name, world.turn)
                world.pass_time(timedelta(seconds=0.1))
                world.run(name, world.turn)
                for consumer in (*(each.name for each in CONSUMERS), worlds.BURIER):
                    self._drain(name, consumer)
                world.run(name, world.sweep)
            if self.judge.is_quiet():
                return
            world.pass_time(timedelta(seconds=70))
            world.note_doubts()

    def _drain(self, name: str, consumer: str) -> None:
        for _ in range(ROUNDS):
            delivered = self.world.run(name, lambda process: self.world.deliver(process, consumer, 10))
            if not (self._work(name, consumer, [], "done", None) or delivered):
                return


def _other(name: str) -> str:
    return "b" if name == "a" else "a"
