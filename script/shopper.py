"""A shopper without a browser: cookies, forms and redirects over real HTTP."""

import json
import logging
import re
from dataclasses import dataclass
from typing import Any

import httpx

# It would log each request.
logging.getLogger("httpx").setLevel(logging.WARNING)


class UnexpectedPage(AssertionError):
    """The page is not the expected one."""


@dataclass(frozen=True)
class Page:
    """An answer, and the address it came from or redirects to."""

    status: int
    url: str
    text: str

    def hidden(self, name: str) -> str:
        """The value of a hidden field. Raises `UnexpectedPage` if it has none."""
        found = re.search(rf'name="{name}" value="([^"]*)"', self.text)
        if not found:
            raise UnexpectedPage(f"{self.url} ({self.status}) has no hidden field {name}: {self.text[:2000]}")
        return found[1]

    @property
    def order_number(self) -> str | None:
        """The number of the order whose page this is or redirects to; None for other pages."""
        found = re.search(r"/orders/([^/]+)/$", self.url)
        return found[1] if found else None


class Shopper:
    """One visitor of the shop at `url`. Without `follow_redirects`, orders end with the redirect to their page.

    Every method raises OSError if the shop did not answer completely.
    """

    def __init__(self, url: str, *, timeout: float = 30, follow_redirects: bool = True) -> None:
        self._client = httpx.Client(
            base_url=url,
            timeout=timeout,
            follow_redirects=follow_redirects,
            # A connection for each request: a kept one may be closed just as the next request is written to it.
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,
            verify=False,  # noqa: S501 (without TLS no certificates need to be read)
        )

    def get(self, path: str) -> Page:
        """Follow a link."""
        return self._ask("GET", path)

    def post(self, path: str, page: Page, **fields: str) -> Page:
        """Send the form of `page` to `path`."""
        return self._ask("POST", path, data={"csrfmiddlewaretoken": page.hidden("csrfmiddlewaretoken"), **fields})

    def fill_cart(self, slug: str, quantity: int = 1) -> Page:
        """Put a product into the cart and go to the checkout."""
        self.post(f"/cart/add/{slug}/", self.get(f"/p/{slug}/"), quantity=str(quantity))
        return self.get("/checkout/")

    def place_order(self, checkout: Page, *, name: str = "Ann Shopper", phone: str = "13800138000") -> str:
        """Press the button and return the number of the new order. Raises `UnexpectedPage`."""
        page = self.press_button(checkout, name=name, phone=phone)
        if page.order_number is None:
            raise UnexpectedPage(f"no order: {page.status} {page.url} {page.text[:3000]}")
        return page.order_number

    def press_button(self, checkout: Page, *, name: str, phone: str) -> Page:
        """Order what the checkout page shows, and return the answer. The page may be sent again."""
        return self.post(
            "/checkout/",
            checkout,
            offer=checkout.hidden("offer"),
            customer_name=name,
            phone=phone,
            destination="CN",
            red_packet="",
        )

    def buy(self, slug: str, quantity: int = 1) -> str:
        """Buy, and return the order's number."""
        return self.place_order(self.fill_cart(slug, quantity))

    def timeline(self, number: str) -> Any:
        """Return the order's timeline from its JSON."""
        return json.loads(self.get(f"/orders/{number}/timeline.json").text)

    def _ask(self, method: str, path: str, **options: Any) -> Page:
        try:
            answer = self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise OSError(repr(error)) from error
        return Page(answer.status_code, str(answer.url.join(answer.headers.get("Location", ""))), answer.text)
