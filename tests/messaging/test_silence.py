"""What a relay remembers of destinations that gave no word."""

from messaging.silence import FIRST_PAUSE, LONGEST_PAUSE, Silences

NOTES, OTHERS = frozenset({"tests.notes"}), frozenset({"tests.others"})


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_who_was_silent_alone_rests_and_longer_each_time_up_to_a_minute() -> None:
    clock = Clock()
    silences = Silences(clock)
    pauses = []
    for _ in range(6):
        silences.silent(NOTES)
        pauses.append(silences.rest(NOTES))
        clock.now += pauses[-1]
        assert silences.rest(NOTES) == 0
        assert silences.doubted(NOTES)
    assert pauses == [5, 10, 20, 40, 60, 60]
    assert pauses[0] == FIRST_PAUSE
    assert pauses[-1] == LONGEST_PAUSE


def test_who_may_only_have_been_the_reason_goes_alone_at_once() -> None:
    silences = Silences(Clock())
    assert not silences
    silences.doubt(NOTES)
    assert silences
    assert silences.doubted(NOTES)
    assert silences.rest(NOTES) == 0
    assert not silences.doubted(OTHERS)


def test_a_doubt_shortens_no_rest() -> None:
    silences = Silences(Clock())
    silences.silent(NOTES)
    silences.doubt(NOTES)
    assert silences.rest(NOTES) == FIRST_PAUSE


def test_an_answer_ends_all_doubt() -> None:
    silences = Silences(Clock())
    silences.silent(NOTES)
    silences.silent(NOTES)
    silences.answered(NOTES)
    assert not silences
    silences.silent(NOTES)
    assert silences.rest(NOTES) == FIRST_PAUSE


def test_what_was_not_heard_of_for_long_is_forgotten() -> None:
    """Destinations may be named by ids, and never be used again."""
    clock = Clock()
    silences = Silences(clock)
    silences.silent(NOTES)
    clock.now += 1.9 * LONGEST_PAUSE
    silences.doubt(("orders.events", "order.1"))
    silences.forget_old()
    assert silences.doubted(NOTES)
    clock.now += LONGEST_PAUSE
    silences.forget_old()
    assert not silences.doubted(NOTES)
    assert silences
    clock.now += 2 * LONGEST_PAUSE
    silences.forget_old()
    assert not silences
