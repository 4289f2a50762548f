"""What `manage.py check --tag messaging` reports: what is refused, and what would lose time or messages later.

The checks of declarations and of the broker are imported when they run: not every command needs them.
"""

from typing import Any

from django.core.checks import CheckMessage, register

from messaging.checks import environment

__all__ = ["environment"]


@register("messaging")
def check_declared(**kwargs: Any) -> list[CheckMessage]:
    """Report what is declared so that messages would be lost, rejected or returned."""
    from messaging.checks import broker, declarations

    return [
        *declarations.check_declarations(),
        *broker.check_delivery_limit(),
        *broker.check_unconsumed_events(),
    ]


@register("messaging", deploy=True)
def check_deployed(**kwargs: Any) -> list[CheckMessage]:
    """Report what is wrong with the broker of a production."""
    from messaging.checks import broker

    return [*broker.check_topology(), *broker.check_broker_account()]
