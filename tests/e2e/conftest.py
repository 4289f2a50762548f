"""Tests in a real browser: Debian's Chromium, driven by Playwright, against real processes.

Playwright's event loop makes Django take every query for an asynchronous one, so these tests are a pytest call of
their own, as script/test makes it; directly: DJANGO_ALLOW_ASYNC_UNSAFE=true pytest tests/e2e
"""

import os
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.core.management import call_command
from playwright.sync_api import BrowserContext, ConsoleMessage, Request, Response

from script.services.browser import installed_browser
from tests.support.processes import ProcessStarter, WebProcess

#: Pictures are taken on request only: they change files of this checkout.
collect_ignore = [] if os.environ.get("WARREN_PICTURES") else ["test_pictures.py"]


@pytest.fixture(scope="session", autouse=True)
def _queries_are_allowed() -> None:
    assert os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"), "Run these by script/test tests/e2e"


# --- The browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any]) -> dict[str, Any]:
    """Use the machine's browser instead of one that Playwright would download."""
    path = installed_browser()
    assert path, "There is no Chromium. On Debian and Ubuntu, as root: apt-get install chromium"
    return {**browser_type_launch_args, "executable_path": path}


@pytest.fixture(scope="session")
def browser_context_args(browser_context_args: dict[str, Any]) -> dict[str, Any]:
    """A phone: the smallest screen that everything has to fit."""
    return {
        **browser_context_args,
        "viewport": {"width": 390, "height": 844},
        "reduced_motion": "reduce",
        "locale": "en-GB",
        "timezone_id": "UTC",
    }


@pytest.fixture
def new_context(new_context: Callable[..., BrowserContext]) -> Iterator[Callable[..., BrowserContext]]:
    """Every browser window is watched: what goes wrong unseen fails its test.

    That is: an error or warning in the console (a breach of the content security policy is one), an exception, a
    request to another host, an answer from 400.
    """
    wrong: list[str] = []

    def logged(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            wrong.append(f"console {message.type}: {message.text}")

    def asked(request: Request) -> None:
        if urlsplit(request.url).scheme in {"http", "https"} and urlsplit(request.url).hostname != "127.0.0.1":
            wrong.append(f"another host: {request.url}")

    def answered(response: Response) -> None:
        if response.status >= 400:
            wrong.append(f"{response.status}: {response.url}")

    def watched_context(**arguments: Any) -> BrowserContext:
        context = new_context(**arguments)
        context.on("console", logged)
        context.on("weberror", lambda error: wrong.append(f"exception: {error.error}"))
        context.on("request", asked)
        context.on("response", answered)
        return context

    yield watched_context
    assert wrong == []


# --- The shop ----------------------------------------------------------------------------------------------


@pytest.fixture
def stocked(transactional_db: None) -> None:
    """The demo's shelves and its red packets."""
    call_command("seed_demo")


@pytest.fixture
def admin_password(stocked: None, settings: Any) -> str:
    """The demo's administrator exists; the password."""
    # The tests' own quick hash is not one that the web process knows.
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.PBKDF2PasswordHasher"]
    password = "only for this test"
    call_command("seed_demo", admin_password=password)
    return password


@pytest.fixture
def web(stocked: None, vhost: str, run_process: ProcessStarter) -> WebProcess:
    """The shop, served by gunicorn with DEBUG on as in the demo; nothing else of Warren runs yet."""
    return run_process.web(DEBUG="1")
