"""What an operator can do: one file for each action. Its pages in the admin, its command and its Celery task are
derived from it."""

from __future__ import annotations

from messaging.actions import audit, cancel, discard, prune, publish_now, replay, retry_now, settle
from messaging.actions.action import Action, MessageAction

#: Every action, by name; those that end something for good come last.
ACTIONS: dict[str, Action] = {
    each.name: each
    for each in (
        *(publish_now.publish_now, retry_now.retry_now, replay.replay, settle.settle),
        *(cancel.cancel, discard.discard, prune.prune),
    )
}


def on_messages() -> list[MessageAction]:
    """Return the actions that are done to chosen rows."""
    return [action for action in ACTIONS.values() if isinstance(action, MessageAction)]


def audited() -> dict[str, str]:
    """Return what the audit log can name, each with what a story says of it; empty where it does not tell of it."""
    words = {action.name: action.past if action.in_stories else "" for action in on_messages()}
    return words | audit.OTHERS
