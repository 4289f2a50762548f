"""Forks: a child begins with the parent's memory, and without its threads."""

from __future__ import annotations

import os
from collections.abc import Callable


def in_each_child(function: Callable[[], None]) -> None:
    """Call `function` in each process that is forked from this one from now on. On Windows there is none."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)
