"""Figures in words."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, quantiles


def line(name: str, seconds: Sequence[float]) -> str:
    """Return one line with the median, the 99th percentile and the maximum, in milliseconds."""
    p99 = quantiles(seconds, n=100, method="inclusive")[98]
    return (
        f"{name:32} median {median(seconds) * 1e3:7.1f} ms   p99 {p99 * 1e3:7.1f} ms   max {max(seconds) * 1e3:7.1f} ms"
    )
