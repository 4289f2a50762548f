"""axe-core on the shop's pages: it finds what people with a screen reader, or without good eyes, would stumble on."""

from typing import Literal
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from tests.e2e.browsing import buy, find_and_add_to_cart, go_to_checkout, order_button
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


def _assert_nothing_found(page: Page) -> None:
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for scheme in schemes:
        page.emulate_media(color_scheme=scheme)
        found = Axe().run(page)
        assert found.violations_count == 0, f"{page.url}, {scheme}\n{found.generate_report()}"
