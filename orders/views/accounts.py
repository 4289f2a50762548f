"""Signing up. Signing in and out are Django's own views."""

from django.contrib.auth import login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods

from orders.forms import SignUpForm
from orders.models import Order
from orders.visitors import visitor


@sensitive_post_parameters("password1", "password2")
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def sign_up(request: HttpRequest) -> HttpResponse:
    """Make an account; orders that this browser placed as a guest become its own."""
    if request.user.is_authenticated:
        return redirect("orders:mine")
    form = SignUpForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        user = form.save()
        if key := visitor(request)["visitor_key"]:
            Order.objects.filter(visitor_key=key, user=None).update(user=user)
        login(request, user)
        return redirect("orders:mine")
    return render(request, "orders/sign_up.html", {"form": form})
