"""Guessing is limited: at passwords and at orders, in the shop and in the admin, however many try at once."""

from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.utils import timezone

from orders import limits
from orders import sign_in as sign_in_forms
from orders.forms import SignUpForm
from orders.limits import Limit, TooManyTries
from orders.models import Guess
from tests.orders.shop import all_at_once, many_at_once

pytestmark = [pytest.mark.django_db, pytest.mark.only_on("sqlite")]


SHOP, ADMIN = "/accounts/sign-in/", "/admin/login/"
RIGHT, WRONG = "correct horse", "wrong horse"


@pytest.fixture(autouse=True)
def ann() -> User:
    return User.objects.create_superuser("ann", password=RIGHT)


@pytest.fixture
def passwords_looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passwords that were compared with a stored one, or with none."""
    looked_at: list[str] = []
    check, hash_one = User.check_password, User.set_password

    def checking(self: User, password: str) -> bool:
        looked_at.append(password)
        return check(self, password)

    def hashing(self: User, password: str | None) -> None:
        looked_at.append(str(password))
        hash_one(self, password)

    monkeypatch.setattr(User, "check_password", checking)
    monkeypatch.setattr(User, "set_password", hashing)
    return looked_at


def sign_in(where: str = SHOP, name: str = "ann", password: str = WRONG, *, address: str = "203.0.113.9") -> Any:
    return Client().post(where, {"username": name, "password": password}, REMOTE_ADDR=address)


def words(response: Any) -> str:
    return unescape(response.content.decode())


def is_locked(response: Any) -> bool:
    return "too many wrong tries" in words(response)


def is_in(response: Any) -> bool:
    return bool(response.status_code == 302)


@pytest.mark.parametrize("where", [SHOP, ADMIN])
def test_after_five_wrong_tries_even_the_right_password_is_not_looked_at(
    where: str, passwords_looked_at: list[str]
) -> None:
    for each in (SHOP, ADMIN, SHOP, ADMIN, SHOP):  # the shop and the admin count together
        assert not is_locked(sign_in(each))
    response = sign_in(where, password=RIGHT)

    assert is_locked(response)
    assert "Try again in 15 minutes." in words(response)
    assert RIGHT not in passwords_looked_at
    assert response.status_code == (429 if where == SHOP else 200)


@pytest.mark.parametrize("name", ["ANN", "ａｎｎ", " ann "])
def test_another_spelling_of_the_name_is_no_way_around(name: str) -> None:
    for _ in range(5):
        sign_in(name=name)
    assert is_locked(sign_in(password=RIGHT))


@pytest.mark.parametrize("where", [SHOP, ADMIN])
def test_no_answer_reveals_whether_an_account_exists(where: str, passwords_looked_at: list[str]) -> None:
    User.objects.create_user("inactive", password=RIGHT, is_active=False)
    answers = {}
    for name in ("ann", "nobody", "inactive"):
        said = [sign_in(where, name) for _ in range(6)]
        answers[name] = [(each.status_code, is_locked(each), _error(each)) for each in said]
        assert len(passwords_looked_at) == 5, "as many hashes, and so as much time"
        passwords_looked_at.clear()
    assert answers["ann"] == answers["nobody"] == answers["inactive"]


def _error(response: Any) -> list[str]:
    return [str(each) for each in response.context["form"].non_field_errors()]


def test_a_right_password_forgives_the_wrong_ones_before() -> None:
    for _ in range(3):
        for _ in range(4):
            sign_in()
        assert is_in(sign_in(password=RIGHT))
    assert not Guess.objects.filter(key__contains=":203.0.113.9", key__regex="^sign-in:.*:").exists()


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name, and an address, has only 8 wrong tries in all."""
    monkeypatch.setattr(sign_in_forms, "MOST_PER_NAME", 8)
    monkeypatch.setattr(sign_in_forms, "MOST_PER_ADDRESS", 8)


def test_one_address_cannot_try_name_after_name(lowered: None) -> None:
    for number in range(8):
        assert not is_locked(sign_in(name=f"user{number}"))
    assert is_locked(sign_in(name="user8"))
    assert is_locked(sign_in(password=RIGHT))
    assert is_in(sign_in(password=RIGHT, address="203.0.113.10"))


def test_one_name_cannot_be_tried_from_address_after_address(lowered: None) -> None:
    for number in range(8):
        assert not is_locked(sign_in(address=f"198.51.100.{number}"))
    assert is_locked(sign_in(address="198.51.100.8", password=RIGHT))


@pytest.mark.parametrize("where", [SHOP, ADMIN])
def test_tries_from_elsewhere_or_of_other_names_do_not_lock_a_name_where_it_signed_in_before(
    lowered: None, where: str
) -> None:
    assert is_in(sign_in(where, password=RIGHT))
    for number in range(8):
        sign_in(address=f"198.51.100.{number}")
    assert is_locked(sign_in(address="198.51.100.8", password=RIGHT))
    assert is_in(sign_in(where, password=RIGHT))
    for number in range(8):
        sign_in(name=f"user{number}")
    assert is_locked(sign_in(name="user9"))
    assert is_in(sign_in(where, password=RIGHT))


def test_a_known_place_gets_no_more_than_five_wrong_tries() -> None:
    assert is_in(sign_in(password=RIGHT))
    answers = [sign_in() for _ in range(6)]
    assert [is_locked(answer) for answer in answers] == [False] * 5 + [True]
    assert int(answers[-1].headers["Retry-After"]) in range(800, 901)


def test_signing_up_reveals_only_a_few_names() -> None:
    def sign_up(name: str, address: str = "203.0.113.9") -> Any:
        form = {"username": name, "password1": "a long phrase", "password2": "a long phrase"}
        return Client().post("/accounts/sign-up/", form, REMOTE_ADDR=address)

    for number in range(10):
        assert "already exists" in words(sign_up("ann"))
        assert is_in(sign_up(f"new{number}"))
    for name in ("ann", "free"):
        refused = sign_up(name)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) in range(800, 901)
        assert "Too many people signed up from your network" in words(refused)
        assert "already exists" not in words(refused)
    assert not User.objects.filter(username="free").exists()
    assert is_in(sign_up("free", "203.0.113.10"))


def test_a_name_that_is_taken_while_the_form_is_checked_is_told_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SignUpForm, "clean_username", lambda form: form.cleaned_data["username"])
    monkeypatch.setattr(SignUpForm, "validate_unique", lambda form: None)
    form = {"username": "ann", "password1": "a long phrase", "password2": "a long phrase"}
    assert "already exists" in words(Client().post("/accounts/sign-up/", form))


def test_trying_on_does_not_prolong_the_wait() -> None:
    for _ in range(30):
        sign_in()
    Guess.objects.update(created_at=timezone.now() - limits.WINDOW + timedelta(seconds=100))
    assert "Try again in 2 minutes." in words(sign_in(password=RIGHT))
    Guess.objects.update(created_at=timezone.now() - limits.WINDOW)
    assert is_in(sign_in(password=RIGHT))


# --- Many at once ------------------------------------------------------------------------------------------


@many_at_once
def test_of_many_tries_at_once_no_more_are_looked_at_than_of_one_after_the_other(
    passwords_looked_at: list[str],
) -> None:
    answers = all_at_once([lambda n=n: sign_in(password=f"{WRONG} {n}") for n in range(12)], at_once=12)

    assert [each for each in answers if isinstance(each, Exception)] == []
    # Fewer, where those that came together saw each other: they are refused, and count no longer.
    looked_at = len(passwords_looked_at)
    assert looked_at <= 5
    assert sum(map(is_locked, answers)) == 12 - looked_at
    assert is_locked(sign_in(password=RIGHT)) == (looked_at == 5)


@many_at_once
def test_the_next_tries_delete_old_guesses_without_a_deadlock() -> None:
    Guess.objects.bulk_create([Guess(key="old", created_at=timezone.now() - timedelta(hours=1)) for _ in range(300)])
    answers = all_at_once([lambda n=n: limits.count({f"new{n}": Limit(1)}) for n in range(12)], at_once=12)

    assert [each for each in answers if isinstance(each, Exception)] == []
    limits.count({"last": Limit(1)})
    assert not Guess.objects.filter(key="old").exists()


def test_a_limit_may_count_for_longer() -> None:
    limit = {"key": Limit(1, timedelta(days=1))}
    limits.count(limit)
    Guess.objects.update(created_at=timezone.now() - timedelta(hours=20))
    with pytest.raises(TooManyTries, match="Try again in 4 hours"):
        limits.count(limit)
    Guess.objects.update(created_at=timezone.now() - timedelta(hours=25), kept_until=timezone.now())
    limits.count(limit)
    assert Guess.objects.count() == 1


def test_a_limit_counts_wrong_tries_only() -> None:
    for _ in range(3):
        limits.count({"key": Limit(1)}).uncount()
    limits.count({"key": Limit(1)})
    with pytest.raises(TooManyTries):
        limits.count({"key": Limit(1)})
    assert Guess.objects.count() == 1, "the refused one is not counted"


def test_no_name_is_kept_in_plain() -> None:
    sign_in(name="ann.shopper@example.com")
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM orders_guess")
        assert "ann" not in repr(cursor.fetchall())
