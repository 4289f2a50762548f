"""The shop's effects outside its database. Handlers intend them; they are carried out after the commit."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings

from messaging.effects import Sending, effect
from messaging.exceptions import NotDone, RetryLater
from messaging.retry import RetryPolicy, rest_after
from messaging.validation.functions import text_of
from orders import sms

#: About four hours: longer than most outages of a gateway. A later text is of no use.
RETRY = RetryPolicy(max_attempts=16, max_delay=timedelta(minutes=30))


def _honours_keys() -> bool:
    return sms.get_backend().honours_keys


def _ask(sending: Sending) -> str | None:
    return sms.get_backend().ask(sending)


@effect(
    sms.EFFECT,
    honours_keys=_honours_keys,
    ask=_ask if settings.SMS_GATEWAY_ASK_URL else None,
    timeout=timedelta(seconds=settings.SMS_GATEWAY_TIMEOUT),
    retry=RETRY,
)
def text_message(sending: Sending) -> str | None:
    """Send one text by the backend that `SMS_BACKEND` names."""
    try:
        return sms.get_backend().send(sending)
    except RetryLater as error:
        # A gateway that asks for one second, for an hour, must not use up the attempts in a minute.
        rests = [rest_after(RETRY, sending.attempt, each) for each in (error, NotDone())]
        raise RetryLater(text_of(error), after=max(rest or timedelta(0) for rest in rests)) from None
