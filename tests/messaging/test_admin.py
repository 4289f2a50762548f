"""The message pages of the admin: to search, to read, and never to change."""

import json
import re
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone
from django.utils.timezone import now

from messaging.admin import payload, words
from messaging.admin.explanations import explain
from messaging.admin.story import title
from messaging.history.timeline import Entry, Kind
from messaging.models import DeliveryAttempt, Effect, InboxMessage, OutboxMessage

OUTBOX = "/admin/messaging/outboxmessage/"
INBOX = "/admin/messaging/inboxmessage/"
STORY = f"{OUTBOX}story/"
PHONE = "+8613800138000"

BODY = json.dumps({"order_number": "W-1", "customer": {"fullName": "Li Wei", "Phone": PHONE}, "total": "88"})


def outbox(**columns: Any) -> OutboxMessage:
    row = {
        "message_id": "m-1", "type": "order.placed", "subject": "W-1", "routing_key": "order.placed",
        "body": BODY.encode(), "state": "published", "published_at": now(), "expected_consumers": ["sms"],
    }  # fmt: skip
    return OutboxMessage.objects.create(**{**row, **columns})


def inbox(**columns: Any) -> InboxMessage:
    row = {"message_id": "m-1", "consumer": "sms", "type": "order.placed", "subject": "W-1", "state": "handled"}
    return InboxMessage.objects.create(**{**row, **columns})


def dead(**columns: Any) -> InboxMessage:
    row = inbox(**{"state": "dead", "attempt": 2, "reason": "GatewayError: 503", "body": BODY.encode(), **columns})
    for number in (1, 2):
        DeliveryAttempt.objects.create(
            inbox_message=row, number=number, outcome="failed", duration=timedelta(milliseconds=20), process="host:42",
            error=f"GatewayError: {number}", traceback=f'File "sms.py", line {number}',
        )  # fmt: skip
    return row


@pytest.mark.parametrize("earlier", [False, True], ids=["row", "attempt of an earlier version"])
def test_a_success_is_shown_with_its_process_and_duration(admin_client: Client, earlier: bool) -> None:
    if earlier:
        row = inbox()
        row.attempts.create(number=1, outcome="handled", process="host:42", duration=timedelta(milliseconds=20))
    else:
        row = inbox(handled_at=timezone.now(), process="host:42", milliseconds=20)
    text = page(admin_client, f"/admin/messaging/inboxmessage/{row.pk}/change/")
    assert (text.count("Attempt 1"), text.count("took 20 ms, in host:42")) == (1, 1)
    assert "None: the message never reached the handler." not in text


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
def reader(client: Client, db: None) -> Client:
    """A user who may read messages, but not the personal data in them."""
    user = User.objects.create_user("reader", is_staff=True)
    user.user_permissions.add(*Permission.objects.filter(codename__in=["view_outboxmessage", "view_inboxmessage"]))
    client.force_login(user)
    return client


def let_see_payloads() -> None:
    User.objects.get(username="reader").user_permissions.add(Permission.objects.get(codename="view_payload"))


# --- Finding -----------------------------------------------------------------------------------------------


def test_messages_are_found_by_subject_message_id_type_and_consumer(admin_client: Client):
    sent, received = outbox(consumer="sms"), inbox()
    outbox(message_id="m-2", subject="W-12", type="order.cancelled", consumer="red_packet")
    inbox(message_id="m-2", subject="W-12", type="order.cancelled", consumer="red_packet")

    for search in ("W-1", "m-1", "order.placed", "placed sms"):
        assert rows(admin_client, f"{OUTBOX}?q={search}") == {sent.pk}
        assert rows(admin_client, f"{INBOX}?q={search}") == {received.pk}
    assert len(rows(admin_client, f"{OUTBOX}?q=W-")) == 2


def test_messages_are_filtered_by_state_consumer_type_and_time(admin_client: Client):
    sent = outbox(state="unroutable", type="order.cancelled")
    received = dead(type="order.cancelled")
    outbox(message_id="m-2", created_at=now() - timedelta(hours=2))
    inbox(message_id="m-2", consumer="red_packet", received_at=now() - timedelta(hours=2))

    for choice in ("state__exact=unroutable", "type=order.cancelled", "since=1h"):
        assert rows(admin_client, f"{OUTBOX}?{choice}") == {sent.pk}
    for choice in ("state__exact=dead", "consumer=sms", "type=order.cancelled", "since=10min"):
        assert rows(admin_client, f"{INBOX}?{choice}") == {received.pk}


def test_a_list_shows_state_and_error_in_words_with_few_queries_that_read_no_body(
    admin_client: Client, django_assert_max_num_queries: Any
):
    for number in range(60):
        outbox(message_id=f"m-{number}", state="unroutable", last_error="no queue\norders.sms")
        inbox(message_id=f"m-{number}", state="dead", reason="no queue\norders.sms")

    for address, state in ((OUTBOX, "unroutable"), (INBOX, "dead")):
        with django_assert_max_num_queries(7) as queries:
            text = page(admin_client, f"{address}?q=W-1")
        assert f"</span> {state}</span>" in text
        assert "no queue orders.sms" in text
        assert not any('message"."body"' in query["sql"] for query in queries.captured_queries)


# --- One message -------------------------------------------------------------------------------------------


def test_a_dead_message_shows_why_with_attempts_and_tracebacks_folded_by_few_queries(
    admin_client: Client, django_assert_max_num_queries: Any
):
    for number in range(20):
        outbox(attempt=number + 1, consumer="sms")
    row = dead(body_truncated=True)

    with django_assert_max_num_queries(15):
        text = page(admin_client, of(row))

    for said in ["it will not be tried again", "GatewayError: 503", "Attempt 1", "Attempt 2", "took 20 ms", "host:42"]:
        assert said in text
    assert re.search(r'<details><summary>Traceback</summary><pre[^>]*>File "sms.py", line 2</pre></details>', text)
    assert "Only its beginning was kept" in text


def test_a_message_links_to_its_other_half_and_to_the_story_of_its_subject(admin_client: Client):
    sent, received = outbox(), dead()
    for row in (sent, received):
        text = page(admin_client, of(row))
        for link in [of(sent), of(received), f"{OUTBOX}?q=m-1", f"{INBOX}?q=m-1", f"{STORY}?subject=W-1"]:
            assert f'href="{link}"' in text


LATER = now() + timedelta(days=1)


EXPLAINED: list[tuple[OutboxMessage | InboxMessage | Effect, str]] = [
    (OutboxMessage(state="pending", publish_at=now()), "A relay publishes it"),
    (OutboxMessage(state="pending", publish_at=LATER), "It is committed, and waits for its time"),
    (OutboxMessage(state="published", publish_at=now()), "every queue to which it was routed has it"),
    (OutboxMessage(state="unroutable", publish_at=now()), "tried again by itself"),
    (OutboxMessage(state="failed", publish_at=now()), "refuses this message itself"),
    (OutboxMessage(state="cancelled", publish_at=now()), "A person decided not to publish it"),
    (InboxMessage(state="handled"), "its effects are committed"),
    (InboxMessage(state="retrying"), "only attempt 1 may run next"),
    (InboxMessage(state="waiting"), "It waits for earlier messages"),
    (InboxMessage(state="effects_due"), "still to be carried out"),
    (InboxMessage(state="dead"), "never pruned"),
    (InboxMessage(state="discarded"), "a person gave it up"),
    (Effect(state="intended", send_at=now()), "Not begun yet"),
    (Effect(state="intended", send_at=LATER), "It is begun at"),
    (Effect(state="sending", send_at=now()), "A process is carrying it out"),
    (Effect(state="done", send_at=now()), "It is done"),
    (Effect(state="failed", send_at=now()), "It was not done"),
    (Effect(state="failed", send_at=now(), given_up=True), "A person gave it up"),
    (Effect(state="unknown", send_at=now()), "It may have been done or not"),
]


@pytest.mark.parametrize(("row", "meaning"), EXPLAINED)
def test_every_state_has_a_look_and_is_explained(row: Any, meaning: str):
    assert meaning in " ".join(explain(row))
    assert words.pill_of(row)
    assert {each.state for each, _ in EXPLAINED if type(each) is type(row)} == set(row.State.values)


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"", "(empty)"),
        (bytes(range(256)) * 8, r"\x00\x01\x02"),
        (b"not\x00json", r"not\x00json"),
        (b"plain <b>text</b>", "plain <b>text</b>"),
        (b'{"half": "\\ud800"}', '"half": "\\ud800"'),
        (b'{"nul": "\\u0000"}', '"nul": "\\u0000"'),
        (b"[" * 100_000, "Not JSON, 97.7"),
        (b"[" * 900 + b"1," * 50_000 + b"1" + b"]" * 900, "the rest is not shown here"),
        (json.dumps(["x" * 100] * 9_000).encode(), "the rest is not shown here"),
        (b"1" * 10_000, "Not JSON, 9.8"),
    ],
    ids=["empty", "binary", "nul", "html", "surrogate", "nul in json", "deep", "deep json", "huge", "number"],
)
def test_any_body_can_be_shown(body: bytes, shown: str):
    text = payload.written(body, unmasked=True)

    assert shown in text.replace("\xa0", " ")
    assert len(text.encode()) < 100_000


def test_text_from_outside_is_escaped(admin_client: Client):
    evil = "<script>alert(1)</script>"
    row = dead(subject=evil, type=evil, reason=evil, body=evil.encode(), headers={"x": evil})
    for address in [of(row), INBOX, f"{STORY}?subject={evil}", f"{INBOX}?q={evil}"]:
        assert evil not in admin_client.get(address).content.decode()


# --- What is personal --------------------------------------------------------------------------------------


def test_personal_values_are_masked_unless_a_permission_shows_them(reader: Client):
    headers = {"Authorization": "Bearer 1", "x-request-id": "r-1"}
    sent, received = outbox(headers=headers), dead(headers=headers)
    for row in (sent, received):
        text = page(reader, of(row))
        for hidden in ("Li Wei", PHONE, "Bearer"):
            assert hidden not in text
        for shown in ('"fullName": "***"', '"order_number": "W-1"', '"x-request-id": "r-1"'):
            assert shown in text
    plain = dead(message_id="m-2", body=f"phone={PHONE}".encode())
    text = page(reader, of(plain))
    assert PHONE not in text
    assert "messaging.view_payload" in text

    let_see_payloads()
    text = page(reader, of(sent))
    assert PHONE in text
    assert "***" not in text
    assert f"phone={PHONE}" in page(reader, of(plain))


def test_a_phone_number_is_masked_wherever_it_is_quoted(reader: Client):
    phone = "+1 (415) 555-2671"
    quoted = f"GatewayError: {phone}: 503"
    row = dead(reason=quoted, body=json.dumps({"to": phone, "lines": [f"call {phone}."]}).encode())
    row.attempts.update(error=quoted, traceback=f"raise GatewayError(to='{phone}')")
    sent = outbox(state="failed", last_error=quoted, body=json.dumps(phone).encode(), headers={phone: phone})

    for address in (of(row), of(sent), f"{STORY}?subject=W-1", OUTBOX, INBOX):
        text = page(reader, address)
        assert phone not in text
        assert "GatewayError: ***: 503" in text

    let_see_payloads()
    for address in (of(row), of(sent), f"{STORY}?subject=W-1"):
        assert quoted in page(reader, address)


def test_payloads_cannot_be_guessed_by_filters(reader: Client):
    outbox(headers={"Authorization": "Bearer"})

    for lookup in ("body__contains=8613", "headers__Authorization__startswith=B", "last_error__contains=8613"):
        assert reader.get(f"{OUTBOX}?{lookup}").status_code == 400


# --- The story ---------------------------------------------------------------------------------------------


def test_the_story_of_a_subject_says_what_happened_and_what_is_still_to_come(admin_client: Client):
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
        (Kind.EFFECT_SENDING, -43, "sms: text begun, no answer in time: in doubt"),
        (Kind.EFFECT_SENDING, 5, "sms: text attempt 2 begun, no answer yet"),
    ],
)
def test_a_story_does_not_say_that_what_is_due_happens_now(kind: Kind, due: int, words: str):
    """The page does not know whether RabbitMQ and the consumer run."""
    of_effect = kind.value.startswith("effect")
    about: dict[str, Any] = {"effect": "text", "attempt": 2, "consumer": "sms"} if of_effect else {}
    entry = Entry(kind=kind, message_id="m", type="order.placed", due=now() + timedelta(seconds=due), **about)
    assert title(entry).startswith(words)


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_of_entry_has_a_look_and_words(kind: Kind):
    assert words.icon(kind)
    assert title(Entry(kind=kind, message_id="m-1", consumer="sms", type="order.placed", actor="ann", effect="text"))


def test_a_story_needs_the_permission_to_read_both_tables(reader: Client):
    outbox()
    assert "What happened" in page(reader, f"{STORY}?subject=W-1")
    for query in ("", "?subject=W-404", "?subject=%00"):
        assert "What happened" not in page(reader, f"{STORY}{query}")

    User.objects.get(username="reader").user_permissions.remove(Permission.objects.get(codename="view_inboxmessage"))
    page(reader, f"{STORY}?subject=W-1", status=403)


# --- Read-only ---------------------------------------------------------------------------------------------


def test_nothing_can_be_added_changed_or_deleted(admin_client: Client):
    received = dead()
    effect = Effect.objects.create(inbox_message=received, consumer="sms", message_id="m-1", name="text")
    for row in (outbox(), received, effect):
        model = f"/admin/messaging/{row._meta.model_name}/"
        for address in (f"{model}add/", f"{model}{row.pk}/change/", f"{model}{row.pk}/delete/"):
            assert admin_client.post(address, {"consumer": "x", "post": "yes"}).status_code == 403
        action = {"action": "delete_selected", "_selected_action": [row.pk]}
        assert admin_client.post(model, action).status_code == 405
        row.refresh_from_db()
        assert row.consumer != "x"
    assert admin_client.post(STORY).status_code == 405


@pytest.mark.django_db
def test_strangers_are_asked_to_sign_in(client: Client):
    for address in [OUTBOX, INBOX, STORY]:
        assert client.get(address).status_code == 302
