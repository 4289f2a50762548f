"""Addresses of the admin's pages."""

from __future__ import annotations

from typing import Any

from django.urls import NoReverseMatch, get_resolver, reverse


def admin_url(name: str, *arguments: Any) -> str:
    """Return the address of a page of the admin, such as "messaging_effect_change".

    A project may have several sites, and none that is called "admin": then the first that has the page is taken.
    Raises NoReverseMatch where no site has it.
    """
    try:
        return reverse(f"admin:{name}", args=arguments)
    except NoReverseMatch:
        for site in get_resolver().app_dict.get("admin", []):
            try:
                return reverse(f"{site}:{name}", args=arguments)
            except NoReverseMatch:
                continue
        raise
