"""The catalogue and the products."""

from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_safe

from orders.forms import AddToCartForm, SearchForm
from orders.models import Product

PER_PAGE = 24


@require_safe
def catalogue(request: HttpRequest) -> HttpResponse:
    """Show the products; the address holds search and order."""
    products = Product.objects.on_sale()
    form = SearchForm(request.GET)
    if form.is_valid():
        words = form.cleaned_data["q"]
        if words:
            products = products.having(words)
        products = form.sort_products(products)
    page = Paginator(products, PER_PAGE).get_page(request.GET.get("page"))
    return render(request, "orders/catalogue.html", {"page": page, "form": form})


@require_safe
def product(request: HttpRequest, slug: str) -> HttpResponse:
    """Show one product."""
    found = get_object_or_404(Product.objects.on_sale(), slug=slug)
    form = AddToCartForm(initial={"quantity": 1})
    return render(request, "orders/product.html", {"product": found, "form": form})
