"""The certificate of script/chaos: clean where everything is right, and each thing that may go wrong is found."""

from collections import Counter
from collections.abc import Callable, Iterable
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
from script import laws
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


def test_orders_are_counted_by_their_shoppers_outcomes(story: Story) -> None:
    judged = certificate.judge(story.attempts, story.gateway, STOCK)

    assert judged.counts["shoppers"] == {
        "came": 2, "placed": 2, "refused": 0, "unknown": 0, "gave_up": 0, "strange": 0, "presses": 2,
    }  # fmt: skip
    assert judged.counts["orders"]["committed"] == 2
    assert judged.counts["texts"]["sent"] == 3
    assert judged.counts["red_packets"] == {"settled": 2, "granted": 2, "void": 1}


def test_messages_sent_again_and_mistakes_of_reconcile_are_findings(story: Story) -> None:
    judged = certificate.judge(story.attempts, story.gateway, STOCK, ["one at sms"], ["another at sms: not lost"])

    assert {finding.name: list(finding.found) for finding in judged.findings if finding.found} == {
        "lost": ["one at sms"],
        "reconcile": ["another at sms: not lost"],
    }


def test_a_message_is_lost_if_it_left_no_trace_or_waits_for_an_attempt_that_does_not_come(story: Story) -> None:
    assert certificate.lost() == set()
    gone, waiting = InboxMessage.objects.order_by("pk")[:2]
    InboxMessage.objects.filter(pk=waiting.pk).update(state="retrying")
    gone.delete()

    assert certificate.lost() == {(each.consumer, each.message_id) for each in (gone, waiting)}


def test_a_shopper_who_never_learnt_the_outcome_may_have_an_order_or_none(story: Story) -> None:
    story.attempts[0].outcome = Outcome.UNKNOWN
    came(story, Outcome.UNKNOWN)

    assert story.findings() == {}


# --- Each breaks one thing ---------------------------------------------------------------------------------


def first(model: Any, **which: Any) -> Any:
    """The first row of these, as a query set."""
    return model.objects.filter(pk=model.objects.filter(**which).order_by("pk")[0].pk)


def came(story: Story, outcome: Outcome, **more: Any) -> None:
    """One more shopper."""
    story.attempts.append(Attempt(3, "tea", 1, False, outcome, **more))


def place_twice(story: Story) -> None:
    Order.objects.filter(pk=story.orders[1].pk).update(customer_name=story.attempts[0].name)
    story.attempts.pop()


def give_no_red_packet(story: Story) -> None:
    Campaign.objects.update(spent=0)
    RedPacket.objects.filter(order=story.orders[0]).delete()


def leave_a_red_packet(story: Story) -> None:
    RedPacket.objects.filter(order=story.orders[1]).update(voided_at=None)
    Campaign.objects.update(spent=sum(packet.amount for packet in RedPacket.objects.all()))


def write_an_event_twice(story: Story) -> None:
    row = first(OutboxMessage, type="order.placed").get()
    row.pk = None
    row.save(force_insert=True)


def send_only(story: Story, texts: Iterable[TextMessage]) -> None:
    story.gateway.ledger.path.unlink()
    story.gateway.ledger.create()
    send_all(story, texts)


def send_all(story: Story, texts: Iterable[TextMessage]) -> None:
    for text in texts:
        story.send(str(text.phone.as_e164), text.body)


def text_to_first(run: Story, text: str, of: int) -> None:
    run.send(str(run.orders[0].phone.as_e164), f"Warren: {text} {run.orders[of].number}")


CANCELLED = {"kind": "cancelled"}
#: What breaks a run that went well, and the names of the findings, one each.
BREAKS: dict[str, tuple[Callable[[Story], object], str]] = {
    "lose an order": (lambda run: came(run, Outcome.PLACED, order_number="W-AAAAAA"), "orders_lost"),
    "place a refused order": (lambda run: setattr(run.attempts[0], "outcome", Outcome.REFUSED), "orders_unasked"),
    "place an order of a shopper who gave up": (
        lambda run: setattr(run.attempts[0], "outcome", Outcome.GAVE_UP), "orders_unasked shoppers_unserved",
    ),
    "place an order twice": (place_twice, "orders_doubled"),
    "place an order without a shopper": (lambda run: run.attempts.pop(), "orders_of_nobody"),
    "keep a cancelled order": (lambda run: setattr(run.attempts[0], "told_cancelled", True), "orders_not_cancelled"),
    "answer nonsense": (lambda run: came(run, Outcome.STRANGE, note="200 /: hm"), "shoppers_unserved"),
    "lose a piece": (lambda run: Product.objects.update(stock=97), "stock"),
    "lose a document": (lambda run: run.orders[0].documents.first().delete(), "documents"),
    "decide no red packet": (lambda run: first(Order).update(red_packet_settled_at=None), "red_packets_unsettled"),
    "give no red packet": (give_no_red_packet, "red_packets_missing"),
    "leave a red packet": (leave_a_red_packet, "red_packets_left"),
    "spend too much": (lambda run: Campaign.objects.update(spent=Decimal("12.34")), "red_packet_books"),
    "write an event twice": (write_an_event_twice, "events_missing"),
    "write no event": (lambda run: first(OutboxMessage, type="order.placed").delete(), "events_missing"),
    "write an event of no order": (
        lambda run: OutboxMessage.objects.filter(type="order.cancelled").update(subject="W-AAAAAA"), "events_unasked",
    ),
    "lose a message": (lambda run: first(InboxMessage, consumer="red_packet").delete(), "lost"),
    "handle a message twice": (
        lambda run: first(InboxMessage).get().attempts.create(number=1, outcome="handled"), "duplicates",
    ),
    "run a handler twice": (lambda run: run.runs.update({"some message": 2}), "duplicates"),
    "handle without a run": (
        lambda run: InboxMessage.objects.create(consumer="naive", message_id="never done", state="handled"), "undone",
    ),
    "let a message die": (lambda run: first(InboxMessage).update(state="dead"), "dead"),
    "leave a message unpublished": (
        lambda run: OutboxMessage.objects.filter(type="order.cancelled").update(state="failed"), "stuck",
    ),
    "leave a message retrying": (lambda run: first(InboxMessage).update(state="retrying"), "stuck"),
    "let an effect fail": (lambda run: first(Effect).update(state="failed"), "effects_failed"),
    "write no text": (lambda run: TextMessage.objects.filter(**CANCELLED).delete(), "texts_unwritten"),
    "send no text": (lambda run: send_only(run, TextMessage.objects.exclude(**CANCELLED)), "texts_missing"),
    "send a text twice": (lambda run: send_all(run, TextMessage.objects.filter(**CANCELLED)), "texts_doubled"),
    "send to a stranger": (
        lambda run: run.send("+8613900000000", f"Warren: thank you {run.orders[0].number}"), "texts_strange",
    ),
    "send another shopper's order": (lambda run: text_to_first(run, "thank you", of=1), "texts_strange"),
    "cancel by text only": (lambda run: text_to_first(run, "is cancelled.", of=0), "texts_strange"),
    "leave a text in doubt": (lambda run: first(Effect).update(state="unknown"), "unknown"),
}  # fmt: skip


@pytest.mark.parametrize("broken", BREAKS)
def test_a_broken_run_is_found_by_name(story: Story, broken: str) -> None:
    breaks, findings = BREAKS[broken]
    breaks(story)

    assert story.findings() == dict.fromkeys(findings.split(), 1)


def test_at_a_deaf_gateway_an_unknown_text_may_be_missing_and_is_no_finding(
    story: Story,
) -> None:
    story.gateway.honours_keys = story.gateway.can_be_asked = False
    unknown = Effect.objects.order_by("pk")[0]
    Effect.objects.filter(pk=unknown.pk).update(state="unknown")
    send_only(story, TextMessage.objects.exclude(message_id=unknown.message_id))

    assert story.findings() == {}
    assert certificate.judge(story.attempts, story.gateway, STOCK).counts["texts"]["unknown"] == 1


def test_rows_that_still_change_are_counted(story: Story) -> None:
    assert certificate.still_moving() == {}
    OutboxMessage.objects.filter(type="order.cancelled").update(state="unroutable")
    first(InboxMessage).update(state="effects_due")

    assert certificate.still_moving() == {"to be published": 1, "effects due": 1}


@pytest.mark.django_db
def test_a_message_may_fail_while_the_tables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = laws.read_rows

    def read_while_one_fails(model: Any, *columns: str) -> list[laws.Row]:
        rows = read(model, *columns)
        message = InboxMessage.objects.create(consumer="sms", message_id=str(uuid4()))
        DeliveryAttempt.objects.create(inbox_message=message, number=1, outcome=DeliveryAttempt.Outcome.FAILED)
        return rows

    monkeypatch.setattr(laws, "read_rows", read_while_one_fails)
    tables = laws.Tables()
    assert set(tables.outcomes) <= set(tables.inbox)
