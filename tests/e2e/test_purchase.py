"""A purchase, seen by the person who makes it: a real browser, and real processes behind it."""

import re
from urllib.parse import urlsplit

import pytest
from django.db import transaction
from playwright.sync_api import Page, Request, TimeoutError, expect

from orders.models import Order, Product, TextMessage
from tests.e2e.browsing import (
    ORDER_ADDRESS,
    buy,
    expect_step,
    find_and_add_to_cart,
    go_to_checkout,
    middle_of,
    number_of_order,
    order_button,
    step,
)
from tests.support.processes import ProcessStarter, WebProcess
from tests.support.waiting import eventually

SIDE_EFFECTS = ("red_packet", "text_message")
POLL = re.compile(r"/orders/[^/]+/timeline/")


def test_a_shopper_watches_the_order_go_from_waiting_to_done_without_touching_the_page(
    web: WebProcess, run_process: ProcessStarter, page: Page
) -> None:
    run_process("run_rpc_worker").wait_for_line("amqp.connected")
    find_and_add_to_cart(page, web.url)
    go_to_checkout(page)
    expect(page.get_by_text("flat rate")).to_have_count(0)  # the shipping service was asked, and answered
    order_button(page).click()
    number = number_of_order(page)
    for name in SIDE_EFFECTS:
        expect_step(page, name, "waiting")
    requests: list[Request] = []
    page.on("request", lambda request: requests.append(request))
    with page.expect_response(POLL) as poll:
        pass
    assert poll.value.status == 204  # nothing new: nothing is swapped, and no screen reader speaks

    with page.expect_response(lambda answer: bool(POLL.search(answer.url)) and answer.status == 286, timeout=30_000):
        run_process("run_consumer", "sms", "red_packet")

    for name in SIDE_EFFECTS:
        expect_step(page, name, "done")
    expect(page.get_by_text("Everything is done.")).to_be_visible()
    assert all(POLL.search(request.url) for request in requests)
    with pytest.raises(TimeoutError), page.expect_request(POLL, timeout=1500):
        pass  # it asked once a second until now
    _the_text_message_and_the_red_packet_are_there(page, number)


def _the_text_message_and_the_red_packet_are_there(page: Page, number: str) -> None:
    code = re.search(r"code (\S+)", step(page, "red_packet").inner_text())
    assert code
    page.get_by_role("link", name="Red packets").click()
    packet = page.get_by_role("listitem").filter(has_text=number)
    expect(packet).to_have_count(1)
    expect(packet).to_contain_text(code[1])
    page.get_by_role("link", name="Text messages").click()
    text = page.get_by_role("listitem").filter(has_text=number)
    expect(text).to_have_count(1)
    expect(text).to_contain_text("+86 138 0013 8000")


def test_pressing_twice_a_reload_and_a_step_back_leave_one_order(web: WebProcess, page: Page) -> None:
    find_and_add_to_cart(page, web.url)
    go_to_checkout(page)
    button = middle_of(order_button(page))  # a locator's click waits until the page has been answered

    with transaction.atomic():
        # The shop waits for this row, on SQLite for the end of this transaction: both presses are there before either
        # is answered. (A double click within milliseconds does not leave Chromium twice.)
        Product.objects.select_for_update().get(slug="jasmine-tea")
        page.mouse.click(*button)
        eventually(lambda: _orders_asked_for(web) == 1)
        page.mouse.click(*button)
        eventually(lambda: _orders_asked_for(web) == 2)
    number = number_of_order(page)
    page.reload()
    page.go_back()
    page.goto(f"{web.url}/checkout/")

    expect(page.get_by_role("link", name="Cart")).to_have_text("Cart")  # no pieces in it
    assert [order.number for order in Order.objects.all()] == [number]


def _orders_asked_for(web: WebProcess) -> int:
    return len(re.findall("request_started.*POST /checkout/", web.output))


@pytest.mark.browser_context_args(java_script_enabled=False)
def test_without_javascript_everything_works_up_to_the_cancellation(
    web: WebProcess, run_process: ProcessStarter, page: Page
) -> None:
    number = buy(page, web.url)
    expect_step(page, "text_message", "waiting")
    page.get_by_role("link", name="Cancel order").click()
    expect(page.get_by_role("heading")).to_have_text(f"Cancel order {number}?")
    page.get_by_role("button", name="Cancel this order").click()
    expect(page.get_by_text("Your order is cancelled. You will not be charged.")).to_be_visible()
    expect_step(page, "cancelled", "done")
    expect_step(page, "text_message_cancelled", "waiting")

    everybody = run_process("run_consumer", "--all", "--burst")
    assert everybody.wait() == 0

    page.get_by_role("link", name="Refresh").click()
    for name in ("text_message", "text_message_cancelled"):
        expect_step(page, name, "done")
    expect(page.get_by_role("link", name="Refresh")).to_have_count(0)
    assert TextMessage.objects.filter(order__number=number).count() == 2


#: What a reader of Chinese clicks and reads on the way to an order, and what the text message says.
IN_CHINESE = {
    "zh-CN": {
        "add": "加入购物车", "checkout": "结算", "name": "姓名", "phone": "手机号", "place": "提交订单 · ¥",
        "sent": "已发送至 •••• 8000", "text": "【Warren】感谢惠顾！",
    },
    "zh-TW": {
        "add": "加入購物車", "checkout": "結帳", "name": "姓名", "phone": "手機號碼", "place": "送出訂單 · CN¥",
        "sent": "已傳送至 •••• 8000", "text": "【Warren】感謝您的訂購！",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "locale", [pytest.param(each, marks=pytest.mark.browser_context_args(locale=each)) for each in IN_CHINESE]
)
def test_a_chinese_browser_buys_in_chinese_and_switches_to_english_on_the_order_s_page(
    web: WebProcess, run_process: ProcessStarter, page: Page, locale: str
) -> None:
    words = IN_CHINESE[locale]
    page.goto(web.url)
    page.get_by_role("link", name="茉莉花茶").click()
    page.get_by_role("button", name=words["add"]).click()
    page.get_by_role("link", name=words["checkout"], exact=True).click()
    page.get_by_label(words["name"]).fill("张伟")
    page.get_by_label(words["phone"]).fill("138 0013 8000")
    page.get_by_role("button", name=re.compile(f"^{words['place']}")).click()
    number = number_of_order(page)

    run_process("run_consumer", "sms", "red_packet")

    expect_step(page, "text_message", "done")  # the part that refreshes itself speaks the same language
    expect(step(page, "text_message")).to_contain_text(words["sent"])
    address = page.url
    page.get_by_role("button", name="English").click()
    expect(page).to_have_url(address)
    expect(page.get_by_text("Everything is done.")).to_be_visible()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    page.get_by_role("link", name="Text messages").click()
    text = page.get_by_role("listitem").filter(has_text=number)
    expect(text).to_contain_text(words["text"])


def test_a_wrong_phone_number_is_marked_and_kept_and_no_page_is_wider_than_a_phone(web: WebProcess, page: Page) -> None:
    find_and_add_to_cart(page, web.url)
    go_to_checkout(page, name="Ann Shopper", phone="12345")

    order_button(page).click()

    phone = page.get_by_label("Mobile phone")
    expect(phone).to_have_value("12345")
    expect(phone).to_have_attribute("aria-invalid", "true")
    expect(phone).to_have_accessible_description(re.compile("Enter a mobile number, such as"))
    expect(page.get_by_label("Name")).to_have_value("Ann Shopper")
    page.get_by_role("alert").get_by_role("link", name="Mobile phone").click()
    expect(phone).to_be_focused()
    assert not Order.objects.exists()
    phone.fill("138 0013 8000")
    phone.press("Enter")
    expect(page).to_have_url(ORDER_ADDRESS)

    order = urlsplit(page.url).path
    find_and_add_to_cart(page, web.url, "silk", "Silk fan")
    paths = ["/", "/p/silk-fan/", "/cart/", "/checkout/", order, f"{order}cancel/", f"{order}print/", "/orders/"]
    for path in [*paths, "/red-packets/", "/dev/sms/", "/orders/find/", "/accounts/sign-in/", "/accounts/sign-up/"]:
        page.goto(web.url + path)
        assert page.evaluate("document.documentElement.scrollWidth") == 390, path
