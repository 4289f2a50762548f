"""Actions on messages in the admin: confirmed first, done by POST, and audited. test_actions has what all share."""

import re
from collections.abc import Iterator, Sequence
from html import unescape
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from messaging import database, outbox
from messaging.actions import action as actions
from messaging.admin import actions as admin_actions
from messaging.consumers import Consumer
from messaging.models import Effect, InboxMessage, OperatorAction, OutboxMessage
from tests.support.consuming import a_consumer, a_dead_message, an_outbox_row, registered

#: What the SQL of one database decides is tested with the actions themselves.
pytestmark = [pytest.mark.django_db, pytest.mark.only_on("sqlite")]

OUTBOX = "/admin/messaging/outboxmessage/"
INBOX = "/admin/messaging/inboxmessage/"
EFFECTS = "/admin/messaging/effect/"
AUDIT = "/admin/messaging/operatoraction/"
PHONE = "+8613800138000"


@pytest.fixture
def consumer() -> Iterator[Consumer]:
    consumer = a_consumer()
    with registered(consumer):
        yield consumer


@pytest.fixture
def staff(client: Client) -> Client:
    """Ann, who may read messages and effects and the audit log, and nothing else yet."""
    user = User.objects.create_user("ann", is_staff=True)
    models = ("outboxmessage", "inboxmessage", "effect", "operatoraction")
    user.user_permissions.add(*Permission.objects.filter(codename__in=[f"view_{model}" for model in models]))
    client.force_login(user)
    return client


def grant(*codenames: str) -> None:
    User.objects.get(username="ann").user_permissions.add(*Permission.objects.filter(codename__in=codenames))


def an_effect(**changes: Any) -> Effect:
    row = InboxMessage.objects.create(consumer="notes", message_id="m-1", state="handled", subject="W-1")
    facts = {"consumer": "notes", "message_id": "m-1", "name": "text", "state": "unknown", "error": f"to {PHONE}: ?"}
    return Effect.objects.create(
        **{"inbox_message": row, "payload": {"to": PHONE, "kind": "placed"}, **facts, **changes}
    )


def chosen(client: Client, box: str, action: str, *rows: Any, **more: Any) -> str:
    """The page that asks for confirmation."""
    data = {"action": action, "_selected_action": [row.pk for row in rows], **more}
    response = client.post(box, data)
    assert response.status_code == 200
    return unescape(response.content.decode())


def confirmed(client: Client, page: str, note: str = "") -> str:
    """Press the button of the page that asks for confirmation; what the admin says then."""
    form = re.search(r'<form method="post" action="([^"]+)" class="messaging-form">(.*?)</form>', page, re.DOTALL)
    assert form, page
    rows = re.findall(r'name="row" value="(\d+)"', form[2])
    response = client.post(form[1], {"row": rows, "note": note, "confirmed": "yes"}, follow=True)
    assert response.status_code == 200
    return " ".join(str(message) for message in response.context["messages"])


def told(page: str) -> list[str]:
    """What the page that asks for confirmation says would happen."""
    return [" ".join(re.sub("<[^>]+>", "", line).split()) for line in re.findall(r"<li><strong>.*?</li>", page)]


def done(client: Client, address: str, rows: Sequence[Any], **form: str) -> list[str]:
    """Confirm an action on these rows; what the page says then, each with its level."""
    data = {"row": [row.pk for row in rows], "confirmed": "here", **form}
    return [f"{each.level_tag}: {each}" for each in client.post(address, data, follow=True).context["messages"]]


# --- lists -------------------------------------------------------------------------------------------------


def test_dead_messages_are_replayed_once_a_person_confirms_and_a_second_person_is_told(
    staff: Client, consumer: Consumer
) -> None:
    grant("replay_message")
    rows = [a_dead_message(consumer), a_dead_message(consumer)]
    handled = InboxMessage.objects.create(consumer="notes", message_id="m-1", state="handled", type="test.noted")

    first, second = (chosen(staff, INBOX, "replay", *rows, handled) for _ in range(2))

    assert told(first) == ["2 to run again, each at the consumer where it is dead", "1 handled: nothing is done"]
    assert "Replay 2" in first
    assert not OutboxMessage.objects.exists()
    assert not OperatorAction.objects.exists()

    assert confirmed(staff, first, note="why") == "2 replayed. So far 0 handled, 0 failed again. 1 left alone."
    assert confirmed(staff, second).startswith("Nothing was done: 2 already replayed")

    assert OutboxMessage.objects.filter(origin="replay").count() == 2
    done = OperatorAction.objects.order_by("id").values_list("actor", "action", "changed", "details")
    assert list(done) == [("ann", "replay", 2, {"note": "why"}), ("ann", "replay", 0, {})]
    assert "There is nothing to do here." in chosen(staff, INBOX, "replay", *rows)


def die_again(monkeypatch: pytest.MonkeyPatch, rows: Sequence[InboxMessage]) -> None:
    """Let these messages be dead again as soon as they are replayed."""
    resend = outbox.resend

    def resend_and_die(row: InboxMessage, **options: Any) -> None:
        resend(row, **options)
        if row in rows:
            InboxMessage.objects.filter(pk=row.pk).update(state="dead")

    monkeypatch.setattr(outbox, "resend", resend_and_die)


def test_a_replay_that_stops_over_failures_is_an_error_that_says_why_and_what_is_left(
    staff: Client, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant("replay_message")
    monkeypatch.setattr(actions, "SIZE", 10)
    rows = [a_dead_message(consumer) for _ in range(15)]
    die_again(monkeypatch, rows)

    assert done(staff, f"{INBOX}operate/replay/", rows) == [
        "error: 10 replayed. So far 0 handled, 10 failed again. "
        "Stopped: 10 of 10 failed again: 100%, over the limit of 20%. 5 were not replayed."
    ]


def test_a_replay_of_which_a_few_failed_again_and_a_discard_of_a_part_are_warnings(
    staff: Client, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant("replay_message", "discard_message")
    rows = [a_dead_message(consumer) for _ in range(10)]
    die_again(monkeypatch, rows[:1])

    assert done(staff, f"{INBOX}operate/replay/", rows) == ["warning: 10 replayed. So far 0 handled, 1 failed again."]
    assert done(staff, f"{INBOX}operate/discard/", rows[:2]) == [
        "warning: 1 inbox message discarded. 1 left alone: not dead."
    ]


def test_waiting_outbox_rows_are_published_now_or_cancelled(staff: Client) -> None:
    grant("replay_message", "cancel_message")
    refused = an_outbox_row(state="failed")
    leased = an_outbox_row(lease_until=database.in_future(60))
    gone = an_outbox_row(state="published")

    page = chosen(staff, OUTBOX, "publish", refused, leased, gone)
    assert told(page) == ["1 to be made due now", "2 due, being published, published or cancelled already"]
    assert confirmed(staff, page) == (
        "1 outbox message made due now. 2 left alone: due, being published, published or cancelled already. "
        "A relay publishes it as soon as RabbitMQ takes it."
    )
    refused.refresh_from_db()
    assert refused.state == "pending"

    page = chosen(staff, OUTBOX, "cancel", refused, leased, gone)
    assert told(page) == [
        "1 to be cancelled",
        "1 being published at this moment",
        "1 not waiting",
    ]
    assert confirmed(staff, page) == (
        "1 outbox message cancelled. 1 left alone: being published at this moment. 1 left alone: not waiting."
    )
    refused.refresh_from_db()
    assert (refused.state, refused.last_error) == ("cancelled", "cancelled by ann")


def test_all_rows_that_a_filter_finds_can_be_chosen_up_to_a_limit(
    staff: Client, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant("replay_message")
    monkeypatch.setattr(admin_actions, "LIMIT", 3)
    rows = [a_dead_message(consumer) for _ in range(5)]
    other = a_dead_message(consumer, reason="another one")

    page = chosen(staff, f"{INBOX}?failure_group={rows[0].failure_group}", "replay", rows[0], select_across="1")

    assert "the first 3" in page
    assert confirmed(staff, page) == "3 replayed. So far 0 handled, 0 failed again."
    again = staff.post(f"{INBOX}operate/replay/?state__exact=dead", {"row": other.pk, "confirmed": "yes"})
    assert again["Location"] == f"{INBOX}?state__exact=dead", "the list is filtered as before"
    assert InboxMessage.objects.filter(state="dead").count() == 2


# --- one message -------------------------------------------------------------------------------------------


def test_the_page_of_a_message_offers_what_its_state_allows(staff: Client, consumer: Consumer) -> None:
    grant("replay_message", "discard_message", "cancel_message")
    dead = a_dead_message(consumer)
    handled = InboxMessage.objects.create(consumer="notes", message_id="m-1", state="handled")

    def buttons(address: str) -> list[str]:
        return re.findall(r'class="messaging-tool">([^<]+)<', staff.get(address).content.decode())

    assert buttons(f"{INBOX}{dead.pk}/change/") == ["Replay", "Discard"]
    assert buttons(f"{INBOX}{handled.pk}/change/") == []
    assert buttons(f"{OUTBOX}{an_outbox_row(state='failed').pk}/change/") == ["Publish now", "Cancel"]
    assert buttons(f"{OUTBOX}{an_outbox_row(state='published').pk}/change/") == []

    page = staff.post(f"{INBOX}operate/replay/", {"row": dead.pk}).content.decode()
    assert told(unescape(page)) == ["1 to run again, each at the consumer where it is dead"]
    assert InboxMessage.objects.get(pk=dead.pk).state == "dead"


# --- requests made by hand ---------------------------------------------------------------------------------


def test_rows_that_make_no_sense_are_answered_with_a_page(staff: Client) -> None:
    grant("replay_message")
    for rows in ([], ["0"], ["abc"], ["-1"], ["9" * 30], ["²"], [str(n) for n in range(501)]):
        response = staff.post(f"{INBOX}operate/replay/", {"row": rows, "confirmed": "yes"})
        assert response.status_code in {200, 302}
    assert staff.post(f"{INBOX}operate/explode/", {"row": []}).status_code == 404


def test_a_note_from_outside_is_escaped_and_cut(staff: Client, consumer: Consumer) -> None:
    grant("replay_message")
    evil = "<script>alert(1)</script>\x00" + "x" * 1000
    row = a_dead_message(consumer)
    confirmed(staff, chosen(staff, INBOX, "replay", row), note=evil)
    action = OperatorAction.objects.get()
    assert len(action.details["note"]) == admin_actions.NOTE_LIMIT
    for address in (AUDIT, f"{AUDIT}{action.pk}/change/", f"{INBOX}{row.pk}/change/"):
        assert "<script>alert" not in staff.get(address).content.decode()


# --- effects -----------------------------------------------------------------------------------------------


def test_effects_are_found_and_read_and_what_is_personal_in_them_is_masked(staff: Client) -> None:
    effect = an_effect()
    for query in ("?q=W-1", "?q=m-1", "?q=text", "?state__exact=unknown", "?consumer=notes", "?since=1h"):
        response = staff.get(f"{EFFECTS}{query}")
        assert PHONE not in response.content.decode()
    assert [row.pk for row in staff.get(f"{EFFECTS}?q=W-1").context["cl"].result_list] == [effect.pk]

    for lookup in ("payload__to__startswith=%2B86", "error__contains=86", "inbox_message__body__contains=8"):
        assert staff.get(f"{EFFECTS}?{lookup}").status_code == 400

    page = unescape(staff.get(f"{EFFECTS}{effect.pk}/change/").content.decode())
    assert PHONE not in page
    assert '"kind": "placed"' in page
    assert "It may have been done or not" in page
    assert "notes: text: outcome unknown, a person has to settle it" in page


def test_an_unknown_effect_is_settled_with_a_decision(staff: Client) -> None:
    grant("settle_effect")
    effect = an_effect()
    page, settle = f"{EFFECTS}{effect.pk}/change/", f"{EFFECTS}operate/settle/"
    assert 'name="decision"' in staff.get(page).content.decode()
    for decision in ("", "maybe", "DONE"):
        assert done(staff, settle, [effect], decision=decision) == [
            "error: Nothing was done: say which: done, not done, give up."
        ]

    assert done(staff, settle, [effect], decision="done", reference=" SM1 ", note="in their log") == [
        f"success: Effect {effect.pk} (text of message m-1): done, SM1."
    ]

    effect.refresh_from_db()
    assert (effect.state, effect.reference, effect.error) == ("done", "SM1", "settled by ann: in their log")
    action = OperatorAction.objects.get(action="settle")
    assert (action.actor, action.changed) == ("ann", 1)
    assert 'name="decision"' not in staff.get(page).content.decode()
    assert done(staff, settle, [effect], decision="not done") == [
        f"warning: Nothing was done: effect {effect.pk} is done, SM1, and cannot be settled as not done."
    ]


def test_the_page_of_an_effect_offers_what_can_be_said_in_its_state(staff: Client) -> None:
    grant("settle_effect")
    effect = an_effect()
    for state, asked in (("unknown", True), ("failed", True), ("intended", False)):
        Effect.objects.update(state=state)
        page = staff.get(f"{EFFECTS}{effect.pk}/change/").content.decode()
        assert 'value="give up"' in page
        assert ('value="not done"' in page, 'name="reference"' in page) == (asked, asked)


# --- audit -------------------------------------------------------------------------------------------------


def test_each_view_of_an_unmasked_payload_is_audited(staff: Client, consumer: Consumer) -> None:
    pages = [
        f"{INBOX}{a_dead_message(consumer).pk}/change/",
        f"{OUTBOX}{an_outbox_row().pk}/change/",
        f"{EFFECTS}{an_effect().pk}/change/",
    ]
    for page in pages:
        staff.get(page)
    assert not OperatorAction.objects.exists()

    grant("view_payload")
    for page in pages:
        staff.get(page)
    seen = OperatorAction.objects.order_by("id")
    assert [action.about.rsplit(" ", 1)[0] for action in seen] == ["inbox message", "outbox message", "effect"]
    assert {(action.actor, action.action, action.changed) for action in seen} == {("ann", "view payload", 0)}
    assert [action.messages.get().message_id for action in seen][1:] == ["m-1", "m-1"]


def test_message_and_audit_log_tell_who_did_what_and_the_log_is_read_only(staff: Client, consumer: Consumer) -> None:
    grant("replay_message")
    row = a_dead_message(consumer)
    confirmed(staff, chosen(staff, INBOX, "replay", row), note=f"ask {PHONE}")
    action = OperatorAction.objects.get()

    page = unescape(staff.get(f"{INBOX}{row.pk}/change/").content.decode())
    assert "replayed, by ann" in page
    assert "attempt 2 at notes written, as a replay" in page
    page = staff.get(f"{AUDIT}{action.pk}/change/").content.decode()
    assert f'<a href="{INBOX}?q={row.message_id}">{row.message_id}</a>' in page
    assert PHONE not in page
    assert [each.pk for each in staff.get(f"{AUDIT}?q=ann&action=replay").context["cl"].result_list] == [action.pk]

    assert staff.get(f"{AUDIT}add/").status_code == 403
    assert staff.post(f"{AUDIT}{action.pk}/change/", {"actor": "bob"}).status_code == 403
    assert staff.post(f"{AUDIT}{action.pk}/delete/", {"post": "yes"}).status_code == 403
    assert staff.get(f"{AUDIT}?details__contains=86").status_code == 400
    User.objects.get(username="ann").user_permissions.remove(Permission.objects.get(codename="view_operatoraction"))
    assert staff.get(AUDIT).status_code == 403


def test_the_audit_logs_search_does_not_reveal_masked_values(staff: Client) -> None:
    OperatorAction.objects.create(action="replay", actor="bob", about=f"subject {PHONE}")
    page = staff.get(AUDIT)
    assert PHONE not in page.content.decode()

    def found(words: str) -> int:
        return int(staff.get(AUDIT, {"q": words}).context["cl"].result_count)

    assert [found(PHONE[:length]) for length in (2, 7, len(PHONE))] == [0, 0, 0]
    assert found("bob") == 1
    grant("view_payload")
    assert found(PHONE[-6:]) == 1


def test_the_pages_hold_no_inline_style_or_script(staff: Client, consumer: Consumer) -> None:
    grant("replay_message", "settle_effect")
    row, effect = a_dead_message(consumer), an_effect()
    pages = (INBOX, f"{INBOX}{row.pk}/change/", f"{OUTBOX}story/?subject=W-1", f"{EFFECTS}{effect.pk}/change/", AUDIT)
    texts = [chosen(staff, INBOX, "replay", row), *(staff.get(page).content.decode() for page in pages)]
    for text in texts:
        assert "<style" not in text
        assert ' style="' not in text
        assert not re.search(r"<script(?![^>]*\bsrc=)(?![^>]*application/json)", text)
