"""The audit log: who did what to which messages. It is written with the change itself, in one transaction."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection
from typing import Any

from django.db.models import F

from messaging.headers import storable_headers
from messaging.logs import get_logger
from messaging.models import ActionOnMessage, OperatorAction
from messaging.validation.texts import storable_text

log = get_logger(__name__)

RECONCILE = "reconcile"
VIEW_PAYLOAD = "view payload"
#: What is audited and is no `Action`, and what a story says of it; empty: nothing happened to the message.
OTHERS = {RECONCILE: "reconciled", VIEW_PAYLOAD: ""}


def record(
    action: str,
    *,
    actor: str,
    about: str,
    message_ids: Collection[str] = (),
    changed: int | None = None,
    **details: Any,
) -> OperatorAction:
    """Write down that `actor` did something, with the caller's transaction.

    `about` says to what, as it was asked for; `message_ids` are the messages that were changed or shown, and `changed`
    is the number of rows, if that is another one. `details` are JSON; empty ones are left out.
    """
    row = OperatorAction.objects.create(
        actor=storable_text(str(actor))[:255],
        action=action,
        about=storable_text(about),
        changed=len(message_ids) if changed is None else changed,
        details=storable_headers({name: value for name, value in details.items() if value not in (None, "", [], {})}),
    )
    ActionOnMessage.objects.bulk_create(
        [ActionOnMessage(action=row, message_id=message_id) for message_id in dict.fromkeys(message_ids)]
    )
    log.info("operator.action", action=action, actor=row.actor, about=row.about, changed=row.changed)
    return row


def extend(row: OperatorAction, message_ids: Collection[str]) -> None:
    """Write down that the action went on to these messages, one for each row that it changed, with the caller's
    transaction."""
    known = row.messages.filter(message_id__in=message_ids).values_list("message_id", flat=True)
    OperatorAction.objects.filter(pk=row.pk).update(changed=F("changed") + len(message_ids))
    new = dict.fromkeys(message_ids).keys() - set(known)
    ActionOnMessage.objects.bulk_create([ActionOnMessage(action=row, message_id=each) for each in sorted(new)])


def end_early(row: OperatorAction, why: str) -> None:
    """Write down why the action stopped before all was done, or is no success."""
    row.details = {**row.details, "stopped": storable_text(why)}
    OperatorAction.objects.filter(pk=row.pk).update(details=row.details)


def account() -> str:
    """Return the operating system's account that runs this process, as user@host: the actor of a command.

    The environment is not asked: anybody can set it.
    """
    return f"{_user()}@{socket.gethostname()}"


def _user() -> str:
    try:
        import pwd
    except ImportError:  # Windows
        return os.getlogin()
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user may have no name
        return f"uid {os.geteuid()}"
