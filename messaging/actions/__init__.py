"""What an operator can do: one file for each action. Its pages in the admin, its command and its Celery task are
derived from it."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from messaging.actions import audit
from messaging.actions.action import Action, MessageAction, registry


def registered() -> list[Action]:
    """Return every action; those that end something for good come last."""
    _import_all()
    return sorted(registry.all(), key=lambda action: (action.ends_it, action.name))


def on_messages() -> list[MessageAction]:
    """Return the actions that are done to chosen rows."""
    return [action for action in registered() if isinstance(action, MessageAction)]


def audited() -> dict[str, str]:
    """Return what the audit log can name, each with what a story says of it; empty where it does not tell of it."""
    words = {action.name: action.past if action.in_stories else "" for action in on_messages()}
    return words | audit.OTHERS


@cache
def _import_all() -> None:
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        import_module(module.name)
