"""Housekeeping for Celery, of what visitors leave behind."""

from __future__ import annotations

from datetime import timedelta
from importlib import import_module

from celery import shared_task
from django.conf import settings
from django.utils import timezone

from orders.models import Cart, KnownPlace

#: Carts that were not changed for so long are deleted. It is longer than a session can be without being saved.
CART_KEPT = timedelta(days=90)
#: An account that did not sign in from a place for so long is not known there any more.
PLACE_KEPT = timedelta(days=90)


@shared_task(name="orders.prune")  # type: ignore[untyped-decorator]
def prune_visits() -> dict[str, int]:
    """Delete expired sessions, which nothing else removes, old carts and known places; return how many carts.

    An order keeps all that it needs: no order is lost with its cart.
    """
    import_module(settings.SESSION_ENGINE).SessionStore.clear_expired()
    old = Cart.objects.filter(changed_at__lt=timezone.now() - max(CART_KEPT, _session_age()))
    _, deleted = old.delete()
    KnownPlace.objects.filter(seen_at__lt=timezone.now() - PLACE_KEPT).delete()
    return {"carts": deleted.get(Cart._meta.label, 0)}


def _session_age() -> timedelta:
    return timedelta(seconds=settings.SESSION_COOKIE_AGE)
