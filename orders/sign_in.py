"""Signing in, with a limit on guessing: the shop's form and the admin's."""

from __future__ import annotations

import hashlib
import unicodedata
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import structlog
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.auth.forms import AuthenticationForm
from django.core.exceptions import ValidationError
from django.utils import timezone

from orders import guesses
from orders.addresses import address_of
from orders.guesses import Limit
from orders.models import KnownPlace

if TYPE_CHECKING:
    _Form = AuthenticationForm
else:
    _Form = object

log = structlog.get_logger(__name__)

#: Wrong tries of one name from one address. Few: who knows the password needs no more.
MOST_PER_NAME_AND_ADDRESS = 5
#: Of one name from anywhere but where it signed in before. Many: else anybody could lock anybody out.
MOST_PER_NAME = 50
#: Of any name from one address. Many: behind it may be a whole office.
MOST_PER_ADDRESS = 50

TOO_MANY = "too_many"


class _Limited(_Form):
    """Counts each try before the password is looked at, whether or not there is such an account, and tells neither
    apart: both are refused with the same words, after the same number of tries. Where an account signed in before, only
    the wrong tries of its name from that address count: whoever tries it elsewhere does not lock it there."""

    #: How long none is looked at, where the error is TOO_MANY.
    wait: timedelta | None = None

    def clean(self) -> dict[str, Any]:
        """Check name and password. Raises ValidationError, with the code TOO_MANY where they were not looked at."""
        name, password = self.cleaned_data.get("username"), self.cleaned_data.get("password")
        if not name or not password:
            return super().clean()
        address = address_of(self.request) if self.request else ""
        who = _digest(name)
        here, place = f"sign-in:{who}:{address}", _digest(f"{who} {address}")
        limits: dict[str, int | Limit] = {here: MOST_PER_NAME_AND_ADDRESS}
        if not KnownPlace.objects.filter(key=place).exists():
            limits |= {f"sign-in:{who}": MOST_PER_NAME, f"sign-in:{address}": MOST_PER_ADDRESS}
        try:
            tries = guesses.count(limits)
        except guesses.TooManyTries as refusal:
            log.warning("sign_in_refused", address=address)
            self.wait = refusal.wait
            raise ValidationError(str(refusal), code=TOO_MANY) from None
        cleaned = super().clean()
        tries.were_right(forgive=[here])
        KnownPlace.objects.update_or_create(key=place, defaults={"seen_at": timezone.now()})
        return cleaned


class SignInForm(_Limited, AuthenticationForm):
    """The shop's."""


class AdminSignInForm(_Limited, AdminAuthenticationForm):
    """The admin's."""


def _digest(name: str) -> str:
    # Of any length, and personal: the count needs only to tell names apart, whatever their capitals.
    return hashlib.sha256(unicodedata.normalize("NFKC", name).casefold().encode()).hexdigest()[:32]
