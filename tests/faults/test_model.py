"""The journey against a model: whatever happens in whatever order, what must always be true is.

Hypothesis puts processes, broker, gateways and time through any sequence of events it can think of, on the product's
own code and a real database; only the broker and the gateways are models. That it would notice is shown by bugs put
into the product on purpose: each must be found, as the invariant it breaks.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.faults.model.bugs import BUGS, Bug
from tests.faults.model.machine import Journey
from tests.faults.model.world import Violation, stage
from tests.support.repeats import is_full

#: Set for the long run: other sequences each time, and many more of them.
FULL = is_full()

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.timeout(3600),
    # One thread at a time uses the database here, and SQLite is the quicker one for that.
    pytest.mark.both_databases if FULL else pytest.mark.only_on("sqlite"),
]

ALWAYS = settings(
    stateful_step_count=40,
    deadline=None,
    database=None,
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
SEARCH = settings(ALWAYS, max_examples=10_000 if FULL else 25, derandomize=not FULL)
#: No shrinking: that a bug is found is enough.
HUNT = settings(ALWAYS, max_examples=150, derandomize=True, phases=[Phase.generate])


@pytest.fixture(autouse=True)
def on_stage(settings: Any) -> Iterator[None]:
    with stage(settings):
        yield


def test_nothing_is_lost_doubled_or_out_of_order_whatever_happens() -> None:
    run_state_machine_as_test(Journey, settings=SEARCH)


@pytest.mark.parametrize(
    "bug", [pytest.param(bug, marks=[pytest.mark.full] if bug.hides else [], id=bug.name) for bug in BUGS]
)
def test_the_model_notices(bug: Bug) -> None:
    with bug.plant(), pytest.raises(Violation) as found:
        run_state_machine_as_test(Journey, settings=HUNT)
    assert found.value.invariant in bug.breaks
