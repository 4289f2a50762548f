"""Campaigns and red packets in the admin."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.http import HttpRequest

from messaging.admin.read_only import ReadOnlyAdmin
from orders.models import Campaign, RedPacket


class CampaignForm(forms.ModelForm):  # type: ignore[type-arg]
    """A campaign. Its budget cannot fall below what is given away."""

    class Meta:
        model = Campaign
        fields = "__all__"  # noqa: DJ007  (the admin decides)

    def clean_budget(self) -> Decimal:
        """Return the budget. Locks the campaign until it is saved, so that no more is given away meanwhile."""
        budget: Decimal = self.cleaned_data["budget"]
        if self.instance.pk:
            spent = Campaign.objects.select_for_update().get(pk=self.instance.pk).spent
            if budget < spent:
                raise ValidationError(f"{spent} is given away already; the budget cannot be less.")
        return budget


@admin.register(Campaign)
class CampaignAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Campaigns. The shop counts what is spent; the form only shows it."""

    form = CampaignForm
    list_display = ["name", "budget", "spent", "min_amount", "max_amount", "starts_at", "ends_at", "active"]
    list_filter = ["active"]
    readonly_fields = ["spent"]

    def save_model(self, request: HttpRequest, obj: Campaign, form: Any, change: bool) -> None:
        """Write only changed fields: red packets are granted while the form is open."""
        if change:
            obj.save(update_fields=form.changed_data)
        else:
            super().save_model(request, obj, form, change)


@admin.register(RedPacket)
class RedPacketAdmin(ReadOnlyAdmin):
    """Red packets, read-only. A code is all it takes to spend one: without the permission to see it, it is masked."""

    list_filter = ["campaign", "granted_at"]
    list_select_related = ["order", "used_by"]
    # Only a whole code is found: a search for parts would reveal it part by part.
    search_fields = ["=code", "order__number", "used_by__number"]
    search_help_text = "Searches the whole code, and the number of the order that earned or used it."

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        return [code_column(request), "amount", "order", "state", "granted_at", "expires_at", "used_by"]

    def get_fields(self, request: HttpRequest, obj: RedPacket | None = None) -> list[Any]:
        times = ["granted_at", "expires_at", "voided_at", "used_at"]
        return [code_column(request), "campaign", "order", "amount", "state", *times, "used_by"]

    def get_readonly_fields(self, request: HttpRequest, obj: RedPacket | None = None) -> list[Any]:
        return self.get_fields(request, obj)

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Refuse an address that filters by code."""
        return lookup.partition("__")[0] != "code" and super().lookup_allowed(lookup, value, request)

    @admin.display(description="code")
    def masked_code(self, packet: RedPacket) -> str:
        return packet.masked_code


def code_column(request: HttpRequest) -> str:
    """Return the column that shows this user the code or its end."""
    return "code" if may_see_codes(request) else "masked_code"


def may_see_codes(request: HttpRequest) -> bool:
    return request.user.has_perm("orders.see_redpacket_code")
