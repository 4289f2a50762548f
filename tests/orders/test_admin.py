"""The shop's side of the admin."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from messaging.message import Delivery
from messaging.models import Effect, InboxMessage, OutboxMessage
from orders import sms
from orders.models import Campaign, Order, Product, TextMessage
from orders.red_packets import grant_red_packet
from orders.services import cancel_order
from orders.sms import send_text
from tests.orders.shop import text_of

OrderOf = Callable[..., Order]
# Pages: the SQL behind them is tested on both databases where it is written.
pytestmark = pytest.mark.only_on("sqlite")
CAMPAIGN = {"budget": "9", "min_amount": "1", "max_amount": "2", "active": "on", "starts_at_0": "2026-01-01",
            "starts_at_1": "00:00", "ends_at_0": "2036-01-01", "ends_at_1": "00:00"}  # fmt: skip
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


def product_form(product: Product, **changes: Any) -> dict[str, Any]:
    fields = ("name", "slug", "sku", "description", "picture", "price", "weight_grams")
    return {field: getattr(product, field) for field in fields} | {"active": "on", "stock_change": ""} | changes


def ship(client: Client, *orders: Order) -> Any:
    data = {"action": "mark_as_shipped", "_selected_action": [order.pk for order in orders]}
    return client.post("/admin/orders/order/", data, follow=True)


@pytest.mark.parametrize("model", ["product", "order", "campaign", "redpacket", "textmessage"])
def test_every_list_opens_and_can_be_searched(
    admin_client: Client, order_of: OrderOf, tea: Product, campaign: Campaign, model: str
) -> None:
    grant_red_packet(order_of(tea).number)
    assert admin_client.get(f"/admin/orders/{model}/").status_code == 200
    assert admin_client.get(f"/admin/orders/{model}/?q=W-").status_code in {200, 302}


def test_an_order_is_shown_read_only_with_its_lines_documents_and_messages(
    admin_client: Client, order_of: OrderOf, tea: Product, campaign: Campaign
) -> None:
    order = order_of(tea)
    packet = grant_red_packet(order.number)
    page = text_of(admin_client.get(f"/admin/orders/order/{order.pk}/change/"))
    assert packet
    for text in ["Tea", order.documents.all()[0].number, packet.code]:
        assert text in page
    assert f"/admin/messaging/outboxmessage/?q={order.number}" in page
    assert f"/admin/messaging/inboxmessage/?q={order.number}" in page
    assert "View on site" not in page  # the shop shows an order only to who placed it
    assert admin_client.post(f"/admin/orders/order/{order.pk}/change/", {"status": "shipped"}).status_code == 403
    assert admin_client.post(f"/admin/orders/order/{order.pk}/delete/").status_code == 403


def handled(order: Order, state: str = "handled", **columns: Any) -> InboxMessage:
    """The order's event at the consumer sms."""
    sent = OutboxMessage.objects.get(subject=order.number)
    OutboxMessage.objects.update(state="published", expected_consumers=["sms"])
    facts = {"consumer": "sms", "message_id": sent.message_id, "type": sent.type, "subject": order.number}
    return InboxMessage.objects.create(**facts, state=state, **columns)


def texted(order: Order, state: str, **columns: Any) -> None:
    """The text about the order, and the state of its effect."""
    row = handled(order)
    text = TextMessage.objects.create(
        order=order, kind="placed", phone=order.phone, body="hello", message_id=row.message_id
    )
    facts = {"consumer": "sms", "message_id": text.message_id, "name": sms.EFFECT, "state": state}
    Effect.objects.create(inbox_message=row, **facts, **columns)


def told(client: Client, address: str) -> list[str]:
    """The words of the pills on a page."""
    return [
        " ".join(words.split())
        for words in re.findall(r'aria-hidden="true">[^<]*</span>([^<]+)</span>', text_of(client.get(address)))
    ]


@pytest.mark.parametrize(
    ("state", "columns", "of_order", "of_text"),
    [
        ("done", {}, "all handled", "sent"),
        ("failed", {}, "text_message of sms failed", "not sent, failed"),
        ("failed", {"given_up": True}, "text_message of sms given up", "not sent, given up"),
        ("unknown", {}, "text_message of sms: outcome unknown", "sent or not: unknown"),
        (
            "intended",
            {"attempts": 3, "error": "busy"},
            "text_message of sms failed 3 times, to be tried again",
            "not sent yet, 3 attempts failed",
        ),
        ("intended", {}, "text_message of sms not done yet", "not sent yet"),
        ("intended", {"send_at": LONG_AGO}, "text_message of sms overdue, not done", "not sent yet, overdue"),
        ("sending", {"attempts": 1}, "text_message of sms not done yet", "begun, no answer yet"),
    ],
)
def test_an_order_shows_the_outcome_of_its_text(
    admin_client: Client,
    order_of: OrderOf,
    tea: Product,
    state: str,
    columns: dict[str, Any],
    of_order: str,
    of_text: str,
) -> None:
    order = order_of(tea)
    texted(order, state, **columns)

    assert told(admin_client, "/admin/orders/order/") == [of_order]
    assert told(admin_client, f"/admin/orders/order/{order.pk}/change/") == [of_order, of_text]
    assert told(admin_client, "/admin/orders/textmessage/") == [of_text]


@pytest.mark.parametrize(
    ("outbox", "inbox", "words"),
    [
        ("pending", "", "order.placed not published yet"),
        ("unroutable", "", "order.placed unroutable"),
        ("failed", "", "order.placed refused by RabbitMQ"),
        ("cancelled", "", "order.placed cancelled"),
        ("published", "", "order.placed not handled by sms yet"),
        ("published", "dead", "order.placed dead at sms"),
        ("published", "discarded", "order.placed discarded at sms"),
        ("published", "waiting", "order.placed waits for earlier messages at sms"),
        ("published", "handled", "all handled"),
    ],
)
def test_an_order_shows_the_outcomes_of_its_messages(
    admin_client: Client, order_of: OrderOf, tea: Product, outbox: str, inbox: str, words: str
) -> None:
    order = order_of(tea)
    if inbox:
        handled(order, inbox)
    OutboxMessage.objects.update(state=outbox, expected_consumers=["sms"])

    assert told(admin_client, "/admin/orders/order/") == [words]


def test_marking_as_shipped_ships_the_possible_orders_and_names_the_others(
    admin_client: Client, order_of: OrderOf, tea: Product, django_assert_max_num_queries: Any
) -> None:
    good, cancelled, *_ = (order_of(tea) for _ in range(6))
    with django_assert_max_num_queries(14):  # however many orders the list shows
        admin_client.get("/admin/orders/order/")
    cancel_order(cancelled.number)
    page = text_of(ship(admin_client, good, cancelled))
    good.refresh_from_db()
    assert good.status == "shipped"
    assert "1 marked as shipped" in page
    assert f"{cancelled.number}: This order was cancelled" in page
    assert OutboxMessage.objects.filter(type="order.shipped").count() == 1


def test_a_user_with_view_permission_only_cannot_ship(client: Client, order_of: OrderOf, tea: Product) -> None:
    viewer = User.objects.create_user("viewer", is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_order"))
    client.force_login(viewer)
    order = order_of(tea)
    assert "Mark as shipped" not in text_of(client.get("/admin/orders/order/"))
    ship(client, order)
    order.refresh_from_db()
    assert order.status == "placed"


def test_saving_a_product_does_not_restore_stock_that_was_sold_since(
    admin_client: Client, order_of: OrderOf, tea: Product
) -> None:
    url = f"/admin/orders/product/{tea.pk}/change/"
    form = product_form(tea, price="40.00", stock_change="5", stock="10")
    order_of(tea, quantity=3)
    assert admin_client.post(url, form).status_code == 302
    tea.refresh_from_db()
    assert (tea.price, tea.stock) == (Decimal("40.00"), 12)
    assert "Only 12 pieces are left" in text_of(admin_client.post(url, product_form(tea, stock_change="-13")))
    tea.refresh_from_db()
    assert tea.stock == 12


def test_a_product_is_added_with_its_first_stock(admin_client: Client, db: None) -> None:
    form = {"name": "Ink", "slug": "ink", "sku": "INK", "price": "9.90", "stock": "7", "weight_grams": "50"}
    assert admin_client.post("/admin/orders/product/add/", form | {"active": "on"}).status_code == 302
    assert Product.objects.get().stock == 7


def test_saving_a_campaign_keeps_the_sum_that_was_spent_since(
    admin_client: Client, order_of: OrderOf, tea: Product, campaign: Campaign
) -> None:
    packet = grant_red_packet(order_of(tea).number)
    form = {**CAMPAIGN, "name": "Renamed", "budget": "100.00", "max_amount": "8.88", "valid_days": "30", "spent": "0"}
    assert admin_client.post(f"/admin/orders/campaign/{campaign.pk}/change/", form).status_code == 302
    campaign.refresh_from_db()
    assert packet
    assert (campaign.name, campaign.spent) == ("Renamed", packet.amount)
    response = admin_client.post(f"/admin/orders/campaign/{campaign.pk}/change/", form | {"budget": "0.50"})
    assert "the budget cannot be less" in text_of(response)


@pytest.mark.parametrize("days", ["0", "999999999"])
def test_a_campaign_s_validity_must_end_on_a_possible_date(admin_client: Client, db: None, days: str) -> None:
    page = text_of(admin_client.post("/admin/orders/campaign/add/", {**CAMPAIGN, "name": "Odd", "valid_days": days}))
    assert "id_valid_days_error" in page
    assert not Campaign.objects.filter(name="Odd").exists()


# --- What only some may see ---------------------------------------------------------------------------------


def staff_with(client: Client, *rights: str) -> Client:
    """Sign in as a user with the rights to see red packets, orders and texts, and with `rights`."""
    user = User.objects.create_user("viewer", is_staff=True)
    codenames = ["view_redpacket", "view_order", "view_textmessage", *rights]
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client.force_login(user)
    return client


@pytest.mark.parametrize("may_see", [False, True])
def test_a_user_with_view_permission_only_sees_masked_codes(
    client: Client, order_of: OrderOf, tea: Product, campaign: Campaign, may_see: bool
) -> None:
    order = order_of(tea)
    packet = grant_red_packet(order.number)
    assert packet
    staff = staff_with(client, *(["see_redpacket_code"] if may_see else []))
    redpackets = "/admin/orders/redpacket/"
    pages = [redpackets, f"{redpackets}{packet.pk}/change/", f"/admin/orders/order/{order.pk}/change/"]
    for path in [*pages, f"{redpackets}{packet.pk}/history/"]:
        response = staff.get(path)
        assert response.status_code == 200
        assert (packet.code in text_of(response)) == (may_see and path in pages), path
    assert packet.code[-3:] in text_of(staff.get(redpackets))


def results(client: Client, address: str) -> int | None:
    """How many rows a list shows; None where the address is refused."""
    response = client.get(address)
    return response.context["cl"].result_count if response.status_code == 200 else None


def test_only_a_whole_code_is_found(client: Client, order_of: OrderOf, tea: Product, campaign: Campaign) -> None:
    packet = grant_red_packet(order_of(tea).number)
    assert packet
    staff, there = staff_with(client), "/admin/orders/redpacket/"
    assert results(staff, f"{there}?q={packet.code}") == 1
    assert results(staff, f"{there}?q={packet.code[:4]}") == 0
    for lookup in ("code__startswith", "code__contains", "code__regex", "code__gte"):
        assert results(staff, f"{there}?{lookup}={packet.code[:4]}") is None


def test_only_a_whole_masked_phone_number_is_found(
    client: Client, order_of: OrderOf, tea: Product, delivery: Delivery
) -> None:
    text = send_text(order_of(tea), TextMessage.Kind.PLACED, delivery)
    assert text
    staff, there = staff_with(client), "/admin/orders/textmessage/"
    for whole in ("13800138000", "%2B8613800138000", "138 0013 8000"):
        assert results(staff, f"{there}?q={whole}") == 1
    for piece in ("1380013", "+86138", "8000"):
        assert results(staff, f"{there}?q={piece}") == 0
    assert results(staff, f"{there}?phone__startswith=%2B86138") is None
    assert "138001" not in text_of(staff.get(f"{there}{text.pk}/change/"))
