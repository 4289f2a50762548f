"""A shopper without a browser: cookies, forms and redirects over real HTTP."""

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from http.client import HTTPResponse
from http.cookiejar import CookieJar
from typing import Any


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

    Every method raises OSError or HTTPException if the shop did not answer completely.
    """

    def __init__(self, url: str, *, timeout: float = 30, follow_redirects: bool = True) -> None:
        self._url = url
        self._timeout = timeout
        cookies = urllib.request.HTTPCookieProcessor(CookieJar())
        self._opener = urllib.request.build_opener(cookies, *([] if follow_redirects else [_StayHere()]))

    def get(self, path: str) -> Page:
        """Follow a link."""
        return self._open(urllib.request.Request(urllib.parse.urljoin(self._url, path)))  # noqa: S310 (the shop's)

    def post(self, path: str, page: Page, **fields: str) -> Page:
        """Send the form of `page` to `path`."""
        body = urllib.parse.urlencode({"csrfmiddlewaretoken": page.hidden("csrfmiddlewaretoken"), **fields}).encode()
        address = urllib.parse.urljoin(self._url, path)
        return self._open(urllib.request.Request(address, body, headers={"Referer": address}))  # noqa: S310

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

    def _open(self, request: urllib.request.Request) -> Page:
        answer: HTTPResponse | urllib.error.HTTPError
        try:
            answer = self._opener.open(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            address = urllib.parse.urljoin(answer.url, answer.headers.get("Location", answer.url))
            return Page(answer.status or 0, address, answer.read().decode())


class _StayHere(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None
