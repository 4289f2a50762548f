"""Retry now: effects that wait for their next attempt are due at once, for example because the gateway is back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db.models import QuerySet
from django.db.models.functions import Now

from messaging.actions.action import MessageAction
from messaging.actions.selection import Box, Selection
from messaging.models import Effect


class RetryNow(MessageAction):
    """Makes effects due. What is due already, or being carried out, is left alone."""

    name = "retry"
    label = "Retry now"
    past = "made due now"
    permission = "messaging.settle_effect"
    help = "let effects that wait for their next attempt be carried out now"
    examples = """
examples:
  manage.py messages retry --group 3fa9c1d2e4b5                        all effects that fail for this reason
  manage.py messages retry --consumer sms --note "gateway is back"
"""
    meaning = "Makes effects due that failed and wait for their next attempt. Their attempts count on."
    states = {Effect: (Effect.State.INTENDED,)}
    not_so = "due, being carried out, in doubt until a time, or settled already"
    nothing = "no such effect waits for a later time; one that is due is carried out anyway"
    # Whether a process of the consumer runs is not known here.
    afterwards = "A process of their consumer carries them out."

    def rows(self, box: Box, selection: Selection, **options: Any) -> QuerySet[Any]:
        return super().rows(box, selection, **options).filter(send_at__gt=Now())

    def change(self, rows: Sequence[Effect], words: str, **options: Any) -> None:
        Effect.objects.filter(pk__in=[row.pk for row in rows]).update(send_at=Now())


retry_now = RetryNow()
