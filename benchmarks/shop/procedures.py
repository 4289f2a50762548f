"""Warren's procedure."""

from __future__ import annotations

from messaging.rpc import procedure


@procedure("echo")
def echo(text: str) -> str:
    """Return what was sent."""
    return text
