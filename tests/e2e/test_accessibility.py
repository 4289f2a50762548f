"""axe-core on the shop's pages and the admin's pages about messages: it finds what hinders people who use a screen
reader or see badly."""

from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from messaging.models import Effect
from tests.e2e.browsing import buy, find_and_add_to_cart, go_to_checkout, order_button, sign_in_to_admin
from tests.e2e.test_admin import dead_letter
from tests.support.processes import WebProcess

# axe brings styles of its own, which our content security policy forbids.
pytestmark = pytest.mark.browser_context_args(bypass_csp=True)


def test_axe_finds_nothing_on_the_way_to_an_order_and_after_it_by_day_and_by_night(web: WebProcess, page: Page) -> None:
    buy(page, web.url)
    order = urlsplit(page.url).path
    _assert_nothing_found(page)
    find_and_add_to_cart(page, web.url)
    go_to_checkout(page, phone="12345")
    _assert_nothing_found(page)
    order_button(page).click()
    page.get_by_role("alert").wait_for()
    _assert_nothing_found(page)

    for path in ["/", "/p/jasmine-tea/", "/cart/", f"{order}cancel/", f"{order}print/", "/orders/", "/red-packets/"]:
        page.goto(web.url + path)
        _assert_nothing_found(page)


def test_axe_finds_nothing_on_the_admin_s_pages_about_messages(
    web: WebProcess, admin_password: str, page: Page
) -> None:
    number = buy(page, web.url)
    row = dead_letter(number)
    effect = Effect.objects.create(
        inbox_message=row, consumer="sms", message_id=row.message_id, name="text_message", state="unknown",
        failure_group="4fa9c1d2e4b5",
    )  # fmt: skip
    sign_in_to_admin(page, web.url, admin_password)
    messaging = f"{web.url}/admin/messaging"
    for path in [
        "",
        "inboxmessage/failures/",
        "inboxmessage/",
        "outboxmessage/",
        f"outboxmessage/story/?subject={number}",
        f"inboxmessage/{row.pk}/change/",
        "effect/",
        f"effect/{effect.pk}/change/",
        "operatoraction/",
    ]:
        page.goto(f"{messaging}/{path}")
        _assert_nothing_found(page, ADMIN)
    page.goto(f"{messaging}/inboxmessage/{row.pk}/change/")
    page.get_by_role("button", name="Replay").click()
    page.get_by_role("button", name="Replay 1").wait_for()
    _assert_nothing_found(page, ADMIN)
    page.get_by_role("button", name="Replay 1").click()
    page.goto(f"{messaging}/operatoraction/")
    page.get_by_role("link", name="replay", exact=True).first.click()
    page.get_by_role("heading", name="replay by admin").wait_for()
    _assert_nothing_found(page, ADMIN)


#: What is ours in a page of Django's admin: not its header, its breadcrumbs and its search.
ADMIN = {"include": [["#content"]], "exclude": [["#toolbar"]]}


def _assert_nothing_found(page: Page, where: dict[str, Any] | None = None) -> None:
    """By day look for everything, by night for colours alone: nothing else differs."""
    found = Axe().run(page, context=where)
    assert found.violations_count == 0, f"{page.url}\n{found.generate_report()}"
    page.emulate_media(color_scheme="dark")
    # Links change their colour little by little.
    page.evaluate("Promise.allSettled(document.getAnimations().map(each => each.finished))")
    found = Axe().run(page, context=where, options={"runOnly": {"type": "rule", "values": ["color-contrast"]}})
    assert found.violations_count == 0, f"{page.url}, dark\n{found.generate_report()}"
    page.emulate_media(color_scheme="light")
