"""Orders in the admin: to read, and to ship."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from orders import services
from orders.admin.read_only import ReadOnly
from orders.exceptions import TooLate
from orders.models import Document, Order, OrderLine, TextMessage


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
    fields = readonly_fields = ("kind", "body", "created_at")
    extra = 0


@admin.register(Order)
class OrderAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """Orders change through the shop's functions only; the action calls one."""

    list_display = ["number", "status", "customer_name", "total", "currency", "placed_at", "messages_link"]
    list_filter = ["status", "placed_at", "shipping_source"]
    search_fields = ["number", "customer_name", "phone", "documents__number"]
    date_hierarchy = "placed_at"
    list_select_related = False
    show_full_result_count = False
    # The shop's page of an order is for who placed it; to staff it does not exist.
    view_on_site = False
    inlines = [LineInline, DocumentInline, TextMessageInline]
    actions = ["mark_as_shipped"]
    fieldsets = [
        (None, {"fields": ["number", "status", "messages_link", "placed_at", "cancelled_at", "shipped_at"]}),
        ("Customer", {"fields": ["customer_name", "phone", "destination", "user"]}),
        (
            "Money",
            {"fields": ["currency", "subtotal", "shipping", "shipping_source", "discount", "total", "red_packets"]},
        ),
    ]
    readonly_fields = ["messages_link", "red_packets"]

    def has_ship_permission(self, request: HttpRequest) -> bool:
        """Shipping needs the right to change orders, though the form itself is read-only."""
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
    def messages_link(self, order: Order) -> SafeString:
        """Links to everything that was published and handled about this order."""
        query = urlencode({"q": order.number})
        pages = [("published", "outboxmessage"), ("handled", "inboxmessage")]
        return format_html_join(
            " · ",
            '<a href="{}?{}">{}</a>',
            ((reverse(f"admin:messaging_{model}_changelist"), query, label) for label, model in pages),
        )

    @admin.display(description="red packets")
    def red_packets(self, order: Order) -> SafeString | str:
        """What the order earned and what it was paid with."""
        found: list[tuple[Any, ...]] = []
        for label, name in [("earned", "earned_red_packet"), ("spent", "spent_red_packet")]:
            packet = getattr(order, name, None)
            if packet:
                found.append((label, reverse("admin:orders_redpacket_change", args=[packet.pk]), packet.code))
        return format_html_join(", ", '{} <a href="{}">{}</a>', found) or "–"
