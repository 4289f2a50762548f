"""The shop's commands."""

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.staticfiles import finders
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import OperationalError, connection

from orders.exceptions import Refused
from orders.management import demo_order
from orders.models import Campaign, Order, Product, TextMessage
from orders.red_packets import grant_red_packet
from orders.sms import send_text
from tests.orders.shop import arrival
from tests.support.missing_table import missing_table


def printed(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    call_command(*command)
    return capsys.readouterr().out


def exit_code(*command: str) -> int:
    with pytest.raises(CommandError) as raised:
        call_command(*command)
    return raised.value.returncode


def test_seeding_twice_is_seeding_once_with_a_picture_for_each_product(db: None) -> None:
    call_command("seed_demo", "--admin-password", "first phrase", verbosity=0)
    Product.objects.filter(sku="TEA-01").update(stock=1, name="Renamed")
    call_command("seed_demo", "--admin-password", "second phrase")
    assert Product.objects.get(sku="TEA-01").name == "Renamed"
    assert Campaign.objects.count() == 1
    admin = User.objects.get()
    assert admin.is_superuser
    assert admin.check_password("second phrase")
    for product in Product.objects.all():
        assert finders.find(product.picture), product.picture


def test_place_order_orders_one_piece_of_something_in_stock_or_what_it_is_told_to(
    tea: Product, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(capsys, "place_order")
    order = Order.objects.get()
    assert order.number in out
    assert order.lines.get().quantity == 1

    out = printed(
        capsys, "place_order", "--sku", "TEA", "--quantity", "2", "--phone", "+16502530000", "--count", "2", "--json"
    )
    facts: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
    others = Order.objects.exclude(pk=order.pk)
    assert {fact["number"] for fact in facts} == set(others.values_list("number", flat=True))
    assert facts[0]["total"] == "101.00"
    assert others[0].phone.as_e164 == "+16502530000"


def test_an_empty_shop_is_said_to_be_empty(db: None) -> None:
    with pytest.raises(CommandError, match="seed_demo"):
        call_command("place_order")
    with pytest.raises(CommandError, match="Nothing is in stock"):
        call_command("simulate_orders")


def test_place_order_waits_until_everything_is_done(
    tea: Product, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = demo_order.place_demo_order

    def place_and_finish(product: Product, **options: Any) -> Order:
        order = place(product, **options)
        grant_red_packet(order.number)
        send_text(order, TextMessage.Kind.PLACED, arrival("id"))
        return order

    monkeypatch.setattr("orders.management.commands.place_order.place_demo_order", place_and_finish)
    assert "done     Text message" in printed(capsys, "place_order", "--wait", "10")


def test_simulate_orders_fails_if_every_order_is_refused(tea: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **options: Any) -> Order:
        raise Refused("Sold out.")

    monkeypatch.setattr("orders.management.commands.simulate_orders.place_demo_order", refuse)
    assert exit_code("simulate_orders", "--count", "2", "--rate", "1000") == 1


def test_place_order_ends_with_7_if_the_effects_are_not_done_in_time(tea: Product) -> None:
    assert exit_code("place_order", "--wait", "0.1") == 7
    assert Order.objects.count() == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--quantity", "11"], 1),
        (["--sku", "NOSUCH"], 2),
        (["--sku", "\udcff"], 2),  # a byte that is not UTF-8
    ],
)
def test_place_order_reports_a_refusal_by_its_exit_code(tea: Product, arguments: list[str], code: int) -> None:
    assert exit_code("place_order", *arguments) == code


@pytest.mark.parametrize(
    "arguments",
    [["--phone", "123"], ["--phone", "020 8888 8888"], ["--quantity", "0"], ["--count", "x"], ["--wait", "nan"]],
)
def test_place_order_refuses_wrong_arguments(tea: Product, arguments: list[str]) -> None:
    with pytest.raises(CommandError, match="argument"):
        call_command("place_order", *arguments)
    assert not Order.objects.exists()


@pytest.mark.parametrize("command", ["place_order", "simulate_orders", "seed_demo"])
def test_a_database_out_of_reach_is_one_line_and_exit_code_3(
    db: None, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def away(*args: Any, **kwargs: Any) -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr("django.db.models.query.QuerySet._fetch_all", away)
    assert exit_code(command) == 3


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("command", ["place_order", "simulate_orders", "seed_demo"])
def test_a_database_that_was_not_migrated_is_said_so(tea: Product, command: str) -> None:
    with missing_table(Campaign if command == "seed_demo" else Product), pytest.raises(CommandError) as told:
        call_command(command)
    assert "out of reach" not in str(told.value)
    assert str(told.value).endswith("Did `manage.py migrate` run?")
    assert told.value.returncode == 1


@pytest.mark.only_on("sqlite")
@pytest.mark.django_db(transaction=True)
def test_a_full_disk_is_not_taken_for_missing_tables(tea: Product) -> None:
    Product.objects.update(stock=1000)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM")  # pages that other tests left free would take many orders
        pages = cursor.execute("PRAGMA page_count").fetchone()[0]
        cursor.execute(f"PRAGMA max_page_count = {pages}")
    try:
        with pytest.raises(CommandError, match=r"disk is full\. Is its disk full, or failing\?"):
            call_command("place_order", "--count", "200")
    finally:
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA max_page_count = 1073741823")


def test_simulated_customers_stop_at_the_count(tea: Product, capsys: pytest.CaptureFixture[str]) -> None:
    Product.objects.update(stock=100)
    out = printed(capsys, "simulate_orders", "--count", "5", "--rate", "1000", "--cancel", "1", "--seed", "1")
    assert "5 placed, 5 cancelled, 0 refused" in out
    tea.refresh_from_db()
    assert tea.stock == 100


@pytest.mark.parametrize("command", ["place_order", "simulate_orders", "seed_demo"])
def test_help_ends_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call_command(command, "--help")
    assert f"manage.py {command}" in capsys.readouterr().out.split("examples:")[1]
