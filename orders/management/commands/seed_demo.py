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
from orders.models import Campaign, Product
from orders.money import rounded

EXAMPLES = """
examples:
  manage.py seed_demo
  manage.py seed_demo --admin-password 'a long phrase'

Safe to repeat: what exists stays as it is, except the administrator's password.
"""
#: sku, slug, name, price, stock, grams, description. A picture is named after the slug's last word.
PRODUCTS = (
    ("TEA-01", "jasmine-tea", "Jasmine tea", "38.00", 500, 150, "Green tea scented with jasmine, 100 g in a tin."),
    ("POT-01", "clay-teapot", "Clay teapot", "268.00", 40, 620, "Unglazed, for one and a half cups."),
    ("CAKE-01", "lotus-mooncake", "Lotus mooncake", "22.50", 300, 180, "One egg yolk inside. Keeps for two weeks."),
    ("LAMP-01", "paper-lantern", "Paper lantern", "45.00", 120, 260, "Red paper on bamboo, 35 cm across."),
    ("STICK-01", "maple-chopsticks", "Maple chopsticks", "19.90", 400, 60, "A pair, oiled by hand."),
    ("HONEY-01", "acacia-honey", "Acacia honey", "56.00", 90, 700, "From one hillside. 500 g."),
    ("FAN-01", "silk-fan", "Silk fan", "88.00", 3, 90, "Painted by hand; no two are alike."),
    ("INK-01", "brush-and-ink", "Brush and ink", "129.00", 60, 450, "A brush, a stone and a stick of ink."),
    ("TOY-01", "moon-rabbit", "Moon rabbit", "64.00", 0, 240, "Soft, white, and usually sold out."),
)
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
    for sku, slug, name, price, stock, grams, description in PRODUCTS:
        _, is_new = Product.objects.get_or_create(
            sku=sku,
            defaults={
                "slug": slug,
                "name": name,
                "description": description,
                "picture": f"orders/products/{slug.rpartition('-')[2]}.svg",
                "price": rounded(Decimal(price)),
                "stock": stock,
                "weight_grams": grams,
            },
        )
        made += is_new
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
