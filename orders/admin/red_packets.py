"""Campaigns and red packets in the admin."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.http import HttpRequest

from orders.admin.read_only import ReadOnly
from orders.models import Campaign, RedPacket


class CampaignForm(forms.ModelForm):  # type: ignore[type-arg]
    """A campaign, whose budget cannot fall below what is given away."""

    class Meta:
        model = Campaign
        fields = "__all__"  # noqa: DJ007  (the admin decides)

    def clean_budget(self) -> Decimal:
        """Return the budget. Locks the campaign until it is saved, so that nothing more is given away meanwhile."""
        budget: Decimal = self.cleaned_data["budget"]
        if self.instance.pk:
            spent = Campaign.objects.select_for_update().get(pk=self.instance.pk).spent
            if budget < spent:
                raise ValidationError(f"{spent} is given away already; the budget cannot be less.")
        return budget


@admin.register(Campaign)
class CampaignAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Campaigns. What is spent is counted by the shop and shown only."""

    form = CampaignForm
    list_display = ["name", "budget", "spent", "min_amount", "max_amount", "starts_at", "ends_at", "active"]
    list_filter = ["active"]
    readonly_fields = ["spent"]

    def save_model(self, request: HttpRequest, obj: Campaign, form: Any, change: bool) -> None:
        """Write only what was changed: red packets are granted while the form is open."""
        if change:
            obj.save(update_fields=form.changed_data)
        else:
            super().save_model(request, obj, form, change)


@admin.register(RedPacket)
class RedPacketAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """Red packets, to read."""

    list_display = ["code", "amount", "order", "state", "granted_at", "expires_at", "used_by"]
    list_filter = ["campaign", "granted_at"]
    list_select_related = ["order", "used_by"]
    search_fields = ["code", "order__number", "used_by__number"]
    search_help_text = "Searches the code, and the number of the order that earned or used it."
    show_full_result_count = False
