"""What all actions have in common. And a new one: the admin, the command, Celery, the audit log and stories have it."""

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import transaction
from django.test import Client

from messaging import actions, database, tasks
from messaging.actions import audit
from messaging.actions.action import MessageAction
from messaging.actions.selection import COLUMNS, Selection
from messaging.history import timeline
from messaging.history.since import outcome_since
from messaging.models import Effect, InboxMessage, OperatorAction, OutboxMessage
from tests.support.consuming import a_consumer, a_dead_message, an_effect, an_inbox_row, an_outbox_row, registered

pytestmark = pytest.mark.django_db

INBOX = "/admin/messaging/inboxmessage/"
Row = OutboxMessage | InboxMessage | Effect


def a_refused_row() -> OutboxMessage:
    return an_outbox_row(state="failed")


def a_waiting_message() -> InboxMessage:
    return an_inbox_row(state="waiting", ordering_key="W-1")


def a_resting_effect() -> Effect:
    effect = an_effect(state="intended")
    Effect.objects.update(send_at=database.in_future(300))
    return effect


#: Each action with a row that it is for, and what it has to be told.
EACH: list[tuple[str, Callable[[], Row], dict[str, str]]] = [
    ("replay", lambda: a_dead_message(a_consumer()), {}),
    ("discard", lambda: a_dead_message(a_consumer()), {}),
    ("cancel", a_refused_row, {}),
    ("cancel", a_waiting_message, {}),
    ("publish", a_refused_row, {}),
    ("retry", a_resting_effect, {}),
    ("settle", an_effect, {"decision": "done", "reference": "SM1"}),
]
each_action = pytest.mark.parametrize(("name", "make", "options"), EACH)


@pytest.fixture(autouse=True)
def consumer() -> Iterator[None]:
    with registered(a_consumer()):
        yield


def action(name: str) -> MessageAction:
    found = actions.ACTIONS[name]
    assert isinstance(found, MessageAction)
    return found


def test_every_action_is_tested_here() -> None:
    assert {name for name, _, _ in EACH} == {each.name for each in actions.on_messages()}


@each_action
def test_who_did_what_and_why_is_written_with_it(name: str, make: Callable[[], Row], options: dict[str, str]) -> None:
    row = make()
    selection = Selection.of_rows(type(row), [row.pk])
    # A page asks for the plan before it is told the options.
    assert action(name).plan(selection).changed == 1
    result = action(name).run(selection, by="ann@host", note="because", **options)
    done = OperatorAction.objects.get()
    assert (done.actor, done.action, done.changed, result.changed) == ("ann@host", name, 1, 1)
    assert done.details == {"note": "because", **options}
    assert done.about == ("effect m-1:notes:text" if name == "settle" else str(selection))
    assert done.messages.get().message_id == row.message_id


def test_an_action_is_one_entry_of_the_audit_log_however_many_pages_it_takes(
    monkeypatch: pytest.MonkeyPatch, admin_client: Client
) -> None:
    monkeypatch.setattr("messaging.actions.action.SIZE", 2)
    consumer = a_consumer()
    for number in range(5):
        a_dead_message(consumer, reason=f"no {number}")
    asked = iter([False, False, True])
    result = action("discard").run(Selection(consumer="notes"), by="ann", should_stop=lambda: next(asked))
    assert (result.changed, result.stopped) == (4, "Stopped: told to stop.")
    done = OperatorAction.objects.get()
    assert (done.changed, done.messages.count()) == (4, 4)
    assert done.details == {"stopped": "Stopped: told to stop."}


def test_the_entry_of_a_replay_says_what_became_of_its_messages_since(admin_client: Client) -> None:
    consumer = a_consumer()
    rows = [a_dead_message(consumer, reason=f"no {number}") for number in range(4)]
    action("replay").run(Selection(consumer="notes"), by="ann")
    done = OperatorAction.objects.get()
    assert outcome_since(done) == [(4, "not handled yet")]
    for row, columns in zip(rows, ({"state": "handled"}, {"state": "dead"}, {"attempt": 3}), strict=False):
        InboxMessage.objects.filter(pk=row.pk).update(**columns)
    told = {(1, "handled"), (1, "dead again"), (1, "failed again, to be tried again"), (1, "not handled yet")}
    assert set(outcome_since(done)) == told
    page = admin_client.get(f"/admin/messaging/operatoraction/{done.pk}/change/").content.decode()
    assert "1 dead again" in page


def test_the_entry_of_settled_effects_says_what_became_of_them_since() -> None:
    for number in range(3):
        an_effect(message_id=f"m-{number}")
    action("settle").run(Selection(type="text"), by="ann", decision="not done")
    Effect.objects.filter(message_id="m-0").update(state="done")
    Effect.objects.filter(message_id="m-1").update(attempts=1, error="no")
    told = {(1, "done"), (1, "failed again, to be tried again"), (1, "not done yet")}
    assert set(outcome_since(OperatorAction.objects.get())) == told
    action("discard").run(Selection(type="text"), by="ann")
    assert outcome_since(OperatorAction.objects.latest("pk")) == []


def test_looks_at_payloads_have_a_list_of_their_own(admin_client: Client) -> None:
    for name in (audit.VIEW_PAYLOAD, "replay"):
        audit.record(name, actor="ann", about="x")
    there = "/admin/messaging/operatoraction/"
    for query, expected in (("", ["replay"]), ("?action=view+payload", [audit.VIEW_PAYLOAD])):
        rows = admin_client.get(there + query).context["cl"].result_list
        assert [row.action for row in rows] == expected


@each_action
def test_that_nothing_was_changed_is_written_too(name: str, make: Any, options: dict[str, str]) -> None:
    result = action(name).run(Selection(message_ids=["m-0"]), by="ann", **options)
    assert (result.changed, OperatorAction.objects.get().changed) == (0, 0)


@each_action
def test_rows_in_other_states_stay_as_they_are(name: str, make: Callable[[], Row], options: dict[str, str]) -> None:
    row = make()
    rows = type(row)._default_manager.filter(pk=row.pk)
    for state in set(type(row).State.values) - set(action(name).states[type(row)]):
        rows.update(state=state)
        before = rows.values().get()
        assert action(name).run(Selection(), by="ann", **options).changed == 0
        assert rows.values().get() == before


@each_action
def test_without_its_audit_row_nothing_is_changed(
    name: str, make: Callable[[], Row], options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = make()

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(audit, "record", refuse)
    with pytest.raises(RuntimeError), transaction.atomic():
        action(name).run(Selection.of_rows(type(row), [row.pk]), by="ann", **options)
    state = row.state
    row.refresh_from_db()
    assert row.state == state


@each_action
def test_one_that_is_told_to_stop_changes_nothing_more(
    name: str, make: Callable[[], Row], options: dict[str, str]
) -> None:
    row = make()
    result = action(name).run(Selection(), by="ann", should_stop=lambda: True, **options)
    assert (result.changed, "told to stop" in result.stopped) == (0, True)
    state = row.state
    row.refresh_from_db()
    assert row.state == state


@each_action
def test_a_row_that_is_not_meant_any_more_once_it_is_locked_is_left_alone(
    name: str, make: Callable[[], Row], options: dict[str, str]
) -> None:
    row = make()
    rows, reason = type(row)._default_manager.filter(pk=row.pk), COLUMNS[type(row)].reason
    rows.update(**{reason: "gateway down"})

    def fails_for_another_reason() -> bool:
        rows.update(**{reason: "no such order"})
        return False

    result = action(name).run(Selection(reason="gateway"), by="ann", should_stop=fails_for_another_reason, **options)
    assert (result.changed, rows.get().state) == (0, row.state)


@each_action
def test_a_row_that_was_recent_when_it_was_listed_is_changed_though_that_takes_long(
    name: str, make: Callable[[], Row], options: dict[str, str]
) -> None:
    row = make()

    def takes_long() -> bool:
        type(row)._default_manager.update(**{COLUMNS[type(row)].time: database.in_future(-7200)})
        return False

    chosen = Selection(since=timedelta(hours=1))
    assert action(name).run(chosen, by="ann", should_stop=takes_long, **options).changed == 1


MISSPELT = [
    ("discard", {"consumer": "notes", "failure_group": "aaa"}, "failure_group"),
    ("replay", {"message_ids": ["m-1"], "consumr": "notes"}, "consumr"),
    ("prune", {"consumer": "notes", "since": 3600}, "consumer, since"),
]


@pytest.mark.parametrize(("name", "told", "why"), MISSPELT)
def test_a_task_refuses_a_keyword_that_it_does_not_know(name: str, told: dict[str, Any], why: str) -> None:
    with pytest.raises(TypeError, match=f"{name} has no option {why}$"):
        tasks.of_actions[name](**told)
    assert not OperatorAction.objects.exists()


# --- in the admin ------------------------------------------------------------------------------------------


@each_action
def test_the_admin_wants_its_own_permission_a_post_and_the_forms_token(
    name: str, make: Callable[[], Row], options: dict[str, str], client: Client
) -> None:
    row = make()
    model = row._meta.model_name
    user = User.objects.create_user("ann", is_staff=True)
    own = action(name).permission.partition(".")[2]
    others = {"replay_message", "discard_message", "cancel_message", "settle_effect", "view_payload"} - {own}
    user.user_permissions.add(*Permission.objects.filter(codename__in=[f"view_{model}", *others]))
    client.force_login(user)
    box = f"/admin/messaging/{model}/"
    address, data = f"{box}operate/{name}/", {"row": row.pk, "confirmed": "yes", **options}
    chosen = {"action": name, "_selected_action": [row.pk]}

    assert f'<option value="{name}"' not in client.get(box).content.decode()
    assert client.post(box, chosen).status_code in {302, 405}
    assert client.post(address, data).status_code == 403

    user.user_permissions.set(Permission.objects.filter(codename=own))
    assert client.post(address, data).status_code == 403, "without the permission to see the rows"

    user.user_permissions.add(Permission.objects.get(codename=f"view_{model}"))
    assert f'<option value="{name}"' in client.get(box).content.decode()
    assert client.get(address, data).status_code == 405
    careful = Client(enforce_csrf_checks=True)
    careful.force_login(user)
    assert careful.post(address, data).status_code == 403
    assert Client().post(address, data).status_code == 302, "to the login"
    assert not OperatorAction.objects.exists()

    assert client.post(address, data).status_code == 302
    assert OperatorAction.objects.get().changed == 1


# --- a new one ---------------------------------------------------------------------------------------------


class Mark(MessageAction):
    """Marks dead messages, and does nothing else to them."""

    name = "mark"
    label = "Mark"
    past = "marked"
    permission = "messaging.discard_message"
    help = "mark dead messages"
    meaning = "A marked message has been seen."
    states = {InboxMessage: (InboxMessage.State.DEAD,)}
    not_so = "not dead"
    nothing = "no such message is dead"

    def change(self, rows: Sequence[Any], words: str, **options: Any) -> None:
        InboxMessage.objects.filter(pk__in=[row.pk for row in rows]).update(reason=words)


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> InboxMessage:
    """A dead message, while the action is known."""
    monkeypatch.setitem(actions.ACTIONS, "mark", Mark())
    return an_inbox_row(state="dead", subject="W-1")


def test_a_new_action_is_in_the_admin(dead: InboxMessage, admin_client: Client) -> None:
    listed = admin_client.get(INBOX).content.decode()
    assert '<option value="mark">Mark</option>' in listed
    assert re.search(r'operate/mark/">.*Mark</button>', admin_client.get(f"{INBOX}{dead.pk}/change/").content.decode())
    asked = admin_client.post(INBOX, {"action": "mark", "_selected_action": [dead.pk]}).content.decode()
    assert "A marked message has been seen." in asked
    assert "<strong>1</strong> to be marked" in asked

    told = admin_client.post(
        f"{INBOX}operate/mark/", {"row": dead.pk, "note": "why not", "confirmed": "yes"}, follow=True
    )

    assert [str(message) for message in told.context["messages"]] == ["1 inbox message marked."]
    dead.refresh_from_db()
    assert dead.reason == "marked by admin: why not"
    assert "marked, by admin" in admin_client.get(f"{INBOX}{dead.pk}/change/").content.decode()
    assert "?action=mark" in admin_client.get("/admin/messaging/operatoraction/").content.decode()


def test_a_new_action_is_a_command(dead: InboxMessage) -> None:
    out = StringIO()
    call_command("messages", "mark", "m-1", "--dry-run", stdout=out)
    call_command("messages", "mark", "m-1", "--note", "why not", stdout=out)
    assert out.getvalue() == "1 inbox message would be marked.\n1 inbox message marked.\n"
    assert [entry.what for entry in timeline.for_message("m-1").entries] == ["received", "dead", "marked"]


def test_a_new_action_is_a_task(dead: InboxMessage) -> None:
    task = tasks.make(actions.ACTIONS["mark"])  # as when a process starts
    assert task.name == "messaging.mark"  # type: ignore[attr-defined]
    assert task(by="ann", subject="W-1") == {"marked": 1}
    assert OperatorAction.objects.get().actor == "ann"
