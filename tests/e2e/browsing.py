"""What a shopper does with the shop's pages, by what can be read on them."""

import re

from playwright.sync_api import Locator, Page, expect

ORDER_ADDRESS = re.compile(r"/orders/([^/]+)/$")
#: Milliseconds in which a page, and the processes behind it, have done their part, on a busy machine too.
PATIENCE = 20_000
expect.set_options(timeout=PATIENCE)


def find_and_add_to_cart(page: Page, shop: str, words: str = "jasmine", name: str = "Jasmine tea") -> None:
    """Search the catalogue, open the product, take two."""
    page.goto(shop)
    page.get_by_role("searchbox", name="Search").fill(words)
    page.get_by_role("button", name="Show").click()
    page.get_by_role("link", name=name).click()
    page.get_by_label("Quantity").fill("2")
    page.get_by_role("button", name="Add to cart").click()
    expect(page.get_by_role("status")).to_have_text(f"{name}: 2 in your cart.")


def go_to_checkout(page: Page, *, name: str = "Ann Shopper", phone: str = "138 0013 8000") -> None:
    """From the cart to the checkout page, filled in."""
    page.get_by_role("link", name="Checkout").click()
    page.get_by_label("Name").fill(name)
    page.get_by_label("Mobile phone").fill(phone)


def order_button(page: Page) -> Locator:
    """The visible one; the other is for the Enter key."""
    return page.get_by_role("button", name=re.compile("^Place order ·"))


def middle_of(element: Locator) -> tuple[float, float]:
    """Where the mouse has to be to press it."""
    element.scroll_into_view_if_needed()
    box = element.bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def buy(page: Page, shop: str) -> str:
    """Buy two tins of tea; the number of the order whose page is then open."""
    find_and_add_to_cart(page, shop)
    go_to_checkout(page)
    order_button(page).click()
    return number_of_order(page)


def number_of_order(page: Page) -> str:
    """The number of the order whose page is open, or about to open."""
    expect(page).to_have_url(ORDER_ADDRESS)
    found = ORDER_ADDRESS.search(page.url)
    assert found
    return found[1]


def step(page: Page, name: str) -> Locator:
    """A line of the order's timeline."""
    return page.locator(f"#timeline [data-step={name}]")


def expect_step(page: Page, name: str, state: str) -> None:
    """Wait until a step of the timeline is in this state."""
    expect(step(page, name)).to_have_attribute("data-state", state)


def sign_in_to_admin(page: Page, shop: str, password: str) -> None:
    """As the administrator of seed_demo."""
    page.goto(f"{shop}/admin/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("button", name="Log out")).to_be_visible()
