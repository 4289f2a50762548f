"""The message pages of the admin: to search, to read, and never to change."""

import json
import re
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils.timezone import now

from messaging.admin import explanations, words
from messaging.admin.story import title
from messaging.history.timeline import Entry, Kind
from messaging.models import DeliveryAttempt, Effect, InboxMessage, OutboxMessage

pytestmark = pytest.mark.django_db

OUTBOX = "/admin/messaging/outboxmessage/"
INBOX = "/admin/messaging/inboxmessage/"
STORY = f"{OUTBOX}story/"

BODY = json.dumps({"order_number": "W-1", "customer": {"fullName": "Li Wei", "Phone": "+8613800138000"}, "total": "88"})


def outbox(**columns: Any) -> OutboxMessage:
    row = {
        "message_id": "m-1",
        "type": "order.placed",
        "subject": "W-1",
        "routing_key": "order.placed",
        "body": BODY.encode(),
        "state": "published",
        "published_at": now(),
        "expected_consumers": ["sms"],
    }
    return OutboxMessage.objects.create(**{**row, **columns})


def inbox(**columns: Any) -> InboxMessage:
    row = {"message_id": "m-1", "consumer": "sms", "type": "order.placed", "subject": "W-1", "state": "handled"}
    return InboxMessage.objects.create(**{**row, **columns})


def dead(**columns: Any) -> InboxMessage:
    row = inbox(**{"state": "dead", "attempt": 2, "reason": "GatewayError: 503", "body": BODY.encode(), **columns})
    for number in (1, 2):
        DeliveryAttempt.objects.create(
            inbox_message=row,
            number=number,
            outcome="failed",
            duration=timedelta(milliseconds=20),
            process="host:42",
            error=f"GatewayError: {number}",
            traceback=f'File "sms.py", line {number}',
        )
    return row


def page(client: Client, address: str, *, status: int = 200) -> str:
    response = client.get(address)
    assert response.status_code == status
    return unescape(response.content.decode())


def rows(client: Client, address: str) -> set[int]:
    response = client.get(address)
    assert response.status_code == 200
    return {row.pk for row in response.context["cl"].result_list}


def of(row: OutboxMessage | InboxMessage) -> str:
    return f"{OUTBOX if isinstance(row, OutboxMessage) else INBOX}{row.pk}/change/"


@pytest.fixture
def reader(client: Client) -> Client:
    """Somebody who may read messages, but not what is personal in them."""
    user = User.objects.create_user("reader", is_staff=True)
    wanted = Permission.objects.filter(codename__in=["view_outboxmessage", "view_inboxmessage"])
    user.user_permissions.add(*wanted)
    client.force_login(user)
    return client


# --- Finding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", ["W-1", "m-1", "order.placed", "placed sms"])
def test_messages_are_found_by_subject_message_id_type_and_consumer(admin_client: Client, search: str):
    sent, received = outbox(consumer="sms"), inbox()
    outbox(message_id="m-2", subject="W-2", type="order.cancelled", consumer="red_packet")
    inbox(message_id="m-2", subject="W-2", type="order.cancelled", consumer="red_packet")

    assert rows(admin_client, f"{OUTBOX}?q={search}") == {sent.pk}
    assert rows(admin_client, f"{INBOX}?q={search}") == {received.pk}


def test_an_order_number_finds_its_own_messages_and_not_those_of_a_longer_one(admin_client: Client):
    sent = outbox(subject="W-1")
    outbox(message_id="m-2", subject="W-12")

    assert rows(admin_client, f"{OUTBOX}?q=W-1") == {sent.pk}


def test_a_piece_of_an_order_number_finds_all_that_have_it(admin_client: Client):
    outbox(subject="W-123")
    outbox(message_id="m-2", subject="W-124")

    assert len(rows(admin_client, f"{OUTBOX}?q=W-12")) == 2


@pytest.mark.parametrize("choice", ["state__exact=unroutable", "type=order.cancelled", "since=1h"])
def test_outbox_messages_are_filtered_by_state_type_and_time(admin_client: Client, choice: str):
    wanted = outbox(state="unroutable", type="order.cancelled")
    outbox(message_id="m-2", created_at=now() - timedelta(hours=2))

    assert rows(admin_client, f"{OUTBOX}?{choice}") == {wanted.pk}


@pytest.mark.parametrize("choice", ["state__exact=dead", "consumer=sms", "type=order.cancelled", "since=10min"])
def test_inbox_messages_are_filtered_by_state_consumer_type_and_time(admin_client: Client, choice: str):
    wanted = dead(type="order.cancelled")
    inbox(message_id="m-2", consumer="red_packet", received_at=now() - timedelta(hours=2))

    assert rows(admin_client, f"{INBOX}?{choice}") == {wanted.pk}


def test_the_list_shows_state_and_error_in_words(admin_client: Client):
    outbox(state="unroutable", last_error="no queue\norders.sms")
    text = page(admin_client, OUTBOX)

    assert "</span> unroutable</span>" in text
    assert "no queue orders.sms" in text


@pytest.mark.parametrize(("model", "make"), [(OUTBOX, outbox), (INBOX, inbox)])
def test_a_long_list_takes_few_queries(admin_client: Client, django_assert_max_num_queries: Any, model: str, make: Any):
    for number in range(60):
        make(message_id=f"m-{number}", subject="W-9")

    with django_assert_max_num_queries(7):
        admin_client.get(f"{model}?q=W-9")


def test_the_list_does_not_read_bodies(admin_client: Client, django_assert_max_num_queries: Any):
    outbox()
    with django_assert_max_num_queries(7) as queries:
        admin_client.get(OUTBOX)

    assert not any('"messaging_outboxmessage"."body"' in query["sql"] for query in queries.captured_queries)


# --- One message -------------------------------------------------------------------------------------------


def test_a_dead_message_shows_why_with_attempts_and_tracebacks_folded(admin_client: Client):
    text = page(admin_client, of(dead()))

    for said in ["it will not be tried again", "GatewayError: 503", "Attempt 1", "Attempt 2", "took 20 ms", "host:42"]:
        assert said in text
    assert re.search(r'<details><summary>Traceback</summary><pre[^>]*>File "sms.py", line 2</pre></details>', text)


def test_a_message_links_to_its_other_half_and_to_its_subjects_story(admin_client: Client):
    sent, received = outbox(), dead()
    for row in (sent, received):
        text = page(admin_client, of(row))
        for link in [of(sent), of(received), f"{OUTBOX}?q=m-1", f"{INBOX}?q=m-1", f"{STORY}?subject=W-1"]:
            assert f'href="{link}"' in text


@pytest.mark.parametrize(
    ("columns", "meaning"),
    [
        ({"state": "pending"}, "A relay publishes it"),
        ({"state": "pending", "publish_at": now() + timedelta(days=1)}, "It is committed, and waits for its time"),
        ({"state": "published"}, "every queue to which it was routed has it"),
        ({"state": "unroutable"}, "tried again by itself"),
        ({"state": "failed"}, "refuses this message itself"),
    ],
)
def test_each_outbox_state_is_explained(admin_client: Client, columns: dict[str, Any], meaning: str):
    assert meaning in page(admin_client, of(outbox(**columns)))


@pytest.mark.parametrize(
    ("state", "meaning"),
    [("handled", "its effects are committed"), ("retrying", "only attempt 1 may run next"), ("dead", "never pruned")],
)
def test_each_inbox_state_is_explained(admin_client: Client, state: str, meaning: str):
    assert meaning in page(admin_client, of(inbox(state=state)))


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"", "(empty)"),
        (bytes(range(256)) * 8, "00 01 02 03"),
        (b"not\x00json", "6e 6f 74 00"),
        (b"plain <b>text</b>", "plain <b>text</b>"),
        (b'{"half": "\\ud800"}', '"half": "\\ud800"'),
        (b'{"nul": "\\u0000"}', '"nul": "\\u0000"'),
        (b"[" * 100_000, "Not JSON, 97.7"),
        (b"[" * 900 + b"1," * 50_000 + b"1" + b"]" * 900, "the rest is not shown here"),
        (b'{"cut": "off', "Not JSON"),
        (json.dumps(["x" * 100] * 9_000).encode(), "the rest is not shown here"),
        (b"1" * 10_000, "Not JSON, 9.8"),
    ],
    ids=["empty", "binary", "nul", "html", "surrogate", "nul in json", "deep", "deep json", "cut", "huge", "number"],
)
def test_any_body_can_be_looked_at(admin_client: Client, body: bytes, shown: str):
    text = page(admin_client, of(dead(body=body)))

    assert shown in text.replace("\xa0", " ")
    assert len(text) < 200_000


def test_a_truncated_body_says_so(admin_client: Client):
    assert "Only its beginning was kept" in page(admin_client, of(dead(body_truncated=True)))


def test_text_from_outside_is_escaped(admin_client: Client):
    evil = "<script>alert(1)</script>"
    row = dead(subject=evil, type=evil, reason=evil, body=evil.encode(), headers={"x": evil})
    for address in [of(row), INBOX, f"{STORY}?subject={evil}", f"{INBOX}?q={evil}"]:
        assert evil not in admin_client.get(address).content.decode()


def test_a_page_of_a_message_takes_few_queries(admin_client: Client, django_assert_max_num_queries: Any):
    for number in range(20):
        outbox(attempt=number + 1, consumer="sms")
    row = dead()

    with django_assert_max_num_queries(15):
        admin_client.get(of(row))


# --- What is personal --------------------------------------------------------------------------------------


def test_personal_values_are_masked(reader: Client):
    headers = {"Authorization": "Bearer 1", "x-request-id": "r-1"}
    for row in (outbox(headers=headers), dead(headers=headers)):
        text = page(reader, of(row))
        assert "Li Wei" not in text
        assert "+8613800138000" not in text
        assert "Bearer" not in text
        assert '"fullName": "***"' in text
        assert '"order_number": "W-1"' in text
        assert '"x-request-id": "r-1"' in text


def test_a_body_that_is_not_json_is_withheld(reader: Client):
    text = page(reader, of(dead(body=b"phone=+8613800138000")))

    assert "+8613800138000" not in text
    assert "messaging.view_payload" in text


def test_the_permission_shows_personal_values(reader: Client):
    User.objects.get(username="reader").user_permissions.add(Permission.objects.get(codename="view_payload"))
    text = page(reader, of(outbox()))

    assert "+8613800138000" in text
    assert "***" not in text


PHONES = ["+8613800138000", "+86 138 0013 8000", "+1 (415) 555-2671", "(415) 555-2671", "138-0013-8000", "13800138000"]


@pytest.mark.parametrize("phone", PHONES)
def test_a_phone_number_is_masked_wherever_it_is_quoted(reader: Client, phone: str):
    quoted = f"GatewayError: {phone}: 503"
    row = dead(reason=quoted, body=json.dumps({"to": phone, "lines": [f"call {phone}."]}).encode())
    row.attempts.update(error=quoted, traceback=f"raise GatewayError(to='{phone}')")
    sent = outbox(state="failed", last_error=quoted, body=json.dumps(phone).encode(), headers={phone: phone})

    for address in (of(row), of(sent), f"{STORY}?subject=W-1", OUTBOX, INBOX):
        text = page(reader, address)
        assert phone not in text
        assert "GatewayError: ***: 503" in text

    User.objects.get(username="reader").user_permissions.add(Permission.objects.get(codename="view_payload"))
    for address in (of(row), of(sent), f"{STORY}?subject=W-1"):
        text = page(reader, address)
        assert f"GatewayError: {phone}: 503" in text


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-21T03:05:39.002000+00:00",
        "21 Nov 2026 03:05:39",
        "0193e5a0-1111-7222-8333-444455556666",
        "1763694339.002",
        "W-7K3M9Q at 0x7f41e7d6e3b0, line 42",
        "took 1500 ms, 127.0.0.1:5672, 404 NOT_FOUND",
    ],
)
def test_what_is_no_phone_number_stays_readable(reader: Client, text: str):
    assert text in page(reader, of(dead(reason=text)))


def test_a_number_that_may_be_a_phones_is_masked_in_json_and_an_amount_is_not(reader: Client):
    text = page(reader, of(dead(body=b'{"to": 13800138000, "weight": 1200, "gift": true, "rest": null}')))

    assert "13800138000" not in text
    for kept in ('"to": "***"', '"weight": 1200', '"gift": true', '"rest": null'):
        assert kept in text


@pytest.mark.parametrize(
    "lookup", ["body__contains=8613", "headers__Authorization__startswith=B", "last_error__contains=8613"]
)
def test_payloads_cannot_be_guessed_by_filters(reader: Client, lookup: str):
    outbox(headers={"Authorization": "Bearer"})

    assert reader.get(f"{OUTBOX}?{lookup}").status_code == 400


@pytest.mark.parametrize("query", ["state__exact=%00", "type=%00", "q=x&consumer=%00&consumer=x"])
@pytest.mark.parametrize("model", [OUTBOX, INBOX])
def test_a_filter_that_no_database_understands_is_sent_back(admin_client: Client, model: str, query: str):
    response = admin_client.get(f"{model}?{query}")

    assert (response.status_code, response["Location"]) == (302, f"{model}?e=1")
    assert admin_client.get(response["Location"]).status_code == 200


# --- The story ---------------------------------------------------------------------------------------------


def test_a_search_that_finds_one_subject_links_to_its_story(admin_client: Client):
    outbox()
    inbox()
    for model in (OUTBOX, INBOX):
        assert "Story of W-1" in page(admin_client, f"{model}?q=W-1")


def test_a_subjects_story_says_what_happened_and_what_is_still_to_come(admin_client: Client):
    outbox(expected_consumers=["red_packet", "sms"], created_at=now() - timedelta(seconds=5))
    dead()
    text = page(admin_client, f"{STORY}?subject=W-1")

    told = ["order.placed written", "published", "sms: attempt 1 failed", "sms: attempt 2 failed", "sms: dead"]
    places = [text.index(f">{line}") for line in [*told, "red_packet: published, not yet handled"]]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("kind", "due", "words"),
    [
        (Kind.PENDING, -43, "order.placed: not yet confirmed by RabbitMQ, due for 4"),
        (Kind.PENDING, 250, "order.placed: to be published in 4 min "),
        (Kind.UNROUTABLE, -43, "order.placed: unroutable, next attempt due for 4"),
        (Kind.EFFECT_DUE, -43, "sms: text to be tried again, due for 4"),
        (Kind.EFFECT_SENDING, -43, "sms: text begun, and no answer in its time: done or not"),
        (Kind.EFFECT_SENDING, 5, "sms: text attempt 2 begun, no answer yet"),
    ],
)
def test_what_is_due_is_not_said_to_happen_now(kind: Kind, due: int, words: str):
    """Whether broker and consumer run is not known to who tells a story."""
    of_effect = kind.value.startswith("effect")
    about = {"effect": "text", "effect_id": 1, "attempt": 2, "consumer": "sms"} if of_effect else {"outbox_id": 1}
    entry = Entry(kind=kind, message_id="m", type="order.placed", due=now() + timedelta(seconds=due), **about)
    assert title(entry).startswith(words)


@pytest.mark.parametrize("query", ["", "?subject=", "?subject=W-404", "?subject=%00"])
def test_a_story_without_entries_is_a_page(admin_client: Client, query: str):
    assert "What happened" not in page(admin_client, f"{STORY}{query}")


def test_a_story_needs_the_right_to_read_both_tables(reader: Client):
    outbox()
    assert "What happened" in page(reader, f"{STORY}?subject=W-1")

    User.objects.get(username="reader").user_permissions.remove(Permission.objects.get(codename="view_inboxmessage"))
    page(reader, f"{STORY}?subject=W-1", status=403)
    assert "Story of" not in page(reader, f"{OUTBOX}?q=W-1")


# --- Read-only ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [outbox, dead])
def test_nothing_can_be_added_changed_or_deleted(admin_client: Client, make: Any):
    row = make()
    model = of(row).removesuffix(f"{row.pk}/change/")

    assert admin_client.get(f"{model}add/").status_code == 403
    assert admin_client.post(f"{model}add/", {"subject": "x"}).status_code == 403
    assert admin_client.post(of(row), {"subject": "x"}).status_code == 403
    assert admin_client.get(f"{model}{row.pk}/delete/").status_code == 403
    assert admin_client.post(f"{model}{row.pk}/delete/", {"post": "yes"}).status_code == 403
    action = {"action": "delete_selected", "_selected_action": [row.pk]}
    assert admin_client.post(model, action).status_code == 405
    assert admin_client.post(STORY).status_code == 405
    row.refresh_from_db()
    assert row.subject == "W-1"


def test_the_pages_hold_no_inline_style_or_script(admin_client: Client):
    row = dead()
    for address in [OUTBOX, INBOX, of(row), f"{STORY}?subject=W-1"]:
        text = admin_client.get(address).content.decode()
        assert "<style" not in text
        assert ' style="' not in text
        assert not re.search(r"<script(?![^>]*\bsrc=)(?![^>]*application/json)", text)


def test_strangers_are_asked_to_sign_in(client: Client):
    for address in [OUTBOX, INBOX, STORY]:
        assert client.get(address).status_code == 302


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_of_entry_has_a_look_and_words(kind: Kind):
    for row in ("outbox_id", "inbox_id", "action_id"):
        entry = Entry(kind=kind, message_id="m-1", type="order.placed", consumer="sms", actor="ann", **{row: 1})
        assert words.icon(kind)
        assert title(entry)
    assert title(Entry(kind=kind, message_id="m-1", consumer="sms", effect="text", effect_id=1))


@pytest.mark.parametrize(
    "state", sorted({*OutboxMessage.State.values, *InboxMessage.State.values, *Effect.State.values})
)
def test_every_state_has_a_look_and_an_explanation(state: str):
    assert state.replace("_", " ") in words.pill(state)
    if state in OutboxMessage.State:
        assert explanations.explain_outbox(outbox(state=state)).meaning
    if state in InboxMessage.State:
        assert explanations.explain_inbox(inbox(state=state)).what_next
    if state in Effect.State:
        row = inbox(message_id="m-2")
        effect = Effect.objects.create(inbox_message=row, consumer="sms", message_id="m-2", name="text", state=state)
        effect.refresh_from_db()
        assert explanations.explain_effect(effect).meaning
