"""Placing an order: all of it, once, or nothing."""

from collections.abc import Callable
from decimal import Decimal
from uuid import uuid4

import pytest
from django.db import IntegrityError, transaction

from messaging.models import OutboxMessage
from orders import services
from orders.cart import MOST_PIECES
from orders.events import OrderPlaced
from orders.exceptions import OutOfStock, PriceChanged, RedPacketRefused, Refused
from orders.models import Campaign, Document, Order, OrderLine, Product
from orders.red_packets import grant_red_packet
from orders.services import Wanted

OrderOf = Callable[..., Order]


def assert_nothing_happened(product: Product) -> None:
    stock = product.stock
    product.refresh_from_db()
    assert product.stock == stock
    for model in (Order, OrderLine, Document, OutboxMessage):
        assert not model.objects.exists()


def test_an_order_commits_with_its_stock_lines_documents_and_event(
    order_of: OrderOf, tea: Product, pot: Product
) -> None:
    order = order_of(tea, pot, quantity=2)

    tea.refresh_from_db()
    pot.refresh_from_db()
    assert (tea.stock, pot.stock) == (8, 2)
    assert [(line.product_name, line.unit_price, line.quantity) for line in order.lines.all()] == [
        ("Tea", Decimal("38.00"), 2),
        ("Pot", Decimal("268.00"), 2),
    ]
    assert (order.subtotal, order.shipping, order.total) == (Decimal("612.00"), Decimal("10.00"), Decimal("622.00"))
    assert order.currency == "CNY"
    assert {document.kind for document in order.documents.all()} == {"receipt", "packing_slip"}
    assert len({document.number for document in Document.objects.all()}) == 2
    row = OutboxMessage.objects.get()
    assert (row.type, row.subject) == ("order.placed", order.number)


def test_the_event_holds_the_order_and_no_personal_data(order_of: OrderOf, tea: Product) -> None:
    order = order_of(tea)
    body = bytes(OutboxMessage.objects.get().body)
    event = OrderPlaced.decode(body, 1)
    assert (event.order_number, event.total, event.lines[0].sku) == (order.number, Decimal("48.00"), "TEA")
    assert b"13800138000" not in body
    assert b"Ann" not in body


def test_a_later_price_or_name_does_not_change_an_order(order_of: OrderOf, tea: Product) -> None:
    order = order_of(tea)
    Product.objects.update(price=Decimal("99.00"), name="Better tea")
    line = order.lines.get()
    assert (line.product_name, line.unit_price) == ("Tea", Decimal("38.00"))


def test_the_same_token_gives_the_same_order(order_of: OrderOf, tea: Product) -> None:
    token = uuid4()
    first = order_of(tea, checkout_token=token, quantity=10)  # the last pieces
    second = order_of(tea, checkout_token=token, customer_name="Somebody Else", quantity=3)
    tea.refresh_from_db()
    assert first == second
    assert tea.stock == 0
    assert OutboxMessage.objects.count() == 1


def test_one_piece_too_many_leaves_nothing_behind(order_of: OrderOf, tea: Product, pot: Product) -> None:
    with pytest.raises(OutOfStock, match="Pot: only 4 left"):
        order_of(tea, pot, quantity=5)
    assert_nothing_happened(tea)


def test_an_inactive_product_cannot_be_ordered(order_of: OrderOf, tea: Product) -> None:
    Product.objects.update(active=False)
    with pytest.raises(OutOfStock):
        order_of(tea)
    assert_nothing_happened(tea)


def test_another_price_than_the_one_shown_is_refused(order_of: OrderOf, tea: Product) -> None:
    wanted = [Wanted(product_id=tea.pk, quantity=1, unit_price=Decimal("37.99"))]
    with pytest.raises(PriceChanged, match="Tea"):
        order_of(wanted=wanted)
    assert_nothing_happened(tea)


def test_a_full_cart_of_the_dearest_product_can_be_ordered(order_of: OrderOf, tea: Product) -> None:
    Product.objects.update(price=Decimal("9999999999.99"), stock=MOST_PIECES)
    order = order_of(tea, quantity=MOST_PIECES)
    assert Order.objects.get(pk=order.pk).subtotal == Decimal("9999999999.99") * MOST_PIECES


def test_neither_nothing_nor_a_quantity_below_one_is_ordered(order_of: OrderOf, tea: Product) -> None:
    with pytest.raises(Refused):
        order_of()
    for quantity in (0, -1):
        with pytest.raises(ValueError):
            order_of(tea, quantity=quantity)
    assert_nothing_happened(tea)


def test_the_database_itself_refuses_negative_stock(tea: Product) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        Product.objects.update(stock=-1)


def test_a_taken_number_is_drawn_again(order_of: OrderOf, tea: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter(["W-222222", "W-222222", "W-333333"])
    monkeypatch.setattr(services, "new_order_number", lambda: next(numbers))
    assert [order_of(tea).number, order_of(tea).number] == ["W-222222", "W-333333"]
    tea.refresh_from_db()
    assert tea.stock == 8


def test_a_red_packet_is_taken_off_once(order_of: OrderOf, tea: Product, campaign: Campaign) -> None:
    packet = grant_red_packet(order_of(tea).number)
    assert packet
    order = order_of(tea, red_packet_code=packet.code)
    assert order.discount == packet.amount
    assert order.total == Decimal("48.00") - packet.amount
    with pytest.raises(RedPacketRefused, match="already used"):
        order_of(tea, red_packet_code=packet.code)
    tea.refresh_from_db()
    assert tea.stock == 8


def test_a_red_packet_pays_for_goods_but_never_for_more(order_of: OrderOf, campaign: Campaign, tea: Product) -> None:
    packet = grant_red_packet(order_of(tea).number)
    assert packet
    Product.objects.update(price=Decimal("0.50"))
    order = order_of(tea, red_packet_code=packet.code)
    assert (order.discount, order.total) == (Decimal("0.50"), Decimal("10.00"))


def test_an_unknown_red_packet_is_refused(order_of: OrderOf, tea: Product) -> None:
    with pytest.raises(RedPacketRefused, match="no red packet"):
        order_of(tea, red_packet_code="NOSUCH")
    assert_nothing_happened(tea)
