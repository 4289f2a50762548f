"""Signing in, with a limit on guessing: the shop's form and the admin's."""

from __future__ import annotations

import unicodedata
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.auth.forms import AuthenticationForm
from django.core.exceptions import ValidationError
from django.utils import timezone

from messaging.logs import get_logger
from orders import limits
from orders.limits import Limit, digest
from orders.models import KnownPlace
from orders.visitors import address_of

if TYPE_CHECKING:
    _Form = AuthenticationForm
else:
    _Form = object

log = get_logger(__name__)

#: Wrong tries of one name from one address. Few: whoever knows the password needs no more.
MOST_PER_NAME_AND_ADDRESS = 5
#: Wrong tries of one name from all addresses where it has not signed in before. Many: with few, a stranger
#: could lock the owner out.
MOST_PER_NAME = 50
#: Wrong tries of any name from one address. Many: a whole office may share it.
MOST_PER_ADDRESS = 50

TOO_MANY = "too_many"


class _Limited(_Form):
    """Counts each try before the password is checked.

    An account that does not exist is refused with the same words, after the same number of tries. At an address where
    an account signed in before, only the wrong tries of its name from there count: others cannot lock it there.
    """

    #: How long to wait, if the error is TOO_MANY.
    wait: timedelta | None = None

    def clean(self) -> dict[str, Any]:
        """Check name and password. Raises ValidationError, with the code TOO_MANY if they were not looked at."""
        name, password = self.cleaned_data.get("username"), self.cleaned_data.get("password")
        if not name or not password:
            return super().clean()
        address = address_of(self.request) if self.request else ""
        # Capitals and widths of letters make no other name.
        who = digest(unicodedata.normalize("NFKC", name).casefold())
        here, place = f"sign-in:{who}:{address}", digest(f"{who} {address}")
        allowed = {here: Limit(MOST_PER_NAME_AND_ADDRESS)}
        if not KnownPlace.objects.filter(key=place).exists():
            allowed |= {f"sign-in:{who}": Limit(MOST_PER_NAME), f"sign-in:{address}": Limit(MOST_PER_ADDRESS)}
        try:
            tries = limits.count(allowed)
        except limits.TooManyTries as refusal:
            log.warning("sign_in_refused", address=address)
            self.wait = refusal.wait
            raise ValidationError(str(refusal), code=TOO_MANY) from None
        cleaned = super().clean()
        tries.uncount(forgive=[here])
        KnownPlace.objects.update_or_create(key=place, defaults={"seen_at": timezone.now()})
        return cleaned


class SignInForm(_Limited, AuthenticationForm):
    """The shop's."""


class AdminSignInForm(_Limited, AdminAuthenticationForm):
    """The admin's."""
