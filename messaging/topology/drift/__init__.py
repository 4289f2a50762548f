"""Drift: where the broker stands otherwise than the code of this project wants it."""

from messaging.topology.drift.events import unwanted as unwanted_events
from messaging.topology.drift.findings import NOT_LOOKED_AT, Drift, Finding, Kind
from messaging.topology.drift.looking import compare, look

__all__ = ["NOT_LOOKED_AT", "Drift", "Finding", "Kind", "compare", "look", "unwanted_events"]
