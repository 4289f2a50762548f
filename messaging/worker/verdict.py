"""The verdict on a delivery."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """What became of a delivery. Each is acknowledged: the rest of the message's history is in the database."""

    HANDLED = "handled"
    DUPLICATE = "duplicate"
    RETRYING = "retrying"
    #: It waits until the earlier messages of its ordering key are settled.
    WAITING = "waiting"
    DEAD = "dead"
    #: A broadcast that failed in this process. Nothing remembers it.
    DROPPED = "dropped"
