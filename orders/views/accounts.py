"""Signing up and signing in. Signing out is Django's own view."""

from __future__ import annotations

from django.contrib.auth import login
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.models import User
from django.contrib.auth.views import LoginView
from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods

from orders import limits
from orders.forms import SignUpForm
from orders.limits import Limit, TooManyTries
from orders.models import Order
from orders.sign_in import SignInForm
from orders.views.errors import too_many
from orders.visitors import address_of, visitor

#: Accounts made and names refused. The page tells which names exist, as it must where people choose names: so it tells
#: only a few.
SIGN_UPS_PER_ADDRESS = Limit(20)


class SignInView(LoginView):
    """Sign in. Orders that this browser placed as a guest become the account's."""

    template_name = "orders/sign_in.html"
    authentication_form = SignInForm
    redirect_authenticated_user = True

    def form_valid(self, form: AuthenticationForm) -> HttpResponse:
        _give_guest_orders_to(form.get_user(), self.request)
        return super().form_valid(form)

    def form_invalid(self, form: AuthenticationForm) -> HttpResponse:
        response = super().form_invalid(form)
        if isinstance(form, SignInForm) and form.wait:
            return too_many(response, form.wait)
        return response


@sensitive_post_parameters("password1", "password2")
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def sign_up(request: HttpRequest) -> HttpResponse:
    """Create an account. Orders that this browser placed as a guest become the account's."""
    if request.user.is_authenticated:
        return redirect("orders:mine")
    form = SignUpForm(request.POST or None)
    if request.method == "POST":
        try:
            # Before the form is checked, which tells whether a name is taken.
            limits.count({f"sign-up:{address_of(request)}": SIGN_UPS_PER_ADDRESS})
        except TooManyTries as refusal:
            page = render(request, "orders/sign_up.html", {"form": SignUpForm(), "refused": refusal.in_words})
            return too_many(page, refusal.wait)
    if request.method == "POST" and form.is_valid():
        try:
            with transaction.atomic():
                user = form.save()
        except IntegrityError:
            # Another request took the name after the form was checked.
            form.add_error("username", User._meta.get_field("username").error_messages["unique"])
        else:
            _give_guest_orders_to(user, request)
            login(request, user)
            return redirect("orders:mine")
    return render(request, "orders/sign_up.html", {"form": form})


def _give_guest_orders_to(user: User, request: HttpRequest) -> None:
    if key := visitor(request)["visitor_key"]:
        Order.objects.filter(visitor_key=key, user=None).update(user=user)
