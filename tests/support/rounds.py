"""How thoroughly a fault is tried: a few times with every change, and many times with `script/test --full`."""

import os

#: Set by `script/test --full`.
FULL_VARIABLE = "WARREN_TEST_FULL"


def is_full() -> bool:
    """Whether the long forms of tests are to run."""
    return bool(os.environ.get(FULL_VARIABLE))


def rounds(short: int = 3, full: int = 200) -> range:
    """How often a test repeats what it does: crash windows are microseconds wide, and one try proves little."""
    return range(full if is_full() else short)
