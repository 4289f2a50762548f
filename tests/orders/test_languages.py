"""The shop in three languages: which one a visitor sees, and that nothing on a page is in another one."""

import html
import re
from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError
from django.test import Client

from orders.management.demo_products import PRODUCTS
from orders.models import Campaign, Order, Product
from orders.red_packets import grant_red_packet
from orders.views import catalogue
from tests.orders.shop import Buyer, number_in, offer_in, text_of

OrderOf = Callable[..., Order]
# Pages: the SQL behind them is tested on both databases where it is written.
pytestmark = pytest.mark.only_on("sqlite")

CHINESE = ("zh-hans", "zh-hant")
#: Language, the words of its button, and the name of the tea.
LANGUAGES = [
    ("en", "Place order", "Jasmine tea"),
    ("zh-hans", "提交订单", "茉莉花茶"),
    ("zh-hant", "送出訂單", "茉莉花茶"),
]
#: What stays in Latin letters on a Chinese page: names, codes, units and the other languages.
LATIN = re.compile(
    r"Warren|English|Cookie|PDF|DEBUG|manage\.py \w+( sms)?|CN¥|UTC|(W|R|P|TEA)-\w+|[A-Z0-9]{10}|\badmin\b|\bAnn\b"
)


@pytest.fixture
def jasmine(db: None) -> Product:
    """The demo's tea, with its translations."""
    tea = PRODUCTS[0]
    return Product.objects.create(
        sku=tea.sku, slug="tea", name=tea.name, description=tea.description, price=38, stock=9, **tea.translations()
    )


def visitor(language: str) -> Client:
    return Client(headers={"Accept-Language": language}, raise_request_exception=False)


def seen(response: Any) -> str:
    """What a reader sees or hears of a page."""
    page = re.sub(r"<(script|style|head)\b.*?</\1>", " ", text_of(response), flags=re.DOTALL)
    titles = re.findall(r"<title>(.*?)</title>", text_of(response))
    said = re.findall(r'(?:aria-label|placeholder)="([^"]*)"', page)
    return " ".join([*titles, *said, re.sub(r"<[^>]*>", " ", page)])


# --- Which language ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("de, fr;q=0.9", "en"),
        ("en-GB,en;q=0.9,zh-CN;q=0.8", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh-hans"),
        ("zh", "zh-hans"),
        ("zh-SG", "zh-hans"),
        ("zh-Hans-HK", "zh-hans"),
        ("zh-TW", "zh-hant"),
        ("zh-HK,zh;q=0.9", "zh-hant"),
        ("zh-MO", "zh-hant"),
        ("zh-Hant-TW", "zh-hant"),
        ("de, zh-TW;q=0.7", "zh-hant"),
        ("\x00;;,q=,*", "en"),
    ],
)
def test_the_browser_chooses_the_language(db: None, accepted: str, language: str) -> None:
    page = visitor(accepted).get("/")
    assert f'<html lang="{language}">' in text_of(page)
    assert page.headers["Content-Language"] == language


@pytest.mark.parametrize("path", ["/", "/p/tea/", "/nowhere/", "/orders/", "/orders/W-222222/timeline.json"])
def test_caches_are_told_that_the_language_depends_on_header_and_cookie(jasmine: Product, path: str) -> None:
    vary = {name.strip() for name in visitor("zh-TW").get(path).headers["Vary"].split(",")}
    assert vary >= {"Accept-Language", "Cookie"}


def switch(client: Client, page: Any, language: str) -> Any:
    """Press a button of the language switch of `page`."""
    form = re.search(r'<form class="languages".*?</form>', text_of(page), re.DOTALL)
    assert form
    assert f'value="{language}" lang="{language}"' in form[0]
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', html.unescape(form[0])))
    return client.post("/language/", {**fields, "language": language}, follow=True)


def test_a_visitor_switches_the_language_stays_on_the_page_and_keeps_the_choice(jasmine: Product) -> None:
    client = Client(headers={"Accept-Language": "en"}, enforce_csrf_checks=True)
    page = client.get("/?q=tea&sort=dearest")
    assert re.findall(r'lang="([\w-]+)" aria-current="true"', text_of(page)) == ["en"]

    page = switch(client, page, "zh-hant")

    assert page.redirect_chain == [("/?q=tea&sort=dearest", 302)]
    assert "茉莉花茶" in text_of(page)
    assert re.findall(r'lang="([\w-]+)" aria-current="true"', text_of(page)) == ["zh-hant"]
    assert '<html lang="zh-hant">' in text_of(client.get("/cart/"))
    cookie = client.cookies["django_language"]
    assert (cookie["httponly"], cookie["samesite"]) == (True, "Lax")
    assert cookie["max-age"] > 30 * 86_400
    assert '<html lang="en">' in text_of(switch(client, client.get("/cart/"), "en"))


@pytest.mark.parametrize("language", ["", "xx", "de", "\x00", "../../etc"])
def test_a_language_that_the_shop_does_not_speak_changes_nothing(db: None, language: str) -> None:
    client = visitor("zh-CN")
    assert client.post("/language/", {"language": language, "next": "//evil.example/"}).url == "/"
    assert '<html lang="zh-hans">' in text_of(client.get("/"))


def test_a_page_that_answers_a_post_is_opened_again_where_it_can_be(jasmine: Product) -> None:
    client = visitor("en")
    wrong = client.post("/cart/add/tea/", {"quantity": "x"})
    assert switch(client, wrong, "zh-hans").redirect_chain == [("/p/tea/", 302)]
    wrong = client.post(f"/cart/{jasmine.pk}/", {"quantity": "x"})
    assert switch(client, wrong, "en").redirect_chain == [("/cart/", 302)]


@pytest.mark.parametrize("mistake", [{"phone": "12"}, {"red_packet": "NOSUCHCODE"}])
def test_what_was_typed_at_the_checkout_survives_the_switch(
    buyer: Buyer, jasmine: Product, mistake: dict[str, str]
) -> None:
    buyer.put_into_cart(jasmine)
    wrong = buyer.press_place_order(buyer.open_checkout(), customer_name="张伟", **mistake)
    page = switch(buyer.client, wrong, "zh-hans")
    assert page.redirect_chain == [("/checkout/", 302)]
    assert 'value="张伟"' in text_of(page)


# --- Nothing in another language ---------------------------------------------------------------------------


def pages_of_a_purchase(client: Client, product: Product) -> dict[str, Any]:
    """Every page between the catalogue and the receipt, with what goes wrong on the way."""
    buyer, pages = Buyer(client), {}
    in_macao = {"customer_name": "Ann", "destination": "MO", "phone": "6612 3456"}
    for path in ["/", "/?q=zzz", "/p/tea/", "/cart/", "/orders/", "/red-packets/", "/orders/find/"]:
        pages[path] = client.get(path)
    pages["sign in"] = client.get("/accounts/sign-in/")
    pages["sign up"] = client.get("/accounts/sign-up/")
    pages["wrong password"] = client.post("/accounts/sign-in/", {"username": "admin", "password": "wrong"})
    pages["wrong sign-up"] = client.post(
        "/accounts/sign-up/", {"username": "admin", "password1": "1", "password2": "2"}
    )
    pages["wrong look-up"] = client.post("/orders/find/", {"number": "x", "last_four": "x"})
    pages["no such order"] = client.post("/orders/find/", {"number": "W-222222", "last_four": "1234"})
    pages["wrong quantity"] = client.post("/cart/add/tea/", {"quantity": "x"})
    pages["too many"] = client.post("/cart/add/tea/", {"quantity": "100"})
    pages["too few left"] = buyer.put_into_cart(product, 99)
    pages["cart"] = buyer.put_into_cart(product, 2)
    pages["checkout"] = client.get("/checkout/")
    pages["empty fields"] = buyer.press_place_order(offer_in(pages["checkout"]), customer_name="", phone="")
    pages["wrong fields"] = buyer.press_place_order(
        offer_in(pages["checkout"]), customer_name="https://evil.example", phone="12", red_packet="XX"
    )
    pages["not mobile"] = buyer.press_place_order(offer_in(pages["checkout"]), phone="020 8888 8888")
    pages["new total"] = client.get(buyer.press_place_order(offer_in(pages["checkout"]), **in_macao).url)
    placed = buyer.press_place_order(buyer.open_checkout(), **in_macao)
    number = number_in(placed)
    for page in ["", "timeline/", "print/", "cancel/"]:
        pages[f"order {page}"] = client.get(f"/orders/{number}/{page}")
    grant_red_packet(number)
    pages["with a red packet"] = client.get(f"/orders/{number}/")
    pages["red packets"] = client.get("/red-packets/")
    pages["my orders"] = client.get("/orders/")
    pages["cancelled"] = client.post(f"/orders/{number}/cancel/", follow=True)
    pages["cancelled twice"] = client.get(f"/orders/{number}/cancel/")
    pages["cancelled receipt"] = client.get(f"/orders/{number}/print/")
    pages["withdrawn"] = client.get("/red-packets/")
    pages["not found"] = client.get("/nowhere/")
    return pages


@pytest.mark.parametrize("language", CHINESE)
def test_no_page_of_a_purchase_has_an_english_word(
    jasmine: Product, campaign: Campaign, quoted: list[dict[str, Any]], language: str
) -> None:
    pages = pages_of_a_purchase(visitor(language), jasmine)
    typed = re.compile(r"\b(evil\.example|https|zzz|XX)\b")
    english = {
        name: re.findall(r"[A-Za-z]{2,}", typed.sub("", LATIN.sub("", seen(page)))) for name, page in pages.items()
    }
    assert {name: words for name, words in english.items() if words} == {}


def test_traditional_chinese_is_written_in_traditional_characters_and_words(
    jasmine: Product, campaign: Campaign, quoted: list[dict[str, Any]]
) -> None:
    pages = "".join(map(seen, pages_of_a_purchase(visitor("zh-hant"), jasmine).values()))
    simplified_only = "订单购车发货结算账号码录询个这们为时间关没请输错误"
    assert {character for character in pages.replace("简体中文", "") if character in simplified_only} == set()
    for words in ("結帳", "訂單", "登入", "手機號碼", "列印", "瀏覽器"):
        assert words in pages


@pytest.mark.parametrize(("language", "button", "name"), LANGUAGES)
def test_the_timeline_for_programs_keeps_its_names_and_speaks_the_visitor_s_language(
    jasmine: Product, quoted: list[dict[str, Any]], language: str, button: str, name: str
) -> None:
    client = visitor(language)
    buyer = Buyer(client)
    buyer.put_into_cart(jasmine)
    page = client.get("/checkout/")
    assert button in text_of(page)
    assert name in text_of(page)
    number = number_in(buyer.press_place_order(offer_in(page)))
    timeline = client.get(f"/orders/{number}/timeline.json").json()
    assert set(timeline) == {"number", "status", "finished", "events"}
    assert timeline["status"] == "placed"
    assert [event["name"] for event in timeline["events"]] == ["placed", "documents", "red_packet", "text_message"]
    assert {event["state"] for event in timeline["events"]} == {"done", "waiting"}
    titles = {"en": "Order placed", "zh-hans": "订单已提交", "zh-hant": "訂單已成立"}
    assert timeline["events"][0]["title"] == titles[language]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (OperationalError("gone"), 503, ("请稍候", "請稍候")),
        (ValueError("x"), 500, ("我们这边出错了", "我們這邊發生錯誤")),
    ],
)
def test_the_pages_about_our_own_faults_speak_the_visitor_s_language(
    db: None, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, words: tuple[str, str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(catalogue.Product.objects, "on_sale", fail)
    for language, said in zip(CHINESE, words, strict=True):
        page = visitor(language).get("/p/tea/")
        assert page.status_code == status
        assert said in text_of(page)
        assert f'<html lang="{language}">' in text_of(page)
        assert not re.findall(r"[A-Za-z]{2,}", LATIN.sub("", seen(page)))


@pytest.mark.parametrize(("language", "words"), [("zh-hans", "表单已失效"), ("zh-hant", "表單已失效")])
def test_refusals_speak_the_visitor_s_language(db: None, language: str, words: str) -> None:
    client = Client(enforce_csrf_checks=True, headers={"Accept-Language": language})
    assert words in text_of(client.post("/cart/add/tea/"))
    malformed = client.get("/", headers={"Host": "evil.example"})
    assert malformed.status_code == 400
    assert f'<html lang="{language}">' in text_of(malformed)


# --- Products ----------------------------------------------------------------------------------------------


def test_a_product_is_found_in_every_language_and_sorted_by_the_name_that_is_shown(
    jasmine: Product, pot: Product
) -> None:
    for words in ("jasmine", "茉莉", "窨制", "薰製"):
        assert "/p/tea/" in text_of(visitor("en").get("/", {"q": words}))
        assert "/p/pot/" not in text_of(visitor("en").get("/", {"q": words}))
    Product.objects.filter(pk=pot.pk).update(name_zh_hans="一壶")
    english, chinese = (text_of(visitor(language).get("/?sort=name")) for language in ("en", "zh-hans"))
    assert english.index("Jasmine tea") < english.index("Pot")
    assert chinese.index("一壶") < chinese.index("茉莉花茶")
    assert "Pot" in text_of(visitor("zh-hant").get("/")), "without a translation the name itself is shown"


def test_the_admin_edits_translations(admin_client: Client, jasmine: Product) -> None:
    form = {"name": "Tea", "slug": "tea", "sku": "TEA-01", "price": "38", "weight_grams": "1", "stock_change": ""}
    page = admin_client.post(
        f"/admin/orders/product/{jasmine.pk}/change/", {**form, "name_zh_hans": "", "name_zh_hant": "花茶"}
    )
    assert page.status_code == 302
    jasmine.refresh_from_db()
    assert (jasmine.name_zh_hans, jasmine.name_zh_hant) == ("", "花茶")
    assert jasmine.name_in("zh-hans") == "Tea"


# --- The admin ---------------------------------------------------------------------------------------------


def test_the_admin_works_in_a_chinese_browser(
    admin_client: Client, order_of: OrderOf, tea: Product, campaign: Campaign
) -> None:
    order = order_of(tea)
    grant_red_packet(order.number)
    paths = [
        "",
        *(f"orders/{model}/" for model in ("product", "order", "campaign", "redpacket", "textmessage")),
        f"orders/order/{order.pk}/change/",
        *(f"messaging/{model}/" for model in ("outboxmessage", "inboxmessage", "effect", "operatoraction")),
        f"messaging/outboxmessage/story/?subject={order.number}",
    ]
    for path in paths:
        for language in CHINESE:
            page = admin_client.get(f"/admin/{path}", headers={"Accept-Language": language})
            assert page.status_code == 200, path
