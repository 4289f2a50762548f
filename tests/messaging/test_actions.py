"""A new action is one class: the admin, the command, the Celery task, the audit log and stories have it at once."""

import re
from collections.abc import Iterator, Sequence
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client

from messaging import actions, tasks
from messaging.actions.action import MessageAction, registry
from messaging.history import timeline
from messaging.models import InboxMessage, OperatorAction

pytestmark = pytest.mark.django_db

INBOX = "/admin/messaging/inboxmessage/"


class Mark(MessageAction):
    """Marks dead messages, and does nothing else to them."""

    name = "mark"
    label = "Mark"
    past = "marked"
    permission = "messaging.discard_message"
    help = "mark dead messages"
    meaning = "A marked message has been seen by somebody."
    states = {InboxMessage: (InboxMessage.State.DEAD,)}
    not_so = "not dead"
    nothing = "no message like that is dead"

    def change(self, rows: Sequence[Any], words: str, **options: Any) -> None:
        InboxMessage.objects.filter(pk__in=[row.pk for row in rows]).update(reason=words)


@pytest.fixture
def dead() -> Iterator[InboxMessage]:
    """A dead message, while the action is known."""
    actions.registered()
    with registry.temporary(Mark(), keep=True):
        yield InboxMessage.objects.create(consumer="notes", message_id="m-1", state="dead", subject="W-1")
    tasks.of_actions.pop("mark", None)


def story_of(row: InboxMessage) -> list[str]:
    return [entry.what for entry in timeline.for_message(row.message_id).entries]


def test_a_new_action_is_in_the_admin(dead: InboxMessage, admin_client: Client) -> None:
    listed = admin_client.get(INBOX).content.decode()
    assert '<option value="mark">Mark</option>' in listed
    assert re.search(r'operate/mark/">.*Mark</button>', admin_client.get(f"{INBOX}{dead.pk}/change/").content.decode())
    asked = admin_client.post(INBOX, {"action": "mark", "_selected_action": [dead.pk]}).content.decode()
    assert "A marked message has been seen by somebody." in asked
    assert "<strong>1</strong> to be marked" in asked

    told = admin_client.post(
        f"{INBOX}operate/mark/", {"row": dead.pk, "note": "why not", "confirmed": "yes"}, follow=True
    )

    assert [str(message) for message in told.context["messages"]] == ["1 inbox message marked."]
    dead.refresh_from_db()
    assert dead.reason == "marked by admin: why not"
    assert "marked, by admin" in admin_client.get(f"{INBOX}{dead.pk}/change/").content.decode()
    assert "?action=mark" in admin_client.get("/admin/messaging/operatoraction/").content.decode()


def test_a_new_action_needs_its_permission(dead: InboxMessage, admin_client: Client) -> None:
    User.objects.filter(username="admin").update(is_superuser=False)
    assert admin_client.post(f"{INBOX}operate/mark/", {"row": dead.pk, "confirmed": "yes"}).status_code == 403


def test_a_new_action_is_a_command(dead: InboxMessage) -> None:
    out = StringIO()
    call_command("messages", "mark", "m-1", "--dry-run", stdout=out)
    call_command("messages", "mark", "m-1", "--note", "why not", stdout=out)
    assert out.getvalue() == "1 inbox message would be marked.\n1 inbox message marked.\n"
    assert story_of(dead) == ["received", "dead", "marked"]
    action = OperatorAction.objects.get()
    assert (action.action, action.changed, action.details) == ("mark", 1, {"note": "why not"})


def test_a_new_action_is_a_task(dead: InboxMessage) -> None:
    tasks.make(registry.get("mark"))  # as when a process starts
    assert tasks.of_actions["mark"].name == "messaging.mark"  # type: ignore[attr-defined]
    assert tasks.of_actions["mark"](by="ann", subject="W-1") == {"marked": 1}
    assert OperatorAction.objects.get().actor == "ann"
