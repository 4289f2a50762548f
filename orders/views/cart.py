"""The cart's pages."""

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from orders.cart import MOST_PIECES, MOST_PRODUCTS, Cart, CartLine, OpenCart
from orders.forms import AddToCartForm, CartLineForm
from orders.models import Product


@require_safe
def show(request: HttpRequest) -> HttpResponse:
    """Show the cart with the stock and prices of this moment."""
    return _render(request)


@require_POST
def add(request: HttpRequest, slug: str) -> HttpResponse:
    """Add pieces of a product to the cart."""
    product = get_object_or_404(Product.objects.on_sale(), slug=slug)
    form = AddToCartForm(request.POST)
    if not form.is_valid():
        context = {"product": product, "form": form, "page_address": product.get_absolute_url()}
        return render(request, "orders/product.html", context)
    with Cart(request.session).opened() as cart:
        already = cart.quantity_of(product)
        if not already and cart.is_full:
            words = _("The cart is full: an order can hold %(most)d different products.")
            messages.error(request, words % {"most": MOST_PRODUCTS})
        else:
            _set(request, cart, product, already + form.cleaned_data["quantity"])
    return redirect("orders:cart")


@require_POST
def update(request: HttpRequest, product_id: int) -> HttpResponse:
    """Change the number of pieces of a product in the cart; 0, or the button "Remove", removes it."""
    product = get_object_or_404(Product, pk=product_id)
    form = CartLineForm({"quantity": "0"} if "remove" in request.POST else request.POST)
    if not form.is_valid():
        return _render(request, wrong={product.pk: form})
    with Cart(request.session).opened() as cart:
        _set(request, cart, product, form.cleaned_data["quantity"])
    return redirect("orders:cart")


def _set(request: HttpRequest, cart: OpenCart, product: Product, quantity: int) -> None:
    """Set the quantity, within what can be ordered, and tell the shopper what was done."""
    possible = min(quantity, product.stock if product.active else 0, MOST_PIECES)
    cart.set(product, possible)
    facts = {"product": product.translated_name, "left": product.stock, "most": MOST_PIECES, "count": possible}
    if quantity and not possible:
        messages.error(request, _("%(product)s is sold out.") % facts)
    elif possible < quantity and possible == product.stock:
        words = _("%(product)s: only %(left)d left, so your cart holds %(count)d.")
        messages.warning(request, words % facts)
    elif possible < quantity:
        words = _("%(product)s: %(most)d is the most for one order, so your cart holds %(count)d.")
        messages.warning(request, words % facts)
    elif possible:
        messages.success(request, _("%(product)s: %(count)d in your cart.") % facts)
    else:
        messages.success(request, _("%(product)s is no longer in your cart.") % facts)


def _render(request: HttpRequest, wrong: dict[int, CartLineForm] | None = None) -> HttpResponse:
    lines = Cart(request.session).contents().lines
    rows = [(line, (wrong or {}).get(line.product.pk) or _form(line)) for line in lines]
    context = {
        "rows": rows,
        "subtotal": sum(line.amount for line in lines),
        "can_check_out": any(line.quantity for line in lines),
        "page_address": reverse("orders:cart"),
    }
    return render(request, "orders/cart.html", context)


def _form(line: CartLine) -> CartLineForm:
    return CartLineForm(initial={"quantity": line.quantity}, auto_id=f"id_%s_{line.product.pk}")
