"""Drift: where the broker stands otherwise than the code of this project wants it."""

from messaging.operations.drift.events import unwanted as unwanted_events
from messaging.operations.drift.findings import NOT_LOOKED_AT, Drift, Finding, Kind
from messaging.operations.drift.looking import compare, look

__all__ = ["NOT_LOOKED_AT", "Drift", "Finding", "Kind", "compare", "look", "unwanted_events"]
