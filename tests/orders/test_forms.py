"""What people type, good and bad."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orders import destinations
from orders.forms import AddToCartForm, CartLineForm, CheckoutForm, FindOrderForm

GOOD = {"customer_name": "Ann Shopper", "phone": "13800138000", "destination": "CN", "red_packet": ""}


def checkout(**typed: str) -> CheckoutForm:
    return CheckoutForm(GOOD | typed)


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("138 0013-8000", "+8613800138000"),
        ("（138）００１３８０００", "+8613800138000"),
        ("+86 138 0013 8000", "+8613800138000"),
        ("＋１ ６５０ ２５３ ００００", "+16502530000"),
        ("+852 9123 4567", "+85291234567"),
    ],
)
def test_a_mobile_number_is_understood_however_it_is_written(typed: str, stored: str) -> None:
    form = checkout(phone=typed)
    assert form.is_valid(), form.errors
    assert form.cleaned_data["phone"].as_e164 == stored


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "Enter a mobile number"),
        ("hello", "Enter a mobile number, such as"),
        ("123", "Enter a mobile number, such as"),
        ("1" * 200, "Enter a mobile number, such as"),
        ("020 8888 8888", "not a mobile number"),
        ("+852 2345 6789", "not a mobile number"),
        ("+1 650 253 0000 ext. 5", "extension"),
        ("138\x0000138000", "Null characters"),
    ],
)
def test_a_number_that_cannot_be_texted_is_refused_with_the_reason(typed: str, said: str) -> None:
    form = checkout(phone=typed)
    assert not form.is_valid()
    assert said in str(form.errors["phone"])


#: A mobile number of each country and region of the list, as people there write it.
LOCAL_NUMBERS = {
    "CN": ("138 0013 8000", "+8613800138000"),
    "HK": ("9123 4567", "+85291234567"),
    "MO": ("6612 3456", "+85366123456"),
    "TW": ("0912 345 678", "+886912345678"),
    "SG": ("8123 4567", "+6581234567"),
    "JP": ("090-1234-5678", "+819012345678"),
    "KR": ("010-2345-6789", "+821023456789"),
    "US": ("(650) 253-0000", "+16502530000"),
    "CA": ("506-234-5678", "+15062345678"),
    "GB": ("07400 123456", "+447400123456"),
    "IE": ("085 012 3456", "+353850123456"),
    "FR": ("06 12 34 56 78", "+33612345678"),
    "DE": ("0151 23456789", "+4915123456789"),
    "NL": ("06-12345678", "+31612345678"),
    "ES": ("612 34 56 78", "+34612345678"),
    "IT": ("312 345 6789", "+393123456789"),
    "AU": ("0412 345 678", "+61412345678"),
    "NZ": ("021 123 4567", "+64211234567"),
}


@pytest.mark.parametrize("region", destinations.CODES)
def test_a_number_is_read_as_the_chosen_country_or_region_writes_it(region: str) -> None:
    local, stored = LOCAL_NUMBERS[region]
    for typed in (local, stored, "+86 138 0013 8000"):
        form = checkout(destination=region, phone=typed)
        assert form.is_valid(), form.errors
        assert form.cleaned_data["phone"].as_e164 == (stored if typed == local else typed.replace(" ", ""))


@pytest.mark.parametrize("region", destinations.CODES)
def test_the_example_of_a_refused_number_is_one_of_the_chosen_country_or_region(region: str) -> None:
    [said] = checkout(destination=region, phone="12").errors["phone"]
    found = re.fullmatch(
        r"Enter a mobile number, such as (.+) \((.+)\), or one with its country code, such as (.+)\.", said
    )
    assert found
    local, name, foreign = found.groups()
    assert name == destinations.name_of(region)
    assert checkout(destination=region, phone=local).is_valid()
    assert checkout(destination=region, phone=foreign).is_valid()
    assert foreign.startswith("+1 " if region == "CN" else "+86 ")


def test_without_a_known_country_or_region_a_number_is_read_as_the_shop_s_own_region_writes_it() -> None:
    for destination in ("", "XX"):
        form = checkout(destination=destination, phone="138 0013 8000")
        assert list(form.errors) == ["destination"]


@pytest.mark.parametrize(
    "name",
    [
        "张伟",
        "O'Brien-Smith",
        "محمد",
        "می\u200cخواهم",
        "🐇 Rabbit",
        "J. Smith",
        "St.John",
        "Smith, Ph.D.",
        "Ann c/o Bob",
    ],
)
def test_names_from_all_over_the_world_are_accepted(name: str) -> None:
    assert checkout(customer_name=name).is_valid()


@pytest.mark.parametrize(
    "name", ["   ", "a\x00b", "a\x07b", "abc\u202etxt", "a\u2066b", "line\nbreak", "Ann x\ue000", "x" * 81]
)
def test_names_that_would_garble_a_label_are_refused(name: str) -> None:
    assert "customer_name" in checkout(customer_name=name).errors


@pytest.mark.parametrize(
    "name", ["https://evil.example", "Win at www.evil", "bit.ly/x", "ｅｖｉｌ．ｅｘａｍｐｌｅ", "evil。com", "a://b"]
)
def test_names_with_a_web_address_are_refused(name: str) -> None:
    assert "without a web address" in str(checkout(customer_name=name).errors["customer_name"])


@pytest.mark.parametrize("destination", ["", "XX", "cn", "CN\x00", "中国"])
def test_a_country_or_region_that_we_do_not_send_to_is_refused(destination: str) -> None:
    assert "destination" in checkout(destination=destination).errors


@pytest.mark.parametrize(("typed", "quantity"), [("1", 1), (" 7 ", 7), ("９", 9), ("+2", 2), ("007", 7), ("٣", 3)])
def test_a_quantity_is_understood_in_the_digits_of_any_script(typed: str, quantity: int) -> None:
    form = AddToCartForm({"quantity": typed})
    assert form.is_valid(), form.errors
    assert form.cleaned_data["quantity"] == quantity


@pytest.mark.parametrize(
    "typed", ["", "0", "-1", "NaN", "1e9", "1.5", "1,000", "1_0", "²", "½", "9" * 5000, "100", "\x00"]
)
def test_any_other_quantity_is_a_field_error_and_stays_in_the_field(typed: str) -> None:
    form = AddToCartForm({"quantity": typed})
    assert not form.is_valid()
    assert form["quantity"].value() == typed
    assert CartLineForm({"quantity": typed}).is_valid() == (typed == "0"), "0 takes a line out of the cart"


@pytest.mark.parametrize("typed", ["w-7k3m9q", " W - 7K3M9Q ", "7K3M9Q", "W7K3M9Q", "Ｗ－７Ｋ３Ｍ９Ｑ"])
def test_an_order_number_is_understood_as_people_copy_it(typed: str) -> None:
    form = FindOrderForm({"number": typed, "last_four": "８０００"})
    assert form.is_valid(), form.errors
    assert form.cleaned_data == {"number": "W-7K3M9Q", "last_four": "8000"}


@pytest.mark.parametrize(
    ("typed", "taken"), [("9123 4567", True), ("(650) 253-0000", True), ("123", False), ("x", False)]
)
def test_an_order_is_looked_for_by_four_digits_or_a_number_of_some_country_or_region(typed: str, taken: bool) -> None:
    assert FindOrderForm({"number": "W-7K3M9Q", "last_four": typed}).is_valid() == taken


@pytest.mark.parametrize("typed", ["", "W-1", "W-7K3M9Q7", "W-7K3M9O", "\x00", "'; drop table"])
def test_a_malformed_order_number_never_reaches_the_database(typed: str) -> None:
    assert "number" in FindOrderForm({"number": typed, "last_four": "8000"}).errors


anything = st.text(alphabet=st.characters(codec="utf-8"), max_size=200)


@settings(deadline=None)
@given(anything)
def test_no_text_breaks_a_form(typed: str) -> None:
    forms: list[Any] = [
        CheckoutForm(dict.fromkeys(GOOD, typed)),
        AddToCartForm({"quantity": typed}),
        CartLineForm({"quantity": typed}),
        FindOrderForm({"number": typed, "last_four": typed}),
    ]
    for form in forms:
        form.is_valid()
        str(form)
