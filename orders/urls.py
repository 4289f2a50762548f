"""Every address of the shop."""

from django.contrib.auth.views import LogoutView
from django.contrib.staticfiles.storage import staticfiles_storage
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import include, path, register_converter
from django.urls.converters import IntConverter, StringConverter
from django.views.i18n import set_language

from orders.numbers import ORDER_NUMBER_PATTERN
from orders.views import accounts, cart, catalogue, checkout, orders


class OrderNumberConverter(StringConverter):
    """Order numbers, and nothing else, reach the database."""

    regex = ORDER_NUMBER_PATTERN


class ProductKeyConverter(IntConverter):
    """A product's key. As many digits as the database can hold."""

    regex = r"[0-9]{1,18}"


register_converter(OrderNumberConverter, "order")
register_converter(ProductKeyConverter, "product")


def favicon(request: HttpRequest) -> HttpResponse:
    """Browsers ask for it at this address whatever the pages say."""
    return redirect(staticfiles_storage.url("orders/favicon.svg"), permanent=True)


shop = [
    path("", catalogue.catalogue, name="catalogue"),
    path("favicon.ico", favicon),
    path("p/<slug:slug>/", catalogue.product, name="product"),
    path("cart/", cart.show, name="cart"),
    path("cart/add/<slug:slug>/", cart.add, name="add-to-cart"),
    path("cart/<product:product_id>/", cart.update, name="update-cart"),
    path("checkout/", checkout.checkout, name="checkout"),
    path("checkout/update/", checkout.update, name="update-checkout"),
    path("orders/", orders.mine, name="mine"),
    path("orders/find/", orders.find, name="find"),
    path("orders/<order:number>/", orders.order, name="order"),
    path("orders/<order:number>/timeline/", orders.timeline, name="timeline"),
    path("orders/<order:number>/timeline.json", orders.timeline_json, name="timeline-json"),
    path("orders/<order:number>/print/", orders.documents, name="documents"),
    path("orders/<order:number>/cancel/", orders.cancel, name="cancel"),
    path("red-packets/", orders.red_packets, name="red-packets"),
    path("dev/sms/", orders.text_messages, name="text-messages"),
]

urlpatterns = [
    path("", include((shop, "orders"))),
    path("accounts/sign-up/", accounts.sign_up, name="sign-up"),
    path("accounts/sign-in/", accounts.SignInView.as_view(), name="login"),
    path("accounts/sign-out/", LogoutView.as_view(), name="logout"),
    path("language/", set_language, name="set-language"),
]
