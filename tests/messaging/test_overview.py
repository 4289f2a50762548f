"""The overview and the page of failures: what is wrong is on the first page, and can be mended from there."""

from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils.timezone import now

from messaging.admin import overview
from messaging.models import Effect, InboxMessage, OperatorAction, OutboxMessage
from messaging.monitoring import status
from messaging.topology.existing import Queue
from tests.messaging.test_admin import PHONE, dead, inbox, outbox

OVERVIEW = "/admin/messaging/"
FAILURES = "/admin/messaging/inboxmessage/failures/"


def effect(number: int = 1, **columns: Any) -> Effect:
    row = inbox(message_id=f"e-{number}", subject=f"W-{number}")
    usual = {"inbox_message": row, "consumer": "sms", "message_id": row.message_id, "name": "text_message"}
    return Effect.objects.create(**{**usual, **columns})


def failing(number: int = 1) -> Effect:
    return effect(
        number, attempts=1, error="GatewayError: 503", failure_group="g-503", send_at=now() + timedelta(minutes=5)
    )


def text(client: Client, address: str = OVERVIEW) -> str:
    response = client.get(address)
    assert response.status_code == 200
    return " ".join(unescape(response.content.decode()).split())


def shown(client: Client, address: str = OVERVIEW) -> overview.Overview:
    found: overview.Overview = client.get(address).context["overview"]
    return found


def figures(found: overview.Overview) -> dict[str, str]:
    return {card.label: card.figure for card in found.cards}


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> status.Broker:
    """The broker as the page finds it. That it is asked in truth is tested with RabbitMQ and a browser."""
    found = status.Broker(server="RabbitMQ 3.10.8", alarms="")
    monkeypatch.setattr(status, "broker", lambda: found)
    monkeypatch.setattr(overview, "_broker", overview._SharedLook())
    monkeypatch.setattr(status, "wrong_at", lambda broker: [broker.unreachable] if broker.unreachable else [])
    return found


@pytest.mark.django_db
def test_the_first_page_of_messaging_says_that_all_is_well_only_once_rabbitmq_was_asked(
    admin_client: Client, broker: status.Broker
) -> None:
    assert shown(admin_client).headline == "Outbox, inbox and effects are well; of RabbitMQ nothing is known yet"
    assert shown(admin_client, f"{OVERVIEW}?broker=1").headline == "All is well"
    broker.unreachable = "RabbitMQ cannot be reached"
    overview._broker = overview._SharedLook()
    assert shown(admin_client, f"{OVERVIEW}?broker=1").headline == "1 thing is wrong"


@pytest.mark.django_db
def test_a_failing_gateway_is_on_the_first_page_with_its_error_and_its_consumer(admin_client: Client) -> None:
    for number in range(3):
        failing(number)
    found = shown(admin_client)
    assert (found.headline, found.tone) == ("1 thing is wrong", "bad")
    assert figures(found)["effects that failed and are to be tried again"] == "3"
    [line] = found.groups
    assert (line.group.count, line.group.consumer, line.group.type) == (3, "sms", "text_message")
    page = text(admin_client)
    assert "GatewayError: 503" in page
    assert "<li>Effects that failed and are to be tried again: 3; <code>manage.py messages list --groups</code>" in page


@pytest.mark.django_db
def test_the_first_page_of_the_admin_says_what_is_wrong_and_leads_on(admin_client: Client) -> None:
    assert "messaging-health" not in text(admin_client, "/admin/")
    failing()
    page = text(admin_client, "/admin/")
    assert f'<a href="{OVERVIEW}">Messaging: 1 thing is wrong</a>' in page
    assert "<li>Effects that failed and are to be tried again: 1; <code>" in page


@pytest.mark.django_db
def test_the_cards_count_what_waits_what_failed_and_what_was_done_in_the_last_minute(admin_client: Client) -> None:
    outbox(state="pending", created_at=now() - timedelta(seconds=30))
    outbox(message_id="m-2", published_at=now() - timedelta(minutes=2))
    outbox(message_id="m-3")
    dead()
    inbox(message_id="m-4")
    inbox(message_id="m-5", changed_at=now() - timedelta(minutes=2))
    effect(6, state="unknown", error="no answer")
    found = shown(admin_client)
    assert figures(found) == {
        "waiting in the outbox": "1",
        "dead messages": "1",
        "effects that failed and are to be tried again": "0",
        "effects that have an unknown outcome": "1",
        "effects that failed for good": "0",
        "published in the last minute": "1",
        "handled in the last minute": "2",
    }
    assert found.cards[0].detail.startswith("the oldest for 3")
    for card in found.cards[:2]:
        assert admin_client.get(card.url).context["cl"].result_count == int(card.figure)


@pytest.mark.django_db
def test_the_page_asks_for_rabbitmq_once_it_is_shown_and_can_be_told_not_to_look_again(
    admin_client: Client, broker: status.Broker
) -> None:
    page = text(admin_client)
    assert 'hx-trigger="load, every 10s"' in page
    assert "/django_htmx/htmx-2.min.js" in page
    assert 'hx-trigger="every 10s"' in text(admin_client, f"{OVERVIEW}?broker=1")
    assert "hx-trigger" not in text(admin_client, f"{OVERVIEW}?broker=1&still=1")


@pytest.mark.django_db
def test_consumers_that_do_not_run_are_named(admin_client: Client, broker: status.Broker) -> None:
    for numbers, figure, detail in (
        ({}, "0 of 2", "not: red_packet, sms"),
        ({"orders.sms": 1}, "1 of 2", "not: red_packet"),
        ({"orders.sms": 0, "orders.red_packet": None}, "0 of 2", "not: sms; not known: red_packet"),
        ({"orders.sms": 2, "orders.red_packet": 1}, "2 of 2", ""),
    ):
        overview._broker = overview._SharedLook()
        broker.queues = [Queue(name=name, consumers=number) for name, number in numbers.items()]
        card = shown(admin_client, f"{OVERVIEW}?broker=1").cards[-1]
        assert (card.figure, card.detail) == (figure, detail)
    overview._broker = overview._SharedLook()
    broker.unreachable = "refused"
    assert "consumers run" not in figures(shown(admin_client, f"{OVERVIEW}?broker=1"))


@pytest.mark.django_db
def test_one_page_asks_rabbitmq_and_those_that_come_meanwhile_do_not_wait(
    broker: status.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = overview._SharedLook()
    meanwhile: list[status.Broker | None] = []

    def asked() -> status.Broker:
        meanwhile.append(shared.look())
        return broker

    monkeypatch.setattr(status, "broker", asked)
    assert shared.look() is broker
    assert shared.look() is broker
    assert meanwhile == [None]


@pytest.mark.django_db
def test_phone_numbers_are_masked_on_both_pages(admin_client: Client) -> None:
    dead(reason=f"no route to {PHONE}", failure_group="g-1")
    OperatorAction.objects.create(actor="ann", action="replay", about=f"reason containing {PHONE}", details={})
    for address in (OVERVIEW, FAILURES):
        page = text(admin_client, address)
        assert PHONE not in page
        assert "no route to" in page


@pytest.mark.django_db
def test_who_may_not_read_all_of_it_gets_the_list_of_tables(client: Client) -> None:
    user = User.objects.create_user("reader", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_outboxmessage"))
    client.force_login(user)
    failing()
    assert "messaging-health" not in text(client, "/admin/")
    page = text(client)
    assert "Outbox messages" in page
    assert "messaging-overview" not in page.replace('class="messaging-overview"', "")
    assert client.get(FAILURES).status_code == 403


@pytest.mark.django_db
def test_who_may_only_read_sees_failures_and_no_button(client: Client) -> None:
    dead(failure_group="g-1")
    failing()
    user = User.objects.create_user("reader", is_staff=True)
    codenames = ["view_outboxmessage", "view_inboxmessage", "view_effect"]
    user.user_permissions.add(*Permission.objects.filter(codename__in=codenames))
    client.force_login(user)
    for address in (OVERVIEW, FAILURES):
        assert "GatewayError: 503" in text(client, address)
        assert "<button" not in text(client, address).partition("messaging-failures")[2].partition("</ul>")[0]


@pytest.mark.django_db
def test_both_pages_take_less_than_thirty_queries_when_everything_is_wrong(
    client: Client, django_assert_max_num_queries: Any
) -> None:
    long_ago = now() - timedelta(hours=1)
    outbox(state="pending", publish_at=long_ago, created_at=long_ago, publish_attempts=2)
    outbox(message_id="m-u", state="unroutable", publish_at=long_ago, created_at=long_ago)
    inbox(message_id="m-r", state="retrying", reason="no", received_at=long_ago)
    for number, columns in enumerate(
        ({"state": "unknown"}, {"state": "failed"}, {"attempts": 2}, {"send_at": long_ago})
    ):
        dead(message_id=f"m-{number}", failure_group=f"g-{number}")
        effect(number, **{"failure_group": f"g-{number}", **columns})
    OperatorAction.objects.create(actor="ann", action="replay", about="x", details={})
    user = User.objects.create_user("operator", is_staff=True)
    user.user_permissions.add(*Permission.objects.filter(content_type__app_label="messaging"))
    client.force_login(user)
    for address in (OVERVIEW, FAILURES):
        with django_assert_max_num_queries(29):
            text(client, address)


# --- Acting on a kind of failure ---------------------------------------------------------------------------


def choose(client: Client, found: str, name: str, **more: str) -> Any:
    """Press the button of the action `name` at the only kind of failure on the page."""
    [line] = client.get(found).context["groups"]
    [address] = [address for action, address in line.actions if action.name == name]
    response = client.post(address, {"group": line.group.group, "state": line.group.state, **more})
    assert response.status_code == 200
    return address, response


def confirm(client: Client, address: str, response: Any, **more: str) -> str:
    """Confirm, and return the page that follows."""
    rows = response.context["rows"]
    done = client.post(address, {"row": rows, "confirmed": "yes", **more}, follow=True)
    assert done.redirect_chain == [(FAILURES, 302)]
    return unescape(done.content.decode())


@pytest.mark.django_db
def test_all_effects_of_one_kind_are_settled_from_the_page_of_failures(admin_client: Client) -> None:
    for number in range(200):
        effect(number, state="unknown", error="no answer", failure_group="g-0")
    other = effect(200, state="failed", error="no answer", failure_group="g-0")
    other_kind = effect(201, state="unknown", error="reset", failure_group="g-1")
    lines = admin_client.get(FAILURES).context["groups"]
    assert [(each.group.count, each.group.state) for each in lines] == [(200, "unknown"), (1, "unknown"), (1, "failed")]
    [(_, address)] = lines[0].actions
    response = admin_client.post(address, {"group": "g-0", "state": "unknown"})
    page = confirm(admin_client, address, response, decision="done", note="it is in their log")

    assert "200 effects settled." in page
    assert Effect.objects.filter(state="done", error__contains="it is in their log").count() == 200
    assert Effect.objects.exclude(state="done").count() == 2
    assert {other.pk, other_kind.pk} == set(Effect.objects.exclude(state="done").values_list("pk", flat=True))
    done = OperatorAction.objects.get(action="settle")
    assert (done.changed, done.messages.count()) == (200, 200)


@pytest.mark.django_db
def test_one_dead_message_of_a_kind_is_replayed_before_all_others(admin_client: Client) -> None:
    for number in range(3):
        dead(message_id=f"m-{number}", failure_group="g-0", type="order.placed")
    address, response = choose(admin_client, FAILURES, "replay", first="1")
    oldest = InboxMessage.objects.order_by("pk").first()
    assert oldest is not None
    assert response.context["rows"] == [oldest.pk]
    confirm(admin_client, address, response)
    assert [row.state for row in InboxMessage.objects.order_by("pk")] == ["retrying", "dead", "dead"]
    assert OutboxMessage.objects.get().message_id == oldest.message_id


@pytest.mark.django_db
def test_effects_that_wait_for_their_next_attempt_are_made_due_or_given_up(admin_client: Client) -> None:
    for number in range(3):
        failing(number)
    address, response = choose(admin_client, FAILURES, "settle")
    [decision] = response.context["options"]
    assert list(decision.choices) == ["give up"]
    address, response = choose(admin_client, FAILURES, "retry")
    page = confirm(admin_client, address, response, note="gateway is back")

    assert "3 effects made due now. A process of their consumer carries them out." in page
    assert Effect.objects.filter(send_at__lte=now(), state="intended", attempts=1).count() == 3


@pytest.mark.django_db
def test_the_overview_leads_to_the_same_actions(admin_client: Client) -> None:
    dead(failure_group="g-0")
    [line] = shown(admin_client).groups
    assert [action.name for action, _ in line.actions] == ["replay", "discard"]
    address = line.actions[1][1]
    response = admin_client.post(address, {"group": "g-0", "state": "dead"})
    confirm(admin_client, address, response)
    assert InboxMessage.objects.get().state == "discarded"


@pytest.mark.django_db
def test_a_group_that_does_not_exist_leaves_nothing_to_do(admin_client: Client) -> None:
    response = admin_client.post(
        "/admin/messaging/effect/operate/settle/?from=failures", {"group": "g-\x00", "state": "no such state"}
    )
    assert response.status_code == 200
    assert f'<a href="{FAILURES}">Go back</a>' in response.content.decode()
