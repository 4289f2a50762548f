"""Addresses of the admin's lists that hold a NUL: PostgreSQL takes none, and Django's filters pass it on."""

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

pytestmark = pytest.mark.django_db

admin.autodiscover()
LISTS = [(model, each) for model, each in admin.site._registry.items() if model._meta.app_label != "auth"]


def parameters(of: admin.ModelAdmin) -> list[str]:  # type: ignore[type-arg]
    """The search box, and each filter beside the list."""
    named = ["q"]
    for each in of.list_filter:
        if isinstance(each, str):
            named += [f"{each}__exact", each]
        elif isinstance(each, type) and issubclass(each, admin.SimpleListFilter):
            named.append(str(each.parameter_name))
    return named


@pytest.mark.parametrize(("model", "of"), LISTS, ids=lambda each: getattr(each, "__name__", ""))
def test_a_nul_in_the_search_box_or_a_filter_is_no_error_of_ours(model: type, of: admin.ModelAdmin) -> None:  # type: ignore[type-arg]
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    address = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")  # type: ignore[attr-defined]
    for query in ("q=x&q=%00", *(f"{name}=a%00b" for name in parameters(of))):
        assert client.get(f"{address}?{query}", follow=True).status_code == 200, query
