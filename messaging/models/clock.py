"""The database's clock in plain SQL: what `Now()` is in Django's expressions. Its times are in UTC."""

from __future__ import annotations

#: The time now.
NOW = {"postgresql": "STATEMENT_TIMESTAMP()", "sqlite": "STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'NOW')"}
_LATER = {
    "postgresql": "STATEMENT_TIMESTAMP() + ({}) * INTERVAL '1 second'",
    "sqlite": "STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'NOW', ({}) || ' seconds')",
}


def later(vendor: str, seconds: str) -> str:
    """Return a time so many seconds from now; `seconds` is SQL, such as a parameter."""
    return _LATER[vendor].format(seconds)
