"""How often a fault is repeated: a few times for each change, and many times with `script/test --full`."""

import os

#: Set by `script/test --full`.
FULL_VARIABLE = "WARREN_TEST_FULL"


def is_full() -> bool:
    """Return whether `script/test --full` runs."""
    return bool(os.environ.get(FULL_VARIABLE))


def repeats(short: int = 3, full: int = 200) -> range:
    """Return a range over the repetitions. Crash windows are microseconds wide: one try proves little."""
    return range(full if is_full() else short)
