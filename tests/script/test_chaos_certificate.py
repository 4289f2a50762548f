"""The certificate of script/chaos: clean where everything is right, and each thing that may go wrong is found."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.utils import timezone

from messaging.models import DeliveryAttempt, Effect, InboxMessage, OutboxMessage
from orders.models import Campaign, Order, Product, RedPacket, TextMessage
from orders.red_packets import grant_red_packet
from orders.services import Wanted, cancel_order, place_order
from orders.shipping import flat_rate
from script.programs.chaos import certificate
from script.programs.chaos.shoppers import Attempt, Outcome
from script.services.sms_gateway import SmsGateway

STOCK = {"tea": 100}


@dataclass
class Story:
    """A run that went well: two orders, the second of them cancelled, and all that follows."""

    gateway: SmsGateway
    attempts: list[Attempt] = field(default_factory=list)
    #: What the naive consumer wrote.
    runs: Counter[str] = field(default_factory=Counter)

    @property
    def orders(self) -> list[Order]:
        return list(Order.objects.order_by("pk"))

    def findings(self) -> dict[str, int]:
        judged = certificate.judge(self.attempts, self.gateway, STOCK)
        found = {finding.name: len(finding.found) for finding in judged.findings if finding.found}
        assert judged.is_clean is not bool(found)
        return found

    def send(self, recipient: str, text: str) -> None:
        self.gateway.ledger.send(1, key=str(uuid4()), recipient=recipient, text=text, once_per_key=False)


@pytest.fixture
def story(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Story:
    Campaign.objects.create(
        name="Lucky", budget=1000, min_amount=1, max_amount=5, ends_at=timezone.now() + timedelta(days=1)
    )
    tea = Product.objects.create(sku="TEA", slug="tea", name="Tea", price=Decimal("38.00"), stock=STOCK["tea"])
    gateway = SmsGateway(tmp_path)
    gateway.ledger.create()
    story = Story(gateway)
    monkeypatch.setattr(certificate, "_naive_runs", lambda: story.runs)
    for number, will_cancel in ((1, False), (2, True)):
        attempt = Attempt(number, "tea", 2, will_cancel, Outcome.PLACED, presses=1, told_cancelled=will_cancel)
        story.attempts.append(attempt)
        order = place_order(
            checkout_token=uuid4(),
            wanted=[Wanted(product_id=tea.pk, quantity=2)],
            customer_name=attempt.name,
            phone=attempt.phone,
            destination="CN",
            shipping=flat_rate(),
        )
        attempt.order_number = order.number
        grant_red_packet(order.number)
        if will_cancel:
            cancel_order(order.number)
    for row in OutboxMessage.objects.all():
        arrive(story, row)
    assert story.findings() == {}
    return story


def arrive(story: Story, row: OutboxMessage) -> None:
    """Let an event reach both consumers, and its text the phone."""
    OutboxMessage.objects.filter(pk=row.pk).update(state="published")
    order = Order.objects.get(number=row.subject)
    for consumer in ("sms", "red_packet"):
        inbox = InboxMessage.objects.create(
            consumer=consumer, message_id=row.message_id, type=row.type, subject=row.subject, state="handled"
        )
        inbox.attempts.create(number=1, outcome="handled")
        if consumer == "sms":
            name = {"consumer": consumer, "message_id": row.message_id, "name": "text_message"}
            Effect.objects.create(inbox_message=inbox, state="done", **name)
    kind = row.type.removeprefix("order.")
    words = "is cancelled." if kind == "cancelled" else "thank you"
    text = f"Warren: {words} {order.number}"
    TextMessage.objects.create(order=order, kind=kind, phone=order.phone, body=text, message_id=row.message_id)
    story.send(str(order.phone.as_e164), text)


def test_orders_are_counted_by_what_their_shoppers_know(story: Story) -> None:
    judged = certificate.judge(story.attempts, story.gateway, STOCK)

    assert judged.counts["shoppers"] == {
        "came": 2, "placed": 2, "refused": 0, "unknown": 0, "gave_up": 0, "strange": 0, "presses": 2,
    }  # fmt: skip
    assert judged.counts["orders"]["committed"] == 2
    assert judged.counts["texts"]["sent"] == 3
    assert judged.counts["red_packets"] == {"settled": 2, "granted": 2, "void": 1}


def test_what_had_to_be_sent_again_and_what_reconcile_was_wrong_about_are_findings(story: Story) -> None:
    judged = certificate.judge(story.attempts, story.gateway, STOCK, ["one at sms"], ["another at sms: not lost"])

    assert {finding.name: list(finding.found) for finding in judged.findings if finding.found} == {
        "lost": ["one at sms"],
        "reconcile": ["another at sms: not lost"],
    }


def test_lost_is_what_left_no_trace_or_waits_for_an_attempt_that_does_not_come(story: Story) -> None:
    assert certificate.lost() == set()
    gone, waiting = InboxMessage.objects.order_by("pk")[:2]
    InboxMessage.objects.filter(pk=waiting.pk).update(state="retrying")
    gone.delete()

    assert certificate.lost() == {(each.consumer, each.message_id) for each in (gone, waiting)}


def test_a_shopper_who_never_learnt_the_outcome_may_have_an_order_or_none(story: Story) -> None:
    story.attempts[0].outcome = Outcome.UNKNOWN
    story.attempts.append(Attempt(3, "tea", 1, False, Outcome.UNKNOWN))

    assert story.findings() == {}


def first_inbox(**which: Any) -> InboxMessage:
    found = InboxMessage.objects.filter(**which).order_by("pk").first()
    assert found
    return found


# --- Each breaks one thing ---------------------------------------------------------------------------------


def lose_an_order(story: Story) -> None:
    story.attempts.append(Attempt(3, "tea", 1, False, Outcome.PLACED, order_number="W-AAAAAA"))


def place_what_was_refused(story: Story) -> None:
    story.attempts[0].outcome = Outcome.REFUSED


def place_for_who_gave_up(story: Story) -> None:
    story.attempts[0].outcome = Outcome.GAVE_UP


def place_twice(story: Story) -> None:
    Order.objects.filter(pk=story.orders[1].pk).update(customer_name=story.attempts[0].name)
    story.attempts.pop()


def place_for_nobody(story: Story) -> None:
    story.attempts.pop()


def keep_what_was_cancelled(story: Story) -> None:
    story.attempts[0].told_cancelled = True


def answer_nonsense(story: Story) -> None:
    story.attempts.append(Attempt(3, "tea", 1, False, Outcome.STRANGE, note="200 /: hm"))


def lose_a_piece(story: Story) -> None:
    Product.objects.update(stock=97)


def lose_a_document(story: Story) -> None:
    story.orders[0].documents.first().delete()  # type: ignore[union-attr]


def settle_no_red_packet(story: Story) -> None:
    Order.objects.filter(pk=story.orders[1].pk).update(red_packet_settled_at=None)


def give_no_red_packet(story: Story) -> None:
    Campaign.objects.update(spent=0)
    RedPacket.objects.filter(order=story.orders[0]).delete()


def leave_a_red_packet(story: Story) -> None:
    packet = RedPacket.objects.get(order=story.orders[1])
    RedPacket.objects.filter(pk=packet.pk).update(voided_at=None)
    Campaign.objects.update(spent=sum(packet.amount for packet in RedPacket.objects.all()))


def spend_too_much(story: Story) -> None:
    Campaign.objects.update(spent=Decimal("12.34"))


def write_an_event_twice(story: Story) -> None:
    row = OutboxMessage.objects.filter(type="order.placed").order_by("pk").first()
    assert row
    row.pk = None
    row.save(force_insert=True)


def write_no_event(story: Story) -> None:
    OutboxMessage.objects.filter(type="order.placed", subject=story.orders[0].number).delete()


def write_an_event_of_nothing(story: Story) -> None:
    OutboxMessage.objects.filter(type="order.cancelled").update(subject="W-AAAAAA")


def lose_a_message(story: Story) -> None:
    first_inbox(consumer="red_packet").delete()


def handle_twice(story: Story) -> None:
    first_inbox().attempts.create(number=1, outcome=DeliveryAttempt.Outcome.HANDLED)


def do_it_twice(story: Story) -> None:
    story.runs["some message"] = 2


def only_say_that_it_was_done(story: Story) -> None:
    InboxMessage.objects.create(consumer="naive", message_id="never done", state="handled")


def let_one_die(story: Story) -> None:
    InboxMessage.objects.filter(pk=first_inbox().pk).update(state="dead")


def leave_one_unpublished(story: Story) -> None:
    OutboxMessage.objects.filter(type="order.cancelled").update(state="failed")


def leave_one_retrying(story: Story) -> None:
    InboxMessage.objects.filter(pk=first_inbox().pk).update(state="retrying")


def let_an_effect_fail(story: Story) -> None:
    Effect.objects.filter(pk=Effect.objects.order_by("pk")[0].pk).update(state="failed")


def write_no_text(story: Story) -> None:
    TextMessage.objects.filter(kind="cancelled").delete()


def send_no_text(story: Story) -> None:
    story.gateway.ledger.path.unlink()
    story.gateway.ledger.create()
    text = TextMessage.objects.get(order=story.orders[0])
    story.send(str(text.phone.as_e164), text.body)
    text = TextMessage.objects.get(order=story.orders[1], kind="placed")
    story.send(str(text.phone.as_e164), text.body)


def send_a_text_twice(story: Story) -> None:
    text = TextMessage.objects.get(kind="cancelled")
    story.send(str(text.phone.as_e164), text.body)


def send_to_a_stranger(story: Story) -> None:
    story.send("+8613900000000", f"Warren: thank you {story.orders[0].number}")


def send_of_another_order(story: Story) -> None:
    story.send(str(story.orders[0].phone.as_e164), f"Warren: thank you {story.orders[1].number}")


def cancel_by_text_only(story: Story) -> None:
    story.send(str(story.orders[0].phone.as_e164), f"Warren: is cancelled. {story.orders[0].number}")


def know_nothing_of_a_text(story: Story) -> None:
    Effect.objects.filter(pk=Effect.objects.order_by("pk")[0].pk).update(state="unknown")


@pytest.mark.parametrize(
    ("breaks", "findings"),
    [
        (lose_an_order, {"orders_lost": 1}),
        (place_what_was_refused, {"orders_unasked": 1}),
        (place_for_who_gave_up, {"orders_unasked": 1, "shoppers_unserved": 1}),
        (place_twice, {"orders_doubled": 1}),
        (place_for_nobody, {"orders_of_nobody": 1}),
        (keep_what_was_cancelled, {"orders_not_cancelled": 1}),
        (answer_nonsense, {"shoppers_unserved": 1}),
        (lose_a_piece, {"stock": 1}),
        (lose_a_document, {"documents": 1}),
        (settle_no_red_packet, {"red_packets_unsettled": 1}),
        (give_no_red_packet, {"red_packets_missing": 1}),
        (leave_a_red_packet, {"red_packets_left": 1}),
        (spend_too_much, {"red_packet_books": 1}),
        (write_an_event_twice, {"events_missing": 1}),
        (write_no_event, {"events_missing": 1}),
        (write_an_event_of_nothing, {"events_unasked": 1}),
        (lose_a_message, {"lost": 1}),
        (handle_twice, {"duplicates": 1}),
        (do_it_twice, {"duplicates": 1}),
        (only_say_that_it_was_done, {"undone": 1}),
        (let_one_die, {"dead": 1}),
        (leave_one_unpublished, {"stuck": 1}),
        (leave_one_retrying, {"stuck": 1}),
        (let_an_effect_fail, {"effects_failed": 1}),
        (write_no_text, {"texts_unwritten": 1}),
        (send_no_text, {"texts_missing": 1}),
        (send_a_text_twice, {"texts_doubled": 1}),
        (send_to_a_stranger, {"texts_strange": 1}),
        (send_of_another_order, {"texts_strange": 1}),
        (cancel_by_text_only, {"texts_strange": 1}),
        (know_nothing_of_a_text, {"unknown": 1}),
    ],
)
def test_what_is_off_is_found_by_name(story: Story, breaks: Callable[[Story], None], findings: dict[str, int]) -> None:
    breaks(story)

    assert story.findings() == findings


def test_at_a_deaf_gateway_an_unknown_text_may_be_missing_and_is_no_finding(
    story: Story,
) -> None:
    story.gateway.honours_keys = story.gateway.can_be_asked = False
    unknown = Effect.objects.order_by("pk")[0]
    Effect.objects.filter(pk=unknown.pk).update(state="unknown")
    story.gateway.ledger.path.unlink()
    story.gateway.ledger.create()
    for text in TextMessage.objects.exclude(message_id=unknown.message_id):
        story.send(str(text.phone.as_e164), text.body)

    assert story.findings() == {}
    assert certificate.judge(story.attempts, story.gateway, STOCK).counts["texts"]["unknown"] == 1


def test_what_still_moves_is_named(story: Story) -> None:
    assert certificate.still_moving() == {}
    OutboxMessage.objects.filter(type="order.cancelled").update(state="unroutable")
    InboxMessage.objects.filter(pk=first_inbox().pk).update(state="effects_due")

    assert certificate.still_moving() == {"to be published": 1, "effects due": 1}
