"""What a relay remembers of destinations that gave no word."""

from messaging.relay.silence import MEMORY, PAUSE, Silences

NOTES, OTHERS, WELL = frozenset({"tests.notes"}), frozenset({"tests.others"}), frozenset({"tests.well"})


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_who_may_only_have_been_the_reason_goes_alone_at_once() -> None:
    silences = Silences(Clock())
    assert not silences
    silences.doubt(NOTES)
    assert silences
    assert silences.doubted(NOTES)
    assert not silences.silent(NOTES)
    assert silences.rest(NOTES) == 0
    assert not silences.doubted(OTHERS)


def test_who_was_tried_alone_in_vain_rests_until_the_next_trial() -> None:
    clock = Clock()
    silences = Silences(clock)
    silences.gave_no_word(NOTES)
    assert silences.silent(NOTES)
    assert silences.rest(NOTES) == PAUSE
    clock.now += PAUSE
    assert silences.rest(NOTES) == 0
    assert silences.silent(NOTES)


def test_of_all_that_are_silent_one_is_tried_in_each_pause() -> None:
    clock = Clock()
    silences = Silences(clock)
    silences.gave_no_word(NOTES)
    clock.now += PAUSE
    silences.gave_no_word(OTHERS)
    assert silences.rest(NOTES) == silences.rest(OTHERS) == PAUSE


def test_once_one_that_was_silent_answers_the_others_may_be_tried_at_once() -> None:
    silences = Silences(Clock())
    silences.gave_no_word(NOTES)
    silences.gave_no_word(OTHERS)
    silences.gave_word(NOTES)
    assert not silences.doubted(NOTES)
    assert silences.silent(OTHERS)
    assert silences.rest(OTHERS) == 0


def test_an_answer_of_one_that_was_only_doubted_ends_no_rest_of_others() -> None:
    silences = Silences(Clock())
    silences.gave_no_word(NOTES)
    silences.doubt(WELL)
    silences.gave_word(WELL)
    assert not silences.doubted(WELL)
    assert silences.rest(NOTES) == PAUSE


def test_who_has_answered_goes_first_who_was_silent_last_and_the_rest_by_chance() -> None:
    silences = Silences(Clock())
    silences.gave_word(WELL)
    silences.doubt(WELL)
    silences.gave_no_word(NOTES)
    new = [("orders.events", f"order.{number}") for number in range(20)]
    orders = [silences.in_order([NOTES, *new, WELL]) for _ in range(5)]
    assert all(order[0] == WELL and order[-1] == NOTES and set(order[1:-1]) == set(new) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_what_was_not_heard_of_for_long_is_forgotten() -> None:
    """Destinations may be named by ids, and never be used again."""
    clock = Clock()
    silences = Silences(clock)
    silences.gave_no_word(NOTES)
    clock.now += 0.9 * MEMORY
    silences.doubt(("orders.events", "order.1"))
    silences.forget_old()
    assert silences.doubted(NOTES)
    clock.now += 0.2 * MEMORY
    silences.forget_old()
    assert not silences.doubted(NOTES)
    assert silences
    clock.now += MEMORY
    silences.forget_old()
    assert not silences
