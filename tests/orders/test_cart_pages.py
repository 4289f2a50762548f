"""Catalogue, product and cart, as a shopper without JavaScript meets them."""

from decimal import Decimal

import pytest
from django.test import Client

from orders.models import Product
from tests.orders.shop import Buyer, text_of

# Pages: the SQL behind them is tested on both databases where it is written.
pytestmark = pytest.mark.only_on("sqlite")


@pytest.mark.parametrize(("stock", "words"), [(10, "In stock"), (3, "Only 3 left"), (0, "Sold out")])
def test_the_stock_is_said_in_words(client: Client, tea: Product, stock: int, words: str) -> None:
    Product.objects.update(stock=stock)
    assert words in text_of(client.get("/"))
    page = text_of(client.get("/p/tea/"))
    assert words in page
    assert ("Add to cart" in page) == bool(stock)


def test_the_catalogue_is_searched_and_sorted(client: Client, tea: Product, pot: Product) -> None:
    assert "Pot" not in text_of(client.get("/?q=tea"))
    assert "Nothing found" in text_of(client.get("/?q=zebra"))
    page = text_of(client.get("/?sort=dearest"))
    assert page.index("Pot") < page.index("Tea")


@pytest.mark.parametrize("query", ["q=%00", "q=" + "x" * 500, "sort=nonsense", "page=NaN", "page=-1", "q=%ff%fe"])
def test_a_nonsensical_address_still_shows_the_shop(client: Client, tea: Product, query: str) -> None:
    assert client.get(f"/?{query}").status_code == 200


def test_a_product_that_is_not_sold_is_not_found(client: Client, tea: Product) -> None:
    Product.objects.update(active=False)
    assert client.get("/p/tea/").status_code == 404
    assert client.post("/cart/add/tea/", {"quantity": 1}).status_code == 404


def test_pieces_add_up_in_the_cart(buyer: Buyer, tea: Product) -> None:
    buyer.put_into_cart(tea, "２")
    page = text_of(buyer.put_into_cart(tea, 3))
    assert "Tea: 5 in your cart." in page
    assert "CN¥190.00" in page


def test_no_more_than_the_stock_goes_into_the_cart_and_the_page_says_why(buyer: Buyer, pot: Product) -> None:
    page = text_of(buyer.put_into_cart(pot, 9))
    assert "only 4 left, so your cart holds 4" in page


@pytest.mark.parametrize("typed", ["", "NaN", "-1", "1e9", "\x00", "0"])
def test_a_malformed_quantity_is_a_field_error_and_the_input_is_kept(buyer: Buyer, tea: Product, typed: str) -> None:
    response = buyer.put_into_cart(tea, typed)
    assert response.status_code == 200
    assert response.context["form"].errors
    assert response.context["form"]["quantity"].value() == typed
    assert "Your cart is empty" in text_of(buyer.client.get("/cart/"))


def test_a_line_is_changed_and_removed(buyer: Buyer, tea: Product) -> None:
    buyer.put_into_cart(tea, 2)
    page = buyer.client.post(f"/cart/{tea.pk}/", {"quantity": "4"}, follow=True)
    assert "CN¥152.00" in text_of(page)
    wrong = text_of(buyer.client.post(f"/cart/{tea.pk}/", {"quantity": "lots"}))
    assert 'value="lots"' in wrong
    assert "Enter a whole number" in wrong
    page = buyer.client.post(f"/cart/{tea.pk}/", {"quantity": "4", "remove": "1"}, follow=True)
    assert "Your cart is empty" in text_of(page)


def test_a_changed_price_and_stock_are_said_in_the_cart(buyer: Buyer, tea: Product) -> None:
    buyer.put_into_cart(tea, 5)
    Product.objects.update(price=Decimal("40.00"), stock=2)
    page = text_of(buyer.client.get("/cart/"))
    assert "changed from CN¥38.00 to CN¥40.00" in page
    assert "Only 2 of Tea left: you wanted 5" in page
    assert "CN¥80.00" in page


def test_changes_need_a_post_and_a_page_that_is_not_too_old(tea: Product) -> None:
    client, path = Client(enforce_csrf_checks=True), "/cart/add/tea/"
    assert client.get(path).status_code == 405
    response = client.post(path, {"quantity": 1})
    assert response.status_code == 403
    assert "too old" in text_of(response)
