"""Phone numbers: read as they are written in a country or region, unless they begin with + and a country code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import phonenumbers
from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from django.utils.functional import lazy
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _
from phonenumber_field.formfields import PhoneNumberField
from phonenumber_field.phonenumber import PhoneNumber, to_python
from phonenumbers import PhoneNumberFormat, PhoneNumberType

from orders import destinations

_MOBILE_TYPES = {
    PhoneNumberType.MOBILE,
    # American and Canadian numbers do not say which they are.
    PhoneNumberType.FIXED_LINE_OR_MOBILE,
}
#: Whose example shows a country code to people who write numbers as the shop's own region does.
_FOREIGN_REGION = "US"


def read(typed: str, region: str) -> PhoneNumber | None:
    """Return the number as people in `region` (ISO 3166) mean it; None if it is none there."""
    number = to_python(typed, region=region)
    return number if number and number.is_valid() else None


def is_number(typed: str) -> bool:
    """Return whether `typed` is a whole phone number in any country or region that the shop sends to."""
    return any(read(typed, region) for region in _regions(destinations.CODES))


def is_same(number: PhoneNumber, typed: str, *, region: str) -> bool:
    """Return whether `typed` is `number` as it is written in `region` or in the shop's own region."""
    return any(read(typed, each) == number for each in _regions([region]))


class MobilePhoneField(PhoneNumberField):  # type: ignore[misc]  # the library has no types
    """A phone number that can receive texts, read as the shop's region writes it unless told otherwise."""

    def __init__(self) -> None:
        super().__init__(
            label=_("Mobile phone"),
            help_text=_("For text messages about this order, and to find it again. Nothing else."),
            widget=forms.TextInput(attrs={"type": "tel", "inputmode": "tel", "autocomplete": "tel"}),
            error_messages={"required": _("Enter a mobile number.")},
        )
        self.read_as_in(settings.PHONENUMBER_DEFAULT_REGION)

    def read_as_in(self, region: str) -> None:
        """Read numbers without a country code as `region` writes them, and show such a number as the example."""
        self.region = region
        home = settings.PHONENUMBER_DEFAULT_REGION
        self.error_messages["invalid"] = format_lazy(
            _("Enter a mobile number, such as {local} ({region}), or one with its country code, such as {foreign}."),
            local=_example(region, PhoneNumberFormat.NATIONAL),
            region=lazy(destinations.name_of, str)(region),
            foreign=_example(home if region != home else _FOREIGN_REGION, PhoneNumberFormat.INTERNATIONAL),
        )

    def to_python(self, value: Any) -> PhoneNumber | str:
        """Return the parsed number."""
        return super().to_python(str(value or ""))

    def validate(self, value: Any) -> None:
        """Raise ValidationError for numbers that cannot be texted."""
        super().validate(value)
        if not isinstance(value, PhoneNumber) or not value.is_valid():
            return  # the parent's validator reports it
        if value.extension:
            raise ValidationError(_("We cannot text an extension: enter the number alone."), code="extension")
        if phonenumbers.number_type(value) not in _MOBILE_TYPES:
            raise ValidationError(_("This is not a mobile number: we could not text it."), code="not_mobile")


def _regions(first: Iterable[str]) -> list[str]:
    return [*first, settings.PHONENUMBER_DEFAULT_REGION]


def _example(region: str, written: int) -> str:
    number = phonenumbers.example_number_for_type(region, PhoneNumberType.MOBILE)
    return phonenumbers.format_number(number, written) if number else ""
