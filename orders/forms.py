"""The shop's forms: what shoppers may type, and the messages about what cannot be used."""

from __future__ import annotations

import re
from typing import Any

from django import forms
from django.contrib.auth.forms import UserCreationForm
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from orders import destinations, phones
from orders.cart import MOST_PIECES
from orders.models.product import ProductQuerySet
from orders.numbers import ORDER_NUMBER_PATTERN
from orders.phones import MobilePhoneField
from orders.text import check_no_link, check_printable, normalized


class QuantityField(forms.IntegerField):
    """A whole number of pieces, in the digits of any script."""

    def __init__(self, *, min_value: int = 1) -> None:
        super().__init__(
            min_value=min_value,
            max_value=MOST_PIECES,
            label=_("Quantity"),
            error_messages={
                "required": _("Enter how many you want."),
                "invalid": _("Enter a whole number, such as 2."),
                "min_value": _("Enter %(limit_value)s or more."),
                "max_value": _("One order can hold %(limit_value)s of a product at most."),
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

    q = forms.CharField(required=False, max_length=80, label=_("Search"))
    sort = forms.ChoiceField(
        required=False,
        label=_("Sort by"),
        choices=[
            ("name", pgettext_lazy("in the list of sort orders", "Name")),
            ("cheapest", _("Lowest price")),
            ("dearest", _("Highest price")),
        ],
    )

    def sort_products(self, products: ProductQuerySet) -> ProductQuerySet:
        """Return `products` in the order that the valid form asks for."""
        match self.cleaned_data["sort"]:
            case "cheapest":
                return products.order_by("price", "pk")
            case "dearest":
                return products.order_by("-price", "pk")
        return products.by_name()


class CheckoutForm(forms.Form):
    """The one form between cart and order."""

    customer_name = forms.CharField(
        max_length=80,
        label=_("Name"),
        widget=forms.TextInput(attrs={"autocomplete": "name"}),
        error_messages={"required": _("Enter the name of the person who receives the parcel.")},
        validators=[check_printable, check_no_link],
    )
    # Before the phone, which it decides how to read.
    destination = forms.ChoiceField(
        label=_("Country or region"), widget=forms.Select(attrs={"autocomplete": "country"})
    )
    phone = MobilePhoneField()
    red_packet = forms.CharField(
        required=False,
        max_length=20,
        label=_("Red packet code"),
        widget=forms.TextInput(attrs={"autocomplete": "off", "autocapitalize": "characters", "list": "my-red-packets"}),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        destination, phone = self.fields["destination"], self.fields["phone"]
        assert isinstance(destination, forms.ChoiceField)
        assert isinstance(phone, MobilePhoneField)
        destination.choices = destinations.choices()
        if (chosen := self["destination"].value()) in destinations.CODES:
            phone.read_as_in(chosen)

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
        label=_("Order number"),
        help_text=_("It is in our text message, such as W-7K3M9Q."),
        widget=forms.TextInput(attrs={"autocomplete": "off", "autocapitalize": "characters"}),
        error_messages={"required": _("Enter the order number.")},
    )
    last_four = forms.CharField(
        max_length=30,
        label=_("Last four digits of the phone"),
        help_text=_("Or the whole number."),
        widget=forms.TextInput(attrs={"inputmode": "tel", "autocomplete": "off", "size": "16"}),
        error_messages={"required": _("Enter the last four digits.")},
    )

    def clean_number(self) -> str:
        """Return the number as it is stored."""
        number = clean_code(self.cleaned_data["number"])
        if not number.startswith("W-"):
            number = f"W-{number.removeprefix('W')}" if len(number) > 6 else f"W-{number}"
        if not re.fullmatch(ORDER_NUMBER_PATTERN, number):
            raise ValidationError(_("An order number looks like W-7K3M9Q."))
        return number

    def clean_last_four(self) -> str:
        """Return four plain digits, or a whole number as it was typed."""
        digits = normalized(self.cleaned_data["last_four"])
        if not re.fullmatch(r"[0-9]{4}", digits) and not phones.is_number(digits):
            raise ValidationError(_("Enter four digits, or the whole number."))
        return digits


class SignUpForm(UserCreationForm):  # type: ignore[type-arg]
    """A new account: a user name and a password."""


def clean_code(text: str) -> str:
    """Return a number or code that a person typed, in plain capitals without spaces."""
    return normalized(text).replace(" ", "").upper()
