"""Orders that consumers cannot find for a while: messages about them become dead, and can be replayed."""

from django.db.models import F, Value
from django.db.models.functions import Concat, Substr

from orders.models import Order

_MARK = "?"


def make_orders_missing() -> None:
    """Rename all orders, so that no consumer finds one by its number."""
    Order.objects.update(number=Concat(Value(_MARK), F("number")))


def restore_orders() -> None:
    """Give them their numbers back."""
    Order.objects.filter(number__startswith=_MARK).update(number=Substr("number", len(_MARK) + 1))
