"""Orders in the admin: read them and ship them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from messaging.admin import words
from messaging.admin.read_only import ReadOnly, ReadOnlyAdmin
from messaging.admin.story import story_url
from messaging.history import outcome
from orders import services, sms
from orders.admin.red_packets import may_see_codes
from orders.admin.text_messages import sending_pill
from orders.exceptions import TooLate
from orders.models import Document, Order, OrderLine, RedPacket, TextMessage


class LineInline(ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    model = OrderLine
    fields = readonly_fields = ("sku", "product_name", "unit_price", "quantity")
    extra = 0


class DocumentInline(ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    model = Document
    fields = readonly_fields = ("kind", "number", "created_at")
    extra = 0


class TextMessageInline(ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    model = TextMessage
    fields = readonly_fields = ("kind", "sending", "body", "created_at")
    extra = 0

    @admin.display(description="sent?")
    def sending(self, text: TextMessage) -> SafeString | str:
        """Whether it was sent."""
        return sending_pill(sms.effects_of([text]).get(text.message_id))


@admin.register(Order)
class OrderAdmin(ReadOnlyAdmin):
    """Orders change only through the shop's functions; the action calls one."""

    list_display = ["number", "messages_worst", "status", "customer_name", "total", "currency", "placed_at"]
    list_filter = ["status", "placed_at", "shipping_source"]
    search_fields = ["number", "customer_name", "phone", "documents__number"]
    search_help_text = (
        "Searches order number, customer's name, phone number (+86…) and document number; not the order's messages."
    )
    date_hierarchy = "placed_at"
    list_select_related = False
    # The shop's page of an order is for the shopper who placed it; staff cannot open it.
    view_on_site = False
    inlines = [LineInline, DocumentInline, TextMessageInline]
    actions = ["mark_as_shipped"]
    readonly_fields = ["messages_link", "red_packets", "masked_red_packets"]

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Read the outcomes of the messages of all orders on the page at once."""
        found = super().get_changelist_instance(request)
        told = outcome.of_subjects([order.number for order in found.result_list])
        for order in found.result_list:
            order.messages_told = told[order.number]
        return found

    def get_fieldsets(self, request: HttpRequest, obj: Order | None = None) -> Any:
        """Show codes of red packets to those who may see them."""
        packets = "red_packets" if may_see_codes(request) else "masked_red_packets"
        money = ["currency", "subtotal", "shipping", "shipping_source", "discount", "total", packets]
        return [
            (None, {"fields": ["number", "status", "messages_link", "placed_at", "cancelled_at", "shipped_at"]}),
            ("Customer", {"fields": ["customer_name", "phone", "destination", "language", "user"]}),
            ("Money", {"fields": money}),
        ]

    def has_ship_permission(self, request: HttpRequest) -> bool:
        """Shipping needs the permission to change orders, although the form is read-only."""
        return request.user.has_perm("orders.change_order")

    @admin.action(description="Mark as shipped", permissions=["ship"])
    def mark_as_shipped(self, request: HttpRequest, queryset: QuerySet[Order]) -> None:
        shipped = 0
        for number in queryset.order_by("pk").values_list("number", flat=True):
            try:
                order = services.ship_order(number)
            except TooLate as refusal:
                self.message_user(request, f"{number}: {refusal}", level="ERROR")
            else:
                shipped += 1
                self.log_change(request, order, "Marked as shipped.")
        if shipped:
            self.message_user(request, f"{shipped} marked as shipped.")

    @admin.display(description="messages")
    def messages_worst(self, order: Order) -> SafeString:
        """The worst outcome of the order's messages and effects, with a link to their story."""
        worst, *others = order.messages_told  # type: ignore[attr-defined]
        more = f" and {len(others)} more" if others else ""
        return format_html('<a href="{}">{}</a>{}', story_url(order.number), words.pill(worst.state, worst.words), more)

    @admin.display(description="messages")
    def messages_link(self, order: Order) -> SafeString:
        """The outcomes of the order's messages and effects, and links to them."""
        query = urlencode({"q": order.number})
        pages = [("outbox", "outboxmessage"), ("inbox", "inboxmessage"), ("effects", "effect")]
        told = outcome.of_subjects([order.number])[order.number]
        pills = format_html_join(" ", "{}", ((words.pill(fact.state, fact.words),) for fact in told))
        links = format_html_join(
            " · ",
            '<a href="{}?{}">{}</a>',
            ((reverse(f"admin:messaging_{model}_changelist"), query, label) for label, model in pages),
        )
        return format_html('{} <a href="{}">story</a> · {}', pills, story_url(order.number), links)

    @admin.display(description="red packets")
    def red_packets(self, order: Order) -> SafeString | str:
        """The red packets that the order earned and spent."""
        return _red_packets(order, lambda packet: packet.code)

    @admin.display(description="red packets")
    def masked_red_packets(self, order: Order) -> SafeString | str:
        """The same, with masked codes."""
        return _red_packets(order, lambda packet: packet.masked_code)


def _red_packets(order: Order, shown: Callable[[RedPacket], str]) -> SafeString | str:
    found: list[tuple[Any, ...]] = []
    for label, name in [("earned", "earned_red_packet"), ("spent", "spent_red_packet")]:
        packet = getattr(order, name, None)
        if packet:
            found.append((label, reverse("admin:orders_redpacket_change", args=[packet.pk]), shown(packet)))
    return format_html_join(", ", '{} <a href="{}">{}</a>', found) or "–"
