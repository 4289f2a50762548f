"""`manage.py seed_demo`: products, a red packet campaign and an administrator."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import CommandParser
from django.db import transaction
from django.utils import timezone

from messaging.management.arguments import CommandWithExamples
from messaging.management.errors import told_in_one_line
from orders.management.demo_products import PRODUCTS
from orders.models import Campaign, Product
from orders.money import rounded

EXAMPLES = """
examples:
  manage.py seed_demo
  manage.py seed_demo --admin-password 'a long phrase'

Safe to repeat: what exists stays as it is, except the administrator's password. Products that have no Chinese texts yet
get them.
"""
CAMPAIGN = "Welcome"
ADMINISTRATOR = "admin"


class Command(CommandWithExamples):
    help = "Fill an empty shop: products, a red packet campaign and, on request, an administrator."
    examples = EXAMPLES

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--admin-password", help=f"make the administrator {ADMINISTRATOR!r} with this password")

    def handle(self, *args: Any, **options: Any) -> None:
        with told_in_one_line(advice=""), transaction.atomic():
            made = _make_products()
            _make_campaign()
            if options["admin_password"]:
                _make_administrator(options["admin_password"])
        self.stdout.write(f"{made} products added, {len(PRODUCTS) - made} were there. Campaign {CAMPAIGN!r} runs.")
        if options["admin_password"]:
            self.stdout.write(f"Administrator {ADMINISTRATOR!r} has the given password.")


def _make_products() -> int:
    made = 0
    for each in PRODUCTS:
        texts = each.translations()
        _, is_new = Product.objects.get_or_create(
            sku=each.sku,
            defaults={
                "slug": each.slug,
                "name": each.name,
                "description": each.description,
                "picture": f"orders/products/{each.slug.rpartition('-')[2]}.svg",
                "price": rounded(Decimal(each.price)),
                "stock": each.stock,
                "weight_grams": each.grams,
                **texts,
            },
        )
        made += is_new
        if not is_new:
            Product.objects.filter(sku=each.sku, name=each.name, **dict.fromkeys(texts, "")).update(**texts)
    return made


def _make_campaign() -> None:
    now = timezone.now()
    Campaign.objects.get_or_create(
        name=CAMPAIGN,
        defaults={
            "budget": Decimal(100_000),
            "min_amount": Decimal(1),
            "max_amount": rounded(Decimal("8.88")),
            "starts_at": now,
            "ends_at": now + timedelta(days=365),
        },
    )


def _make_administrator(password: str) -> None:
    admin, _ = get_user_model().objects.get_or_create(username=ADMINISTRATOR)
    admin.is_staff = admin.is_superuser = admin.is_active = True
    admin.set_password(password)
    admin.save()
