"""script/screenshots: takes the pictures of docs/images from a private demo."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from script.programs.commands import stop_on_signals
from script.programs.demo import GRACE, READY_PATIENCE, ROOT, programs
from script.programs.demo_site import prepare_site, wait_until_ready
from script.services import packages
from script.services.browser import installed_browser
from script.services.owned import ServiceError
from script.services.ports import free_port
from script.services.rabbitmq import RabbitMQNode
from script.services.rabbitmq_directory import installed_scripts
from script.services.supervision import Supervisor

IMAGES = ROOT / "docs" / "images"
USAGE = """\
Usage: script/screenshots

Runs a private shop in a temporary folder, places an order in a browser, and writes the pictures of the README to
docs/images/. On Debian root gets a missing RabbitMQ or Chromium installed.

Exit codes: 0 all pictures are written, 1 failed, 2 usage, 3 a service could not be started.
"""
#: The same on every machine, whatever its .env says. The hour of an order is the only thing that changes.
SETTINGS = {"DEBUG": "1", "SECRET_KEY": "only-for-pictures", "TIME_ZONE": "UTC", "SHOP_CURRENCY": "CNY", "HTTPS": "0"}
DESKTOP = (1280, 600)
PHONE = (390, 844)
CUSTOMER = "Ann Shopper"
CUSTOMERS_PHONE = "138 0013 8000"
#: Milliseconds until what an order brings about is there.
PATIENCE = 60_000


def main(arguments: Sequence[str]) -> int:
    """Take the pictures and return the exit code."""
    if arguments:
        asked = bool({"-h", "--help"}.intersection(arguments))
        print(USAGE, end="", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    os.chdir(ROOT)
    stop_on_signals()
    try:
        with tempfile.TemporaryDirectory(prefix="warren-screenshots-") as directory:
            take_pictures(Path(directory))
    except ServiceError as error:
        print(f"script/screenshots: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Stopped. Nothing is left running.", flush=True)
        return 130
    return 0


def take_pictures(directory: Path) -> None:
    """Take every picture from a shop that lives in `directory`. Raises `ServiceError` if something is missing."""
    if not installed_scripts():
        packages.install("rabbitmq-server")
    if installed_browser() is None:
        packages.install("chromium")
    with shop(directory) as (url, password), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed_browser())
        # The first orders wait for new connections; the pictures show a later one.
        order = [place_order(browser, url) for _ in range(4)][-1]
        picture(browser, "catalogue", DESKTOP, lambda page: page.goto(url))
        picture(browser, "order", DESKTOP, lambda page: find_order(page, url, order))
        picture(browser, "order-phone", PHONE, lambda page: find_order(page, url, order))
        picture(browser, "story", DESKTOP, lambda page: open_story(page, url, order, password))
        browser.close()


@contextmanager
def shop(directory: Path) -> Iterator[tuple[str, str]]:
    """A private broker, database, web, consumers and RPC worker; the shop's address and the administrator's password.

    Celery does not run: it keeps house, and its schedule would be written to the var/ of this checkout.
    """
    directory.chmod(0o711)  # RabbitMQ's own user must be able to pass
    with RabbitMQNode(directory / "rabbitmq", throwaway=True) as node:
        os.environ.update(SETTINGS, AMQP_URL=node.url(), DATABASE_URL=f"sqlite:///{directory / 'db.sqlite3'}")
        password = prepare_site()
        assert password, "a new database has no administrator"
        port = free_port()
        needed = {name: programs(port)[name] for name in ("web", "consumer", "rpc")}
        supervisor = Supervisor(directory / "programs", ROOT, needed, os.environ)
        try:
            url = f"http://127.0.0.1:{port}/"
            wait_until_ready(url, READY_PATIENCE, check=supervisor.tend)
            yield url, password
        finally:
            supervisor.stop(GRACE)


def place_order(browser: Browser, url: str) -> str:
    """Buy three things as a shopper does, wait until everything is done, and return the order's number."""
    page = _window(browser, DESKTOP)
    for slug, quantity in (("jasmine-tea", 2), ("clay-teapot", 1), ("lotus-mooncake", 4)):
        page.goto(f"{url}p/{slug}/")
        page.get_by_label("Quantity").fill(str(quantity))
        page.get_by_role("button", name="Add to cart").click()
    page.get_by_role("link", name="Checkout").click()
    page.get_by_label("Name").fill(CUSTOMER)
    page.get_by_label("Mobile phone").fill(CUSTOMERS_PHONE)
    page.get_by_role("button", name="Place order ·").click()
    expect(page.get_by_text("Everything is done.")).to_be_visible(timeout=PATIENCE)
    number = page.get_by_role("heading", level=1).inner_text()
    page.close()
    return number


def find_order(page: Page, url: str, number: str) -> None:
    """Open an order's page from another browser, as a guest."""
    page.goto(f"{url}orders/find/")
    page.get_by_label("Order number").fill(number)
    page.get_by_label("Last four digits").fill(CUSTOMERS_PHONE[-4:])
    page.get_by_role("button", name="Find it").click()
    page.get_by_text("Everything is done.").wait_for()


def open_story(page: Page, url: str, number: str, password: str) -> None:
    """Open the story of an order's messages in the admin."""
    page.goto(f"{url}admin/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    page.goto(f"{url}admin/messaging/outboxmessage/?q={number}")
    page.get_by_role("link", name=number).first.click()


def picture(browser: Browser, name: str, size: tuple[int, int], show: Callable[[Page], object]) -> None:
    """Open a window, let `show` bring it to the right page, and keep what is then seen, down to the page's end."""
    page = _window(browser, size)
    show(page)
    path = IMAGES / f"{name}.png"
    page.screenshot(path=path, full_page=True, animations="disabled")
    print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1000:.0f} kB", flush=True)
    page.close()


def _window(browser: Browser, size: tuple[int, int]) -> Page:
    width, height = size
    return browser.new_page(
        viewport={"width": width, "height": height},
        locale="en-GB",
        timezone_id="UTC",
        color_scheme="light",
        reduced_motion="reduce",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
