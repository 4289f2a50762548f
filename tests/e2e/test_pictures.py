"""The pictures of docs/images, taken anew: `WARREN_PICTURES=1 script/test tests/e2e/test_pictures.py`."""

from collections.abc import Callable

from playwright.sync_api import BrowserContext, Page, ViewportSize, expect

from tests.e2e.browsing import buy, expect_step, sign_in_to_admin
from tests.support.environment import ROOT
from tests.support.processes import ProcessStarter, WebProcess

DESKTOP, PHONE = ViewportSize(width=1280, height=600), ViewportSize(width=390, height=844)


def window(new_context: Callable[..., BrowserContext], size: ViewportSize = DESKTOP) -> Page:
    """Open a window of another visitor."""
    page = new_context().new_page()
    page.set_viewport_size(size)
    return page


def keep(page: Page, name: str) -> None:
    """Keep what the page shows, down to its end."""
    page.screenshot(path=ROOT / "docs" / "images" / f"{name}.png", full_page=True, animations="disabled")


def find_order(page: Page, shop: str, number: str) -> None:
    """Open an order's page as a guest."""
    page.goto(f"{shop}/orders/find/")
    page.get_by_label("Order number").fill(number)
    page.get_by_label("Last four digits").fill("8000")
    page.get_by_role("button", name="Find it").click()
    expect(page.get_by_text("Everything is done.")).to_be_visible()


def test_the_shop_and_the_story_of_an_order_are_pictured(
    new_context: Callable[..., BrowserContext], web: WebProcess, admin_password: str, run_process: ProcessStarter
) -> None:
    run_process("run_consumer", "--all")
    run_process("run_rpc_worker", "shipping.quote")
    buyer = window(new_context)
    for _ in range(3):  # the first orders wait for new connections
        number = buy(buyer, web.url)
        expect_step(buyer, "text_message", "done")

    buyer.goto(web.url)
    keep(buyer, "catalogue")
    for name, size in (("order", DESKTOP), ("order-phone", PHONE)):
        guest = window(new_context, size)
        find_order(guest, web.url, number)
        keep(guest, name)
    admin = window(new_context)
    sign_in_to_admin(admin, web.url, admin_password)
    admin.goto(f"{web.url}/admin/messaging/outboxmessage/?q={number}")
    admin.get_by_role("link", name=number).first.click()
    keep(admin, "story")
