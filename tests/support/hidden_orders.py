"""Orders that their consumers cannot find for a while: whatever is told about them dies, and can be replayed."""

from django.db.models import F, Value
from django.db.models.functions import Concat, Substr

from orders.models import Order

_MARK = "?"


def hide_orders() -> None:
    """Let no consumer find any order by its number."""
    Order.objects.update(number=Concat(Value(_MARK), F("number")))


def show_orders() -> None:
    """Let them be found again."""
    Order.objects.filter(number__startswith=_MARK).update(number=Substr("number", len(_MARK) + 1))
