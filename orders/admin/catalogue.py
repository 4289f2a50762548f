"""Products in the admin."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import F
from django.http import HttpRequest

from orders.models import Product


class ProductForm(forms.ModelForm):  # type: ignore[type-arg]
    """The stock of an existing product is changed by a difference, never set."""

    stock_change = forms.IntegerField(
        required=False,
        min_value=-1_000_000,
        max_value=1_000_000,
        help_text="Pieces that arrived, or (with a minus sign) that are gone. Added to the stock when you save.",
    )

    class Meta:
        model = Product
        fields = "__all__"  # noqa: DJ007  (the admin decides)

    def clean_stock_change(self) -> int:
        """Return the difference. Raises ValidationError if it would make the stock negative."""
        change = self.cleaned_data["stock_change"] or 0
        if self.instance.pk and self.instance.stock + change < 0:
            raise ValidationError(f"Only {self.instance.stock} pieces are left.")
        return change


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Products. Saving never overwrites the stock: orders change it while the form is open."""

    form = ProductForm
    list_display = ["name", "sku", "price", "stock", "active"]
    list_filter = ["active"]
    search_fields = ["name", "name_zh_hans", "name_zh_hant", "sku"]
    search_help_text = "Searches names and SKU."
    prepopulated_fields = {"slug": ["name"]}

    def get_fields(self, request: HttpRequest, obj: Product | None = None) -> list[Any]:
        stock = ["stock", "stock_change"] if obj else ["stock"]
        chinese = ["name_zh_hans", "description_zh_hans", "name_zh_hant", "description_zh_hant"]
        facts = ["picture", "price", *stock, "weight_grams", "active"]
        return ["name", "slug", "sku", "description", *chinese, *facts]

    def get_readonly_fields(self, request: HttpRequest, obj: Product | None = None) -> list[str]:
        return ["stock"] if obj else []

    def save_model(self, request: HttpRequest, obj: Product, form: Any, change: bool) -> None:
        """Write only changed fields, and the stock as a difference that cannot make it negative."""
        if not change:
            super().save_model(request, obj, form, change)
            return
        changed = [name for name in form.changed_data if name != "stock_change"]
        if changed:
            obj.save(update_fields=changed)
        difference = form.cleaned_data.get("stock_change") or 0
        if difference:
            enough = Product.objects.filter(pk=obj.pk, stock__gte=max(0, -difference))
            if not enough.update(stock=F("stock") + difference):
                self.message_user(request, "The stock was not changed: too few pieces are left by now.", level="ERROR")
