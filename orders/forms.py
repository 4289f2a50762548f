"""The shop's forms: what shoppers may type, and the messages about what cannot be used."""

from __future__ import annotations

import re
from typing import Any

import phonenumbers
from django import forms
from django.conf import settings
from django.contrib.auth.forms import UserCreationForm
from django.core.exceptions import ValidationError
from phonenumber_field.formfields import PhoneNumberField
from phonenumber_field.phonenumber import PhoneNumber, to_python
from phonenumbers import PhoneNumberType

from orders import destinations
from orders.cart import MOST_PIECES
from orders.numbers import ORDER_NUMBER_PATTERN
from orders.text import check_no_link, check_printable, normalized

_MOBILE_TYPES = {
    PhoneNumberType.MOBILE,
    # American and Canadian numbers do not say which they are.
    PhoneNumberType.FIXED_LINE_OR_MOBILE,
}


class QuantityField(forms.IntegerField):
    """A whole number of pieces, in the digits of any script."""

    def __init__(self, *, min_value: int = 1) -> None:
        super().__init__(
            min_value=min_value,
            max_value=MOST_PIECES,
            label="Quantity",
            error_messages={
                "required": "Enter how many you want.",
                "invalid": "Enter a whole number, such as 2.",
                "min_value": f"Enter {min_value} or more.",
                "max_value": f"One order can hold {MOST_PIECES} of a product at most.",
            },
            # Not type="number": there, browsers drop full-width digits and the whole input with them.
            widget=forms.TextInput(attrs={"inputmode": "numeric", "autocomplete": "off", "size": "3"}),
        )

    def to_python(self, value: Any) -> int | None:
        """Return the number. Raises ValidationError for anything but an optional sign and digits."""
        text = str(value or "").strip()
        # \d matches the digits of every script, full-width ones too, and int() reads them. "²" is no digit.
        if text and not re.fullmatch(r"[+-]?\d{1,18}", text):
            raise ValidationError(self.error_messages["invalid"], code="invalid")
        number: int | None = super().to_python(text)
        return number


class AddToCartForm(forms.Form):
    """The product page's form."""

    quantity = QuantityField()


class CartLineForm(forms.Form):
    """One line of the cart; 0 removes it."""

    quantity = QuantityField(min_value=0)


class SearchForm(forms.Form):
    """The catalogue's search. It is in the address, so that it can be bookmarked."""

    SORTS = {"name": ("name", "pk"), "cheapest": ("price", "pk"), "dearest": ("-price", "pk")}

    q = forms.CharField(required=False, max_length=80, label="Search")
    sort = forms.ChoiceField(
        required=False,
        label="Sort by",
        choices=[("name", "Name"), ("cheapest", "Lowest price"), ("dearest", "Highest price")],
    )


class MobilePhoneField(PhoneNumberField):  # type: ignore[misc]
    """A phone number that can receive texts, parsed with the shop's region unless it has a country code."""

    def __init__(self) -> None:
        example = phonenumbers.example_number_for_type(settings.PHONENUMBER_DEFAULT_REGION, PhoneNumberType.MOBILE)
        written = phonenumbers.format_number(example, phonenumbers.PhoneNumberFormat.NATIONAL) if example else ""
        super().__init__(
            label="Mobile phone",
            help_text="For text messages about this order, and to find it again. Nothing else.",
            widget=forms.TextInput(attrs={"type": "tel", "inputmode": "tel", "autocomplete": "tel"}),
            error_messages={
                "required": "Enter a mobile number.",
                "invalid": f"Enter a mobile number, such as {written} or +1 650 253 0000.",
            },
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
            raise ValidationError("We cannot text an extension: enter the number alone.", code="extension")
        if phonenumbers.number_type(value) not in _MOBILE_TYPES:
            raise ValidationError("This is not a mobile number: we could not text it.", code="not_mobile")


class CheckoutForm(forms.Form):
    """The one form between cart and order."""

    customer_name = forms.CharField(
        max_length=80,
        label="Name",
        widget=forms.TextInput(attrs={"autocomplete": "name"}),
        error_messages={"required": "Enter the name of the person who receives the parcel."},
        validators=[check_printable, check_no_link],
    )
    phone = MobilePhoneField()
    destination = forms.ChoiceField(label="Country", widget=forms.Select(attrs={"autocomplete": "country"}))
    red_packet = forms.CharField(
        required=False,
        max_length=20,
        label="Red packet code",
        widget=forms.TextInput(attrs={"autocomplete": "off", "autocapitalize": "characters", "list": "my-red-packets"}),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        country = self.fields["destination"]
        assert isinstance(country, forms.ChoiceField)
        country.choices = destinations.choices()

    def clean_customer_name(self) -> str:
        """Return the name with single spaces."""
        return " ".join(str(self.cleaned_data["customer_name"]).split())

    def clean_red_packet(self) -> str:
        """Return the code in plain capitals."""
        return clean_code(self.cleaned_data["red_packet"])


class FindOrderForm(forms.Form):
    """The form by which a guest finds an order."""

    number = forms.CharField(
        max_length=20,
        label="Order number",
        help_text="It is in our text message, such as W-7K3M9Q.",
        widget=forms.TextInput(attrs={"autocomplete": "off", "autocapitalize": "characters"}),
        error_messages={"required": "Enter the order number."},
    )
    last_four = forms.CharField(
        max_length=30,
        label="Last four digits of the phone",
        help_text="Or the whole number.",
        widget=forms.TextInput(attrs={"inputmode": "tel", "autocomplete": "off", "size": "16"}),
        error_messages={"required": "Enter the last four digits."},
    )

    def clean_number(self) -> str:
        """Return the number as it is stored."""
        number = clean_code(self.cleaned_data["number"])
        if not number.startswith("W-"):
            number = f"W-{number.removeprefix('W')}" if len(number) > 6 else f"W-{number}"
        if not re.fullmatch(ORDER_NUMBER_PATTERN, number):
            raise ValidationError("An order number looks like W-7K3M9Q.")
        return number

    def clean_last_four(self) -> str:
        """Return four plain digits, or a whole number in E.164, which begins with "+"."""
        digits = normalized(self.cleaned_data["last_four"])
        if re.fullmatch(r"[0-9]{4}", digits):
            return digits
        number = to_python(digits)
        if not number or not number.is_valid():
            raise ValidationError("Enter four digits, or the whole number.")
        return str(number.as_e164)


class SignUpForm(UserCreationForm):  # type: ignore[type-arg]
    """A new account: a user name and a password."""


def clean_code(text: str) -> str:
    """Return a number or code that a person typed, in plain capitals without spaces."""
    return normalized(text).replace(" ", "").upper()
