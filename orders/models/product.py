"""Products."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from operator import or_
from typing import Self

from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import F, Q, Value
from django.db.models.functions import Coalesce, NullIf
from django.urls import reverse
from django.utils.translation import gettext as _

from messaging.models.columns import PrimaryQuerySet
from orders import languages
from orders.money import check_payable

#: At this number of pieces or fewer, the shop says how many are left.
FEW_LEFT = 5
#: Languages, beside the first one, in which a product has texts: endings of its columns.
_TRANSLATED = ("zh_hans", "zh_hant")


class ProductQuerySet(PrimaryQuerySet["Product"]):
    def on_sale(self) -> Self:
        """Products that the catalogue shows, sold out or not."""
        return self.filter(active=True)

    def in_stock(self) -> Self:
        """Products that can be bought now."""
        return self.on_sale().filter(stock__gt=0)

    def having(self, words: str) -> Self:
        """Products whose name or description has these words, in whichever language."""
        columns = [
            f"{text}{ending}" for text in ("name", "description") for ending in ("", *map("_{}".format, _TRANSLATED))
        ]
        return self.filter(reduce(or_, (Q(**{f"{column}__icontains": words}) for column in columns)))

    def by_name(self) -> Self:
        """Sort by the name that the reader sees."""
        if (ending := _ending(languages.current())) not in _TRANSLATED:
            return self.order_by("name", "pk")
        return self.order_by(Coalesce(NullIf(F(f"name_{ending}"), Value("")), F("name")), "pk")

    def lock(self, ids: Iterable[int]) -> dict[int, Product]:
        """Lock these rows, by rising key, and return them by key.

        All callers lock in this order, so that two orders of the same products never deadlock.
        """
        return {product.pk: product for product in self.filter(pk__in=list(ids)).order_by("pk").select_for_update()}

    def take(self, product_id: int, quantity: int) -> bool:
        """Deduct `quantity` pieces. Return False, and change nothing, if there are fewer."""
        enough = self.filter(pk=product_id, stock__gte=quantity)
        return bool(enough.update(stock=F("stock") - quantity))

    def give_back(self, product_id: int, quantity: int) -> None:
        """Put `quantity` pieces back."""
        self.filter(pk=product_id).update(stock=F("stock") + quantity)


class Product(models.Model):
    """One article. `price` is in the shop's one currency, `SHOP_CURRENCY`."""

    sku = models.CharField("SKU", max_length=40, unique=True)
    slug = models.SlugField(unique=True)
    name = models.CharField(max_length=120)
    description = models.TextField(blank=True)
    # Translations are columns: they are read with the row that an order locks, searched and sorted like the name, and
    # edited in the same form. Without one the text above is shown.
    name_zh_hans = models.CharField("name in Simplified Chinese", max_length=120, blank=True, default="", db_default="")
    name_zh_hant = models.CharField(
        "name in Traditional Chinese", max_length=120, blank=True, default="", db_default=""
    )
    description_zh_hans = models.TextField("description in Simplified Chinese", blank=True, default="", db_default="")
    description_zh_hant = models.TextField("description in Traditional Chinese", blank=True, default="", db_default="")
    picture = models.CharField(
        max_length=120, blank=True, help_text="Static file, such as orders/products/tea.svg. Empty: a plain one."
    )
    price = models.DecimalField(max_digits=12, decimal_places=2, validators=[MinValueValidator(0), check_payable])
    stock = models.PositiveIntegerField(default=0, help_text="Pieces that can still be sold.")
    weight_grams = models.PositiveIntegerField(default=0, help_text="Of one piece; decides the shipping.")
    active = models.BooleanField(default=True, help_text="Whether the catalogue shows it.")

    objects = ProductQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(condition=models.Q(stock__gte=0), name="product_stock_not_negative"),
            models.CheckConstraint(condition=models.Q(price__gte=0), name="product_price_not_negative"),
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("orders:product", args=[self.slug])

    @property
    def translated_name(self) -> str:
        """The name in the reader's language."""
        return self.name_in(languages.current())

    @property
    def translated_description(self) -> str:
        """The description in the reader's language."""
        return self._text("description", languages.current())

    def name_in(self, language: str) -> str:
        """Return the name in a language such as "zh-hans", or the untranslated one."""
        return self._text("name", language)

    def _text(self, column: str, language: str) -> str:
        return str(getattr(self, f"{column}_{_ending(language)}", "") or getattr(self, column))

    @property
    def stock_in_words(self) -> str:
        """What a shopper should know about the stock."""
        if self.stock <= 0:
            return _("Sold out")
        if self.stock <= FEW_LEFT:
            return _("Only %(left)d left") % {"left": self.stock}
        return _("In stock")


def _ending(language: str) -> str:
    return language.replace("-", "_")
