"""What the people who run the shop see of an order's messages."""

from playwright.sync_api import Page, expect

from messaging.models import OutboxMessage
from tests.e2e.browsing import buy, expect_step, sign_in_to_admin
from tests.support.processes import ProcessStarter, WebProcess
from tests.support.waiting import eventually


def test_staff_find_an_order_s_messages_by_its_number_and_read_their_story(
    web: WebProcess, run_process: ProcessStarter, admin_password: str, page: Page
) -> None:
    run_process("run_consumer", "--all")
    sign_in_to_admin(page, web.url, admin_password)
    number = buy(page, web.url)
    expect_step(page, "text_message", "done")
    expect_step(page, "red_packet", "done")
    eventually(lambda: not OutboxMessage.objects.exclude(state=OutboxMessage.State.PUBLISHED).exists())

    page.set_viewport_size({"width": 1280, "height": 800})
    page.get_by_role("link", name="Open in admin").click()
    expect(page.get_by_role("heading", name=number)).to_be_visible()
    page.goto(f"{web.url}/admin/messaging/outboxmessage/?q={number}")
    message = page.get_by_role("row").filter(has_text="order.placed")
    expect(message).to_have_count(1)
    expect(message).to_contain_text("published")
    page.get_by_role("link", name=f"Story of {number}").click()

    expect(page.get_by_role("heading", name=f"The story of {number}")).to_be_visible()
    lines = page.locator("#content-main ol").get_by_role("listitem")
    expect(lines).to_have_count(4)
    for what in ("order.placed written", "published", "sms: handled", "red_packet: handled"):
        expect(lines.get_by_role("link", name=what, exact=True)).to_be_visible()
    page.get_by_role("link", name="sms: handled").click()
    expect(page.get_by_role("heading", name="Attempt 1")).to_be_visible()
    page.get_by_role("link", name="order.placed written").click()
    expect(page.get_by_label("Body")).to_contain_text(f'"order_number": "{number}"')
