"""The tutorials' procedures, by their classic names: any tutorial client can call them, in any language."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from messaging.rpc import procedure

#: The largest whole number that every JSON reader keeps exact (RFC 8259, section 6).
_MAX_EXACT = 2**53 - 1


@procedure("fib", queue="rpc_queue", plain_queue=True)
def fib(n: Annotated[int, Field(ge=0, le=1000)]) -> int:
    """Return the n-th Fibonacci number: 30 → 832040. Bounded, and counted upwards, so that no caller can hang it."""
    number, following = 0, 1
    for _ in range(n):
        number, following = following, number + following
    return number


@procedure("increase", queue="compute_queue", plain_queue=True)
def increase(n: Annotated[int, Field(ge=-_MAX_EXACT, lt=_MAX_EXACT)]) -> int:
    """Return n + 1."""
    return n + 1
