"""What a browser is told, and what it is not believed: headers, cookies, forms from elsewhere, production settings."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from orders.models import Product
from tests.support.command_line import mq
from tests.support.processes import ProcessStarter

pytestmark = pytest.mark.django_db

#: As a production site is set up.
PRODUCTION = {
    "DEBUG": "0",
    "HTTPS": "1",
    "SECRET_KEY": "9c0f2b1e7d5a48c6a3e1f0b2d4c6e8a1b3d5f7092a4c6e8f1b3d5a7c9e0f2a4c",
    "ALLOWED_HOSTS": "shop.example",
    "AMQP_URL": "amqps://shop:secret@broker.example/shop",
}

#: With production settings: runs the checks for deployment, asks for some pages as the proxy would pass them on, and
#: prints what a browser is told.
VISIT = """
import json, django
django.setup()
from django.core.management import call_command
from django.test import Client, override_settings
call_command("check", deploy=True, fail_level="WARNING")
plain = {"default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
         "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}}
found = {}
with override_settings(STORAGES=plain):
    from django.contrib.auth.models import User
    User.objects.create_superuser("ann", password="correct horse")
    proxy = {"X-Forwarded-Proto": "https", "Host": "shop.example"}
    client = Client(headers=proxy)
    client.post("/admin/login/", {"username": "ann", "password": "correct horse"})
    for path in ("/", "/accounts/sign-in/", "/admin/", "/nowhere/"):
        response = client.get(path)
        found[path] = dict(response.headers)
    found["cookies"] = {name: dict(morsel.items()) for name, morsel in client.cookies.items()}
    found["plain"] = dict(Client(headers={"Host": "shop.example"}).get("/cart/").headers)
    found["other host"] = Client(headers={**proxy, "Host": "evil.example"}).get("/").status_code
print("FOUND " + json.dumps(found))
"""


@pytest.mark.only_on("sqlite")
def test_the_deployment_checks_find_missing_settings(run_process: ProcessStarter) -> None:
    bad = {**PRODUCTION, "HTTPS": "0", "SECRET_KEY": "short", "DEBUG": "1"}
    process = run_process("check", "--deploy", "--fail-level", "WARNING", **bad)

    assert process.wait(60) == 1
    for finding in ("security.W012", "security.W009", "security.W018"):
        assert finding in process.output


@pytest.mark.only_on("sqlite")
def test_a_production_site_passes_the_deployment_checks_and_sends_the_security_headers(
    run_process: ProcessStarter, vhost: str, tmp_path: Path
) -> None:
    assert mq("topology", "declare").code == 0
    program = tmp_path / "visit.py"
    program.write_text(VISIT)
    site = {**PRODUCTION, "AMQP_URL": vhost}
    process = run_process.program(sys.executable, str(program), PYTHONPATH=".", **site)
    found = json.loads(process.wait_for_line("^FOUND (.*)", 60)[1])

    assert "no issues (0 silenced)" in process.output
    for path in ("/", "/accounts/sign-in/", "/admin/", "/nowhere/"):
        headers = found[path]
        assert headers["Strict-Transport-Security"] == "max-age=31536000; includeSubDomains; preload"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert_strict(headers["Content-Security-Policy"])
    cookies = found["cookies"]
    assert set(cookies) == {"__Host-sessionid", "__Host-csrftoken"}
    for cookie in cookies.values():
        assert (cookie["secure"], cookie["samesite"], cookie["path"], cookie["domain"]) == (True, "Lax", "/", "")
    assert cookies["__Host-sessionid"]["httponly"] is True
    assert found["plain"]["Location"] == "https://shop.example/cart/"
    assert found["other host"] == 400


def assert_strict(policy: str) -> None:
    directives = dict(each.strip().split(" ", 1) for each in policy.split(";"))
    assert directives["default-src"] == "'self'"
    assert directives["frame-ancestors"] == directives["object-src"] == "'none'"
    assert directives["base-uri"] == directives["form-action"] == "'self'"
    assert not re.search(r"unsafe|\*|https?:", policy)


# --- Every address there is --------------------------------------------------------------------------------

ARGUMENTS = {"slug": "tea", "product_id": 1, "number": "W-7K3M9Q", "object_id": "1", "app_label": "orders",
             "content_type_id": 1, "id": 1, "url": "x", "pk": 1}  # fmt: skip


def addresses() -> Iterator[tuple[str, URLPattern]]:
    """A sample of each address pattern of the site."""

    def walk(patterns: Any, before: str) -> Iterator[tuple[str, URLPattern]]:
        for each in patterns:
            route = before + str(each.pattern)
            if isinstance(each, URLResolver):
                yield from walk(each.url_patterns, route)
            else:
                yield sample(route), each

    yield from walk(get_resolver().url_patterns, "/")


def sample(route: str) -> str:
    route = re.sub(r"<(?:\w+:)?(\w+)>", lambda found: str(ARGUMENTS.get(found[1], 1)), route)
    return re.sub(r"\(\?P<app_label>[^)]*\)/\$", "orders/", route).replace("(?P<url>.*)$", "x").replace("^", "")


def test_no_form_of_another_site_is_accepted() -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("ann"))
    tried = dict(addresses())
    assert len(tried) > 60

    for address, pattern in tried.items():
        assert not getattr(pattern.callback, "csrf_exempt", False), address
        assert client.post(address).status_code == 403, address
    for headers in ({"Origin": "https://evil.example"}, {"Referer": "https://evil.example/"}):
        assert client.post("/cart/add/tea/", headers=headers).status_code == 403


def test_no_page_may_be_framed_or_runs_inline_scripts(client: Client) -> None:
    Product.objects.create(sku="TEA", slug="tea", name="Tea", price="38.00", stock=10, weight_grams=250)
    client.force_login(User.objects.create_superuser("ann"))
    pages = 0
    for address, _ in addresses():
        response = client.get(address)
        assert response.headers["X-Frame-Options"] == "DENY", address
        assert_strict(response.headers["Content-Security-Policy"])
        if response.headers["Content-Type"].startswith("text/html") and response.status_code == 200:
            pages += 1
            text = response.content.decode()
            assert not re.search(r"<script(?![^>]*\bsrc=)(?![^>]*application/json)[^>]*>", text), address
            assert not re.search(r"<[^>]+\son[a-z]+=", text), address
            assert not re.search(r"<style|<[^>]+\sstyle=", text), address
            assert "javascript:" not in text, address
    assert pages > 20


@pytest.mark.parametrize("page", ["/accounts/sign-in/", "/admin/login/", "/accounts/sign-out/"])
def test_signing_in_and_out_redirects_to_this_site_only(client: Client, page: str) -> None:
    user = User.objects.create_superuser("ann", password="correct horse")
    for where in ("https://evil.example/", "//evil.example/", "javascript:alert(1)", "/\\evil.example"):
        client.logout()
        if "out" in page:
            client.force_login(user)
        response = client.post(page, {"username": "ann", "password": "correct horse", "next": where})
        assert response.status_code == 302
        assert not re.search("evil|javascript", response["Location"])


def test_a_session_from_before_signing_in_is_not_the_one_after(client: Client) -> None:
    User.objects.create_user("ann", password="correct horse")
    client.get("/cart/")
    session = client.session
    session["planted"] = True
    session.save()
    before = session.session_key
    client.cookies["sessionid"] = before

    client.post("/accounts/sign-in/", {"username": "ann", "password": "correct horse"})

    assert client.session.session_key != before
    assert not type(session)().exists(str(before))


def test_staff_without_rights_sees_nothing_of_ours(client: Client) -> None:
    client.force_login(User.objects.create_user("temp", is_staff=True))
    for address, _ in addresses():
        if re.match(r"/admin/(orders|messaging|auth)/\w+/", address):
            assert client.get(address).status_code in {302, 403, 404, 405}, address
