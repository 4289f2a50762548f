"""Where a request comes from, as far as that can be known."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from django.conf import settings
from django.http import HttpRequest


def address_of(request: HttpRequest) -> str:
    """Return the visitor's address, by which tries are counted; of IPv6 the network, which is one household's.

    Each of our `PROXIES` adds the address that it saw to the right end of X-Forwarded-For. What stands left of those
    the visitor may have written, and it is not looked at.
    """
    found = str(request.META.get("REMOTE_ADDR", ""))
    if settings.PROXIES:
        forwarded = [each.strip() for each in request.headers.get("X-Forwarded-For", "").split(",") if each.strip()]
        if forwarded:
            found = forwarded[-min(settings.PROXIES, len(forwarded))]
    return _network_of(found)


def _network_of(text: str) -> str:
    try:
        address = ip_address(_without_port(text))
    except ValueError:
        return text[:60]
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((int(address), 64), strict=False))


def _without_port(text: str) -> str:
    # As some proxies write it: 203.0.113.9:4711, [2001:db8::1]:4711.
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
