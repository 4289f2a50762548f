"""Answers to probes, before any other middleware."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from django.http.response import HttpResponseBase

from messaging.monitoring import health


def probes(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Callable[[HttpRequest], HttpResponseBase]:
    """Answer `/healthz` (this process runs) and `/readyz` (it can serve requests, else 503), in JSON, uncached.

    Put it first in MIDDLEWARE. Probes use an IP address, without HTTPS and without a known host: other middleware would
    redirect or refuse them, look up a session, and log each one.
    """

    def answer(request: HttpRequest) -> HttpResponseBase:
        if request.path_info not in _PROBES:
            return get_response(request)
        if request.method not in {"GET", "HEAD"}:
            return HttpResponseNotAllowed(["GET", "HEAD"])
        response = _PROBES[request.path_info]()
        response.headers["Cache-Control"] = "no-store"
        return response

    return answer


def _healthz() -> HttpResponse:
    return JsonResponse({"status": "ok"})


def _readyz() -> HttpResponse:
    reason = health.unready()
    if reason:
        return JsonResponse({"status": "unready", "reason": reason}, status=503)
    return JsonResponse({"status": "ready"})


_PROBES: dict[str, Callable[[], HttpResponse]] = {"/healthz": _healthz, "/readyz": _readyz}
