"""What the people who run the shop see of an order's messages."""

from playwright.sync_api import Page, expect
from pytest_httpserver import HTTPServer

from messaging.models import Effect, InboxMessage, OutboxMessage
from orders.models import TextMessage
from tests.e2e.browsing import buy, expect_step, sign_in_to_admin
from tests.support.processes import ProcessStarter, WebProcess


def dead_letter(number: str) -> InboxMessage:
    """The message that an order was placed, given up by the consumer sms, which has not run yet."""
    sent = OutboxMessage.objects.get(subject=number)
    return InboxMessage.objects.create(
        consumer="sms",
        message_id=sent.message_id,
        type=sent.type,
        subject=number,
        state=InboxMessage.State.DEAD,
        attempt=8,
        reason="GatewayError: 503",
        failure_group="3fa9c1d2e4b5",
        body=bytes(sent.body),
    )


def test_staff_find_an_order_s_messages_by_its_number_replay_a_dead_one_and_read_their_story(
    web: WebProcess, run_process: ProcessStarter, admin_password: str, page: Page
) -> None:
    number = buy(page, web.url)
    order_page = page.url
    dead_letter(number)
    run_process("run_consumer", "--all")
    expect_step(page, "red_packet", "done")
    sign_in_to_admin(page, web.url, admin_password)

    page.goto(f"{web.url}/admin/messaging/inboxmessage/?state__exact=dead")
    page.get_by_label("Select this object for an action").check()
    page.get_by_label("Action:").select_option("Replay")
    page.get_by_role("button", name="Go").click()
    expect(page.get_by_text("1 to run again, each at the consumer where it is dead")).to_be_visible()
    assert not TextMessage.objects.exists()
    page.get_by_label("Reason (for the audit log)").fill("gateway is back")
    page.get_by_role("button", name="Replay 1").click()

    expect(page.get_by_text("1 replayed.")).to_be_visible()
    expect(page).to_have_url(f"{web.url}/admin/messaging/inboxmessage/?state__exact=dead")
    page.goto(order_page)
    expect_step(page, "text_message", "done")
    page.set_viewport_size({"width": 1280, "height": 800})
    page.get_by_role("link", name="Open in admin").click()
    expect(page.get_by_role("heading", name=number)).to_be_visible()
    page.goto(f"{web.url}/admin/messaging/outboxmessage/?q={number}")
    message = page.get_by_role("row").filter(has_text="all", has=page.get_by_role("link", name="order.placed"))
    expect(message).to_contain_text("published")
    message.get_by_role("link", name=number).click()

    expect(page.get_by_role("heading", name=f"The story of {number}")).to_be_visible()
    lines = page.locator("#content-main ol").get_by_role("listitem")
    expect(lines.filter(has_text="replayed, by admin")).to_contain_text("gateway is back")
    for what in ("order.placed written", "red_packet: handled", "sms: handled at attempt 9"):
        expect(lines.get_by_role("link", name=what, exact=True)).to_be_visible()
    page.get_by_role("link", name="red_packet: handled").click()
    expect(page.get_by_role("heading", name="Attempt 1")).to_be_visible()
    page.get_by_role("link", name="order.placed written").click()
    expect(page.get_by_label("Body")).to_contain_text(f'"order_number": "{number}"')


def test_staff_settle_an_unknown_effect_and_no_button_covers_the_title_of_a_message(
    web: WebProcess, admin_password: str, page: Page
) -> None:
    message = InboxMessage.objects.create(
        consumer="sms", message_id="0193e5a0-1111-7222-8333-444455556666", state="dead"
    )
    effect = Effect.objects.create(
        inbox_message=message, consumer="sms", message_id=message.message_id, name="text_message", state="unknown"
    )
    sign_in_to_admin(page, web.url, admin_password)

    page.goto(f"{web.url}/admin/messaging/effect/?state__exact=unknown")
    page.get_by_role("link", name="text_message").click()
    page.get_by_label("It was done.").check()
    page.get_by_label("The gateway's reference").fill("SM1")
    page.get_by_role("button", name="Settle").click()

    expect(page.get_by_text(f"of message {message.message_id}): done, SM1.")).to_be_visible()
    expect(page.get_by_role("group", name="What is its outcome?")).to_have_count(0)
    effect.refresh_from_db()
    assert (effect.state, effect.reference) == ("done", "SM1")

    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        page.goto(f"{web.url}/admin/messaging/inboxmessage/{message.pk}/change/")
        title = page.get_by_role("heading", name=message.message_id).bounding_box()
        assert title is not None
        tools = page.locator(".object-tools").get_by_role("listitem")
        expect(tools).to_have_count(4)
        for tool in tools.all():
            box = tool.bounding_box()
            assert box is not None
            assert box["y"] >= title["y"] + title["height"]
            assert box["x"] + box["width"] <= width


def test_a_gateway_that_fails_is_named_on_the_first_page_and_its_texts_are_sent_from_there(
    web: WebProcess, run_process: ProcessStarter, admin_password: str, page: Page, httpserver: HTTPServer
) -> None:
    gateway = {"SMS_BACKEND": "orders.sms.GatewayBackend", "SMS_GATEWAY_TOKEN": "secret"}
    httpserver.expect_ordered_request("/").respond_with_data("down", status=500)
    number = buy(page, web.url)
    order_page = page.url
    run_process("run_consumer", "--all", SMS_GATEWAY_URL=httpserver.url_for("/"), **gateway)
    expect_step(page, "text_message", "unknown")
    sign_in_to_admin(page, web.url, admin_password)

    page.get_by_role("link", name="Messaging: 1 thing is wrong").click()
    expect(page.get_by_role("heading", name="1 thing is wrong")).to_be_visible()
    failure = page.locator(".messaging-failures").get_by_role("listitem")
    expect(failure).to_contain_text("text_message at sms")
    expect(failure).to_contain_text("the gateway answered 500")
    failure.get_by_role("button", name="Settle…").click()
    page.get_by_label("It was certainly not done: carry it out again.").check()
    page.get_by_label("Reason (for the audit log)").fill("not in their log")
    httpserver.expect_ordered_request("/").respond_with_json({"id": "SM1"})
    page.get_by_role("button", name="Settle 1").click()

    expect(page.get_by_text("No message is dead, and no effect has failed.")).to_be_visible()
    page.get_by_role("link", name="Messaging", exact=True).first.click()
    expect(page.get_by_role("heading", name="All is well")).to_be_visible()
    expect(page.locator(".messaging-actions")).to_contain_text("not in their log")
    page.goto(order_page)
    expect_step(page, "text_message", "done")
    assert Effect.objects.get().message_id == OutboxMessage.objects.get(subject=number).message_id
