"""Masking: phone numbers, passwords and the like reach no log line, be it the project's or a library's, and no
traceback."""

import json
import logging
import logging.config
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
import structlog
from django.views.debug import get_default_exception_reporter_filter

from messaging.masking import MASK, MaskedHandler, mask_event, masked, masked_text

PHONES = [
    "+8613800138000", "+86 138 0013 8000", "+86-138-0013-8000", "86-138-0013-8000", "0086 138 0013 8000",
    "13800138000", "138 0013 8000", "138-0013-8000", "138.0013.8000", "138\u00a00013\u00a08000",
    "１３８００１３８０００", "+1 (415) 555-2671", "(415) 555-2671", "1-415-555-2671", "+44 20 7946 0958",
    "%2B8613800138000",
]  # fmt: skip
AROUND = [
    "{}", "call {}.", "phone={}&x=1", "PhoneNumber('{}')", "to:{},", "Key (phone)=({}) already exists", "order_{}_x",
]  # fmt: skip


@pytest.mark.parametrize("phone", PHONES)
def test_a_phone_number_is_hidden_wherever_it_is_quoted(phone: str) -> None:
    def plain(text: str) -> str:
        return text.replace(f"({MASK})", MASK)

    for around in AROUND:
        assert plain(masked_text(around.format(phone))) == plain(around.format(MASK))


@pytest.mark.parametrize(
    "text",
    [
        "amqp://shop:{}@broker:5672/%2F",
        "amqps://shop:{}@broker/,amqps://shop:{}@other/",
        "could not connect to postgres://shop:{}@db:5432/shop?sslmode=require",
        "redis://:{}@cache",
        "AMQP_URL='amqp://shop:{}@broker'",
        "Authorization: Bearer {}",
        "Authorization: Basic c2hvcDp{}",
        "authorization: token {}",
        "{{'Authorization': 'Bearer {}', 'Accept': '*/*'}}",
        "[('Authorization', 'Bearer {}')]",
        "Bearer {}",
        "Cookie: theme=dark; sessionid={}; csrftoken={}",
        "Set-Cookie: sessionid={}; HttpOnly",
        "X-Api-Key: {}",
        "password={}",
        "password = '{} with spaces'",
        'password="{} with spaces"',
        "password=b'{} with spaces'",
        "SECRET_KEY='{}'",
        "DB_PASSWORD: {}",
        '{{"token": "{}", "more": 1}}',
        '{{\\"token\\": \\"{}\\"}}',
        "https://sms.example/send?access_token={}&to=1",
        "Connection(userid='shop', password='{}')",
        "Key (api_key)=({}) already exists.",
    ],
)
def test_a_secret_is_hidden_wherever_it_is_quoted(text: str) -> None:
    for secret in ("s3cret-0aXY_Z", "p4sS/w0rd+Zz", "0pen=Sesame1"):
        shown = masked_text(text.format(secret, secret))
        for piece in (secret[3:], secret[:5]):
            assert piece not in shown


def test_a_password_in_an_address_is_hidden_to_its_last_character() -> None:
    for password in ("p@ss", "a:b", "x/y", "q'uote", 'q"uote', "%40", "@", "häslich", "a#b?c&d=e"):
        shown = masked_text(f"cannot connect to amqp://shop:{password}@broker:5672/v; amqp://shop:{password}@b2/v")
        assert shown == "cannot connect to amqp://shop:***@broker:5672/v; amqp://shop:***@b2/v"


def test_a_row_that_a_constraint_refused_and_a_json_web_token_are_hidden() -> None:
    shown = masked_text("null value\nDETAIL:  Failing row contains (1, Ann Shopper (Ms), null).\nCONTEXT: x")
    assert shown == "null value\nDETAIL:  Failing row contains (***)\nCONTEXT: x"
    assert masked_text("got eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dBjftJeZ4CVP and left") == "got *** and left"


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-21T03:05:39.002000+00:00",
        "2026-11-21 03:05:39,002",
        "0193e5a0-1111-7222-8333-444455556666",
        "rpc.reply.0193e5a0-1111-7222-8333-444455556666",
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "1763694339.002",
        "W-7K3M9Q at 0x7f41e7d6e3b0, line 42",
        "took 1500 ms, 127.0.0.1:5672, 404 NOT_FOUND - no queue 'orders.sms' in vhost '/'",
        "order.placed does not fit its schema: phone: Field required; customer_name: Field required",
        "the broker refused the user name or the password",
        "amqp://broker:5672/shop",
        "password=None token=null",
        "basic knowledge of bearer instruments",
        "",
    ],
)
def test_other_text_stays_readable(text: str) -> None:
    assert masked_text(text) == text


def test_payloads_are_masked_by_key_too() -> None:
    value = {"name": "Ann", "lines": [{"sku": "TEA", "note": "call 13800138000"}], "to": 13800138000, "total": 88,
             "gift": True, "email": None, "13800138000": 1.5}  # fmt: skip
    assert masked(value) == {
        "name": MASK, "lines": [{"sku": "TEA", "note": f"call {MASK}"}], "to": MASK, "total": 88,
        "gift": True, "email": None, MASK: 1.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    "hostile",
    ["1", "a", "+1", "(1", "1-", "pass", "token='", "a://b:", "Failing row contains (", "Bearer ", "cookie:", "=\\"],
)
def test_a_long_hostile_text_is_masked_in_linear_time(hostile: str) -> None:
    masked_text(hostile * (100_000 // len(hostile)) + " ")


# --- Lines of the log --------------------------------------------------------------------------------------

LEAKS = ["13800138000", "138 0013 8000", "5ecret", "T0ken"]


@pytest.fixture
def lines() -> Iterator[StringIO]:
    """What the project's own handler writes while a test runs."""
    written = StringIO()
    [handler] = [each for each in logging.getLogger().handlers if isinstance(each, MaskedHandler)]
    stream = handler.setStream(written)
    yield written
    handler.setStream(stream)


class Customer:
    def __repr__(self) -> str:
        return "Customer(phone=+8613800138000)"


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("T0ken")


def test_no_line_of_the_log_holds_a_secret(lines: StringIO) -> None:
    log = structlog.get_logger("tests")
    log.warning("called +8613800138000", url="amqp://u:5ecret@host/", token="T0ken", password=b"5ecret", Phone="138")
    log.warning("nested", headers={"Authorization": "T0ken"}, payload=[{"name": "x", "to": "138 0013 8000"}])
    log.warning(
        "objects", customer=Customer(), who=Customer(), all=(Customer(),), number=13800138000, data=b"13800138000"
    )
    log.warning("positional %s", "13800138000")
    logging.getLogger("library").error("called %s by %r", "+86 138 0013 8000", {"password": "5ecret"})
    logging.getLogger("library").error("extra", extra={"api_key": "5ecret", "url": "http://a:T0ken@b"})
    try:
        try:
            raise ConnectionError("amqp://u:5ecret@host refused")
        except ConnectionError as error:
            raise ValueError("no text to 13800138000 with Authorization: Bearer T0ken") from error
    except ValueError:
        log.exception("failed")
        logging.getLogger("library").exception("failed", stack_info=True)
    said = lines.getvalue()

    assert said.count("ConnectionError: amqp://u:***@host refused") == 2
    assert said.count("Traceback") >= 2
    assert said.count(MASK) > 15
    assert [line for line in said.splitlines() if any(leak in line for leak in LEAKS)] == []


def test_a_line_is_written_without_the_values_that_cannot_be_masked() -> None:
    deep: dict[str, Any] = {}
    deep["again"] = deep
    event = mask_event(None, "", {"event": "still here", "what": Broken(), "deep": deep, "id": 1})

    assert event == {"event": "still here", "what": "(cannot be shown)", "deep": "(cannot be shown)", "id": 1}


def test_a_record_that_cannot_be_formatted_is_quoted_masked(
    lines: StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    # Not through the logger: pytest's own handler raises here.
    record = logging.LogRecord("library", logging.ERROR, __file__, 1, "%d texts sent", ("amqp://u:5ecret@host/",), None)
    [handler] = [each for each in logging.getLogger().handlers if isinstance(each, MaskedHandler)]
    handler.handle(record)

    said = capsys.readouterr().err
    assert "texts sent" in said
    assert "5ecret" not in said


def test_json_lines_stay_json() -> None:
    event = mask_event(None, "", {"event": 'say "password=x" to 13800138000', "id": 7, "none": None, "yes": True})
    assert json.loads(json.dumps(event)) == {"event": 'say "password=***" to ***', "id": 7, "none": None, "yes": True}


def test_every_handler_that_writes_lines_masks_them() -> None:
    """Those of Django would write a second line, unmasked."""
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    handlers = {type(handler) for each in loggers for handler in each.handlers}
    assert {each for each in handlers if each.__module__ != "_pytest.logging"} - {logging.NullHandler} == {
        MaskedHandler
    }


def test_the_page_about_an_error_hides_passwords_in_settings(settings: Any) -> None:
    settings.MESSAGING = {**settings.MESSAGING, "AMQP_URLS": ["amqp://u:5ecret@host/"]}
    shown = get_default_exception_reporter_filter().get_safe_settings()

    assert shown["MESSAGING"]["AMQP_URLS"] == ["amqp://u:***@host/"]
    assert "5ecret" not in repr(shown)
