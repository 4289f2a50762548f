"""An order's pages, and who may see them."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from messaging.models import InboxMessage, OutboxMessage
from orders.models import Campaign, Order, Product, TextMessage
from orders.red_packets import grant_red_packet
from orders.services import cancel_order, ship_order
from orders.sms import send_text
from tests.orders.shop import Buyer, arrival, text_of

OrderOf = Callable[..., Order]
# Pages: the SQL behind them is tested on both databases where it is written.
pytestmark = pytest.mark.only_on("sqlite")
PAGES = ["", "timeline/", "timeline.json", "print/", "cancel/"]


@pytest.mark.parametrize("page", PAGES)
def test_only_the_visitor_who_placed_an_order_sees_it(buyer: Buyer, tea: Product, page: str) -> None:
    number = buyer.buy(tea)
    assert buyer.client.get(f"/orders/{number}/{page}").status_code in {200, 286}
    assert Client().get(f"/orders/{number}/{page}").status_code == 404
    assert Client().post(f"/orders/{number}/cancel/").status_code == 404


def test_staff_see_orders_in_the_admin_and_error_pages_are_our_own(
    buyer: Buyer, tea: Product, admin_client: Client
) -> None:
    hidden = admin_client.get(f"/orders/{buyer.buy(tea)}/")
    assert (hidden.status_code, "There is nothing here" in text_of(hidden)) == (404, True)
    other_host = buyer.client.get("/", headers={"Host": "evil.example"})
    assert (other_host.status_code, "could not be understood" in text_of(other_host)) == (400, True)
    assert buyer.client.get("/favicon.ico").url.endswith(".svg")


def test_an_account_sees_its_orders_from_every_browser(buyer: Buyer, tea: Product) -> None:
    user = User.objects.create_user("ann", password="correct horse")
    buyer.client.force_login(user)
    number = buyer.buy(tea)
    elsewhere = Client()
    elsewhere.force_login(user)
    assert elsewhere.get(f"/orders/{number}/").status_code == 200
    assert number in text_of(elsewhere.get("/orders/"))
    stranger = Client()
    stranger.force_login(User.objects.create_user("bob"))
    assert stranger.get(f"/orders/{number}/").status_code == 404
    assert number not in text_of(stranger.get("/orders/"))


@pytest.mark.parametrize("number", ["W-1", "W-7K3M9O", "%00", "w-7k3m9q", "../../etc", "W-7K3M9QQ"])
def test_an_address_that_is_no_order_is_not_found(db: None, client: Client, number: str) -> None:
    assert client.get(f"/orders/{number}/").status_code == 404


def states(client: Client, number: str) -> dict[str, str]:
    timeline = client.get(f"/orders/{number}/timeline.json").json()
    return {event["name"]: event["state"] for event in timeline["events"]}


def test_the_timeline_is_waiting_until_the_rest_arrives_and_then_stops_refreshing(
    buyer: Buyer, tea: Product, campaign: Campaign
) -> None:
    number = buyer.buy(tea)
    page = text_of(buyer.client.get(f"/orders/{number}/"))
    assert "•••• 8000" in page
    assert "13800138000" not in page
    assert "htmx" in page
    assert f"/orders/{number}/timeline/?seen=done-done-waiting-waiting" in page
    assert states(buyer.client, number) == {
        "placed": "done",
        "documents": "done",
        "red_packet": "waiting",
        "text_message": "waiting",
    }
    assert buyer.client.get(f"/orders/{number}/timeline/?seen=done-done-waiting-waiting").status_code == 204

    packet = grant_red_packet(number)
    send_text(Order.objects.get(), TextMessage.Kind.PLACED, arrival("id"))

    fragment = buyer.client.get(f"/orders/{number}/timeline/?seen=done-done-waiting-waiting")
    assert fragment.status_code == 286
    assert packet
    assert packet.code in text_of(fragment)
    assert packet.code in text_of(buyer.client.get("/red-packets/"))
    assert packet.code not in text_of(Client().get("/red-packets/"))
    assert "hx-get" not in text_of(fragment)
    assert set(states(buyer.client, number).values()) == {"done"}
    finished = buyer.client.get(f"/orders/{number}/timeline.json").json()
    assert finished["finished"]
    assert all(event["at"] for event in finished["events"])
    assert "htmx" not in text_of(buyer.client.get(f"/orders/{number}/"))


def test_a_late_step_is_shown_as_delayed_and_after_an_hour_the_page_stops_asking(buyer: Buyer, tea: Product) -> None:
    number = buyer.buy(tea)
    Order.objects.update(placed_at=timezone.now() - timedelta(minutes=2))
    assert states(buyer.client, number)["text_message"] == "delayed"
    assert "your order is safe" in text_of(buyer.client.get(f"/orders/{number}/"))
    grant_red_packet(number)
    assert states(buyer.client, number)["red_packet"] == "done"
    assert "None this time" in text_of(buyer.client.get(f"/orders/{number}/"))
    Order.objects.update(placed_at=timezone.now() - timedelta(hours=2))
    assert buyer.client.get(f"/orders/{number}/timeline/").status_code == 286, "the page stops asking"


@pytest.mark.parametrize(
    "given_up", [{"state": "dead"}, {"state": "discarded"}, {"outbox": "failed"}, {"outbox": "cancelled"}]
)
def test_a_step_that_was_given_up_is_not_shown_as_tried_again(
    buyer: Buyer, tea: Product, given_up: dict[str, str]
) -> None:
    number = buyer.buy(tea)
    event = OutboxMessage.objects.get()
    if "outbox" in given_up:
        OutboxMessage.objects.update(state=given_up["outbox"])
    for consumer in ("red_packet", "sms") if "state" in given_up else ():
        InboxMessage.objects.create(
            consumer=consumer, message_id=event.message_id, type=event.type, subject=number, **given_up
        )

    page = text_of(buyer.client.get(f"/orders/{number}/"))

    assert states(buyer.client, number)["red_packet"] == states(buyer.client, number)["text_message"] == "failed"
    assert "a person has to look at it" in page
    assert "We keep trying" not in page


def test_a_cancelled_order_is_not_said_to_be_done(buyer: Buyer, tea: Product) -> None:
    number = buyer.buy(tea)
    cancel_order(number)
    grant_red_packet(number)
    for kind in (TextMessage.Kind.PLACED, TextMessage.Kind.CANCELLED):
        send_text(Order.objects.get(), kind, arrival(f"id {kind}"))

    page = text_of(buyer.client.get(f"/orders/{number}/"))

    assert set(states(buyer.client, number).values()) == {"done"}
    assert "This order is cancelled. You will not be charged" in page
    assert "Everything is done" not in page


def test_cancelling_asks_first_and_can_be_repeated(buyer: Buyer, tea: Product) -> None:
    number = buyer.buy(tea)
    assert "Cancel this order" in text_of(buyer.client.get(f"/orders/{number}/cancel/"))
    assert Order.objects.get().status == "placed"
    for _ in range(2):
        assert buyer.client.post(f"/orders/{number}/cancel/").url == f"/orders/{number}/"
    assert Order.objects.get().status == "cancelled"
    page = text_of(buyer.client.get(f"/orders/{number}/"))
    assert "This order is cancelled" in page
    assert "Cancel order" not in page
    assert states(buyer.client, number)["cancelled"] == "done"


def test_a_shipped_order_cannot_be_cancelled_here(buyer: Buyer, tea: Product) -> None:
    number = buyer.buy(tea)
    ship_order(number)
    assert "no longer be cancelled" in text_of(buyer.client.get(f"/orders/{number}/cancel/"))
    response = buyer.client.post(f"/orders/{number}/cancel/", follow=True)
    assert "can no longer be cancelled" in text_of(response)


def test_the_documents_can_be_printed_and_the_packing_slip_has_no_prices(buyer: Buyer, tea: Product) -> None:
    number = buyer.buy(tea, quantity=2)
    page = text_of(buyer.client.get(f"/orders/{number}/print/"))
    for document in Order.objects.get().documents.all():
        assert document.number in page
    receipt, slip = page.split("<h1>Packing slip</h1>")
    assert "CN¥88.00" in receipt
    assert "CN¥" not in slip


def test_the_text_message_preview_exists_with_debug_only(
    order_of: OrderOf, tea: Product, client: Client, settings: Any
) -> None:
    order = order_of(tea)
    send_text(order, TextMessage.Kind.PLACED, arrival("id"))
    assert client.get("/dev/sms/").status_code == 404
    settings.DEBUG = True
    assert order.number in text_of(client.get("/dev/sms/"))


@pytest.mark.parametrize("page", ["sign-in", "sign-up"])
def test_a_guests_order_belongs_to_the_account_that_then_signs_in_or_up_in_the_same_browser(
    buyer: Buyer, tea: Product, page: str
) -> None:
    signed_in = {"username": "ann", "password": "correct horse"}
    if page == "sign-in":
        User.objects.create_user(**signed_in)
    number = buyer.buy(tea)

    form = {**signed_in, "password1": "correct horse", "password2": "correct horse"}
    buyer.client.post(f"/accounts/{page}/", form)
    buyer.client.post("/accounts/sign-out/")

    assert buyer.client.get(f"/orders/{number}/").status_code == 404
    buyer.client.post("/accounts/sign-in/", signed_in)
    assert number in text_of(buyer.client.get("/orders/"))
