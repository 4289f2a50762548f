"""Celery tasks that delete old data of visitors."""

from __future__ import annotations

from datetime import timedelta
from importlib import import_module

from celery import shared_task
from django.conf import settings
from django.utils import timezone

from orders.models import Cart, KnownPlace

#: A cart is deleted this long after its last change. No session lives that long without being saved.
CART_KEPT = timedelta(days=90)
#: A place is forgotten this long after the account signed in there.
PLACE_KEPT = timedelta(days=90)


@shared_task(name="orders.prune")  # type: ignore[untyped-decorator]
def prune_visits() -> dict[str, int]:
    """Delete expired sessions, old carts and old known places; return the number of carts.

    An order does not need its cart.
    """
    import_module(settings.SESSION_ENGINE).SessionStore.clear_expired()
    old = Cart.objects.filter(changed_at__lt=timezone.now() - max(CART_KEPT, _session_age()))
    _, deleted = old.delete()
    KnownPlace.objects.filter(seen_at__lt=timezone.now() - PLACE_KEPT).delete()
    return {"carts": deleted.get(Cart._meta.label, 0)}


def _session_age() -> timedelta:
    return timedelta(seconds=settings.SESSION_COOKIE_AGE)
