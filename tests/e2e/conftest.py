"""Tests in a real browser: Debian's Chromium, driven by Playwright.

Playwright's event loop makes Django take every query for an asynchronous one, so these tests are a pytest call of
their own, as script/test makes it; directly: DJANGO_ALLOW_ASYNC_UNSAFE=true pytest tests/e2e
"""

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import ConsoleMessage, Page

from script.services.browser import installed_browser


@pytest.fixture(scope="session", autouse=True)
def _queries_are_allowed() -> None:
    assert os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"), "Run these by script/test tests/e2e"


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any]) -> dict[str, Any]:
    """Use the machine's browser instead of one that Playwright would download."""
    path = installed_browser()
    assert path, "There is no Chromium. On Debian and Ubuntu, as root: apt-get install chromium"
    return {**browser_type_launch_args, "executable_path": path}


@pytest.fixture(scope="session")
def browser_context_args(browser_context_args: dict[str, Any]) -> dict[str, Any]:
    """A phone: the smallest screen that everything has to fit."""
    phone = {"width": 390, "height": 844}
    return {**browser_context_args, "viewport": phone, "reduced_motion": "reduce", "locale": "en-GB"}


@pytest.fixture(autouse=True)
def _nothing_goes_wrong_unseen(page: Page) -> Iterator[None]:
    """A page that logs an error or a warning, throws, or calls another host fails its test."""
    wrong: list[str] = []

    def logged(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            wrong.append(f"console {message.type}: {message.text}")

    page.on("console", logged)
    page.on("pageerror", lambda error: wrong.append(f"exception: {error}"))
    page.on("request", lambda request: wrong.append(f"foreign: {request.url}") if _is_foreign(request.url) else None)
    yield
    assert wrong == []


def _is_foreign(url: str) -> bool:
    return urlsplit(url).scheme in {"http", "https"} and urlsplit(url).hostname not in {"127.0.0.1", "localhost"}
